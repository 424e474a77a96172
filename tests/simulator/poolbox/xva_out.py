# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing an XVA: ova.xml, then every disk in members of at most 1 MiB, each followed by its checksum.

Members full of zeros are left out and their numbers are skipped; the first and the last of a disk are always there.
Holes are never read: the file system tells where data is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import xxhash

from .storage import Disk
from .v7tar import BLOCK, header, padding

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)

Write = Callable[[memoryview | bytes], None]


@dataclass(frozen=True)
class Checksum:
    """A kind of checksum member: its suffix, the length of its text, and how the text is made."""

    suffix: str
    digest: Callable[[memoryview], str]


CHECKSUMS = {
    "xxhash": Checksum(".xxhash", lambda data: f"{xxhash.xxh64_intdigest(data):016X}"),
    "sha1": Checksum(".checksum", lambda data: hashlib.sha1(data, usedforsecurity=False).hexdigest()),
}


@dataclass(frozen=True)
class Style:
    """What differs between the archives of releases, and what a test may ask for.

    `keep_alive`: write an empty member after every so many skipped members, as a server does that finds no data for
    five seconds; it takes a number but stands for no bytes. `corrupt`: the number, counted over the whole archive, of
    the data member that is spoilt after its checksum was made.
    """

    mode: int = 0o400
    mtime: int = 0
    checksum: Checksum = CHECKSUMS["xxhash"]
    keep_alive: int = 0
    corrupt: int | None = None


def style_for(xapi_version: tuple[int, int], now: int) -> Style:
    """How a release writes: before 1.170 SHA-1; up to 8.2's tar library mode 0 and no time in the header of ova.xml."""
    checksum = CHECKSUMS["xxhash" if xapi_version >= (1, 170) else "sha1"]
    if xapi_version[0] == 1:
        return Style(mode=0, mtime=0, checksum=checksum)
    return Style(mode=0o400, mtime=now, checksum=checksum)


class XvaWriter:
    """Writes one archive to `write`, which may get a buffer that is used again as soon as it returns."""

    def __init__(self, write: Write, style: Style, progress: Callable[[int], None] = lambda _done: None) -> None:
        self._write = write
        self._style = style
        self._progress = progress
        self._done = 0
        self._members = 0
        self._buffer = bytearray(BLOCK + CHUNK + 3 * BLOCK)

    def ova(self, document: bytes) -> None:
        """Write ova.xml, which comes first."""
        head = header("ova.xml", len(document), self._style.mode, self._style.mtime)
        self._write(head + document + bytes(padding(len(document))))

    def disk(self, label: str, disk: Disk) -> None:
        """Write the members of one disk. `label` is its archive id, "Ref:<n>"."""
        last = (disk.size - 1) // CHUNK
        shift = 0
        previous = -1
        for number in wanted_chunks(disk):
            idle = self._style.keep_alive
            for skipped in range(idle, number - previous - 1, idle) if idle else ():
                self._member(f"{label}/{previous + shift + skipped + 1:08}", disk, 0, 0)
                shift += 1
            length = min(CHUNK, disk.size - number * CHUNK)
            self._member(f"{label}/{number + shift:08}", disk, number * CHUNK, length, number in (0, last))
            self._progress(self._done + number * CHUNK + length)
            previous = number
        self._done += disk.size

    def end(self) -> None:
        """Write the two zero blocks; nothing pads the archive further."""
        self._write(bytes(2 * BLOCK))

    def _member(self, name: str, disk: Disk, offset: int, length: int, even_zero: bool = True) -> None:
        buffer = self._buffer
        body = memoryview(buffer)[BLOCK:BLOCK + length]
        disk.read_into(offset, body)
        if not even_zero and buffer.startswith(ZEROS, BLOCK):
            return
        checksum = self._style.checksum
        text = checksum.digest(body).encode()
        if self._members == self._style.corrupt and length:
            buffer[BLOCK] ^= 0xFF
        self._members += 1
        buffer[:BLOCK] = header(name, length, self._style.mode)
        end = BLOCK + length + padding(length)
        buffer[BLOCK + length:end] = bytes(padding(length))
        buffer[end:end + BLOCK] = header(name + checksum.suffix, len(text), self._style.mode)
        buffer[end + BLOCK:end + 2 * BLOCK] = text.ljust(BLOCK, b"\0")
        self._write(memoryview(buffer)[:end + 2 * BLOCK])


def wanted_chunks(disk: Disk) -> Iterator[int]:
    """Numbers of the chunks that may hold data, and of the first and the last."""
    if disk.size == 0:
        return
    last = (disk.size - 1) // CHUNK
    previous = 0
    yield 0
    for offset, length in disk.data_extents():
        stop = min(last, (offset + length - 1) // CHUNK + 1)
        for number in range(max(offset // CHUNK, previous + 1), stop):
            yield number
            previous = number
    if last > 0:
        yield last
