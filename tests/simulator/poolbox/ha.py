# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a pool when hosts go and come."""
from __future__ import annotations

from . import lifecycle
from .database import DateTime
from .errors import ApiError
from .pool import Host, Pool

LOST = "HOST_STILL_BOOTING"  # what supporters say while there is no coordinator


def kill_effects(pool: Pool, host: Host) -> None:
    """A host died: its VMs are forced off; without a coordinator the others are in emergency mode."""
    db = pool.db
    with db.lock:
        db.set("host_metrics", db.field("host", host.ref, "metrics"), live=False)
        for vm in db.find("VM", resident_on=host.ref, is_control_domain=False):
            lifecycle.set_halted(db, vm)
            db.set("VM", vm, current_operations={})
            lifecycle.update_allowed(db, vm)
        if host.ref == pool.coordinator:
            for other in pool.hosts:
                other.emergency = LOST


def start_effects(pool: Pool, host: Host) -> None:
    """A host is back: as a supporter, or as the coordinator when nobody took its place."""
    db = pool.db
    with db.lock:
        db.set("host_metrics", db.field("host", host.ref, "metrics"), live=True, last_updated=DateTime.now())
        if host.ref == pool.coordinator:
            forget(pool)
            for other in pool.hosts:
                other.emergency = None
        else:
            host.emergency = None


def elect(pool: Pool, host: Host) -> None:
    """Make a host the coordinator: sessions and tasks are lost, VMs of dead hosts start on it."""
    if not host.alive:
        raise ApiError("HOST_NOT_LIVE")
    db = pool.db
    with db.lock:
        pool.coordinator = host.ref
        db.set("pool", pool.ref, master=host.ref)
        forget(pool)
        for other in pool.hosts:
            other.emergency = None
        for vm in db.find("VM", is_a_snapshot=False, is_a_template=False, power_state="Halted", ha_restart_priority="restart"):
            db.set("VM", vm, power_state="Running", resident_on=host.ref)
            lifecycle.update_allowed(db, vm)


def forget(pool: Pool) -> None:
    """What a toolstack does not keep: sessions, tasks, operations under way, disks attached to control domains."""
    db = pool.db
    for cls in ("session", "task"):
        for ref in db.refs(cls):
            db.destroy(cls, ref)
    dom0s = set(db.find("VM", is_control_domain=True))
    for ref in db.refs("VBD"):
        if db.field("VBD", ref, "VM") in dom0s:
            db.destroy("VBD", ref)
    for vm in db.refs("VM"):
        if db.field("VM", vm, "current_operations"):
            db.set("VM", vm, current_operations={})
            lifecycle.update_allowed(db, vm)
