# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""VHD streams as XAPI's helper writes and reads them: dynamic, and differencing against a base.

Layout: footer at 0, header at 512, room for a parent locator at 1536, block table at 2048, then blocks of 2 MiB, each
behind a sector bitmap, in the order of the disk, then the footer again. Numbers are big-endian.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .storage import Disk, Target

SECTOR = 512
BLOCK = 2 << 20
MAX_SIZE = 2040 << 30
UNUSED = 0xFFFFFFFF
DYNAMIC, DIFFERENCING = 3, 4
_TABLE_OFFSET = 2048
_LOCATOR_OFFSET = 1536
_NO_OFFSET = 0xFFFFFFFFFFFFFFFF
_FOOTER = struct.Struct(">8sIIQI4sII QQ HBB II16sB")
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_LOCATOR = struct.Struct(">4sIIIQ")

Write = Callable[[memoryview | bytes], None]


class VhdError(Exception):
    """What was read is no VHD, or one this reader does not take."""


@dataclass(frozen=True)
class Parent:
    """What a differencing image says of its base: the id in the base's own file, that file's path, its time."""

    uid: bytes
    path: str
    timestamp: int = 0


def write_vhd(write: Write, disk: Disk, extents: Iterable[tuple[int, int]], parent: Parent | None = None) -> None:
    """Write the blocks that `extents`, as (offset, length), touch. Every sector of a block counts as present."""
    count = -(-disk.size // BLOCK)
    touched = (range(start // BLOCK, (start + length - 1) // BLOCK + 1) for start, length in extents if length)
    blocks = sorted({number for numbers in touched for number in numbers if number < count})
    table = _table(blocks, count)
    footer = make_footer(disk.size, DIFFERENCING if parent else DYNAMIC, uuid.uuid4().bytes)
    write(footer + _make_header(count, parent) + bytes(_TABLE_OFFSET - _LOCATOR_OFFSET) + table)
    buffer = bytearray(b"\xff" * SECTOR + bytes(BLOCK))
    for number in blocks:
        disk.read_into(number * BLOCK, memoryview(buffer)[SECTOR:])
        write(memoryview(buffer))
    write(footer)


def make_footer(size: int, kind: int, uid: bytes) -> bytes:
    """The 512 bytes that begin and end an image."""
    size = -(-size // SECTOR) * SECTOR
    cylinders, heads, sectors = geometry(size // SECTOR)
    fields = [b"conectix", 2, 0x10000, SECTOR, 0, b"caml", 1, 0, size, size, cylinders, heads, sectors, kind, 0, uid, 0]
    fields[14] = _checksum(_FOOTER.pack(*fields))
    return _FOOTER.pack(*fields).ljust(SECTOR, b"\0")


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track, by the VHD specification's appendix."""
    sectors = min(sectors, 65535 * 255 * 16)
    if sectors > 65535 * 63 * 16:
        per_track, heads, tracks = 255, 16, sectors // 255
    else:
        per_track, tracks = 17, sectors // 17
        heads = max((tracks + 1023) // 1024, 4)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads, tracks = 31, 16, sectors // 31
        if tracks >= heads * 1024:
            per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track


def _table(blocks: list[int], count: int) -> bytes:
    table = bytearray(b"\xff" * (-(-count * 4 // SECTOR) * SECTOR))
    position = (_TABLE_OFFSET + len(table)) // SECTOR
    for number in blocks:
        struct.pack_into(">I", table, number * 4, position)
        position += (SECTOR + BLOCK) // SECTOR
    return bytes(table)


def _make_header(count: int, parent: Parent | None) -> bytes:
    """The 1024 bytes of the sparse header. The locator names its place, but the place stays empty, as in XAPI."""
    uid, name, timestamp, locator = bytes(16), b"", 0, bytes(_LOCATOR.size)
    if parent:
        uid, timestamp, name = parent.uid, parent.timestamp, parent.path.encode("utf-16-be")[:512]
        locator = _LOCATOR.pack(b"MacX", 1, len(f"file://{parent.path}"), 0, _LOCATOR_OFFSET)
    fields = [b"cxsparse", _NO_OFFSET, _TABLE_OFFSET, 0x10000, count, BLOCK, 0, uid, timestamp, 0, name]

    def packed() -> bytes:
        return (_HEADER.pack(*fields) + locator).ljust(1024, b"\0")
    fields[6] = _checksum(packed())
    return packed()


def _checksum(data: bytes) -> int:
    return ~sum(data) & 0xFFFFFFFF


def _sound(data: bytes, at: int) -> bool:
    return _checksum(data[:at] + bytes(4) + data[at + 4:]) == int.from_bytes(data[at:at + 4])


class VhdReader:
    """Reads an image from front to back and writes only the sectors it holds."""

    def __init__(self, fill: Callable[[memoryview], None], target: Target) -> None:
        self._fill = fill
        self._target = target
        self._position = 0
        self._size = 0
        self._scrap = memoryview(bytearray(1 << 20))

    def receive(self, length: int | None) -> None:
        """Read a whole image, `length` bytes long if that is known. Raises VhdError, and what `fill` raises."""
        table_offset = self._footer()
        self._skip_to(table_offset)
        header = self._read(1024)
        if header[:8] != b"cxsparse" or not _sound(header, 36):
            raise VhdError("the sparse header is damaged")
        table_offset, _unused, count, block = struct.unpack_from(">QIII", header, 16)
        if block < SECTOR or block & (block - 1) or block > 1 << 28 or count > 1 << 26:
            raise VhdError("the image's block size or table is beyond reason")
        self._skip_to(table_offset)
        table = self._read(-(-count * 4 // SECTOR) * SECTOR)
        numbers = enumerate(struct.unpack(f">{count}I", table[:count * 4]))
        for position, number in sorted((entry, number) for number, entry in numbers if entry != UNUSED):
            self._skip_to(position * SECTOR)
            self._block(number * block, block)
        if length is not None:
            self._skip_to((length - 1) // SECTOR * SECTOR)
        self._footer()

    def _footer(self) -> int:
        """Read a footer; return where the header is."""
        footer = self._read(SECTOR)
        if footer[:8] != b"conectix" or not _sound(footer, 64):
            raise VhdError("the footer is damaged")
        if int.from_bytes(footer[60:64]) not in (DYNAMIC, DIFFERENCING):
            raise VhdError("only dynamic and differencing images are taken")
        self._size = int.from_bytes(footer[48:56])
        return int.from_bytes(footer[16:24])

    def _block(self, offset: int, block: int) -> None:
        sectors = block // SECTOR
        bitmap = self._read(-(-sectors // 8 // SECTOR) * SECTOR)
        present = f"{int.from_bytes(bitmap):0{len(bitmap) * 8}b}"[:sectors]
        sector = 0
        while sector < sectors:
            state = present[sector]
            stop = present.find("0" if state == "1" else "1", sector)
            stop = sectors if stop < 0 else stop
            data = memoryview(bytearray((stop - sector) * SECTOR))
            self._read_into(data)
            start = offset + sector * SECTOR
            if state == "1" and start < self._size:
                self._target.pwrite(start, data[:self._size - start])
            sector = stop

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        self._read_into(memoryview(data))
        return bytes(data)

    def _read_into(self, view: memoryview) -> None:
        self._fill(view)
        self._position += len(view)

    def _skip_to(self, position: int) -> None:
        if position < self._position:
            raise VhdError("the image's parts are not in the order of a stream")
        while self._position < position:
            self._read_into(self._scrap[:position - self._position])
