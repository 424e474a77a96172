# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How full a storage repository is.

A thick repository sets a disk's whole virtual size aside when the disk is made; a thin one only what is written.
"""

from __future__ import annotations

import math

from .errors import ApiError
from .layers import ZEROS
from .pool import Pool
from .storage import Disk

THICK = frozenset({"lvm", "lvmoiscsi", "lvmohba", "lvmofcoe"})


def no_space() -> ApiError:
    """The storage backend's way to say that a disk cannot be made."""
    return ApiError("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")


def utilisation(pool: Pool, sr: str) -> int:
    """Bytes in use in a storage repository now."""
    db = pool.db
    vdis = [db.get("VDI", vdi) for vdi in db.field("SR", sr, "VDIs")]
    if db.field("SR", sr, "type") in THICK:
        return sum(vdi["virtual_size"] for vdi in vdis if vdi["uuid"] in pool.storage)
    return pool.storage.used(vdi["uuid"] for vdi in vdis)


def free(pool: Pool, sr: str) -> int:
    """Bytes left in a storage repository; never negative."""
    return max(int(pool.db.field("SR", sr, "physical_size")) - utilisation(pool, sr), 0)


def require(pool: Pool, sr: str, size: int) -> None:
    """Refuse to make a disk of `size` bytes where a thick repository has no room. Raises SR_BACKEND_FAILURE_44."""
    needed = size if pool.db.field("SR", sr, "type") in THICK else 1
    if needed > free(pool, sr):
        raise no_space()


def refresh(pool: Pool, sr: str) -> None:
    """Write what a repository and its disks use into their records, as SR.scan and disk operations do."""
    db = pool.db
    with db.lock:
        total = 0
        for vdi in db.field("SR", sr, "VDIs"):
            record = db.get("VDI", vdi)
            total += record["virtual_size"]
            if record["uuid"] in pool.storage:
                db.set("VDI", vdi, physical_utilisation=pool.storage.allocated(record["uuid"]))
        db.set("SR", sr, physical_utilisation=utilisation(pool, sr), virtual_allocation=total)


class Budget:
    """The room a transfer may fill; OSError when it is used up."""

    def __init__(self, room: float) -> None:
        self._room = room

    def spend(self, count: int) -> None:
        """Take `count` bytes."""
        if count > self._room:
            raise OSError("no space left in the storage repository")
        self._room -= count


def budget(pool: Pool, sr: str, limit: int | None = None) -> Budget:
    """What may be written into disks of a repository: `limit` bytes if given, else what is free.

    In a thick repository the disks' room is set aside already.
    """
    if limit is not None:
        return Budget(limit)
    return Budget(math.inf if pool.db.field("SR", sr, "type") in THICK else free(pool, sr))


class MeteredDisk:
    """A disk of which every write is paid from a budget. Zeros that are zeros already are not written at all."""

    def __init__(self, disk: Disk, budget: Budget) -> None:
        self._disk = disk
        self._budget = budget

    def pwrite(self, offset: int, data: memoryview) -> None:
        """Write as Disk.pwrite does. Raises OSError when the budget is used up."""
        end = offset + len(data)
        if is_zero(data) and end <= self._disk.size and not any(self._disk.data_extents(offset, end)):
            return
        self._budget.spend(len(data))
        self._disk.pwrite(offset, data)


def is_zero(data: memoryview) -> bool:
    """Whether all bytes are zero."""
    if len(data) and data[0]:
        return False
    return all(ZEROS.startswith(data[start:start + len(ZEROS)]) for start in range(0, len(data), len(ZEROS)))
