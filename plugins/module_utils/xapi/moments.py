# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The four methods: how a VM is brought to the moment of its snapshot, what can be had of it, and what was reached.

Facts from xen-api: ocaml/xapi/xapi_vm_snapshot.ml, xapi_vm_lifecycle.ml, xapi_vm_clone.ml, datamodel_vm.ml.
"""
from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Mapping, Optional, Sequence

from . import snapshots
from .client import PoolClient
from .errors import NotFound, PoolError, XapiError
from .inventory import disks_of
from .power import HALTED, RUNNING, SUSPENDED, StillRunning, give_back, hold, stop
from .snapshots import PREFIX, Mark, Taken

METHODS = ("normal", "quiesced", "live_memory", "offline")
GRADES = ("crash", "filesystem", "application", "memory", "cold")
# what a grade is good enough for
SATISFIES = {
    "crash": ("crash",),
    "filesystem": ("crash", "filesystem"),
    "application": ("crash", "filesystem", "application"),
    "memory": ("crash", "memory"),
    "cold": ("crash", "filesystem", "application", "cold"),
}
PROMISE = {"normal": "crash", "quiesced": "filesystem", "live_memory": "memory", "offline": "cold"}
LEFT_OUT = ("[NOBAK]", "[NOSNAP]")  # in a disk's name: other tools' convention for disks that need no backup
IGNORING_DISKS = (21, 4)  # version of the toolstack from which VM.snapshot can leave disks out (8.3, not 8.2)
NOTE = PREFIX + "moment"  # on a snapshot: how it was brought about
NULL = "OpaqueRef:NULL"


class NotReachable(PoolError):
    """The consistency that is demanded cannot be had."""


@dataclass(frozen=True)
class Wish:
    """What a policy asks for.

    ``consistency``: the least that will do; without one, what the method promises. ``fallback``: take less rather than
    nothing. ``downtime``: how long ``offline`` keeps the guest down, for the ``snapshot`` or for the whole ``backup``.
    ``shutdown_timeout``: seconds the guest is given. ``hard_shutdown``: switch it off after that. ``exclude``: names,
    UUIDs or positions of disks to leave out.
    """

    method: str = "normal"
    consistency: Optional[str] = None
    fallback: bool = False
    downtime: str = "snapshot"
    shutdown_timeout: float = 300.0
    hard_shutdown: bool = False
    exclude: Sequence[str] = ()

    def demand(self, power_state: str) -> str:
        """The least grade that will do for a VM in this power state."""
        if self.consistency:
            return self.consistency
        if power_state == HALTED:
            return "crash"  # a guest that is off has no state that could be lost
        return "crash" if self.method == "offline" and self.hard_shutdown else PROMISE[self.method]


@dataclass(frozen=True)
class Moment:
    """How a source was brought to its moment and what that is worth.

    ``down_seconds``: how long the guest was off. ``frozen_seconds``: how long it, or its file systems, stood still.
    ``degraded``: why this is less than what was asked for, or empty. ``excluded``: the disks that are not in it (uuid,
    name, reason). ``group`` and ``skew_seconds``: which VMs were frozen together and how far apart their moments are.
    """

    method: str
    consistency: str
    degraded: str = ""
    down_seconds: Optional[float] = None
    frozen_seconds: Optional[float] = None
    excluded: list[dict[str, str]] = field(default_factory=list)
    group: str = ""
    skew_seconds: Optional[float] = None

    def facts(self) -> dict[str, Any]:
        """What there is to tell: every field that says something."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", [])}

    def note(self, uuid: str) -> str:
        """What is noted on the snapshot ``uuid``."""
        return json.dumps({"of": uuid, **self.facts()}, sort_keys=True)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Optional[Moment]:
        """The note on a snapshot's record, or None; one copied from another object is none."""
        try:
            noted = json.loads(record["other_config"].get(NOTE, "null"))
            return cls(**noted) if noted and noted.pop("of") == record["uuid"] else None
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
            return None


