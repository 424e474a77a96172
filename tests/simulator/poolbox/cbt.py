# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changed block tracking as clients see it. Source: xapi_vdi.ml and sm's VDI.py."""
from __future__ import annotations

import base64
import time

from . import space
from .api import Context, method
from .database import Database, DateTime
from .errors import ApiError
from .pool import Pool
from .tracking import Unrelated

FEATURE = "VDI_CONFIG_CBT"
TRACKED = ("system", "user")
# types of disks as errors name them
TYPE_NAMES = {
    "system": "System", "user": "User", "ephemeral": "Ephemeral", "suspend": "Suspend", "crashdump": "Crashdump",
    "ha_statefile": "HA statefile", "metadata": "Metadata", "redo_log": "Redo log", "rrd": "RRD",
    "pvs_cache": "PVS cache", "cbt_metadata": "CBT metadata",
}
UNPLUG_SECONDS = 4.0  # how long data_destroy waits for the disk's VBDs to go


def assert_has_data(db: Database, vdi: str) -> None:
    """Refuse a disk of which only the log is left. Raises VDI_INCOMPATIBLE_TYPE."""
    if db.exists("VDI", vdi):
        _assert_type(db, vdi, db.field("VDI", vdi, "type") != "cbt_metadata")


def _assert_type(db: Database, vdi: str, fits: bool) -> None:
    if not fits:
        raise ApiError("VDI_INCOMPATIBLE_TYPE", vdi, TYPE_NAMES[db.field("VDI", vdi, "type")])


def _assert_supported(db: Database, sr: str) -> None:
    """Raise SR_OPERATION_NOT_SUPPORTED unless the storage's driver says that it tracks."""
    drivers = db.find("SM", type=db.field("SR", sr, "type"))
    if not any(FEATURE in db.field("SM", driver, "features") for driver in drivers):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", sr)


def _assert_may_change(db: Database, vdi: str) -> None:
    record = db.get("VDI", vdi)
    assert_has_data(db, vdi)
    if record["is_a_snapshot"]:
        raise ApiError("OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {vdi}")
    _assert_type(db, vdi, record["type"] in TRACKED)
    if record["on_boot"] == "reset":
        raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
    _assert_supported(db, record["SR"])
    if record["sm_config"].get("type") == "raw":
        text = "Invalid VDI type [opterr=Raw VDI or snapshot not permitted]"
        raise ApiError("SR_BACKEND_FAILURE_66", "", text, "")


@method("VDI.enable_cbt")
def enable(ctx: Context, vdi: str) -> None:
    """Begin a log; the disk may be in use."""
    db = ctx.db
    if db.field("pool", ctx.pool.ref, "restrictions").get("restrict_cbt") == "true":
        raise ApiError("LICENCE_RESTRICTION", "CBT")
    with db.lock:
        _assert_may_change(db, vdi)
        ctx.pool.storage.track(db.field("VDI", vdi, "uuid"))
        db.set("VDI", vdi, cbt_enabled=True)


@method("VDI.disable_cbt")
def disable(ctx: Context, vdi: str) -> None:
    """End the log; snapshots keep theirs."""
    with ctx.db.lock:
        _assert_may_change(ctx.db, vdi)
        _end_log(ctx.pool, vdi)


def _end_log(pool: Pool, vdi: str) -> None:
    pool.storage.untrack(pool.db.field("VDI", vdi, "uuid"))
    pool.db.set("VDI", vdi, cbt_enabled=False)


def lose_log(pool: Pool, vdi: str) -> None:
    """What storage does that finds a log inconsistent after a crash. Raises ValueError for a disk without a live log."""
    db = pool.db
    with db.lock:
        record = db.get("VDI", vdi)
        if not record["cbt_enabled"] or record["is_a_snapshot"]:
            raise ValueError(f"{record['uuid']} is no live disk with changed block tracking")
        _end_log(pool, vdi)
        text = f"Changed Block Tracking metadata is inconsistent for disk {record['uuid']}."
        db.create(
            "message", name="VDI_CBT_METADATA_INCONSISTENT", priority=3, cls="VDI", obj_uuid=record["uuid"],
            timestamp=DateTime.now(), body=text,
        )


@method("VDI.list_changed_blocks")
def list_changed_blocks(ctx: Context, vdi_from: str, vdi_to: str) -> str:
    """The bitmap of what was written after one disk and until the other."""
    db = ctx.db
    older, newer = db.get("VDI", vdi_from), db.get("VDI", vdi_to)
    _assert_supported(db, newer["SR"])
    for vbd in (db.get("VBD", ref) for ref in newer["VBDs"]):
        # those of snapshots only look attached
        if vbd["currently_attached"] and not db.field("VM", vbd["VM"], "is_a_snapshot"):
            raise ApiError("VDI_IN_USE", vdi_to, "list_changed_blocks")
    try:
        changed = ctx.pool.storage.changed_blocks(older["uuid"], newer["uuid"])
    except Unrelated as error:
        text = f"Failed to calculate changed blocks for given VDIs. [opterr={error}]"
        raise ApiError("SR_BACKEND_FAILURE_460", "", text, "") from error
    return base64.b64encode(changed).decode()


@method("VDI.data_destroy")
def data_destroy(ctx: Context, vdi: str) -> None:
    """Remove a snapshot's content and keep its log."""
    db = ctx.db
    with db.lock:
        record = db.get("VDI", vdi)
        if record["type"] == "cbt_metadata":
            return
        if not record["is_a_snapshot"]:
            raise ApiError("OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {vdi}")
        _assert_supported(db, record["SR"])
        if not record["cbt_enabled"]:
            raise ApiError("VDI_NO_CBT_METADATA", vdi)
        _await_unplugged(ctx, vdi)
        ctx.pool.storage.drop_data(record["uuid"])
        db.set("VDI", vdi, type="cbt_metadata", physical_utilisation=0, allowed_operations=["destroy"])
        space.refresh(ctx.pool, record["SR"])


def _await_unplugged(ctx: Context, vdi: str) -> None:
    """Wait until no VBD is left, attached or not; the database's lock is held before and after, not meanwhile."""
    deadline = time.monotonic() + UNPLUG_SECONDS
    while ctx.db.field("VDI", vdi, "VBDs"):
        if ctx.task:
            ctx.task.check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise ApiError("VDI_IN_USE", vdi, "data_destroy")
        ctx.db.changed.wait(left)


@method("VDI.set_on_boot")
def set_on_boot(ctx: Context, vdi: str, value: str) -> None:
    """Whether the disk keeps what is written when its VM boots."""
    assert_has_data(ctx.db, vdi)
    if ctx.db.field("VDI", vdi, "cbt_enabled"):
        raise ApiError("VDI_CBT_ENABLED", vdi)
    ctx.db.set("VDI", vdi, on_boot=value)
