# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an XVA as XAPI's importer does: what it accepts, its arithmetic of offsets, and the errors it gives.

A disk's next byte goes behind everything read so far plus (numbers skipped) x (length of the archive's first member);
the archive's end is where the last expected disk is complete, so that nothing behind it is looked at.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import xxhash
import zstandard

from .errors import ApiError
from .storage import Target
from .v7tar import BLOCK, Member, TarError, is_header, next_member, padding

CHUNK = 1 << 20
LARGEST_MEMBER = 64 << 20
IN_FLIGHT = 2
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_DIGESTS: dict[str, Callable[[memoryview], str]] = {
    "xxhash": lambda data: f"{xxhash.xxh64_intdigest(data):016X}",
    "checksum": lambda data: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
}


class PrematureEof(ApiError):
    """The stream ended where more was expected."""

    def __init__(self) -> None:
        super().__init__("IMPORT_ERROR_PREMATURE_EOF")


class Stream(Protocol):
    """What an archive is read from. Both return 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer; fewer bytes only before the end."""

    def readinto1(self, buffer: memoryview, /) -> int | None:
        """Put there what has come."""


class Body:
    """A stream with the bytes that were read already put back, as long as `limit` bytes if that is given."""

    def __init__(self, stream: Stream, first: bytes, limit: int | None) -> None:
        self._stream = stream
        self._first = first
        self._left = None if limit is None else max(limit - len(first), 0)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, as far as the stream goes."""
        return self._read(self._stream.readinto, buffer)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of what has come, as decompressors ask for it."""
        buffer = bytearray(size)
        return bytes(buffer[:self._read(self._stream.readinto1, memoryview(buffer))])

    def drain(self) -> None:
        """Read and forget the rest."""
        while self.read(CHUNK):
            pass

    def _read(self, readinto: Callable[[memoryview], int | None], buffer: memoryview) -> int:
        if self._first:
            count = min(len(buffer), len(self._first))
            buffer[:count] = self._first[:count]
            self._first = self._first[count:]
            return count
        if self._left is not None:
            buffer = buffer[:self._left]
        count = (readinto(buffer) or 0) if len(buffer) else 0
        if self._left is not None:
            self._left -= count
        return count


