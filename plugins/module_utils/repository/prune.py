# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Removes restore points in two phases, while backups go on: first a mark, after the grace the objects.

No clock of another machine and no lock decides what is right: a backup that rests on what is marked sees the mark before
or after its commit and does not report success. Objects that a committed point lists are never removed.
"""
from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable, Optional, Sequence

from ..age.sshsig import AllowedSigners
from . import layout
from .errors import ObjectMissing, RepositoryError, Retained
from .layout import PointId
from .marks import Mark, check_name, read_marks, write_mark
from .record import PointRecord
from .repository import Repository
from .sweep import find_garbage

Doomed = Callable[[Sequence[PointRecord]], set[PointId]]

ABANDONED = 7 * 24 * 3600.0  # seconds after which what no point lists is nobody's work any more
_ATTEMPTS = 3  # at a listing that agrees with itself, while points come and go


@dataclass
class Pruned:
    """What a run did to a VM's points.

    ``marked``: points that go once the grace is over. ``removed``: points that are gone, with ``removed_objects`` and
    ``removed_bytes`` of the store. ``retained``: names of objects that the store does not let go yet.
    """

    marked: list[PointId] = field(default_factory=list)
    removed: list[PointId] = field(default_factory=list)
    removed_objects: int = 0
    removed_bytes: int = 0
    retained: list[str] = field(default_factory=list)


def list_points(repository: Repository, vm_uuid: str, signers: Optional[AllowedSigners]) -> list[PointRecord]:
    """The points of a VM, as ``Repository.points``, once the store's listing proved to leave out nothing.

    A listing that leaves out a point makes objects look unneeded. Raises RepositoryError when something that is there
    was not listed, or when a commit record cannot be read: it may need any object.
    """
    for _attempt in range(_ATTEMPTS):
        records = repository.points(vm_uuid, signers)
        unlisted = _unlisted(repository, vm_uuid, records)
        if not unlisted:
            break
    else:
        raise RepositoryError(
            "The store does not list %s of VM %s, which is there." % (unlisted, vm_uuid),
            "Nothing was pruned. Prune again when the store's listings are complete.",
        )
    unreadable = [one for one in records if one.kind == "unknown"]
    if unreadable:
        raise RepositoryError(
            "The commit record of point %s of VM %s cannot be read (%s): it may need any object."
            % (unreadable[0].point, vm_uuid, unreadable[0].problem),
            "Nothing was pruned. Bring the record back from another copy of the repository, or remove it by hand.",
        )
    return records


def plan_prune(repository: Repository, vm_uuid: str, records: Sequence[PointRecord], doomed: Doomed) -> Pruned:
    """What ``prune`` would mark now, and nothing touched."""
    announced = {point for mark in read_marks(repository.store, vm_uuid) for point in mark.points}
    return Pruned(marked=sorted(doomed(records) - announced, key=lambda one: one.seq))


def prune(
    repository: Repository, vm_uuid: str, signers: Optional[AllowedSigners], doomed: Doomed, grace: float
) -> Pruned:
    """Mark the points that ``doomed`` chooses, and remove what was marked ``grace`` seconds ago or earlier.

    ``doomed`` is asked again before anything is removed: a mark alone condemns nothing. Raises RepositoryError.
    """
    records = list_points(repository, vm_uuid, signers)
    done = plan_prune(repository, vm_uuid, records, doomed)
    garbage = _abandoned(repository, vm_uuid)
    for name in [one for one in garbage if not _has_form(one)]:  # no record can list it: nobody needs to be warned
        garbage.remove(name)
        _remove(repository, layout.vm_folder(vm_uuid) + name, done)
    announced = {name for mark in read_marks(repository.store, vm_uuid) for name in mark.objects}
    if done.marked or not announced.issuperset(garbage):
        _mark(repository, vm_uuid, records, done.marked, garbage)
    now = repository.store.now()
    for mark in read_marks(repository.store, vm_uuid):
        name = layout.vm_folder(vm_uuid) + layout.mark_name(mark.run)
        if now - repository.store.modified(name) >= grace:
            _carry_out(repository, vm_uuid, signers, mark, doomed, done)
            if not done.retained:
                repository.store.remove(name)
    return done


def _mark(
    repository: Repository, vm_uuid: str, records: Sequence[PointRecord], points: Sequence[PointId], garbage: Sequence[str]
) -> None:
    kept = [one for one in records if one.point not in points]
    needed = {name for one in kept for _digest, name in one.objects}
    listed = [name for one in records if one.point in points for _digest, name in one.objects]
    objects = [*(name for name in dict.fromkeys(listed) if name not in needed), *garbage]
    run = "%s-%s" % (datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ"), secrets.token_hex(6))
    write_mark(repository.store, vm_uuid, Mark(run, tuple(points), tuple(objects), tuple(one.point for one in kept)))


def _carry_out(
    repository: Repository, vm_uuid: str, signers: Optional[AllowedSigners], mark: Mark, doomed: Doomed, done: Pruned
) -> None:
    store, folder = repository.store, layout.vm_folder(vm_uuid)
    records = list_points(repository, vm_uuid, signers)
    _check_kept(repository, vm_uuid, mark, records)
    going = doomed(records).intersection(mark.points)
    remaining = [one for one in records if one.point not in going]
    for one in records:
        if one.point in going:
            if _remove(repository, folder + layout.record_name(one.point), done):
                done.removed.append(one.point)
            else:
                remaining.append(one)  # still a point: it needs what it lists
    needed = {name for one in remaining for _digest, name in one.objects}
    needed |= {layout.record_name(one.point) + ".sig" for one in remaining}
    signatures = [layout.record_name(point) + ".sig" for point in mark.points]
    for name in [*signatures, *mark.objects]:
        if name not in needed and store.exists(folder + name):
            _remove(repository, folder + name, done)


def _remove(repository: Repository, name: str, done: Pruned) -> bool:
    """Remove an object and count it; False when the store does not let it go yet."""
    try:
        size = repository.store.size(name)
        repository.store.remove(name)
    except ObjectMissing:
        return True  # another prune run was here
    except Retained:
        done.retained.append(name)
        return False
    done.removed_objects += 1
    done.removed_bytes += size
    return True


def _abandoned(repository: Repository, vm_uuid: str) -> list[str]:
    """Objects, relative to the VM's folder, of runs that died long ago."""
    folder, oldest = layout.vm_folder(vm_uuid), repository.store.now() - ABANDONED
    names = [name for name in find_garbage(repository.store, vm_uuid) if name.startswith(folder)]
    found = []
    for name in names:
        try:
            if not name.endswith(layout.RECORD) and repository.store.modified(name) < oldest:
                found.append(name[len(folder):])
        except ObjectMissing:
            continue  # its run is alive after all, and gave up
    return found