@dataclass(frozen=True)
class Plan:
    """What will be done to a VM, found without touching it. ``ignored``: refs of the disks in ``excluded``.

    ``degraded`` says why it is less than what was asked for, or is empty; ``warnings`` what else must be known.
    """

    vm: dict[str, Any]
    wish: Wish
    method: str
    degraded: str = ""
    ignored: list[str] = field(default_factory=list)
    excluded: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def all_warnings(self) -> list[str]:
        """What must be known of it, also that it is less than what was asked for."""
        return self.warnings + (["Degraded: %s" % self.degraded] if self.degraded else [])


def reach(client: PoolClient, vm: Mapping[str, Any], wish: Wish) -> tuple[str, str]:
    """The best consistency the wished method can reach on a VM, and why it is no more, or empty; nothing is touched."""
    if vm["power_state"] == HALTED:
        return "cold", "It is halted." if wish.method == "live_memory" else ""
    reason = _obstacle(client, vm, wish)
    return ("crash", reason) if reason else (PROMISE[wish.method], "")


def plan(client: PoolClient, vm: dict[str, Any], wish: Wish) -> Plan:
    """How a wish is met. ``vm`` is the VM's record with its ``ref``.

    Raises NotReachable when it cannot be, NotFound for a disk to leave out that the VM does not have.
    """
    grade, reason = reach(client, vm, wish)
    demand = wish.demand(vm["power_state"])
    halted = vm["power_state"] == HALTED
    method = "normal" if reason or halted else wish.method
    degraded = "" if halted else reason
    if demand not in SATISFIES[grade]:
        degraded = reason or "The method %s reaches %s." % (wish.method, grade)
        if not wish.fallback:
            raise NotReachable(
                "VM %s cannot be had with consistency %s, only %s: %s" % (vm["name_label"], demand, grade, degraded),
                "Mend that, ask for another method or consistency, or allow less (fallback).",
            )
    excluded, warnings = _excluded(client, vm, wish, method)
    ignored = [disk.pop("ref") for disk in excluded]
    return Plan(vm, wish, method, degraded, ignored, excluded, warnings)


def take(client: PoolClient, planned: Plan, name: str, mark: Mark, scope: str = "") -> tuple[Taken, Moment]:
    """Bring the VM to its moment, take the snapshot ``name`` of it, and give the guest back.

    ``scope``: id of the repository whose lease is held. Raises PoolError; then no snapshot stays and the guest is
    again what it was, as far as the pool can be reached: GuestNotBack says that it is not.
    """
    wish = planned.wish
    try:
        taken, moment = _TAKERS[planned.method](client, planned, name, mark, scope)
    except (StillRunning, XapiError) as error:
        if planned.method == "normal" or not wish.fallback:
            raise
        taken, moment = _plain(client, replace(planned, method="normal"), name, mark, scope)
        moment = replace(moment, degraded=error.message)
    try:
        moment = judged(wish, moment, planned.vm["name_label"], planned.vm["power_state"])
        client.call("VM.add_to_other_config", taken.ref, NOTE, moment.note(taken.record["uuid"]))
    except BaseException:
        snapshots.remove(client, taken)
        raise
    return taken, moment


def judged(wish: Wish, moment: Moment, vm_name: str, power_state: str) -> Moment:
    """The moment that was reached, marked as degraded where it is less than what was demanded.

    ``power_state``: what the VM was before. Raises NotReachable where less is not allowed.
    """
    demand = wish.demand(power_state)
    if demand in SATISFIES[moment.consistency]:
        return moment
    why = moment.degraded or "It was brought to its moment with consistency %s only." % moment.consistency
    if not wish.fallback:
        raise NotReachable(
            "VM %s was not had with consistency %s: %s" % (vm_name, demand, why),
            "Run it again, or allow less (fallback).",
        )
    return replace(moment, degraded=why)


