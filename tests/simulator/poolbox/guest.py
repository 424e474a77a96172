# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that write to their disks while they run."""
from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from .pool import Pool


def disk_of(pool: Pool, vm_uuid: str, number: int) -> str:
    """UUID of a VM's disk, counted from 0 in the order of their positions."""
    db = pool.db
    vbds = [db.get("VBD", ref) for ref in db.field("VM", db.by_uuid("VM", vm_uuid), "VBDs")]
    disks = sorted((vbd for vbd in vbds if vbd["type"] == "Disk"), key=lambda vbd: int(vbd["userdevice"]))
    return str(db.field("VDI", disks[number]["VDI"], "uuid"))


def write(pool: Pool, vm_uuid: str, number: int, offset: int, data: bytes) -> None:
    """Write bytes to a disk."""
    with pool.storage.open(disk_of(pool, vm_uuid, number)) as disk:
        disk.pwrite(offset, data)


def write_file(pool: Pool, vm_uuid: str, number: int, path: str, content: bytes) -> None:
    """Write a file, whose folder must exist, into the ext4 file system of a disk."""
    with pool.storage.edit(disk_of(pool, vm_uuid, number)) as image, tempfile.NamedTemporaryFile() as source:
        Path(source.name).write_bytes(content)
        for command in (f"rm {path}", f"write {source.name} {path}"):
            done = subprocess.run(["debugfs", "-w", "-R", command, image], capture_output=True, text=True, check=True)
        if "write:" in done.stderr:
            raise ValueError(f"debugfs: {done.stderr.strip()}")
