# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making and removing VMs, disks, interfaces and networks, and what else management clients call."""
from __future__ import annotations

import random
import uuid as uuids
from typing import Any

from . import lifecycle, space
from .api import Context, method
from .cbt import assert_has_data
from .database import DateTime
from .errors import ApiError
from .model import NULL
from .snapshots import copy_vdi, remove_vdi

DEVICES = [str(number) for number in range(16)]


@method("VM.create")
def create_vm(ctx: Context, record: dict[str, Any]) -> str:
    """A VM without devices."""
    db = ctx.db
    config = {"mac_seed": str(uuids.uuid4())} | record["other_config"]
    metrics = db.create("VM_metrics", last_updated=DateTime.now())
    made = record | {"blocked_operations": {}, "other_config": config, "power_state": record.get("power_state", "Halted")}
    vm = db.create("VM", **made, metrics=metrics, domid=-1)
    lifecycle.update_allowed(db, vm)
    return vm


@method("VM.get_allowed_VBD_devices")
def allowed_vbds(ctx: Context, vm: str) -> list[str]:
    """Positions that are free for a drive."""
    used = {ctx.db.field("VBD", ref, "userdevice") for ref in ctx.db.field("VM", vm, "VBDs")}
    return [device for device in DEVICES if device not in used]


@method("VM.get_allowed_VIF_devices")
def allowed_vifs(ctx: Context, vm: str) -> list[str]:
    """Positions that are free for an interface."""
    used = {ctx.db.field("VIF", ref, "device") for ref in ctx.db.field("VM", vm, "VIFs")}
    return [device for device in DEVICES[:7] if device not in used]


@method("VM.set_memory_limits")
def set_memory_limits(ctx: Context, vm: str, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int) -> None:
    """All four limits at once."""
    if not static_min <= dynamic_min <= dynamic_max <= static_max:
        raise ApiError("MEMORY_CONSTRAINT_VIOLATION_ORDER")
    ctx.db.set(
        "VM", vm, memory_static_min=static_min, memory_static_max=static_max, memory_dynamic_min=dynamic_min,
        memory_dynamic_max=dynamic_max, memory_target=dynamic_max,
    )