def _plain(client: PoolClient, planned: Plan, name: str, mark: Mark, _scope: str) -> tuple[Taken, Moment]:
    taken = snapshots.take(client, planned.vm, name, mark, planned.ignored)
    grade = "cold" if _state_at(taken) == HALTED else "crash"
    return taken, Moment(planned.method, grade, planned.degraded, excluded=planned.excluded)


def _quiesced(client: PoolClient, planned: Plan, name: str, mark: Mark, _scope: str) -> tuple[Taken, Moment]:
    taken = snapshots.take(client, planned.vm, name, mark, call="VM.snapshot_with_quiesce")
    return taken, Moment("quiesced", "filesystem", excluded=planned.excluded)


def _with_memory(client: PoolClient, planned: Plan, name: str, mark: Mark, scope: str) -> tuple[Taken, Moment]:
    hold(client, planned.vm, "live_memory", scope)
    began = time.monotonic()
    taken = _and_back(client, planned.vm, name, mark, call="VM.checkpoint")
    return taken, Moment("live_memory", "memory", frozen_seconds=round(time.monotonic() - began, 3))


def _switched_off(client: PoolClient, planned: Plan, name: str, mark: Mark, scope: str) -> tuple[Taken, Moment]:
    vm, wish = planned.vm, planned.wish
    hold(client, vm, "offline", scope)
    began = time.monotonic()
    clean = False
    try:
        clean = stop(client, vm, wish.shutdown_timeout, wish.hard_shutdown)
    except BaseException:
        give_back(client, vm["ref"])
        raise
    taken = _and_back(client, vm, name, mark, ignored=planned.ignored)
    down = round(time.monotonic() - began, 3)
    # somebody may have started it in between
    grade = "cold" if clean and _state_at(taken) == HALTED else "crash"
    return taken, Moment("offline", grade, down_seconds=down, excluded=planned.excluded)


def _and_back(
    client: PoolClient, vm: Mapping[str, Any], name: str, mark: Mark, ignored: Sequence[str] = (),
    call: str = "VM.snapshot",
) -> Taken:
    """Take a snapshot of a VM that is held, and give the guest back whatever comes of it."""
    taken = None
    try:
        taken = snapshots.take(client, vm, name, mark, ignored, call)
    finally:
        try:
            give_back(client, vm["ref"])
        except BaseException:
            if taken:
                snapshots.remove(client, taken)
            raise
    return taken


def _state_at(taken: Taken) -> str:
    """The power state of the VM when the snapshot was taken."""
    return str(taken.record["snapshot_info"].get("power-state-at-snapshot", RUNNING))


_TAKERS = {"normal": _plain, "quiesced": _quiesced, "live_memory": _with_memory, "offline": _switched_off}


def _obstacle(client: PoolClient, vm: Mapping[str, Any], wish: Wish) -> str:
    """Why the wished method cannot be used on a VM that is not halted, or empty."""
    if wish.method == "quiesced" and "snapshot_with_quiesce" not in vm["allowed_operations"]:
        return (
            "This pool takes no quiesced snapshot of it (removed in release 8.1; before, the guest's tools must offer "
            "it): freeze the guest itself, as the role backup_quiesced does."
        )
    if wish.method == "offline":
        if vm["power_state"] != RUNNING:
            return "It is %s: only a running guest can shut down." % vm["power_state"].lower()
        blocked = [name for name in ("start", "clean_shutdown") if name in vm["blocked_operations"]]
        if blocked:
            return "The operation %s is blocked on it: %s." % (blocked[0], vm["blocked_operations"][blocked[0]])
        return _refused(client, vm, "clean_shutdown")
    if wish.method == "live_memory":
        return _no_memory(client, vm)
    return ""


