# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM may be made to do and when: the gatekeeper of xapi_vm_lifecycle.ml, and the power operations."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .api import Context, method
from .database import Database, DateTime
from .errors import ApiError
from .model import NULL

HALTED, RUNNING, PAUSED, SUSPENDED = "Halted", "Running", "Paused", "Suspended"
STATES = {
    **dict.fromkeys(("start", "start_on", "provision", "make_into_template", "changing_NVRAM", "create_vtpm"), (HALTED,)),
    **dict.fromkeys(("export", "destroy", "create_template"), (HALTED, SUSPENDED)),
    **dict.fromkeys(("clone", "copy"), (HALTED,)),
    **dict.fromkeys(("clean_shutdown", "clean_reboot", "suspend", "pause", "pool_migrate", "call_plugin"), (RUNNING,)),
    "hard_reboot": (PAUSED, RUNNING), "shutdown": (PAUSED, SUSPENDED, RUNNING), "unpause": (PAUSED,),
    "resume": (SUSPENDED,), "resume_on": (SUSPENDED,), "checkpoint": (PAUSED, SUSPENDED, RUNNING),
    "hard_shutdown": (PAUSED, SUSPENDED, RUNNING),
}
ANY_STATE = ("snapshot", "revert", "metadata_export", "power_state_reset", "assert_operation_valid")
TOGETHER = ({"clone", "copy", "export"}, {"snapshot", "checkpoint"})
FOR_TEMPLATES = {"snapshot", "clone", "copy", "export", "destroy", "provision", "metadata_export", "make_into_template"}
FOR_SNAPSHOTS = {"revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export"}
LONGEST_SHUTDOWN = 1200.0  # seconds the pool waits for a guest
QUIESCE = "snapshot_with_quiesce"
FREEZING = ("suspend", "checkpoint", "pool_migrate", "migrate_send")


def assert_operation_valid(ctx: Context, vm: str, operation: str) -> None:
    """Raise what the real gatekeeper would, in its order of tests."""
    check(ctx.db, vm, operation)


def check(db: Database, vm: str, operation: str) -> None:
    """The same, given the database."""
    record = db.get("VM", vm)
    if operation in record["blocked_operations"]:
        raise ApiError("OPERATION_BLOCKED", vm, record["blocked_operations"][operation])
    states = STATES.get(operation, (HALTED, RUNNING, PAUSED, SUSPENDED))
    if operation in ("clone", "copy") and record["is_a_snapshot"]:
        states = (HALTED, SUSPENDED)
    if record["power_state"] not in states:
        expected = ", ".join(state.lower() for state in states)
        raise ApiError("VM_BAD_POWER_STATE", vm, expected, record["power_state"].lower())
    _check_others(db, vm, operation, record["current_operations"])
    if record["is_a_template"] and not record["is_a_snapshot"] and operation not in FOR_TEMPLATES:
        raise ApiError("VM_IS_TEMPLATE", vm, operation)
    if record["is_a_snapshot"] and operation not in FOR_SNAPSHOTS:
        raise ApiError("VM_IS_SNAPSHOT", vm, operation)
    if operation == "provision" and not record["is_a_template"]:
        raise ApiError("PROVISION_ONLY_ALLOWED_ON_TEMPLATE")
    if operation == "revert" and not record["is_a_snapshot"]:
        raise ApiError("REVERT_ONLY_ALLOWED_ON_SNAPSHOT")
    if record["is_control_domain"]:
        raise ApiError("OPERATION_NOT_ALLOWED", "This operation is not allowed on a control domain")
    if operation == QUIESCE and not _offers_quiesce(db, record):
        raise ApiError("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", vm, "the guest's tools do not offer it")
    reason = _told(db, record).get("data-cant-suspend-reason")
    if operation in ("suspend", "checkpoint") and reason:
        raise ApiError("VM_NON_SUSPENDABLE", vm, reason)
    if operation in FREEZING and record["attached_PCIs"]:
        raise ApiError("VM_HAS_PCI_ATTACHED", vm)
    if operation in FREEZING and record["VGPUs"]:
        raise ApiError("VM_HAS_VGPU", vm)
    if operation in (*FREEZING, "snapshot") and record["VUSBs"]:
        raise ApiError("VM_HAS_VUSBS", vm)


def _told(db: Database, record: dict[str, Any]) -> dict[str, str]:
    """What the tools in a guest tell of it."""
    metrics = record["guest_metrics"]
    return dict(db.field("VM_guest_metrics", metrics, "other")) if db.exists("VM_guest_metrics", metrics) else {}


def _offers_quiesce(db: Database, record: dict[str, Any]) -> bool:
    removed = db.model.method("VM." + QUIESCE).removed
    return not removed and _told(db, record).get("feature-quiesce") == "1"


def _check_others(db: Database, vm: str, operation: str, current: dict[str, str]) -> None:
    others = set(current.values())
    if not others or any({operation, *others} <= group for group in TOGETHER):
        return
    if operation == "hard_shutdown" and "hard_shutdown" not in others:
        return
    other = next(iter(others))
    raise ApiError("OTHER_OPERATION_IN_PROGRESS", f"VM.{other}", vm)


