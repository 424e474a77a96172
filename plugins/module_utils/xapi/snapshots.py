# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Snapshots that are marked as ours when made, so that what a dead run left behind can be told from anything else."""
from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Callable, Collection, Iterable, Mapping, Optional, Union

from .client import PoolClient, pauses
from .errors import OutcomeUnknown, PoolError, XapiError
from .tasks import call_async

PREFIX = "guestark:"
WIRE_TIME = "%Y%m%dT%H:%M:%SZ"
MARK = PREFIX + "mark"
TAKING = PREFIX + "taking"  # on a VM whose snapshot is being taken: the snapshot inherits it before it can be marked
METADATA = "cbt_metadata"  # type of a snapshot's disk of which only the log of changed blocks is left
KEPT_SECONDS = 31 * 24 * 3600.0  # how long such a log is left alone: the next backup replaces it
BUSY_SECONDS = 60.0  # hosts let go of a disk some time after its export has ended
BUSY = frozenset(("VDI_IN_USE", "OTHER_OPERATION_IN_PROGRESS", "SR_BACKEND_FAILURE_24", "SR_BACKEND_FAILURE_46"))


@dataclass(frozen=True)
class Mark:
    """What is written in other_config of all we make: by which tool and run, for which point, and until when.

    ``expiry``: RFC 3339, after which nobody will come back for the object.
    """

    tool: str
    run: str
    point: str
    expiry: str

    def text(self, uuid: str, vm_uuid: str) -> str:
        """The mark as an object with this UUID carries it: a snapshot of the VM, or a disk of one."""
        return json.dumps({**asdict(self), "object": uuid, "vm": vm_uuid}, sort_keys=True)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Optional[Mark]:
        """The mark an object's record carries for itself, or None; one copied from another object is none."""
        found = _marked(record)
        return cls(*(str(found[name]) for name in ("tool", "run", "point", "expiry"))) if found else None

    def intention(self, name: str, vm_uuid: str) -> str:
        """What is noted on a VM before a snapshot called ``name`` is taken of it."""
        return json.dumps({"name": name, "vm": vm_uuid, "mark": asdict(self)}, sort_keys=True)

    @classmethod
    def inherited(cls, record: Mapping[str, Any]) -> Optional[tuple[Mark, str]]:
        """The mark a snapshot was to get, and its VM's UUID, where the run died in between; else None.

        A snapshot that somebody else took meanwhile has inherited the note too, but not the name in it.
        """
        try:
            noted = json.loads(record["other_config"].get(TAKING, "null"))
            if record["is_a_snapshot"] and noted and noted["name"] == record["name_label"]:
                return cls(**noted["mark"]), str(noted["vm"])
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # not what we write
        return None


@dataclass(frozen=True)
class Taken:
    """A snapshot of ours as it was taken: its ref and record, and the records of its disks and memory image by ref."""

    ref: str
    record: dict[str, Any]
    disks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Leftover:
    """A marked snapshot VM (``kind`` VM), or a marked disk (VDI) whose snapshot VM is gone."""

    kind: str
    ref: str
    uuid: str
    name: str
    vm_uuid: str
    mark: Mark


def take(
    client: PoolClient, vm: Mapping[str, Any], name: str, mark: Mark, ignore_vdis: Iterable[str] = (), call: str = "VM.snapshot"
) -> Taken:
    """Snapshot a VM's disks as ``name``, and mark the snapshot and its disks; ``vm``: its record with its ``ref``.

    ``ignore_vdis``: refs of disks to leave out (from release 8.3 on). ``call``: VM.snapshot, VM.checkpoint or
    VM.snapshot_with_quiesce. Raises XapiError, OutcomeUnknown; then no
    snapshot of that name stays, as far as the pool can still be reached.
    """
    vm_ref, subject = vm["ref"], "VM %s" % vm["name_label"]
    ignored = list(ignore_vdis)
    arguments = [vm_ref, name, ignored] if ignored else [vm_ref, name]  # 8.2 takes no third parameter
    _note(client, "VM", vm_ref, TAKING, mark.intention(name, vm["uuid"]))
    try:
        ref = str(call_async(client, call, *arguments, subject=subject))
    except (OutcomeUnknown, XapiError):  # a checkpoint may fail when its snapshot is there already
        _remove_new(client, vm_ref, name, set(vm["snapshots"]))
        raise
    finally:
        with suppress(PoolError):  # it means nothing once the snapshot is there or not, and the next one replaces it
            client.call("VM.remove_from_other_config", vm_ref, TAKING, safe=True)
    try:
        record = client.call("VM.get_record", ref)
        disks = {vdi: client.call("VDI.get_record", vdi) for vdi in _disks(client, record)}
        for vdi, disk in disks.items():
            _note(client, "VDI", vdi, MARK, mark.text(disk["uuid"], vm["uuid"]))
        # it comes last: a snapshot that is marked has marked disks
        _note(client, "VM", ref, MARK, mark.text(record["uuid"], vm["uuid"]))
    except BaseException:
        with suppress(PoolError):
            remove(client, ref)
        raise
    return Taken(ref, record, disks)


