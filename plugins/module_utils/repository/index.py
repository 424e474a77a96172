# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The index of a point: where each of its own blocks lies in its segments, and the block's digest.

Fixed-width little-endian numbers; ``docs/format.md`` has the layout. Written and read as a stream: memory does not
grow with the number of blocks.
"""
from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import struct
from dataclasses import dataclass
from typing import Any, Iterator, NamedTuple, Sequence
from uuid import UUID

from ..age.keys import X25519Identity
from ..age.stream import AgeRangeReader, AgeWriter
from ..xva.writer import BLOCK
from .errors import PointDamaged
from .store import Spool
from .units import MOST_FRAME

MAGIC = b"XVAIDX1\0"
HEADER = struct.Struct("<8sHHB3xIIIIQ24x")
DISK = struct.Struct("<16s16sQQQ")
SEGMENT = struct.Struct("<QQQ32s")
RECORD = struct.Struct("<IIQ32s")
SHA256 = 1
ZERO = 1 << 31
SHORT = 1 << 30
MOST_DISKS = 4096
MOST_SEGMENTS = 1 << 20

_BATCH = RECORD.size * 1024  # each of a hundred layers may hold one in memory
_PIECE = 1024 * 1024
_LABEL = re.compile(r"Ref:\d{1,12}", re.ASCII)


@dataclass(frozen=True)
class IndexDisk:
    """A disk of the point: ``virtual_size`` in bytes; its records are ``n_records`` from number ``first_record`` on."""

    vdi_uuid: str
    label: str
    virtual_size: int
    first_record: int
    n_records: int


@dataclass(frozen=True)
class IndexSegment:
    """A segment of the point: it holds ``plain_len`` bytes of the point's compressed stream from ``first_offset`` on.

    ``cipher_len`` and ``sha256`` (32 bytes) are those of the object.
    """

    first_offset: int
    plain_len: int
    cipher_len: int
    sha256: bytes


class IndexRecord(NamedTuple):
    """A block: ``number`` is its offset on the disk in MiB, ``offset`` that of its frame in the compressed stream."""

    number: int
    offset: int
    length: int
    zero: bool
    short: bool
    digest: bytes


class IndexWriter:
    """Collects records in ``scratch``, encrypted with a key that only this object ever has.

    The tables in front of the records are known only at the end, and memory must not grow with the disks.
    """

    def __init__(self, scratch: Spool) -> None:
        self._scratch = scratch
        self._identity = X25519Identity.generate()
        self._spool = AgeWriter(scratch, [self._identity.recipient()])  # type: ignore[arg-type]  # write() is enough
        self._waiting = bytearray()
        self.count = 0

    def add(self, record: IndexRecord) -> None:
        """Append a record; they come disk by disk, those of a disk in ascending order."""
        flags = (ZERO if record.zero else 0) | (SHORT if record.short else 0)
        self._waiting += RECORD.pack(record.number, record.length | flags, record.offset, record.digest)
        self.count += 1
        if len(self._waiting) >= _BATCH:
            self._flush()

    def finish(
        self, out: Any, disks: Sequence[IndexDisk], segments: Sequence[IndexSegment], order: Sequence[str]
    ) -> None:
        """Write the whole index to ``out``, which is anything with ``write``.

        ``order``: labels of the disks as their records came, which need not be the order of ``disks``.
        """
        self._flush()
        self._spool.close()
        records = AgeRangeReader(self._scratch.reading(), [self._identity])
        tables = [HEADER.pack(MAGIC, HEADER.size, RECORD.size, SHA256, BLOCK, len(disks), len(segments), 0, self.count)]
        for disk in disks:
            label = disk.label.encode("ascii")
            tables.append(
                DISK.pack(UUID(disk.vdi_uuid).bytes, label, disk.virtual_size, disk.first_record, disk.n_records)
            )
        for segment in segments:
            tables.append(
                SEGMENT.pack(segment.first_offset, segment.plain_len, segment.cipher_len, segment.sha256)
            )
        hasher = hashlib.sha256()
        for piece in itertools.chain([b"".join(tables)], _pieces(records, disks, order)):
            hasher.update(piece)
            out.write(piece)
        out.write(hasher.digest())

    def close(self) -> None:
        """Forget what was collected."""
        self._scratch.close()

    def _flush(self) -> None:
        self._spool.write(bytes(self._waiting))
        self._waiting.clear()


class IndexReader:
    """Reads an index from ``source``, which has ``size`` and ``read_at(offset, length)``.

    PointDamaged wherever it breaks a rule of the format. ``disks`` and ``segments`` are read at once. Whoever walks the
    records of all disks in their order has had the index's own checksum compared at the end.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._read_tables()
        self._check_end()

    def records(self, disk: IndexDisk) -> Iterator[IndexRecord]:
        """Yield the blocks of one of ``disks``, ascending."""
        rules = _Rules(disk, self.segments)
        at, end = (self._tables + RECORD.size * count for count in (disk.first_record, disk.first_record + disk.n_records))
        while at < end:
            batch = self._exactly(at, min(end - at, _BATCH))
            at += len(batch)
            for number, length, offset, digest in RECORD.iter_unpack(batch):
                record = IndexRecord(
                    number, offset, length & (SHORT - 1), bool(length & ZERO), bool(length & SHORT), digest
                )
                rules.check(record)
                yield record
        self._check_end()

    def _read_tables(self) -> None:
        magic, header_len, record_len, digest, unit, n_disks, n_segments, _reserved, self.n_records = HEADER.unpack(
            self._exactly(0, HEADER.size)
        )
        if (magic, record_len, digest, unit) != (MAGIC, RECORD.size, SHA256, BLOCK) or header_len < HEADER.size:
            raise PointDamaged("The index is not one this version reads.")
        if n_disks > MOST_DISKS or n_segments > MOST_SEGMENTS:
            raise PointDamaged("The index claims %d disks and %d segments." % (n_disks, n_segments))
        self._exactly(HEADER.size, header_len - HEADER.size)
        tables = self._exactly(header_len, n_disks * DISK.size + n_segments * SEGMENT.size)
        self._tables = header_len + len(tables)
        self.disks = [_disk(fields) for fields in DISK.iter_unpack(tables[:n_disks * DISK.size])]
        self.segments = [IndexSegment(*fields) for fields in SEGMENT.iter_unpack(tables[n_disks * DISK.size:])]
        labels = [disk.label for disk in self.disks]
        counted = 0
        for disk in self.disks:
            if disk.first_record != counted:
                raise PointDamaged("The index's disks do not follow each other.")
            counted += disk.n_records
        if counted != self.n_records or labels != sorted(set(labels)):
            raise PointDamaged("The index's disks are not in order.")
        end = 0
        for segment in self.segments:
            if segment.first_offset != end or not segment.plain_len:
                raise PointDamaged("The index's segments do not follow each other.")
            end += segment.plain_len

    def _exactly(self, at: int, length: int) -> bytes:
        if at + length > self._source.size:
            raise PointDamaged("The index is cut short.")
        data: bytes = self._source.read_at(at, length)
        if at == self._hashed:
            self._hasher.update(data)
            self._hashed += length
        return data

    def _check_end(self) -> None:
        """Compare the checksum when everything before it has been read in order."""
        end = self._tables + RECORD.size * self.n_records
        if self._source.size != end + self._hasher.digest_size:
            raise PointDamaged("The index is not as long as it says.")
        if self._hashed == end:
            expected = self._hasher.digest()
            if not hmac.compare_digest(self._exactly(end, len(expected)), expected):
                raise PointDamaged("The index does not fit its checksum.")


