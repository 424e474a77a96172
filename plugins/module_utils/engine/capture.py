# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What is exported of a VM: a snapshot that is taken for it and removed, one that was made before, or the VM itself."""
from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, Optional, Union
from uuid import uuid4

from ..xapi import moments, snapshots, tracking
from ..xapi.client import PoolClient
from ..xapi.errors import NotFound, PoolError, XapiError
from ..xapi.moments import Moment, Wish
from ..xapi.power import HALTED, SUSPENDED, Hold, give_back, hold, stop
from .progress import Progress

PHASES = {"offline": "shut down, snapshot, start", "live_memory": "snapshot with memory"}
SNAPSHOT_LIFE = timedelta(days=1)  # hosts end export tasks after a day: nobody comes back later


@dataclass(frozen=True)
class Subject:
    """A VM and how it is to be exported.

    ``vm``: its record, as ``inventory.find_vm`` gives it. ``snapshot_uuid``: a snapshot made before, which is left in
    place unless changes are tracked and a run of ours made it; ``frozen``: what a freeze in the guest around it came
    to. ``tool``: name and version of who asks. ``scope``: id of the repository whose lease is held, or empty.
    """

    vm: dict[str, Any]
    wish: Wish = field(default_factory=Wish)
    snapshot_uuid: Optional[str] = None
    frozen: Optional[Moment] = None
    tool: dict[str, str] = field(default_factory=dict)
    scope: str = ""


@dataclass
class Source:
    """What to export: the ``ref`` of a halted or suspended VM or snapshot, and what its moment is worth.

    ``power_state``: what the VM was before. ``tracked``: the log of changed blocks of its disks is to be kept, for the
    next backup; set by who knows that they have one, and of no effect where the snapshot is not ours.
    """

    ref: str
    moment: Moment
    power_state: str
    tracked: bool = False
    taken: Optional[snapshots.Taken] = None  # where it is a snapshot of this run

    @property
    def memory(self) -> bool:
        """Whether saved memory belongs to it."""
        return self.moment.consistency == "memory"


@contextmanager
def source_of(
    client: PoolClient, subject: Subject, point: str, progress: Progress, warnings: list[str]
) -> Iterator[Source]:
    """Bring the VM to its moment as wished; when the context ends, the pool is what it was before.

    A snapshot that cannot be removed is a warning when all else went well: the next run of the VM removes it.
    Raises PoolError.
    """
    if subject.snapshot_uuid:
        source = _named_snapshot(client, subject)
        yield source
        if source.tracked:
            progress.phase("clean up")
            snapshots.dedicate(client, source.ref, point)
            _remove_snapshot(client, source.ref, warnings, True)
        return
    planned = moments.plan(client, subject.vm, subject.wish)
    warnings += planned.warnings
    if planned.method == "offline" and subject.wish.downtime == "backup":
        with _vm_itself(client, subject, progress) as source:
            yield source
        return
    progress.phase(PHASES.get(planned.method, "snapshot"))
    expiry = (datetime.now(timezone.utc) + SNAPSHOT_LIFE).strftime("%Y-%m-%dT%H:%M:%SZ")
    mark = snapshots.Mark(subject.tool.get("name", "guestark"), str(uuid4()), point, expiry)
    taken, moment = moments.take(client, planned, "guestark %s" % point, mark, subject.scope)
    source = Source(taken.ref, moment, subject.vm["power_state"], taken=taken)
    try:
        yield source
    except BaseException:
        _remove_snapshot(client, taken, warnings)
        raise
    progress.phase("clean up")
    _remove_snapshot(client, taken, warnings, source.tracked)


def begin_tracking(client: PoolClient, subject: Subject, wanted: bool) -> Optional[str]:
    """Have the pool track what changes on the VM's disks; returns why it does not, empty when it does, None: not wanted."""
    if not wanted:
        return None
    if (subject.wish.method, subject.wish.downtime) == ("offline", "backup"):
        return "there is no snapshot of this run of which a log could be kept"
    try:
        if subject.snapshot_uuid and not _is_lent(client, subject.snapshot_uuid):
            return "the snapshot is to stay, so that its log cannot be kept alone"
        tracking.track(client, subject.vm)
    except PoolError as error:
        return str(error).rstrip(".")
    return ""


