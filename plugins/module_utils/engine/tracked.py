# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The blocks of a layer where the storage knows what changed: only those are read."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterator, Mapping, Optional, Union

from ..repository.index import IndexRecord
from ..repository.layers import Layers
from ..repository.units import encode_block, zero_digest
from ..source.tracked import TrackedSource
from ..xva.ova import OvaDisk
from ..xva.writer import BLOCK
from .blocks import Advance, BlockOut, Unchanged, has_to_be_stored, is_unchanged
from .pipeline import ordered
from .progress import Progress

_RUN = 512  # unchanged blocks that go through the pipeline together


@dataclass(frozen=True)
class _Wanted:
    """A block to read, and its record in the earlier point (None: it was zero)."""

    disk: OvaDisk
    number: int
    before: Optional[IndexRecord]


def tracked_blocks(
    source: TrackedSource, labels: Mapping[str, str], progress: Progress, base: Layers, kind: str
) -> Iterator[BlockOut]:
    """Read and encode what may have changed since ``base`` and differs; say of the rest that it is unchanged.

    The same as ``blocks.changed_blocks`` gives of a whole export. ``kind`` of checksum: that of the base.
    """

    def encode(item: Union[_Wanted, list[BlockOut]]) -> list[BlockOut]:
        if not isinstance(item, _Wanted):
            return item
        size = min(BLOCK, item.disk.virtual_size - item.number * BLOCK)
        data = source.disks[item.disk.label].reader.read(item.number * BLOCK, size)
        digest, label = hashlib.sha256(data).digest(), labels[item.disk.label]
        if is_unchanged(item.disk, item.number, digest, item.before):
            zero = digest == zero_digest(size)
            return [] if zero else [BlockOut(label, item.number, Unchanged(digest), size)]
        return [BlockOut(label, item.number, encode_block(label, item.number, data, kind, digest=digest), size)]

    done = Advance(source.ova, progress)
    names = {label: disk for disk, label in labels.items()}
    for outs in ordered(_items(source, labels, base), encode):
        yield from outs
        if outs:
            done.reached(names[outs[-1].label], outs[-1].number * BLOCK)


def _items(
    source: TrackedSource, labels: Mapping[str, str], base: Layers
) -> Iterator[Union[_Wanted, list[BlockOut]]]:
    """Blocks to read, and between them runs of blocks that are unchanged and not zero, in the order of a layer."""
    known = {disk.label: disk for disk in base.disks}
    for disk in source.ova.disks:
        label, count = labels[disk.label], -(-disk.virtual_size // BLOCK)
        wanted = iter(sorted({*source.disks[disk.label].touched(), 0, count - 1}) if count else ())
        number = next(wanted, None)
        run: list[BlockOut] = []
        for before in (one.record for one in base.blocks(known[label])):
            while number is not None and number < before.number:
                yield run
                run = []
                yield _Wanted(disk, number, None)
                number = next(wanted, None)
            if number == before.number or has_to_be_stored(disk, before.number, before):
                yield run
                run = []
                yield _Wanted(disk, before.number, before)
                number = next(wanted, None) if number == before.number else number
            elif not before.zero:
                run.append(BlockOut(label, before.number, Unchanged(before.digest), 0))
                if len(run) == _RUN:
                    yield run
                    run = []
        yield run
        while number is not None:
            yield _Wanted(disk, number, None)
            number = next(wanted, None)
