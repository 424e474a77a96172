# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The blocks of an export, encoded on all cores: all of them, or those that differ from an earlier point."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional, Union

from ..repository.index import IndexRecord
from ..repository.layers import Layers
from ..repository.units import EncodedUnit, encode_block, zero_digest
from ..source.export_stream import ExportStream
from ..xva.ova import Ova, OvaDisk
from ..xva.reader import Block
from ..xva.writer import BLOCK
from .archive import check_block
from .pipeline import ordered
from .progress import Progress


class Unchanged(NamedTuple):
    """A block that is what it was; ``digest`` is the SHA-256 of its bytes, and they are not all zero."""

    digest: bytes


class BlockOut(NamedTuple):
    """A block of the disk with this label in the archive; ``number``: its offset in MiB; ``read``: bytes that came."""

    label: str
    number: int
    unit: Union[EncodedUnit, Unchanged]
    read: int


@dataclass(frozen=True)
class _Pair:
    """A block of the export (None: it is zero), and its record in the earlier point (None: it was zero)."""

    disk: OvaDisk
    number: int
    block: Optional[Block]
    before: Optional[IndexRecord]


def all_blocks(stream: ExportStream, labels: dict[str, str], progress: Progress) -> Iterator[BlockOut]:
    """Encode an export's blocks, in order, each compared with the checksum that came with it."""

    def encode(block: Block) -> tuple[Block, EncodedUnit]:
        check_block(block)
        return block, encode_block(
            labels[block.label], block.offset // BLOCK, block.data, block.checksum_kind, block.checksum
        )

    done = Advance(stream.ova, progress)
    for block, unit in ordered(stream.blocks(), encode):
        yield BlockOut(labels[block.label], block.offset // BLOCK, unit, unit.plain_len)
        done.reached(block.label, block.offset + unit.plain_len)


def changed_blocks(
    stream: ExportStream, labels: dict[str, str], progress: Progress, base: Layers, kind: str
) -> Iterator[BlockOut]:
    """Encode what differs from ``base`` and what every layer holds; say of the rest that it is unchanged.

    What became zero is encoded as zeros; what is zero and was is left out. ``kind`` of checksum: that of the base.
    """

    def encode(pair: _Pair) -> Optional[BlockOut]:
        size = min(BLOCK, pair.disk.virtual_size - pair.number * BLOCK)
        data = bytes(size) if pair.block is None else pair.block.data
        digest, label, read = hashlib.sha256(data).digest(), labels[pair.disk.label], size if pair.block else 0
        if is_unchanged(pair.disk, pair.number, digest, pair.before):
            # what is known by its SHA-256 came whole: its own checksum can tell nothing more
            return None if digest == zero_digest(size) else BlockOut(label, pair.number, Unchanged(digest), read)
        given = None
        if pair.block is not None:
            check_block(pair.block)
            given = pair.block.checksum if pair.block.checksum_kind == kind else None
        return BlockOut(label, pair.number, encode_block(label, pair.number, data, kind, given, digest), read)

    done = Advance(stream.ova, progress)
    for pair, out in ordered(_pairs(stream, labels, base), lambda pair: (pair, encode(pair))):
        if out:
            yield out
        done.reached(pair.disk.label, min((pair.number + 1) * BLOCK, pair.disk.virtual_size))


def _pairs(stream: ExportStream, labels: dict[str, str], base: Layers) -> Iterator[_Pair]:
    """Merge the export with the earlier point, disk by disk in the order of the export."""
    known = {disk.label: disk for disk in base.disks}
    blocks = stream.blocks()
    block = next(blocks, None)
    for disk in stream.ova.disks:
        held = known.get(labels[disk.label])
        befores = (one.record for one in base.blocks(held)) if held else iter(())
        before = next(befores, None)
        while before or (block and block.label == disk.label):
            here = block.offset // BLOCK if block and block.label == disk.label else None
            if before and (here is None or before.number < here):
                yield _Pair(disk, before.number, None, before)
                before = next(befores, None)
            else:
                same = before if before and before.number == here else None
                yield _Pair(disk, here, block, same)
                block = next(blocks, None)
                if same:
                    before = next(befores, None)


def is_unchanged(disk: OvaDisk, number: int, digest: bytes, before: Optional[IndexRecord]) -> bool:
    """Whether a layer can leave a block out: it is what it was, ``before`` (None: zero)."""
    size = min(BLOCK, disk.virtual_size - number * BLOCK)
    return not has_to_be_stored(disk, number, before) and digest == (before.digest if before else zero_digest(size))


def has_to_be_stored(disk: OvaDisk, number: int, before: Optional[IndexRecord]) -> bool:
    """Every layer has both ends of a disk, and anew what was a shorter last block before its disk grew."""
    last = -(-disk.virtual_size // BLOCK) - 1
    return number in (0, last) or bool(before and before.short)


class Advance:
    """Says how far a walk over all disks is."""

    def __init__(self, ova: Ova, progress: Progress) -> None:
        self._progress = progress
        self._starts: dict[str, int] = {}
        self._total = 0
        for disk in ova.disks:  # where each begins when all are laid one behind the other
            self._starts[disk.label] = self._total
            self._total += disk.virtual_size

    def reached(self, label: str, offset: int) -> None:
        """All before this offset of the disk with this label in the export is done."""
        self._progress.advance(self._starts[label] + offset, self._total)