class Source:
    """A stream read in exact amounts."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        buffer = bytearray(size)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, view: memoryview) -> None:
        """Fill `view` whole. Raises PrematureEof when the stream, or what it unpacks to, is too short."""
        while len(view):
            try:
                count = self._stream.readinto(view)
            except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
                raise PrematureEof from error
            if not count:
                raise PrematureEof
            view = view[count:]

    def member(self) -> Member:
        """The next tar header. Raises ApiError IMPORT_ERROR when there is none."""
        try:
            return next_member(self.read)
        except TarError as error:
            raise ApiError("IMPORT_ERROR", f"Invalid XVA file: {error}") from error


class Archive(Source):
    """An XVA being read: plain, or through gzip or zstd, whichever its first 512 bytes tell."""

    def __init__(self, stream: Stream, length: int | None) -> None:
        first = bytearray(BLOCK)
        if stream.readinto(memoryview(first)) != BLOCK:
            raise PrematureEof
        self.compressed = not is_header(first)
        self._body = Body(stream, bytes(first), length if self.compressed else None)
        super().__init__(self._body)
        if self.compressed and first.startswith(_ZSTD_MAGIC):
            decompressor = zstandard.ZstdDecompressor()
            self._stream = decompressor.stream_reader(self._body, read_size=CHUNK, read_across_frames=True)
        elif self.compressed:
            self._stream = gzip.GzipFile(fileobj=self._body, mode="rb")  # type: ignore[call-overload]

    def ova(self) -> bytes:
        """The document every archive begins with."""
        member = self.member()
        if member.name != "ova.xml":
            raise ApiError("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", member.name)
        if member.size > LARGEST_MEMBER:
            raise ApiError("IMPORT_ERROR", "ova.xml is too large")
        document = self.read(member.size)
        self.read(padding(member.size))
        return document

    def settle(self) -> None:
        """Wait as the real importer does: what feeds a decompressor goes on until the body, or the connection, ends."""
        if self.compressed:
            self._body.drain()


class DiskReceiver:
    """Takes the disks of an archive out of the stream, in the order of their ids as text.

    One thread receives; another writes and verifies what was received, so that neither waits for the other.
    `checksums` is a table to note every member's checksum in, for archives that end with one of their own.
    """

    def __init__(self, archive: Source, force: bool, progress: Callable[[int], None] = lambda _done: None,
                 checksums: dict[str, str] | None = None) -> None:
        self._archive = archive
        self._force = force
        self._progress = progress
        self._checksums = checksums
        self._first_length: int | None = None
        self._buffers = [bytearray(CHUNK) for _unused in range(IN_FLIGHT + 1)]
        self._done = 0

    def receive(self, disks: Iterable[tuple[str, int, Target]]) -> None:
        """Read every (label, size in bytes, disk to write to)."""
        for label, size, disk in sorted(disks, key=lambda item: item[0]):
            self.receive_one(label, size, disk)

    def receive_one(self, label: str, size: int, disk: Target) -> None:
        """Read the members of one disk of `size` bytes."""
        offset, last = 0, "-1"
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, "import") as writer:
            while offset < size:
                member = self._archive.member()
                if self._first_length is None:
                    self._first_length = member.size
                suffix = member.name[len(label) + 1:]
                if not member.name.startswith(label) or suffix <= last:
                    raise ApiError("IMPORT_ERROR", 'Stream_vdi.Failure("Invalid XVA file")')
                skipped = (_number(suffix) - _number(last) - 1) * self._first_length
                data = self._data(member)
                pending.append(writer.submit(self._store, disk, offset + skipped, member, data, *self._checksum()))
                if len(pending) > IN_FLIGHT:
                    pending.popleft().result()
                self._done += skipped + member.size
                self._progress(self._done)
                offset += skipped + member.size
                last = suffix
            for store in pending:
                store.result()

    def _data(self, member: Member) -> memoryview:
        if member.size > LARGEST_MEMBER:
            raise ApiError("IMPORT_ERROR", f"{member.name} is too large")
        buffer = self._buffers.pop(0)
        if member.size > len(buffer):
            buffer = bytearray(member.size)
        self._buffers.append(buffer)
        data = memoryview(buffer)[:member.size]
        self._archive.fill(data)
        self._archive.read(padding(member.size))
        return data

    def _checksum(self) -> tuple[str, str]:
        """Read the next member: its name and what it says."""
        member = self._archive.member()
        if member.size > BLOCK:
            raise ApiError("IMPORT_ERROR", f"Found unsupported checksum file: {member.name}")
        text = self._archive.read(member.size).decode("ascii", "replace")
        self._archive.read(padding(member.size))
        return member.name, text

    def _store(self, disk: Target, offset: int, member: Member, data: memoryview, name: str, text: str) -> None:
        try:
            disk.pwrite(offset, data)
        except (OSError, ValueError) as error:
            raise ApiError("VDI_IO_ERROR", "Device I/O errors") from error
        kind = name.rpartition(".")[2]
        if kind not in _DIGESTS:
            raise ApiError("IMPORT_ERROR", f"Found unsupported checksum file: {name}")
        expected = _DIGESTS[kind](data)
        if self._checksums is not None:
            self._checksums[member.name] = expected
        if text != expected and not self._force:
            told = f"Block {member.name} checksum failed: original = {text}; recomputed = {expected}"
            raise ApiError("IMPORT_ERROR", f'Stream_vdi.Invalid_checksum("{told}")')


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ApiError("IMPORT_ERROR", 'Failure("int_of_string")') from error
