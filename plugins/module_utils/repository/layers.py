# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The layers of a point, laid over each other: where the newest state of every block lies. No block is read here."""
from __future__ import annotations

import heapq
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Iterator, NamedTuple, Optional, Sequence

from ..xva.writer import BLOCK
from .errors import PointDamaged
from .index import IndexDisk, IndexReader, IndexRecord, IndexSegment
from .layout import PointId, parse_object, vm_folder
from .objects import check_digest, read_meta
from .posix import reporting
from .record import PointRecord
from .segments import open_range
from .store import Store


class Located(NamedTuple):
    """A block: its record, in the index of the layer with the number ``layer`` (0 is the oldest)."""

    layer: int
    record: IndexRecord


@dataclass(frozen=True)
class Layer:
    """A point's own part of what it or a younger point is made of; ``segments``: (full name, entry in the index)."""

    point: PointId
    index: IndexReader
    segments: Sequence[tuple[str, IndexSegment]]


class Layers(AbstractContextManager):  # type: ignore[type-arg]
    """An open point, as far as a catalog identity can see it.

    ``meta``: its metadata; ``disks``: its disks; ``layers``: oldest first. Metadata and indexes have been compared with
    the signed record, and the sizes of all segments with the indexes. Raises PointDamaged, ObjectMissing, and what the
    age package raises for an identity that does not fit. Memory grows with the number of layers only.
    """

    def __init__(self, store: Store, record: PointRecord, identities: Optional[Sequence[Any]]) -> None:
        self.record = record
        self.layers: list[Layer] = []
        self._store = store
        self._folder = vm_folder(record.vm_uuid)
        self._identities = identities
        self._stack = ExitStack()
        try:
            self.meta = read_meta(store, record, identities)
            for name in record.indexes:
                self.layers.append(self._open(name))
        except BaseException:
            self.close()
            raise
        self.disks = self.layers[-1].index.disks

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()

    def blocks(self, disk: IndexDisk) -> Iterator[Located]:
        """Yield the newest state of every block that some layer holds of one of ``disks``, ascending.

        What is not yielded is zero; zeros are yielded where a layer above the oldest holds them. PointDamaged when the
        layers do not fit together.
        """
        known = [
            (number, layer.index, found) for number, layer in enumerate(self.layers)
            for found in layer.index.disks if found.label == disk.label
        ]
        merged = heapq.merge(*(_keyed(index.records(found), number) for number, index, found in known))
        last = -(-disk.virtual_size // BLOCK) - 1
        previous = -1
        for block, age, record in merged:
            if block == previous:
                continue  # an older layer's
            if block > last or record.short != bool(block == last and disk.virtual_size % BLOCK):
                raise PointDamaged("Layers do not fit together at block %d of disk %s." % (block, disk.label))
            previous = block
            yield Located(-age, record)

    def labels(self) -> set[str]:
        """Every label that a disk has in any layer."""
        return {disk.label for layer in self.layers for disk in layer.index.disks}

    def _open(self, name: str) -> Layer:
        check_digest(self._store, self.record, name)
        file = self._stack.enter_context(self._store.open(self._folder + name))
        with reporting("read", name):
            index = IndexReader(open_range(file, self._identities if name.endswith(".age") else None))
        point = parse_object(name).point
        segments = [one for one in self.record.segments if parse_object(one).point == point]
        if len(index.segments) != len(segments):
            raise PointDamaged("The index %s knows other segments than the commit record." % name)
        for entry, segment in zip(index.segments, segments):
            size = self._store.size(self._folder + segment)
            if entry.sha256.hex() != self.record.digest(segment):
                raise PointDamaged("The index knows another %s than the commit record." % segment)
            if size != entry.cipher_len:
                raise PointDamaged("%s has %d bytes instead of %d." % (segment, size, entry.cipher_len))
        return Layer(point, index, [(self._folder + segment, entry) for segment, entry in zip(segments, index.segments)])


def _keyed(records: Iterator[IndexRecord], layer: int) -> Iterator[tuple[int, int, IndexRecord]]:
    """In the order of blocks, and for the same block the youngest layer first."""
    return ((record.number, -layer, record) for record in records)
