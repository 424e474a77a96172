# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Reads a restore point back: metadata, the VM's description, and every block in the order of the archive."""
from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Iterator, NamedTuple, Sequence

from ..xva.writer import BLOCK
from .errors import PointDamaged
from .index import IndexDisk
from .layers import Layers, Located
from .record import PointRecord
from .segments import SegmentReader
from .store import Store
from .units import decode_ova

# a read fetches neighbouring frames together; each frame given out keeps its read in memory
COALESCED = 4 * 1024 * 1024


class StoredFrame(NamedTuple):
    """A block as it is stored: ``units.decode_block`` opens ``frame``; ``digest`` is the SHA-256 of its bytes."""

    label: str
    number: int
    frame: memoryview
    digest: bytes


class PointReader(AbstractContextManager):  # type: ignore[type-arg]
    """An open point. ``meta``: its metadata; ``ova_xml``: the VM's description; ``disks``: those in the archive.

    Raises what Layers raises; ``identities`` open the data of all its layers.
    """

    def __init__(self, store: Store, record: PointRecord, identities: Sequence[Any]) -> None:
        self._stack = ExitStack()
        try:
            self._layers = self._stack.enter_context(Layers(store, record, identities))
            self._segments = [
                self._stack.enter_context(SegmentReader(store, layer.segments, identities)) for layer in self._layers.layers
            ]
            self.meta, self.disks = self._layers.meta, self._layers.disks
            self.ova_xml = self._description()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()

    def frames(self) -> Iterator[StoredFrame]:
        """Yield every block that an archive of the point needs, in its order.

        What a frame holds is not looked at: the caller decodes it and compares its digest.
        """
        for disk in self.disks:
            waiting: list[Located] = []
            for block in self.needed(disk):
                if waiting and not self._fits(waiting, block):
                    yield from self.fetch(disk.label, waiting)
                    waiting = []
                waiting.append(block)
            if waiting:
                yield from self.fetch(disk.label, waiting)

    def needed(self, disk: IndexDisk) -> Iterator[Located]:
        """Where the blocks of a disk lie that an archive of the point needs, ascending.

        An archive has a zero block only where it begins or ends a disk, or where nothing may be left out.

        The latter is so in points of one layer only; they hold no other zero blocks than they need.
        """
        layered = len(self._layers.layers) > 1
        ends = (0, -(-disk.virtual_size // BLOCK) - 1)
        for block in self._layers.blocks(disk):
            if not (layered and block.record.zero) or block.record.number in ends:
                yield block

    def _description(self) -> bytes:
        described = self.meta["ova_xml"]
        xml = decode_ova(self._segments[-1].read_at(0, described["frame_bytes"]))
        if hashlib.sha256(xml).hexdigest() != described["sha256"]:
            raise PointDamaged("The description of the VM is not what was backed up.")
        return xml

    def _fits(self, waiting: list[Located], block: Located) -> bool:
        """Whether a block lies right behind those that wait, in the same segment, and the read stays small."""
        start, last = waiting[0].record.offset, waiting[-1].record
        end = block.record.offset + block.record.length
        return (
            block.layer == waiting[0].layer
            and block.record.offset == last.offset + last.length
            and end - start <= COALESCED
            and end <= self._segments[block.layer].end_of(start)
        )

    def fetch(self, label: str, waiting: list[Located]) -> Iterator[StoredFrame]:
        """Read blocks of a disk that lie behind each other in one segment."""
        start, last = waiting[0].record.offset, waiting[-1].record
        data = memoryview(self._segments[waiting[0].layer].read_at(start, last.offset + last.length - start))
        for block in waiting:
            at = block.record.offset - start
            yield StoredFrame(label, block.record.number, data[at:at + block.record.length], block.record.digest)
