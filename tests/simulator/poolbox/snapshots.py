# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots, checkpoints, reverting, clones, copies and the end of VMs. Source: xapi_vm_snapshot.ml, xapi_vm_clone.ml."""
from __future__ import annotations

import random
import time
import uuid as uuids
from typing import Any

from . import lifecycle, space
from .api import Context, method
from .cbt import assert_has_data
from .database import Database, DateTime
from .errors import ApiError
from .model import EPOCH, NULL

RESET = {
    "appliance": NULL, "order": 0, "start_delay": 0, "shutdown_delay": 0, "ha_always_run": False,
    "ha_restart_priority": "", "suspend_SR": NULL, "blocked_operations": {}, "scheduled_to_be_resident_on": NULL,
    "resident_on": NULL, "suspend_VDI": NULL, "domid": -1, "current_operations": {}, "allowed_operations": [],
}
LONGEST_CHAIN = 30  # layers; sm refuses to snapshot or clone a disk that has as many (vhdutil.py)
# back references and identity are never copied
OWN = ("uuid", "VBDs", "VIFs", "VTPMs", "VUSBs", "VGPUs", "consoles", "crash_dumps", "snapshots", "children", "parent")


# what a VM gets back when it is reverted; identity, history, tags and placement stay its own
RESTORED = (
    "name_description", "platform", "NVRAM", "HVM_boot_policy", "HVM_boot_params", "HVM_shadow_multiplier", "PV_args",
    "PV_bootloader", "PV_kernel", "PV_ramdisk", "VCPUs_max", "VCPUs_at_startup", "VCPUs_params", "memory_static_max",
    "memory_dynamic_max", "memory_dynamic_min", "memory_static_min", "memory_target", "other_config", "xenstore_data",
    "actions_after_shutdown", "actions_after_reboot", "actions_after_crash", "generation_id",
)


def _new_generation() -> str:
    return ":".join(str(random.SystemRandom().getrandbits(63)) for dummy in range(2))


def _copy_metrics(ctx: Context, cls: str, ref: str) -> str:
    if not ctx.db.exists(cls, ref):
        return NULL
    return ctx.db.create(cls, **{name: value for name, value in ctx.db.get(cls, ref).items() if name != "uuid"})


def copy_vdi(ctx: Context, vdi: str, how: str, sr: str | None = None) -> str:
    """A new VDI by snapshot, clone or copy of its storage."""
    db, storage = ctx.db, ctx.pool.storage
    record, uuid = db.get("VDI", vdi), str(uuids.uuid4())
    assert_has_data(db, vdi)
    if record["on_boot"] == "reset" and how == "snapshot":
        raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
    if record["sharable"] and how == "snapshot":
        raise ApiError("VDI_IS_SHARABLE", vdi)
    if how == "copy":
        space.require(ctx.pool, sr or record["SR"], record["virtual_size"])
        storage.copy(record["uuid"], uuid)
    elif storage.depth(record["uuid"]) >= LONGEST_CHAIN:
        raise ApiError("SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", "")
    elif how == "snapshot":
        storage.snapshot(record["uuid"], uuid)
    else:
        storage.clone(record["uuid"], uuid)
    fields = {name: value for name, value in record.items() if name not in ("VBDs", "snapshots", "crash_dumps")}
    taken = how == "snapshot"
    fields.update(
        uuid=uuid, location=uuid, SR=sr or record["SR"], is_a_snapshot=taken, snapshot_of=vdi if taken else NULL,
        snapshot_time=DateTime.now() if taken else DateTime(EPOCH), current_operations={}, managed=True,
        cbt_enabled=record["cbt_enabled"] and taken,
    )
    return db.create("VDI", **fields)


def _copy_devices(ctx: Context, source: str, target: str, how: str, ignored: set[str], sr: str | None) -> None:
    db = ctx.db
    for ref in db.field("VM", source, "VBDs"):
        vbd = db.get("VBD", ref)
        if vbd["VDI"] in ignored:
            continue
        other = vbd["other_config"]
        if vbd["type"] == "Disk" and vbd["VDI"] != NULL:
            vbd["VDI"], other = copy_vdi(ctx, vbd["VDI"], how, sr), other | {"owner": ""}
        skip = ("uuid", "VM", "currently_attached", "other_config", "current_operations")
        kept = {name: value for name, value in vbd.items() if name not in skip}
        db.create("VBD", VM=target, other_config=other, currently_attached=False, **kept)
    for ref in db.field("VM", source, "VIFs"):
        skip = ("uuid", "VM", "currently_attached", "current_operations")
        kept = {name: value for name, value in db.get("VIF", ref).items() if name not in skip}
        db.create("VIF", VM=target, currently_attached=False, **kept)
    for ref in db.field("VM", source, "VTPMs"):
        db.create("VTPM", **{**db.get("VTPM", ref), "uuid": str(uuids.uuid4()), "VM": target})