def heal(client: PoolClient, subject: Subject, warnings: list[str]) -> Subject:
    """Undo what earlier runs did to the VM and did not undo: holding the lease, they are dead.

    Returns the subject with the VM as it is then. Raises GuestNotBack.
    """
    vm = {**client.call("VM.get_record", subject.vm["ref"]), "ref": subject.vm["ref"]}
    held = Hold.read(vm)
    if held and held.scope == subject.scope and give_back(client, vm["ref"]):
        if vm["power_state"] != held.power_state:
            warnings.append("An earlier run had left it %s: it was brought back." % vm["power_state"].lower())
        vm = {**client.call("VM.get_record", vm["ref"]), "ref": vm["ref"]}
    for leftover in snapshots.leftovers(client, vm["uuid"]):
        if not leftover.mark.point or leftover.uuid == subject.snapshot_uuid:
            continue
        try:
            snapshots.remove_leftover(client, leftover)
        except PoolError as error:
            warnings.append("What an earlier run left could not be removed: %s: %s" % (leftover.name, error))
    return replace(subject, vm=vm)


@contextmanager
def _vm_itself(client: PoolClient, subject: Subject, progress: Progress) -> Iterator[Source]:
    """The VM, shut down as long as it is exported."""
    vm, wish = subject.vm, subject.wish
    progress.phase("shut down")
    hold(client, vm, "offline", subject.scope)
    began = time.monotonic()
    try:
        clean = stop(client, vm, wish.shutdown_timeout, wish.hard_shutdown)
        moment = Moment("offline", "cold" if clean else "crash")
        source = Source(vm["ref"], moments.judged(wish, moment, vm["name_label"], vm["power_state"]), vm["power_state"])
        yield source
    finally:
        progress.phase("start")
        give_back(client, vm["ref"])
    source.moment = replace(source.moment, down_seconds=round(time.monotonic() - began, 3))


def _is_lent(client: PoolClient, uuid: str) -> bool:
    """Whether a snapshot was made for a run, which removes it, and not by somebody who wants to keep it."""
    mark = snapshots.Mark.read(client.call("VM.get_record", client.call("VM.get_by_uuid", uuid)))
    return bool(mark and mark.expiry)


def _named_snapshot(client: PoolClient, subject: Subject) -> Source:
    vm, ref = subject.vm, str(client.call("VM.get_by_uuid", subject.snapshot_uuid))
    record = client.call("VM.get_record", ref)
    if record["snapshot_of"] != vm["ref"]:
        raise NotFound(
            "VM %s has no snapshot %s." % (vm["name_label"], subject.snapshot_uuid), "Name one of its own snapshots."
        )
    before = str(record["snapshot_info"].get("power-state-at-snapshot", record["power_state"]))
    moment = Moment.read(record)
    if moment is None:
        grade = "memory" if record["power_state"] == SUSPENDED else "cold" if before == HALTED else "crash"
        moment = Moment("live_memory" if grade == "memory" else "normal", grade)
    if subject.frozen:
        moment = replace(subject.frozen, excluded=moment.excluded)
    return Source(ref, moments.judged(subject.wish, moment, vm["name_label"], before), before)


def _remove_snapshot(
    client: PoolClient, snapshot: Union[str, snapshots.Taken], warnings: list[str], keep_logs: bool = False
) -> None:
    def keep(vdi: str) -> bool:
        try:
            tracking.keep_log(client, vdi)
        except XapiError as error:
            if error.code != "VDI_NO_CBT_METADATA":  # the memory of a checkpoint has none
                warnings.append("The next backup has to read everything: %s" % error)
            return False
        return True

    try:
        snapshots.remove(client, snapshot, keep if keep_logs else None)
    except PoolError as error:
        warnings.append("The snapshot could not be removed, the VM's next run will try again: %s" % error)
