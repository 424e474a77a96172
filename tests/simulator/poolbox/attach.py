# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks attached to a host's control domain for a transfer, and which host may do that.

While a disk is attached a VBD of dom0 shows it; the VBD goes a moment after the transfer, as on a real host, so that
who destroys the disk at once meets VDI_IN_USE.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .cbt import assert_has_data
from .errors import ApiError
from .pool import Host, Pool
from .storage import Disk

LINGER_SECONDS = 0.5


_lingering: dict[str, threading.Timer] = {}


@contextmanager
def attached(pool: Pool, host: Host, vdi: str, mode: str, linger: float = LINGER_SECONDS) -> Iterator[Disk]:
    """Open a disk through dom0 of `host`; `mode` is "RO" or "RW". Raises VDI_IN_USE, VDI_READONLY and the like.

    The VBD goes `linger` seconds after the end.
    """
    with pool.db.lock:
        record = pool.db.get("VDI", vdi)
        for vbd in set(record["VBDs"]) & _lingering.keys():
            _detach(pool, vbd)
        _assert_attachable(pool, vdi, mode)
        disk = pool.storage.open(record["uuid"])
        vbd = pool.db.create(
            "VBD", VM=pool.db.field("host", host.ref, "control_domain"), VDI=vdi, mode=mode, type="Disk",
            userdevice="autodetect", empty=False, currently_attached=True, unpluggable=True,
            other_config={"related_to": "xapi"},
        )
    try:
        yield disk
    finally:
        disk.close()
        timer = threading.Timer(linger, _detach, (pool, vbd))
        timer.daemon = True
        with pool.db.lock:
            _lingering[vbd] = timer
        timer.start()


def _detach(pool: Pool, vbd: str) -> None:
    """Let go of a disk: when its time has come, or because the next transfer wants it."""
    with pool.db.lock:
        timer = _lingering.pop(vbd, None)
        if timer is not None:
            timer.cancel()
        if pool.db.exists("VBD", vbd):
            pool.db.destroy("VBD", vbd)


def _assert_attachable(pool: Pool, vdi: str, mode: str) -> None:
    record = pool.db.get("VDI", vdi)
    assert_has_data(pool.db, vdi)
    if record["uuid"] not in pool.storage:
        raise ApiError("VDI_MISSING", record["SR"], vdi)
    if mode == "RW" and (record["read_only"] or record["is_a_snapshot"]):
        raise ApiError("VDI_READONLY", vdi)
    for vbd in record["VBDs"]:
        other = pool.db.get("VBD", vbd)
        if other["currently_attached"] and "RW" in (mode, other["mode"]) and not _only_on_paper(pool, other["VM"]):
            raise ApiError("VDI_IN_USE", vdi, "attach")


def _only_on_paper(pool: Pool, vm: str) -> bool:
    """Suspended VMs and checkpoints keep their VBDs marked as attached though nothing is."""
    return bool(pool.db.field("VM", vm, "power_state") in ("Suspended", "Halted"))


def sees(pool: Pool, host: Host, srs: Iterable[str]) -> bool:
    """Whether a host has a plugged PBD for each of these storage repositories."""
    pbds = [pool.db.get("PBD", pbd) for pbd in pool.db.field("host", host.ref, "PBDs")]
    return set(srs) <= {pbd["SR"] for pbd in pbds if pbd["currently_attached"]}


def choose_host(pool: Pool, srs: Iterable[str]) -> Host:
    """Any live, enabled host that sees these storage repositories. Raises NO_HOSTS_AVAILABLE."""
    wanted = set(srs)
    fit = [host for host in pool.hosts if host.alive and pool.db.field("host", host.ref, "enabled")
           and sees(pool, host, wanted)]
    if not fit:
        raise ApiError("NO_HOSTS_AVAILABLE")
    return random.choice(fit)


def vm_srs(pool: Pool, vm: str) -> set[str]:
    """Storage repositories of every medium of a VM, CDs too, and of its suspend image."""
    record = pool.db.get("VM", vm)
    vdis = [pool.db.field("VBD", vbd, "VDI") for vbd in record["VBDs"] if not pool.db.field("VBD", vbd, "empty")]
    if record["power_state"] == "Suspended" and pool.db.exists("VDI", record["suspend_VDI"]):
        vdis.append(record["suspend_VDI"])
    return {pool.db.field("VDI", vdi, "SR") for vdi in vdis}