def _undo(ctx: Context, vm: str) -> None:
    for ref in ctx.db.field("VM", vm, "VBDs"):
        vbd = ctx.db.get("VBD", ref)
        if vbd["type"] == "Disk" and ctx.db.exists("VDI", vbd["VDI"]):
            remove_vdi(ctx, vbd["VDI"])
    remove_vm(ctx, vm)


def remove_vdi(ctx: Context, vdi: str) -> None:
    """Remove a VDI and what it holds, without asking."""
    db = ctx.db
    for vbd in db.field("VDI", vdi, "VBDs"):
        db.destroy("VBD", vbd)
    for vm in db.find("VM", suspend_VDI=vdi):
        db.set("VM", vm, suspend_VDI=NULL)
    sr = db.field("VDI", vdi, "SR")
    ctx.pool.storage.destroy(db.field("VDI", vdi, "uuid"))
    db.destroy("VDI", vdi)
    if db.exists("SR", sr):
        space.refresh(ctx.pool, sr)


def remove_vm(ctx: Context, vm: str) -> None:
    """Remove a VM's rows: never its VDIs, never its snapshots, whose children go to its own parent."""
    db = ctx.db
    record = db.get("VM", vm)
    for child in record["children"]:
        db.set("VM", child, parent=record["parent"])
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs"), ("console", "consoles")):
        for ref in record[field]:
            db.destroy(cls, ref)
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        if db.exists(cls, record[field]):
            db.destroy(cls, record[field])
    db.destroy("VM", vm)


def _take(ctx: Context, vm: str, name: str, ignored: set[str], state: str, kind: str = "crash_consistent") -> str:
    db = ctx.db
    source = db.get("VM", vm)
    fields = {key: value for key, value in source.items() if key not in OWN} | RESET
    fields["other_config"] = {
        key: value for key, value in source["other_config"].items()
        if key not in ("default_template", "xensource_internal")
    }
    snapshot = db.create("VM", **fields | {
        "name_label": name, "is_a_snapshot": True, "is_a_template": True, "power_state": state, "snapshot_of": vm,
        "snapshot_time": DateTime.now(), "parent": source["parent"],
        "snapshot_info": {"power-state-at-snapshot": source["power_state"], "disk-snapshot-type": kind},
        "snapshot_metadata": f"('object' ('class' 'VM') ('uuid' '{source['uuid']}'))",
        "generation_id": _new_generation() if source["generation_id"] else "",
        "metrics": _copy_metrics(ctx, "VM_metrics", source["metrics"]),
        "guest_metrics": _copy_metrics(ctx, "VM_guest_metrics", source["guest_metrics"]),
    })
    try:
        _copy_devices(ctx, vm, snapshot, "snapshot", ignored, None)
    except BaseException:
        _undo(ctx, snapshot)
        raise
    db.set("VM", vm, parent=snapshot)
    lifecycle.update_allowed(db, snapshot)
    db.create(
        "message", name="VM_SNAPSHOTTED", priority=5, cls="VM", obj_uuid=source["uuid"], timestamp=DateTime.now(),
        body=f"<message><label>{name}</label></message>",
    )
    return snapshot


@method("VM.snapshot")
def snapshot(ctx: Context, vm: str, new_name: str, ignore_vdis: Any = ()) -> str:
    """Snapshot the disks one after the other."""
    with lifecycle.operating(ctx, vm, "snapshot"):
        return _take(ctx, vm, new_name, set(ignore_vdis), lifecycle.HALTED)


@method("VM.snapshot_with_quiesce")
def snapshot_with_quiesce(ctx: Context, vm: str, new_name: str) -> str:
    """Snapshot the disks while the guest's tools hold them still; only in old releases."""
    with lifecycle.operating(ctx, vm, lifecycle.QUIESCE):
        return _take(ctx, vm, new_name, set(), lifecycle.HALTED, "quiesced")