def remove(client: PoolClient, snapshot: Union[str, Taken], keep: Optional[Callable[[str], bool]] = None) -> None:
    """Destroy a snapshot, or any halted VM, and its disks; what is gone already is no error. Its ref is enough.

    A disk that another VM uses stays. A disk that is still busy after an export is tried for a minute. A disk of which
    ``keep`` says so is not destroyed. Raises XapiError naming what stays, after everything else went.
    """
    try:
        if isinstance(snapshot, Taken):
            ref, record, disks = snapshot.ref, snapshot.record, list(snapshot.disks)
        else:
            ref, record = snapshot, client.call("VM.get_record", snapshot)
            disks = _disks(client, record)
            _mark_disks(client, record, disks)
    except XapiError as error:
        if error.code == "HANDLE_INVALID":
            return
        raise
    disks = [vdi for vdi in disks if not _used_elsewhere(client, vdi, record["VBDs"])]
    name = record["name_label"]
    # the VM goes first: its VBDs would hold the disks
    _destroy(client, "VM", ref, "VM %s" % name)
    stays: list[XapiError] = []
    for vdi in disks:
        if keep and keep(vdi):
            continue
        try:
            _destroy(client, "VDI", vdi, "disk %s of %s" % (vdi, name))
        except XapiError as error:
            stays.append(error)
    if stays:
        raise stays[0]


def dedicate(client: PoolClient, ref: str, point: str) -> None:
    """Note on the disks of a snapshot of ours, which was made for no point yet, for which one it is. Raises XapiError."""
    for vdi in _disks(client, client.call("VM.get_record", ref)):
        record = client.call("VDI.get_record", vdi)
        mark = Mark.read(record)
        if mark:
            text = replace(mark, point=point).text(record["uuid"], owner(record))
            _note(client, "VDI", vdi, MARK, text)


def owner(record: Mapping[str, Any]) -> str:
    """UUID of the VM of which a marked object is a snapshot, or of whose snapshot it is a disk; empty without a mark."""
    return str(_marked(record).get("vm", ""))


def leftovers(client: PoolClient, wanted: Optional[str] = None) -> list[Leftover]:
    """Snapshots and disks that carry our mark, or were to get it, of one VM (its UUID) or of all."""
    found: list[Leftover] = []
    used: list[str] = []
    for ref, record in client.call("VM.get_all_records").items():
        mark = Mark.read(record)
        inherited = None if mark else Mark.inherited(record)
        if inherited:
            found.append(Leftover("VM", ref, record["uuid"], record["name_label"], inherited[1], inherited[0]))
        elif mark and record["is_a_snapshot"]:
            found.append(_leftover("VM", ref, record, mark))
        else:
            continue
        used += record["VBDs"]
    vbds = client.call("VBD.get_all_records") if used else {}
    covered = {vbds[vbd]["VDI"] for vbd in used if vbd in vbds}
    for ref, record in client.call("VDI.get_all_records").items():
        mark = Mark.read(record)
        if mark and record["is_a_snapshot"] and ref not in covered and not _in_use(record):
            found.append(_leftover("VDI", ref, record, mark))
    return [leftover for leftover in found if wanted in (None, leftover.vm_uuid)]


