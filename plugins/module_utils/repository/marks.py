# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Marks and holds: what is about to be pruned, and what must not be.

A prune run writes one mark a VM and removes what it names only later. Whoever writes a point that rests on older
objects looks for marks before and after its commit: so neither waits for the other, and nothing is lost unseen.
"""
from __future__ import annotations

import json
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Iterator

from .errors import ObjectMissing, RepositoryError
from .layout import HOLDS, MARK, MARKS, SIGNATURE, PointId, hold_name, mark_name, parse_object, vm_folder
from .record import PointRecord
from .store import Store

RESTORE = "restore-"  # how the reasons of holds begin that a running restore made


@dataclass(frozen=True)
class Mark:
    """What a run means to remove: ``points``, and ``objects``, which none of the points it ``kept`` needs.

    Names of objects are relative to the VM's folder.
    """

    run: str
    points: tuple[PointId, ...]
    objects: tuple[str, ...]
    kept: tuple[PointId, ...]


def write_mark(store: Store, vm_uuid: str, mark: Mark) -> None:
    """Announce a removal."""
    text = {"points": mark.points, "objects": mark.objects, "kept": mark.kept}
    store.put(vm_folder(vm_uuid) + mark_name(mark.run), json.dumps(text, indent=1).encode("ascii") + b"\n")


def read_marks(store: Store, vm_uuid: str) -> list[Mark]:
    """All marks of a VM. RepositoryError for one that is malformed: it could mean anything."""
    marks = []
    for name in store.list(vm_folder(vm_uuid) + MARKS):
        if name.endswith(MARK):
            with suppress(ObjectMissing):  # its run is done with it
                marks.append(_parse(name, store.read(name)))
    return marks


def marked_objects(store: Store, vm_uuid: str) -> set[str]:
    """Names, relative to the VM's folder, of all objects that are about to be removed."""
    return {name for mark in read_marks(store, vm_uuid) for name in mark.objects}


def hold(store: Store, vm_uuid: str, point: PointId, reason: str) -> None:
    """Keep a point from being pruned. ObjectExists when it is held for that reason already."""
    store.put(vm_folder(vm_uuid) + hold_name(point, reason), b"")


def release(store: Store, vm_uuid: str, point: PointId, reason: str) -> None:
    """End a hold, if there is one."""
    store.remove(vm_folder(vm_uuid) + hold_name(point, reason))


def read_holds(store: Store, vm_uuid: str) -> dict[PointId, list[str]]:
    """The held points of a VM and the reasons; names that are no holds are passed over."""
    found: dict[PointId, list[str]] = {}
    folder = vm_folder(vm_uuid) + HOLDS
    for name in store.list(folder):
        point, _dot, reason = name[len(folder):].partition(".")
        with suppress(ValueError):
            found.setdefault(PointId(point), []).append(reason)
    return found


@contextmanager
def restoring(store: Store, record: PointRecord) -> Iterator[None]:
    """Hold a point while it is restored. A repository that cannot be written is no hindrance: nor is it pruned from here."""
    reason = RESTORE + secrets.token_hex(6)
    with suppress(RepositoryError):
        hold(store, record.vm_uuid, record.point, reason)
    try:
        yield
    finally:
        with suppress(RepositoryError):  # a later prune run forgets it
            release(store, record.vm_uuid, record.point, reason)


def _parse(name: str, text: bytes) -> Mark:
    try:
        content: dict[str, Any] = json.loads(text)
        points, kept = (tuple(PointId(one) for one in content[part]) for part in ("points", "kept"))
        for one in content["objects"]:
            check_name(one)
        run = name.rpartition("/")[2][: -len(MARK)]
        return Mark(run, points, tuple(content["objects"]), kept)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            "%s is no mark of a prune run." % name, "Look at who wrote it; remove it if it is none of yours."
        ) from error


def check_name(name: str) -> None:
    """ValueError for what no mark names: anything but data, indexes, metadata and signatures."""
    if name.startswith("pt/") and name.endswith(SIGNATURE):
        PointId(name[len("pt/"):-len(SIGNATURE)])
    else:
        parse_object(name)
