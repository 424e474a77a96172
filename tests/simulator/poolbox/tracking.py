# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changed block tracking: logs of the blocks that were written, chained from the oldest snapshot to the live disk.

A log holds what was written after its older neighbour was taken. It outlives the data of its disk. Nothing here
knows of layers: what is merged or removed there changes no log. Source: sm's VDI.py and blktap's cbt-util.c.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .layers import Ranges

BLOCK = 1 << 16


class Unrelated(ValueError):
    """What was written between two disks cannot be told."""


@dataclass
class Log:
    """Numbers of the blocks written since the older neighbour; ``size`` is the disk's, in bytes."""

    size: int
    older: str | None = None
    newer: str | None = None
    blocks: Ranges = field(default_factory=Ranges)


class Tracking:
    """The logs of one storage by disk. Whoever calls holds the storage's lock."""

    def __init__(self) -> None:
        self._logs: dict[str, Log] = {}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._logs

    def start(self, uuid: str, size: int) -> None:
        """Begin a log; one that is there goes on."""
        self._logs.setdefault(uuid, Log(size))

    def mark(self, uuid: str, start: int, end: int) -> None:
        """Bytes [start, end) of a disk are written."""
        log = self._logs.get(uuid)
        if log is not None and start < end:
            log.blocks.add(start // BLOCK, -(-end // BLOCK))

    def grow(self, uuid: str, size: int) -> None:
        """A disk has a new size; all that is new counts as written."""
        if uuid in self._logs:
            self.mark(uuid, self._logs[uuid].size, size)
            self._logs[uuid].size = size

    def split(self, live: str, snapshot: str) -> None:
        """The log of a disk becomes that of its snapshot; the disk begins an empty one."""
        log = self._logs.get(live)
        if log is not None:
            self._logs[snapshot], self._logs[live] = log, Log(log.size, older=snapshot, newer=log.newer)
            log.newer = live
            if log.older is not None:
                self._logs[log.older].newer = snapshot

    def remove(self, uuid: str) -> None:
        """End a log; what it holds goes to the newer neighbour, so that longer differences stay right."""
        log = self._logs.pop(uuid, None)
        if log is None:
            return
        if log.older is not None:
            self._logs[log.older].newer = log.newer
        if log.newer is not None:
            newer = self._logs[log.newer]
            newer.older = log.older
            for start, end in log.blocks:
                newer.blocks.add(start, end)

    def changed(self, older: str, newer: str) -> bytes:
        """The bitmap of what was written after `older` and until `newer`. Raises Unrelated."""
        if older == newer:
            raise Unrelated("Source and target VDI are same")
        merged, place = Ranges(), self._logs[older].newer if older in self._logs else None
        while place is not None:
            for start, end in self._logs[place].blocks:
                merged.add(start, end)
            if place == newer:
                return bitmap(merged, self._logs[newer].size)
            place = self._logs[place].newer
        raise Unrelated("Source and target VDI are unrelated")


def bitmap(blocks: Iterable[tuple[int, int]], size: int) -> bytes:
    """A bit for every block of a disk, the first one in the most significant bit of the first byte."""
    bits = bytearray(-(-size // (8 * BLOCK)))
    for start, end in blocks:
        first, last = start // 8, (end - 1) // 8
        head, tail = 0xFF >> start % 8, 0xFF << (7 - (end - 1) % 8) & 0xFF
        if first == last:
            bits[first] |= head & tail
        else:
            bits[first] |= head
            bits[first + 1:last] = b"\xff" * (last - first - 1)
            bits[last] |= tail
    return bytes(bits)
