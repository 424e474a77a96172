# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Removes what runs left behind that were killed: objects and temporary files that belong to no committed point."""
from __future__ import annotations

from contextlib import suppress
from typing import Optional

from . import layout
from .errors import ObjectMissing, PointDamaged, Retained
from .lease import Lease
from .record import parse
from .store import Store

# after this long, in seconds, even a run that may be alive loses what it wrote; its commit will then refuse
ABANDONED = 24 * 3600.0


def sweep(store: Store, lease: Lease) -> list[str]:
    """Remove the garbage of the lease's VM and return the names.

    It goes at once when the run that wrote it is known to be dead (``lease.certain``), else when the store's own clock
    says that it is more than a day old; so do temporary files that belong to no VM. To be called by the lease's holder
    before it begins a point.
    """
    removed = []
    oldest = store.now() - ABANDONED
    garbage = find_garbage(store, lease.vm_uuid)
    unowned = [name for name in store.list(layout.TEMPORARY) if not name.startswith(_temporaries("vm/", "lease/"))]
    for name in garbage + unowned:
        with suppress(ObjectMissing, Retained):  # what is retained stays
            if (lease.certain and name in garbage) or store.modified(name) < oldest:
                store.remove(name)
                removed.append(name)
    return removed


def find_garbage(store: Store, vm_uuid: str) -> list[str]:
    """Names of a VM's objects that no committed point needs, those of runs that are under way among them."""
    folder = layout.vm_folder(vm_uuid)
    # objects are listed before records: what is committed in between is in the second list
    objects = [name for part in ("pt/", "meta/", "idx/", "seg/") for name in store.list(folder + part)]
    needed = _needed(store, folder)
    garbage = [name for name in objects if layout.point_in(name) not in needed]
    ours = _temporaries(folder, layout.lease_name(vm_uuid))
    return garbage + [name for name in store.list(layout.TEMPORARY) if name.startswith(ours)]


def _needed(store: Store, folder: str) -> set[Optional[layout.PointId]]:
    """Points that are committed, or whose objects a committed point lists; None stands for names that are no object's.

    What cannot be read as a record may list anything: then every point there is any trace of is needed.
    """
    needed: set[Optional[layout.PointId]] = {None}
    for point in layout.committed_points(store.list(folder + "pt/")):
        needed.add(point)
        with suppress(ObjectMissing):
            try:
                listed = parse(store.read(folder + layout.record_name(point))).objects
                needed.update(layout.point_in(name) for _digest, name in listed)
            except PointDamaged:
                objects = (name for part in ("idx/", "seg/") for name in store.list(folder + part))
                needed.update(layout.point_in(name) for name in objects)
    return needed


def _temporaries(*names: str) -> tuple[str, ...]:
    """How the names of temporary files begin for objects whose names begin like this."""
    return tuple(layout.TEMPORARY + name.replace("/", ",") for name in names)