def update_allowed(db: Database, vm: str) -> None:
    """Bring the advisory list of allowed operations up to date."""
    allowed = []
    for operation in (*STATES, *ANY_STATE, QUIESCE):
        try:
            check(db, vm, operation)
        except ApiError:
            continue
        allowed.append(operation)
    db.set("VM", vm, allowed_operations=allowed)


def update_allowed_operations(ctx: Context, vm: str) -> None:
    """The same, given a context."""
    update_allowed(ctx.db, vm)


@contextmanager
def operating(ctx: Context, vm: str, operation: str) -> Iterator[None]:
    """Hold the VM for an operation."""
    db, task = ctx.db, ctx.task.ref if ctx.task else f"DummyRef:|{operation}"
    with db.lock:
        check(db, vm, operation)
        db.set("VM", vm, current_operations=db.field("VM", vm, "current_operations") | {task: operation})
        update_allowed(db, vm)
    try:
        yield
    finally:
        with db.lock:
            if db.exists("VM", vm):
                left = {ref: one for ref, one in db.field("VM", vm, "current_operations").items() if ref != task}
                db.set("VM", vm, current_operations=left)
                update_allowed(db, vm)


def set_running(ctx: Context, vm: str, host: str | None = None, state: str = RUNNING) -> None:
    """Make a VM run, on a host that is there."""
    db = ctx.db
    alive = [one.ref for one in ctx.pool.hosts if one.alive and db.field("host", one.ref, "enabled")]
    if host is not None and host not in alive:
        raise ApiError("HOST_OFFLINE", host)
    if not alive:
        raise ApiError("NO_HOSTS_AVAILABLE")
    db.set("VM", vm, power_state=state, resident_on=host or alive[0], domid=len(db.refs("VM")) + 1)
    _attach(db, vm, True)
    if state == RUNNING:
        _boot(db, vm)


def _boot(db: Database, vm: str) -> None:
    """What has a disk has a guest, and every guest has tools."""
    disks = [ref for ref in db.field("VM", vm, "VBDs") if db.field("VBD", ref, "type") == "Disk"]
    if disks and not db.exists("VM_guest_metrics", db.field("VM", vm, "guest_metrics")):
        db.set("VM", vm, guest_metrics=guest_tools(db))


def guest_tools(db: Database) -> str:
    """What the tools in a guest that has booted tell of it."""
    return db.create(
        "VM_guest_metrics", os_version={"name": "Debian GNU/Linux 12", "distro": "debian", "major": "12"},
        PV_drivers_version={"major": "8", "minor": "4", "micro": "0", "build": "1"}, PV_drivers_detected=True,
        PV_drivers_up_to_date=True, networks={"0/ip": "192.0.2.10"}, live=True, last_updated=DateTime.now(),
        other={"feature-shutdown": "1", "feature-suspend": "1", "feature-reboot": "1"},
    )


def set_halted(db: Database, vm: str, state: str = HALTED) -> None:
    """Make a VM stand still."""
    db.set("VM", vm, power_state=state, resident_on=NULL, domid=-1)
    if state == HALTED:
        db.set("VM", vm, guest_metrics=NULL)
    _attach(db, vm, False)


def _attach(db: Database, vm: str, attached: bool) -> None:
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
        for ref in db.field("VM", vm, field):
            empty = cls == "VBD" and db.field("VBD", ref, "empty")
            db.set(cls, ref, currently_attached=attached and not empty)


@method("VM.start")
def start(ctx: Context, vm: str, start_paused: bool, force: bool) -> None:
    """Switch on."""
    with operating(ctx, vm, "start"):
        set_running(ctx, vm, state=PAUSED if start_paused else RUNNING)


@method("VM.start_on")
def start_on(ctx: Context, vm: str, host: str, start_paused: bool, force: bool) -> None:
    """Switch on, on a host."""
    with operating(ctx, vm, "start_on"):
        set_running(ctx, vm, host, PAUSED if start_paused else RUNNING)


def _halt(ctx: Context, vm: str, operation: str) -> None:
    with operating(ctx, vm, operation):
        _stand_still(ctx, vm)


def _stand_still(ctx: Context, vm: str) -> None:
    db = ctx.db
    image = db.field("VM", vm, "suspend_VDI")
    if db.exists("VDI", image):
        ctx.pool.storage.destroy(db.field("VDI", image, "uuid"))
        db.destroy("VDI", image)
    db.set("VM", vm, suspend_VDI=NULL)
    set_halted(db, vm)


@method("VM.clean_shutdown")
def clean_shutdown(ctx: Context, vm: str) -> None:
    """Ask the guest to switch off."""
    with operating(ctx, vm, "clean_shutdown"):
        _await_guest(ctx, vm)
        _stand_still(ctx, vm)