def _has_form(name: str) -> bool:
    """Whether a name is an object's, and not one that a copying tool gave to a file it did not finish."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def _unlisted(repository: Repository, vm_uuid: str, records: Sequence[PointRecord]) -> str:
    """The name of something that is there and was not listed, or nothing.

    Points leave traces: the names of their indexes and metadata, and what younger points say of parent and layers.
    """
    store, folder = repository.store, layout.vm_folder(vm_uuid)
    listed = {one.point for one in records}
    names = [name for part in ("idx/", "meta/") for name in store.list(folder + part)]
    traces = {layout.point_in(name) for name in names} | {one.parent for one in records}
    traces |= {layout.point_in(name) for one in records for _digest, name in one.objects}
    candidates = [layout.record_name(point) for point in traces - listed if point]
    candidates += [name for one in records for name in one.unlisted]
    return next((name for name in candidates if store.exists(folder + name)), "")


def _check_kept(repository: Repository, vm_uuid: str, mark: Mark, records: Sequence[PointRecord]) -> None:
    """Refuse to go on when a point that the mark's run saw is there and was not listed this time."""
    listed = {one.point for one in records}
    for point in mark.kept:
        if point not in listed and repository.store.exists(layout.vm_folder(vm_uuid) + layout.record_name(point)):
            raise RepositoryError(
                "The store does not list point %s of VM %s, which is there." % (point, vm_uuid),
                "Nothing was removed. Prune again when the store's listings are complete.",
            )