def _no_memory(client: PoolClient, vm: Mapping[str, Any]) -> str:
    """Why a VM's memory cannot be saved, or empty."""
    (pool,) = client.call("pool.get_all_records").values()
    if pool.get("restrictions", {}).get("restrict_checkpoint") == "true":
        return "The pool's licence does not allow checkpoints."
    for name, what in (("attached_PCIs", "a PCI device"), ("VGPUs", "a virtual GPU"), ("VUSBs", "a virtual USB device"),
                       ("VTPMs", "a virtual TPM, whose state a checkpoint does not hold for sure")):
        if vm.get(name):
            return "It has %s." % what
    refused = _refused(client, vm, "checkpoint")
    if refused or vm["power_state"] == SUSPENDED:  # its memory is saved already
        return refused
    candidates = [vm["suspend_SR"], pool["suspend_image_SR"]]
    if vm["resident_on"] != NULL:
        candidates.append(client.call("host.get_record", vm["resident_on"])["suspend_image_sr"])
    storage = client.call("SR.get_all_records")
    sr = next((storage[ref] for ref in candidates if ref in storage), None)
    if sr is None:
        return "There is no storage repository for its memory: set the pool's suspend_image_SR."
    needed = int(1.26 * int(vm["memory_static_max"])) + (100 << 20)  # what XAPI asks for
    free = int(sr["physical_size"]) - int(sr["physical_utilisation"])
    if int(sr["physical_size"]) > 0 and free < needed:
        return "Its memory needs %d bytes on the storage repository %s, where %d are free." % (
            needed, sr["name_label"], free)
    return ""


def _refused(client: PoolClient, vm: Mapping[str, Any], operation: str) -> str:
    try:
        client.call("VM.assert_operation_valid", vm["ref"], operation, subject="VM %s" % vm["name_label"])
    except XapiError as error:
        return error.message
    return ""


def _excluded(
    client: PoolClient, vm: dict[str, Any], wish: Wish, method: str
) -> tuple[list[dict[str, str]], list[str]]:
    """The disks to leave out, each with its ref and why, and warnings of those that cannot be."""
    disks = []
    for ref, (vbd, vdi) in disks_of(client, vm).items():
        disks.append({"ref": ref, "uuid": vdi["uuid"], "name": vdi["name_label"], "device": vbd["userdevice"]})
    found = []
    for text in wish.exclude:
        named = [disk for disk in disks if text in (disk["uuid"], disk["name"], disk["device"])]
        if not named:
            raise NotFound("VM %s has no disk %r." % (vm["name_label"], text), "Name it by its name, UUID or position.")
        found += [{**disk, "reason": "excluded"} for disk in named if disk["ref"] not in [one["ref"] for one in found]]
    asked = bool(found)
    for disk in disks:
        tags = [tag for tag in LEFT_OUT if tag in disk["name"]]
        if tags and disk["ref"] not in [one["ref"] for one in found]:
            found.append({**disk, "reason": tags[0]})
    problem = _cannot_leave_out(client, method, wish) if found else ""
    if problem and asked:
        raise NotReachable("VM %s: disks cannot be left out: %s" % (vm["name_label"], problem), "Do not exclude any.")
    if problem:
        names = ", ".join(disk["name"] for disk in found)
        return [], ["These disks are in the backup although their names say otherwise: %s: %s" % (names, problem)]
    return [{name: disk[name] for name in ("ref", "uuid", "name", "reason")} for disk in found], []


def _cannot_leave_out(client: PoolClient, method: str, wish: Wish) -> str:
    if method in ("live_memory", "quiesced"):
        return "the method %s takes all disks." % method
    if method == "offline" and wish.downtime == "backup":
        return "a VM that is exported itself comes with all its disks."
    (pool,) = client.call("pool.get_all_records").values()
    coordinator = client.call("host.get_record", pool["master"])
    version = coordinator["software_version"].get("xapi", "").split(".")
    if [int(part) for part in version if part.isdigit()] < list(IGNORING_DISKS):
        return "this release cannot, releases from 8.3 on can."
    return ""
