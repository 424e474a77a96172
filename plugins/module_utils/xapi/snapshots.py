# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Snapshots that are marked as ours when made, so that what a dead run left behind can be told from anything else."""
from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Iterable, Mapping, Optional

from .client import PoolClient, pauses
from .errors import OutcomeUnknown, PoolError, XapiError
from .tasks import call_async

PREFIX = "guestark:"
WIRE_TIME = "%Y%m%dT%H:%M:%SZ"
OBJECT = PREFIX + "object"  # the marked object's own UUID: copies of other_config (clone, restore) are no marks
VM = PREFIX + "vm"
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

    def config(self) -> dict[str, str]:
        """The mark as entries of other_config, without the marked object's own."""
        return {PREFIX + name: getattr(self, name) for name in ("tool", "run", "point", "expiry")}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Optional[Mark]:
        """The mark an object's record carries for itself, or None; one copied from another object is none."""
        config = record["other_config"]
        names = [PREFIX + name for name in ("tool", "run", "point", "expiry")]
        if config.get(OBJECT) != record["uuid"] or any(name not in config for name in names):
            return None
        return cls(*(config[name] for name in names))

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
        except (ValueError, TypeError, KeyError):
            pass  # not what we write
        return None


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
    client: PoolClient, vm_ref: str, name: str, mark: Mark, ignore_vdis: Iterable[str] = (), call: str = "VM.snapshot"
) -> str:
    """Snapshot a VM's disks as ``name`` and mark the snapshot and its disks; return the snapshot's ref.

    ``ignore_vdis``: refs of disks to leave out (from release 8.3 on). ``call``: VM.snapshot, VM.checkpoint or
    VM.snapshot_with_quiesce. Raises XapiError, OutcomeUnknown; then no
    snapshot of that name stays, as far as the pool can still be reached.
    """
    vm = client.call("VM.get_record", vm_ref)
    subject = "VM %s" % vm["name_label"]
    ignored = list(ignore_vdis)
    arguments = [vm_ref, name, ignored] if ignored else [vm_ref, name]  # 8.2 takes no third parameter
    client.call("VM.remove_from_other_config", vm_ref, TAKING, safe=True)
    client.call("VM.add_to_other_config", vm_ref, TAKING, mark.intention(name, vm["uuid"]))
    try:
        ref = str(call_async(client, call, *arguments, subject=subject))
    except (OutcomeUnknown, XapiError):  # a checkpoint may fail when its snapshot is there already
        _remove_new(client, vm_ref, name, set(vm["snapshots"]))
        raise
    finally:
        with suppress(PoolError):  # it means nothing once the snapshot is there or not, and the next one replaces it
            client.call("VM.remove_from_other_config", vm_ref, TAKING, safe=True)
    try:
        _mark(client, "VM", ref, {**mark.config(), VM: vm["uuid"]})
        for vdi in _disks(client, ref):
            _mark(client, "VDI", vdi, {**mark.config(), VM: vm["uuid"]})
    except BaseException:
        with suppress(PoolError):
            remove(client, ref)
        raise
    return ref


def remove(client: PoolClient, ref: str, keep: Optional[Callable[[str], bool]] = None) -> None:
    """Destroy a snapshot, or any halted VM, and its disks; what is gone already is no error.

    A disk that another VM uses stays. A disk that is still busy after an export is tried for a minute. A disk of which
    ``keep`` says so is not destroyed. Raises XapiError naming what stays, after everything else went.
    """
    try:
        record = client.call("VM.get_record", ref)
        disks = _disks(client, ref)
    except XapiError as error:
        if error.code == "HANDLE_INVALID":
            return
        raise
    name = record["name_label"]
    _mark_disks(client, record, disks)
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
    for vdi in _disks(client, ref):
        client.call("VDI.remove_from_other_config", vdi, PREFIX + "point", safe=True)
        client.call("VDI.add_to_other_config", vdi, PREFIX + "point", point)


def leftovers(client: PoolClient, vm_ref: Optional[str] = None) -> list[Leftover]:
    """Snapshots and disks that carry our mark, or were to get it, of one VM or of all."""
    wanted = str(client.call("VM.get_uuid", vm_ref)) if vm_ref else None
    found: list[Leftover] = []
    covered: set[str] = set()
    vbds = client.call("VBD.get_all_records")
    for ref, record in client.call("VM.get_all_records").items():
        mark = Mark.read(record)
        inherited = None if mark else Mark.inherited(record)
        if inherited:
            covered.update(vbds[vbd]["VDI"] for vbd in record["VBDs"] if vbd in vbds)
            found.append(Leftover("VM", ref, record["uuid"], record["name_label"], inherited[1], inherited[0]))
        elif mark and record["is_a_snapshot"]:
            covered.update(vbds[vbd]["VDI"] for vbd in record["VBDs"] if vbd in vbds)
            found.append(_leftover("VM", ref, record, mark))
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
    return Leftover(kind, ref, record["uuid"], record["name_label"], record["other_config"].get(VM, ""), mark)


def _mark_disks(client: PoolClient, record: Mapping[str, Any], disks: Iterable[str]) -> None:
    """Mark the disks of a snapshot of ours that were not yet: who dies when the VM is gone must leave them to be found."""
    inherited = Mark.inherited(record)
    mark, vm_uuid = (Mark.read(record), record["other_config"].get(VM, "")) if not inherited else inherited
    for vdi in disks if mark else ():
        if Mark.read(client.call("VDI.get_record", vdi)) is None:
            _mark(client, "VDI", vdi, {**mark.config(), VM: vm_uuid})  # type: ignore[union-attr]


def _mark(client: PoolClient, kind: str, ref: str, config: Mapping[str, str]) -> None:
    """Replace whatever mark an object has inherited by its own; the key that makes it one comes last."""
    own = {**config, OBJECT: str(client.call(kind + ".get_uuid", ref))}
    for key, value in own.items():
        client.call(kind + ".remove_from_other_config", ref, key, safe=True)
        client.call(kind + ".add_to_other_config", ref, key, value)


def _disks(client: PoolClient, ref: str) -> list[str]:
    """Refs of the VM's disks (no CDs) and of its memory image, without those that another guest uses."""
    record = client.call("VM.get_record", ref)
    disks = [record["suspend_VDI"]]
    for vbd in (client.call("VBD.get_record", vbd) for vbd in record["VBDs"]):
        if vbd["type"] == "Disk" and not vbd["empty"] and not _used_elsewhere(client, vbd["VDI"], ref):
            disks.append(vbd["VDI"])
    return [vdi for vdi in disks if vdi and vdi != "OpaqueRef:NULL"]


def _used_elsewhere(client: PoolClient, vdi: str, vm: str) -> bool:
    users = {str(client.call("VBD.get_VM", vbd)) for vbd in client.call("VDI.get_VBDs", vdi)} - {vm}
    return any(not client.call("VM.get_is_control_domain", user) for user in users)


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