def remove_leftover(client: PoolClient, leftover: Leftover) -> None:
    """Destroy what leftovers() found."""
    if leftover.kind == "VM":
        remove(client, leftover.ref)
    else:
        _destroy(client, "VDI", leftover.ref, "disk %s" % leftover.name)


def _in_use(record: Mapping[str, Any]) -> bool:
    """Whether a disk is what the next backup compares with."""
    taken = datetime.strptime(str(record["snapshot_time"]), WIRE_TIME).replace(tzinfo=timezone.utc)
    return record["type"] == METADATA and (datetime.now(timezone.utc) - taken).total_seconds() < KEPT_SECONDS


def _leftover(kind: str, ref: str, record: Mapping[str, Any], mark: Mark) -> Leftover:
    return Leftover(kind, ref, record["uuid"], record["name_label"], owner(record), mark)


def _mark_disks(client: PoolClient, record: Mapping[str, Any], disks: Iterable[str]) -> None:
    """Mark the disks of a snapshot that was not yet: who dies when the VM is gone must leave them to be found."""
    inherited = None if Mark.read(record) else Mark.inherited(record)
    for vdi in disks if inherited else ():
        mark, vm_uuid = inherited  # type: ignore[misc]
        disk = client.call("VDI.get_record", vdi)
        if Mark.read(disk) is None:
            _note(client, "VDI", vdi, MARK, mark.text(disk["uuid"], vm_uuid))


def _marked(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an object's record says of our mark; empty for one copied from another object (clone, restore)."""
    try:
        found = json.loads(record["other_config"].get(MARK, "{}"))
        whole = found["object"] == record["uuid"] and {"tool", "run", "point", "expiry", "vm"} <= set(found)
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}  # not what we write
    return dict(found) if whole else {}


def _note(client: PoolClient, kind: str, ref: str, key: str, value: str) -> None:
    """Write a key of an object's other_config, in the place of one that it has inherited or that a dead run left."""
    try:
        client.call(kind + ".add_to_other_config", ref, key, value)
    except XapiError as error:
        if error.code != "MAP_DUPLICATE_KEY":
            raise
        client.call(kind + ".remove_from_other_config", ref, key, safe=True)
        client.call(kind + ".add_to_other_config", ref, key, value)


def _disks(client: PoolClient, record: Mapping[str, Any]) -> list[str]:
    """Refs of a VM's disks (no CDs) and of its memory image."""
    vbds = [client.call("VBD.get_record", vbd) for vbd in record["VBDs"]]
    disks = [record["suspend_VDI"], *(vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk" and not vbd["empty"])]
    return [vdi for vdi in disks if vdi and vdi != "OpaqueRef:NULL"]


def _used_elsewhere(client: PoolClient, vdi: str, own: Collection[str]) -> bool:
    """Whether a guest uses a disk by another VBD than its VM's own."""
    others = [vbd for vbd in _told(client, "VDI.get_VBDs", vdi) or () if vbd not in own]
    users = {_told(client, "VBD.get_VM", vbd) for vbd in others} - {None}
    return any(not client.call("VM.get_is_control_domain", user) for user in users)


def _told(client: PoolClient, method: str, ref: str) -> Any:
    """What a call says of an object, or None when it is gone: hosts let go of disks in their own time."""
    try:
        return client.call(method, ref)
    except XapiError as error:
        if error.code == "HANDLE_INVALID":
            return None
        raise


def _destroy(client: PoolClient, kind: str, ref: str, subject: str) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    for pause in pauses():
        try:
            # repeating it is safe: the second time there is nothing to destroy
            client.call(kind + ".destroy", ref, safe=True, subject=subject)
            return
        except XapiError as error:
            if error.code == "HANDLE_INVALID":
                return
            if error.code not in BUSY or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)


def _remove_new(client: PoolClient, vm_ref: str, name: str, before: set[str]) -> None:
    """After a snapshot whose outcome is unknown: remove one of that name that was not there before."""
    with suppress(PoolError):  # the caller is told that the outcome is unknown
        for ref in set(client.call("VM.get_snapshots", vm_ref)) - before:
            if client.call("VM.get_name_label", ref) == name:
                remove(client, ref)