class _Rules:
    """What holds for the records of a disk: ascending, in bounds, one after the other, each in one segment."""

    def __init__(self, disk: IndexDisk, segments: Sequence[IndexSegment]) -> None:
        self._segments = iter(segments)
        self._offset = 0
        self._segment_end = 0
        self._label = disk.label
        self._number = -1
        self._blocks = -(-disk.virtual_size // BLOCK)
        self._rest = disk.virtual_size % BLOCK

    def check(self, record: IndexRecord) -> None:
        short = bool(self._rest) and record.number == self._blocks - 1
        while record.offset >= self._segment_end:
            segment = next(self._segments, None)
            if segment is None:
                raise self._wrong(record)
            self._segment_end = segment.first_offset + segment.plain_len
        if (
            not self._number < record.number < self._blocks
            or record.short != short
            or not 0 < record.length <= MOST_FRAME
            or record.offset < self._offset
            or record.offset + record.length > self._segment_end
        ):
            raise self._wrong(record)
        self._number = record.number
        self._offset = record.offset + record.length

    def _wrong(self, record: IndexRecord) -> PointDamaged:
        return PointDamaged("The index is wrong about block %d of disk %s." % (record.number, self._label))


def _pieces(records: AgeRangeReader, disks: Sequence[IndexDisk], order: Sequence[str]) -> Iterator[bytes]:
    """The records that were collected in one order of disks, in another one."""
    counts = {disk.label: disk.n_records * RECORD.size for disk in disks}
    starts = dict(zip(order, itertools.accumulate((counts[label] for label in order), initial=0)))
    for disk in disks:
        start = starts.get(disk.label, 0)
        for at in range(start, start + counts[disk.label], _PIECE):
            yield records.read_at(at, min(_PIECE, start + counts[disk.label] - at))


def _disk(fields: tuple[Any, ...]) -> IndexDisk:
    uuid, label, size, first, count = fields
    text = label.rstrip(b"\0").decode("latin-1")
    if not _LABEL.fullmatch(text):
        raise PointDamaged("The index names a disk %r." % text)
    return IndexDisk(str(UUID(bytes=uuid)), text, size, first, count)