def _await_guest(ctx: Context, vm: str) -> None:
    """Wait until the guest has shut down. Who was asked goes on shutting down when nobody waits for it any more."""
    guest, began, life = ctx.pool.guest(vm), time.monotonic(), ctx.db.field("VM", vm, "domid")
    seconds = LONGEST_SHUTDOWN if guest.shutdown is None else guest.shutdown
    while time.monotonic() < began + seconds:
        if ctx.task and ctx.task.cancelled():
            left = began + seconds - time.monotonic()
            if guest.shutdown is not None:
                late = threading.Timer(left, _obey, (ctx, vm, life))
                late.daemon = True
                late.start()
            ctx.task.check()
        time.sleep(min(0.05, seconds))
    if guest.shutdown is None:
        raise ApiError("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", vm)


def _obey(ctx: Context, vm: str, life: int) -> None:
    """A guest that shuts down although nobody waits for it."""
    with ctx.db.lock:
        if ctx.db.exists("VM", vm) and ctx.db.field("VM", vm, "domid") == life:
            set_halted(ctx.db, vm)
            update_allowed(ctx.db, vm)


@method("VM.hard_shutdown")
def hard_shutdown(ctx: Context, vm: str) -> None:
    """Pull the plug."""
    _halt(ctx, vm, "hard_shutdown")


@method("VM.shutdown")
def shutdown(ctx: Context, vm: str) -> None:
    """Ask, then pull the plug."""
    if ctx.db.field("VM", vm, "power_state") == RUNNING:
        clean_shutdown(ctx, vm)
    else:
        _halt(ctx, vm, "hard_shutdown")


def _reboot(ctx: Context, vm: str, operation: str) -> None:
    with operating(ctx, vm, operation):
        ctx.db.set("VM", vm, domid=ctx.db.field("VM", vm, "domid") + 1)


@method("VM.clean_reboot")
def clean_reboot(ctx: Context, vm: str) -> None:
    """Reboot by the guest."""
    _reboot(ctx, vm, "clean_reboot")


@method("VM.hard_reboot")
def hard_reboot(ctx: Context, vm: str) -> None:
    """Reboot by force."""
    _reboot(ctx, vm, "hard_reboot")


@method("VM.pause")
def pause(ctx: Context, vm: str) -> None:
    """Stop the clock."""
    with operating(ctx, vm, "pause"):
        ctx.db.set("VM", vm, power_state=PAUSED)


@method("VM.unpause")
def unpause(ctx: Context, vm: str) -> None:
    """Let it go on."""
    with operating(ctx, vm, "unpause"):
        ctx.db.set("VM", vm, power_state=RUNNING)
        _boot(ctx.db, vm)


@method("VM.resume")
def resume(ctx: Context, vm: str, start_paused: bool, force: bool) -> None:
    """Go on from the saved memory."""
    with operating(ctx, vm, "resume"):
        take_memory(ctx, vm)
        set_running(ctx, vm, state=PAUSED if start_paused else RUNNING)


@method("VM.resume_on")
def resume_on(ctx: Context, vm: str, host: str, start_paused: bool, force: bool) -> None:
    """Go on from the saved memory, on a host."""
    with operating(ctx, vm, "resume_on"):
        take_memory(ctx, vm)
        set_running(ctx, vm, host, PAUSED if start_paused else RUNNING)


def take_memory(ctx: Context, vm: str) -> None:
    """A guest that goes on has its memory back, and its image goes."""
    image = ctx.db.field("VM", vm, "suspend_VDI")
    if not ctx.db.exists("VDI", image):
        raise ApiError("VM_HAS_NO_SUSPEND_VDI", vm)
    ctx.pool.storage.destroy(ctx.db.field("VDI", image, "uuid"))
    ctx.db.destroy("VDI", image)
    ctx.db.set("VM", vm, suspend_VDI=NULL)


@method("VM.power_state_reset")
def power_state_reset(ctx: Context, vm: str) -> None:
    """Forget that it ran."""
    set_halted(ctx.db, vm)
    update_allowed(ctx.db, vm)


@method("VM.assert_operation_valid")
def assert_valid(ctx: Context, vm: str, operation: str) -> None:
    """Ask the gatekeeper."""
    check(ctx.db, vm, operation)


@method("VM.update_allowed_operations")
def update(ctx: Context, vm: str) -> None:
    """Bring the list up to date."""
    update_allowed(ctx.db, vm)


@method("VM.set_is_a_template")
def set_is_a_template(ctx: Context, vm: str, value: bool) -> None:
    """Make a template of it, or a VM."""
    if value:
        check(ctx.db, vm, "make_into_template")
    ctx.db.set("VM", vm, is_a_template=value)
    update_allowed(ctx.db, vm)


@method("VM.get_possible_hosts")
def possible_hosts(ctx: Context, vm: str) -> list[str]:
    """Hosts that could run it."""
    ctx.db.get("VM", vm)
    return [host.ref for host in ctx.pool.hosts if host.alive]