@method("VDI.create")
def create_vdi(ctx: Context, record: dict[str, Any]) -> str:
    """An empty disk; its size is rounded up to 512 bytes."""
    size = -(-record["virtual_size"] // 512) * 512
    if not ctx.db.exists("SR", record["SR"]):
        raise ApiError("HANDLE_INVALID", "SR", record["SR"])
    if record["type"] == "cbt_metadata":
        raise ApiError("VDI_INCOMPATIBLE_TYPE", "", "CBT metadata")
    space.require(ctx.pool, record["SR"], size)
    uuid = str(uuids.uuid4())
    ctx.pool.storage.create(uuid, size)
    operations = ["clone", "copy", "resize", "snapshot", "destroy"]
    made = record | {"virtual_size": size, "uuid": uuid, "location": uuid, "managed": True, "allowed_operations": operations}
    vdi = ctx.db.create("VDI", **made)
    space.refresh(ctx.pool, record["SR"])
    return vdi


def _refuse_attached(ctx: Context, vdi: str, operation: str) -> None:
    for vbd in ctx.db.field("VDI", vdi, "VBDs"):
        if ctx.db.field("VBD", vbd, "currently_attached"):
            raise ApiError("VDI_IN_USE", vdi, operation)


@method("VDI.destroy")
def destroy_vdi(ctx: Context, vdi: str) -> None:
    """Remove a disk."""
    with ctx.db.lock:
        if not ctx.db.field("VDI", vdi, "managed"):
            raise ApiError("VDI_NOT_MANAGED", vdi)
        _refuse_attached(ctx, vdi, "destroy")
        remove_vdi(ctx, vdi)


@method("VDI.snapshot")
def snapshot_vdi(ctx: Context, vdi: str, driver_params: dict[str, str]) -> str:
    """A snapshot of one disk."""
    return copy_vdi(ctx, vdi, "snapshot")


@method("VDI.clone")
def clone_vdi(ctx: Context, vdi: str, driver_params: dict[str, str]) -> str:
    """A writable disk like it."""
    return copy_vdi(ctx, vdi, "clone")


@method("VDI.copy")
def copy_vdi_to(ctx: Context, vdi: str, sr: str, base_vdi: str, into_vdi: str) -> str:
    """A full copy, in an SR or into a disk that is there."""
    if into_vdi == NULL:
        return copy_vdi(ctx, vdi, "copy", None if sr == NULL else sr)
    for one in (vdi, into_vdi):
        assert_has_data(ctx.db, one)
    source, target = (ctx.pool.storage.open(ctx.db.field("VDI", one, "uuid")) for one in (vdi, into_vdi))
    with source, target:
        if target.size < source.size:
            raise ApiError("VDI_TOO_SMALL", into_vdi, str(source.size))
        for offset, length in source.data_extents():
            for start in range(offset, offset + length, 1 << 20):
                target.pwrite(start, source.pread(start, min(1 << 20, offset + length - start)))
    return into_vdi


@method("VDI.resize")
def resize_vdi(ctx: Context, vdi: str, size: int) -> None:
    """Grow a disk."""
    assert_has_data(ctx.db, vdi)
    if size < ctx.db.field("VDI", vdi, "virtual_size"):
        raise ApiError("SR_BACKEND_FAILURE_79", "", "VDI Invalid size [opterr=shrinking not allowed]", "")
    ctx.pool.storage.resize(ctx.db.field("VDI", vdi, "uuid"), size)
    ctx.db.set("VDI", vdi, virtual_size=size)


@method("VBD.create")
def create_vbd(ctx: Context, record: dict[str, Any]) -> str:
    """A drive."""
    db = ctx.db
    assert_has_data(db, record["VDI"])
    if record["userdevice"] == "autodetect":
        record["userdevice"] = allowed_vbds(ctx, record["VM"])[0]
    if any(db.field("VBD", ref, "userdevice") == record["userdevice"] for ref in db.field("VM", record["VM"], "VBDs")):
        raise ApiError("DEVICE_ALREADY_EXISTS", record["userdevice"])
    device = f"xvd{chr(97 + int(record['userdevice']))}" if record["userdevice"].isdigit() else record["userdevice"]
    return db.create("VBD", **record | {"device": device, "currently_attached": False})


@method("VBD.destroy")
def destroy_vbd(ctx: Context, vbd: str) -> None:
    """Remove a drive, not the disk."""
    if ctx.db.field("VBD", vbd, "currently_attached"):
        raise ApiError("OPERATION_NOT_ALLOWED", f"VBD '{vbd}' still attached")
    ctx.db.destroy("VBD", vbd)


def _plug(cls: str, attached: bool) -> Any:
    def change(ctx: Context, ref: str) -> None:
        if ctx.db.field(cls, ref, "currently_attached") == attached:
            raise ApiError("DEVICE_ALREADY_ATTACHED" if attached else "DEVICE_ALREADY_DETACHED", ref)
        state = ctx.db.field("VM", ctx.db.field(cls, ref, "VM"), "power_state")
        if state != lifecycle.RUNNING:
            raise ApiError("VM_BAD_POWER_STATE", ctx.db.field(cls, ref, "VM"), "running", state.lower())
        ctx.db.set(cls, ref, currently_attached=attached)

    return change


for _cls in ("VBD", "VIF"):
    method(f"{_cls}.plug")(_plug(_cls, True))
    method(f"{_cls}.unplug")(_plug(_cls, False))


@method("VBD.insert")
def insert(ctx: Context, vbd: str, vdi: str) -> None:
    """Put a medium into a drive."""
    if not ctx.db.field("VBD", vbd, "empty"):
        raise ApiError("VBD_NOT_EMPTY", vbd)
    ctx.db.set("VBD", vbd, VDI=vdi, empty=False)


@method("VBD.eject")
def eject(ctx: Context, vbd: str) -> None:
    """Take the medium out."""
    if ctx.db.field("VBD", vbd, "empty"):
        raise ApiError("VBD_IS_EMPTY", vbd)
    ctx.db.set("VBD", vbd, VDI=NULL, empty=True)


@method("VIF.create")
def create_vif(ctx: Context, record: dict[str, Any]) -> str:
    """An interface; without an address it gets one."""
    db = ctx.db
    if any(db.field("VIF", ref, "device") == record["device"] for ref in db.field("VM", record["VM"], "VIFs")):
        raise ApiError("DEVICE_ALREADY_EXISTS", record["device"])
    mac = record["MAC"] or ":".join(["0a", *(f"{byte:02x}" for byte in random.SystemRandom().randbytes(5))])
    made = record | {"MAC": mac, "MAC_autogenerated": not record["MAC"], "currently_attached": False}
    return db.create("VIF", **made)


@method("VIF.destroy")
def destroy_vif(ctx: Context, vif: str) -> None:
    """Remove an interface."""
    if ctx.db.field("VIF", vif, "currently_attached"):
        raise ApiError("OPERATION_NOT_ALLOWED", f"VIF '{vif}' still attached")
    ctx.db.destroy("VIF", vif)


@method("VIF.move")
def move_vif(ctx: Context, vif: str, network: str) -> None:
    """Put it on another network."""
    ctx.db.get("network", network)
    ctx.db.set("VIF", vif, network=network)


@method("network.create")
def create_network(ctx: Context, record: dict[str, Any]) -> str:
    """A network of its own."""
    return ctx.db.create("network", **{"bridge": f"xapi{len(ctx.db.refs('network'))}"} | record)


@method("network.destroy")
def destroy_network(ctx: Context, network: str) -> None:
    """Remove a network."""
    if ctx.db.field("network", network, "PIFs"):
        raise ApiError("NETWORK_CONTAINS_PIF", *ctx.db.field("network", network, "PIFs"))
    ctx.db.destroy("network", network)


@method("SR.scan")
def scan(ctx: Context, sr: str) -> None:
    """Bring the sizes up to date."""
    ctx.db.get("SR", sr)
    space.refresh(ctx.pool, sr)


@method("SR.update")
def update(ctx: Context, sr: str) -> None:
    """Bring the sizes up to date."""
    scan(ctx, sr)


@method("host.get_servertime")
def server_time(ctx: Context, host: str) -> DateTime:
    """The clock."""
    ctx.db.get("host", host)
    return DateTime.now()


@method("host.call_plugin")
def call_plugin(ctx: Context, host: str, plugin: str, function: str, args: dict[str, str]) -> str:
    """There are no plugins."""
    raise ApiError("XENAPI_MISSING_PLUGIN", plugin)


@method("message.create")
def create_message(ctx: Context, name: str, priority: int, cls: str, obj_uuid: str, body: str) -> str:
    """Leave a message."""
    return ctx.db.create(
        "message", name=name, priority=priority, cls=cls, obj_uuid=obj_uuid, body=body, timestamp=DateTime.now()
    )


@method("message.destroy")
def destroy_message(ctx: Context, message: str) -> None:
    """Remove a message."""
    ctx.db.destroy("message", message)


@method("VM_appliance.create")
def create_appliance(ctx: Context, record: dict[str, Any]) -> str:
    """A group of VMs."""
    return ctx.db.create("VM_appliance", **record)


@method("VM_appliance.destroy")
def destroy_appliance(ctx: Context, appliance: str) -> None:
    """Remove it, not the VMs."""
    for vm in ctx.db.field("VM_appliance", appliance, "VMs"):
        ctx.db.set("VM", vm, appliance=NULL)
    ctx.db.destroy("VM_appliance", appliance)


@method("VTPM.create")
def create_vtpm(ctx: Context, vm: str, is_unique: bool) -> str:
    """A TPM; a VM has one at most."""
    if ctx.db.field("VM", vm, "VTPMs"):
        raise ApiError("VTPM_MAX_AMOUNT_REACHED", "1")
    lifecycle.check(ctx.db, vm, "create_vtpm")
    return ctx.db.create("VTPM", VM=vm, is_unique=is_unique)


@method("VTPM.destroy")
def destroy_vtpm(ctx: Context, vtpm: str) -> None:
    """Remove a TPM."""
    ctx.db.destroy("VTPM", vtpm)