def _suspend_sr(ctx: Context, vm: str) -> str:
    db, record = ctx.db, ctx.db.get("VM", vm)
    candidates = [record["suspend_SR"], db.field("pool", ctx.pool.ref, "suspend_image_SR")]
    if db.exists("host", record["resident_on"]):
        candidates.append(db.field("host", record["resident_on"], "suspend_image_sr"))
    for sr in candidates:
        if db.exists("SR", sr):
            return sr
    raise ApiError("VM_NO_SUSPEND_SR", vm)


def _save_memory(ctx: Context, vm: str) -> str:
    """A suspend image: as large as the real one, its first mebibytes filled, the rest a hole."""
    db = ctx.db
    sr, record = _suspend_sr(ctx, vm), db.get("VM", vm)
    size = -(-int(record["memory_static_max"] * 1.26 + (100 << 20)) // (2 << 20)) * (2 << 20)
    if space.free(ctx.pool, sr) < size:
        raise ApiError("SR_SUSPEND_SPACE_INSUFFICIENT", sr)
    uuid = str(uuids.uuid4())
    ctx.pool.storage.create(uuid, size)
    with ctx.pool.storage.open(uuid) as disk:
        disk.pwrite(0, random.Random(uuid).randbytes(4 << 20))
    return db.create(
        "VDI", uuid=uuid, location=uuid, name_label="Suspend image", SR=sr, virtual_size=size, type="suspend", managed=True
    )


@method("VM.suspend")
def suspend(ctx: Context, vm: str) -> None:
    """Save the memory and stop."""
    with lifecycle.operating(ctx, vm, "suspend"):
        ctx.db.set("VM", vm, suspend_VDI=_save_memory(ctx, vm))
        lifecycle.set_halted(ctx.db, vm, lifecycle.SUSPENDED)


@method("VM.checkpoint")
def checkpoint(ctx: Context, vm: str, new_name: str) -> str:
    """Snapshot the disks with the memory."""
    db = ctx.db
    if db.field("pool", ctx.pool.ref, "restrictions").get("restrict_checkpoint") == "true":
        raise ApiError("LICENCE_RESTRICTION", "Checkpoint")
    with lifecycle.operating(ctx, vm, "checkpoint"):
        state, host = db.field("VM", vm, "power_state"), db.field("VM", vm, "resident_on")
        if state in (lifecycle.RUNNING, lifecycle.PAUSED):
            _suspend_for(ctx, vm)
        taken = _take(ctx, vm, new_name, set(), lifecycle.SUSPENDED)
        db.set("VM", taken, suspend_VDI=copy_vdi(ctx, db.field("VM", vm, "suspend_VDI"), "snapshot"))
        for vbd in db.field("VM", taken, "VBDs"):  # as they were in the VM, though nothing is attached
            db.set("VBD", vbd, currently_attached=not db.field("VBD", vbd, "empty"))
        before = db.field("VM", taken, "snapshot_info")
        db.set("VM", taken, snapshot_info=before | {"power-state-at-snapshot": state})
        lifecycle.update_allowed(db, taken)
        if state != lifecycle.SUSPENDED:
            if ctx.pool.guest(vm).fails == "resume":
                raise ApiError("VM_CHECKPOINT_RESUME_FAILED", vm)
            lifecycle.take_memory(ctx, vm)
            lifecycle.set_running(ctx, vm, host if ctx.pool.host(host).alive else None, state)
        return taken


def _suspend_for(ctx: Context, vm: str) -> None:
    """Save a guest's memory for a checkpoint."""
    guest = ctx.pool.guest(vm)
    if guest.fails == "suspend":
        raise ApiError("VM_CHECKPOINT_SUSPEND_FAILED", vm)
    image = _save_memory(ctx, vm)
    lifecycle.set_halted(ctx.db, vm, lifecycle.SUSPENDED)
    ctx.db.set("VM", vm, suspend_VDI=image)
    time.sleep(guest.saving)


@method("VM.revert")
def revert(ctx: Context, snapshot_ref: str) -> None:
    """Bring the VM to the snapshot: its disks become fresh clones of the snapshot's."""
    db = ctx.db
    vm = db.field("VM", snapshot_ref, "snapshot_of")
    with lifecycle.operating(ctx, snapshot_ref, "revert"):
        if not db.exists("VM", vm):
            raise ApiError("VM_REVERT_FAILED", snapshot_ref, vm)
        lifecycle.set_halted(db, vm)
        before = _remove_devices(ctx, vm)
        taken = db.get("VM", snapshot_ref)
        _copy_devices(ctx, snapshot_ref, vm, "clone", set(), None)
        db.set("VM", vm, parent=snapshot_ref, **{name: taken[name] for name in RESTORED})
        after = _disks(db, vm)
        for place, old in before.items():
            for sibling in db.find("VDI", snapshot_of=old):
                db.set("VDI", sibling, snapshot_of=after.get(place, NULL))
        if taken["power_state"] == lifecycle.SUSPENDED:
            db.set("VM", vm, suspend_VDI=copy_vdi(ctx, taken["suspend_VDI"], "clone"))
            lifecycle.set_halted(db, vm, lifecycle.SUSPENDED)
        lifecycle.update_allowed(db, vm)


def _disks(db: Database, vm: str) -> dict[str, str]:
    """Position -> VDI of a VM's disks."""
    vbds = [db.get("VBD", ref) for ref in db.field("VM", vm, "VBDs")]
    return {vbd["userdevice"]: vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk" and db.exists("VDI", vbd["VDI"])}


def _remove_devices(ctx: Context, vm: str) -> dict[str, str]:
    """Take a VM's disks, drives, interfaces, TPM and saved memory away; return what disks it had, by position."""
    db = ctx.db
    before = _disks(db, vm)
    memory = db.field("VM", vm, "suspend_VDI")
    for vdi in (*before.values(), *([memory] if db.exists("VDI", memory) else [])):
        remove_vdi(ctx, vdi)
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs")):
        for ref in db.field("VM", vm, field):
            db.destroy(cls, ref)
    return before


def _duplicate(ctx: Context, vm: str, name: str, how: str, sr: str | None) -> str:
    db = ctx.db
    with lifecycle.operating(ctx, vm, how):
        source = db.get("VM", vm)
        fields = {key: value for key, value in source.items() if key not in OWN} | RESET
        target = db.create("VM", **fields | {
            "name_label": name, "is_a_snapshot": False, "snapshot_of": NULL, "snapshot_time": DateTime(EPOCH),
            "power_state": lifecycle.HALTED, "is_default_template": False, "snapshot_info": {}, "snapshot_metadata": "",
            "is_a_template": source["is_a_template"] and not source["is_a_snapshot"],
            "other_config": source["other_config"] | {"mac_seed": str(uuids.uuid4())}, "guest_metrics": NULL,
            "generation_id": _new_generation() if source["generation_id"] else "",
            "metrics": _copy_metrics(ctx, "VM_metrics", source["metrics"]),
        })
        try:
            _copy_devices(ctx, vm, target, how, set(), sr)
        except BaseException:
            _undo(ctx, target)
            raise
        for ref in db.field("VM", target, "VIFs"):
            mac = ":".join(["0a", *(f"{byte:02x}" for byte in random.SystemRandom().randbytes(5))])
            db.set("VIF", ref, MAC=mac, MAC_autogenerated=True)
        lifecycle.update_allowed(db, target)
        return target


@method("VM.clone")
def clone(ctx: Context, vm: str, new_name: str) -> str:
    """A VM like it, sharing storage."""
    return _duplicate(ctx, vm, new_name, "clone", None)


@method("VM.copy")
def copy(ctx: Context, vm: str, new_name: str, sr: str) -> str:
    """A VM like it, with storage of its own."""
    return _duplicate(ctx, vm, new_name, "copy", None if sr == NULL else sr)


@method("VM.provision")
def provision(ctx: Context, vm: str) -> None:
    """Make a VM of a template."""
    with lifecycle.operating(ctx, vm, "provision"):
        ctx.db.set("VM", vm, is_a_template=False)


@method("VM.destroy")
def destroy(ctx: Context, vm: str) -> None:
    """Remove the VM's rows."""
    if ctx.db.field("VM", vm, "is_default_template"):
        raise ApiError("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", vm)
    with lifecycle.operating(ctx, vm, "destroy"):
        remove_vm(ctx, vm)
