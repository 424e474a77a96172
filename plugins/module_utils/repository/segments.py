# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""A point's compressed stream, cut into segments, each a complete age file (or plain, when nothing is encrypted)."""
from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Optional, Sequence

from ..age.stream import AgeRangeReader, AgeReader, AgeWriter
from .errors import PointDamaged
from .index import IndexSegment
from .posix import reporting
from .store import Data, Store, StoreWriter

EXTENT = 16 * 1024 * 1024
# with age's header and its 16 bytes for every 64 KiB, at most 32 GiB of ciphertext
MOST_PLAIN = 32 * 1024**3 - 16 * 1024**2


@dataclass(frozen=True)
class Segment:
    """A finished segment; ``extents`` are the SHA-256 of each 16 MiB of ciphertext, 32 bytes each, in a row."""

    name: str
    first_offset: int
    plain_len: int
    cipher_len: int
    sha256: bytes
    extents: bytes

    @property
    def entry(self) -> IndexSegment:
        """The segment as the index describes it."""
        return IndexSegment(self.first_offset, self.plain_len, self.cipher_len, self.sha256)


class ObjectWriter:
    """Writes one object: what is given to ``write()`` is encrypted to ``recipients`` (unless None) and digested.

    ``plain_len`` bytes went in. After ``commit()`` the object is visible, and ``cipher_len`` and ``digest()`` are its
    length and SHA-256.
    """

    def __init__(
        self, store: Store, name: str, recipients: Optional[Sequence[Any]], extents: bool = False
    ) -> None:
        self.plain_len = 0
        self._file = store.create(name)
        self._sink = _Sink(self._file, extents)
        try:
            self._out: Any = self._sink
            if recipients is not None:
                self._out = AgeWriter(self._sink, recipients)  # type: ignore[arg-type]  # write() is enough
        except BaseException:
            self._file.abort()
            raise

    @property
    def cipher_len(self) -> int:
        """Bytes of the object so far."""
        return self._file.size

    def write(self, data: Data) -> int:
        """Append ``data``."""
        self._out.write(data)
        self.plain_len += len(data)
        return len(data)

    def commit(self) -> None:
        """Finish the encryption and publish the object."""
        self._out.close()
        self._file.commit()

    def abort(self) -> None:
        """Forget the object; harmless after ``commit()``."""
        self._file.abort()

    def digest(self) -> bytes:
        """SHA-256 of the object."""
        return self._sink.whole.digest()

    def extents(self) -> bytes:
        """SHA-256 of each 16 MiB of the object, one after another; empty when they were not asked for."""
        return self._sink.extents()


class SegmentWriter:
    """Writes frames into segments. A segment ends before the frame that would make it longer than ``limit``.

    ``name`` gives the full name of the segment with a number; ``begun`` lists those it was asked for.
    """

    def __init__(
        self,
        store: Store,
        name: Callable[[int], str],
        recipients: Optional[Sequence[Any]],
        limit: int = MOST_PLAIN,
    ) -> None:
        self.begun: list[str] = []
        self._store = store
        self._name = name
        self._recipients = recipients
        self._limit = limit
        self._done: list[Segment] = []
        self._current: Optional[ObjectWriter] = None
        self._offset = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes written so far, as they lie in the store."""
        return sum(one.cipher_len for one in self._done) + (self._current.cipher_len if self._current else 0)

    def put(self, frame: Data) -> int:
        """Append a frame and return its offset in the point's compressed stream."""
        if self._current is not None and self._current.plain_len + len(frame) > self._limit:
            self._close()
        if self._current is None:
            self.begun.append(self._name(len(self.begun)))
            self._current = ObjectWriter(self._store, self.begun[-1], self._recipients, extents=True)
        offset = self._offset
        self._current.write(frame)
        self._offset += len(frame)
        return offset

    def finish(self) -> list[Segment]:
        """Publish the last segment and return all of them."""
        self._close()
        return self._done

    def abort(self) -> None:
        """Forget the segment under way. Those that were finished stay: ``begun`` names them."""
        if self._current is not None:
            self._current.abort()

    def _close(self) -> None:
        writer = self._current
        if writer is None:
            return
        writer.commit()
        first = self._offset - writer.plain_len
        self._done.append(
            Segment(
                self.begun[-1], first, writer.plain_len, writer.cipher_len, writer.digest(), writer.extents()
            )
        )
        self._current = None


class SegmentReader(AbstractContextManager):  # type: ignore[type-arg]
    """Reads a point's compressed stream at any offset; one segment is open at a time.

    ``segments``: (full name, its entry in the index), in order. ``identities`` open those whose names end with ``.age``.
    """

    def __init__(
        self, store: Store, segments: Sequence[tuple[str, IndexSegment]], identities: Optional[Sequence[Any]]
    ) -> None:
        self._store = store
        self._segments = segments
        self._identities = identities
        self._at = -1
        self._file: Optional[BinaryIO] = None
        self._reader: Any = None

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def end_of(self, offset: int) -> int:
        """Where the segment ends that holds ``offset``."""
        entry = self._segments[self._find(offset)][1]
        return entry.first_offset + entry.plain_len

    def read_at(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes, which lie in one segment. PointDamaged when they cannot be had."""
        self._switch(self._find(offset))
        name, entry = self._segments[self._at]
        if offset + length > entry.first_offset + entry.plain_len:
            raise PointDamaged("A block reaches over the end of %s." % name)
        with reporting("read", name):
            data = self._reader.read_at(offset - entry.first_offset, length)
        if len(data) != length:
            raise PointDamaged("%s is cut short." % name)
        return data  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._at = -1

    def _find(self, offset: int) -> int:
        # nearly always the segment in use or the next one
        for number in range(max(self._at, 0), len(self._segments)):
            entry = self._segments[number][1]
            if entry.first_offset <= offset < entry.first_offset + entry.plain_len:
                return number
        for number, (_name, entry) in enumerate(self._segments):
            if entry.first_offset <= offset < entry.first_offset + entry.plain_len:
                return number
        raise PointDamaged("No segment holds byte %d." % offset)

    def _switch(self, number: int) -> None:
        if number == self._at:
            return
        self.close()
        name, entry = self._segments[number]
        self._file = self._store.open(name)
        with reporting("read", name):
            self._reader = open_range(self._file, self._identities if name.endswith(".age") else None)
        if self._reader.size != entry.plain_len:
            raise PointDamaged("%s holds %d bytes instead of %d." % (name, self._reader.size, entry.plain_len))
        self._at = number


def open_range(file: BinaryIO, identities: Optional[Sequence[Any]]) -> Any:
    """An object to be read at any offset: it has ``size`` and ``read_at(offset, length)``."""
    return _PlainRange(file) if identities is None else AgeRangeReader(file, identities)


def open_stream(file: BinaryIO, identities: Optional[Sequence[Any]]) -> Any:
    """An object to be read from its beginning: it has ``read(n)``."""
    return file if identities is None else AgeReader(file, identities)


class _PlainRange:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)

    def read_at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = bytearray()
        while len(data) < length:
            part = self._file.read(length - len(data))
            if not part:
                break
            data += part
        return bytes(data)


class _Sink:
    """Digests what passes on its way to a file: as a whole, and in pieces when asked to."""

    def __init__(self, file: StoreWriter, extents: bool) -> None:
        self.whole = hashlib.sha256()
        self._file = file
        self._extents: Optional[list[bytes]] = [] if extents else None
        self._extent = hashlib.sha256()
        self._room = EXTENT

    def write(self, data: Data) -> int:
        self.whole.update(data)
        if self._extents is not None:
            self._digest_extents(memoryview(data), self._extents)
        return self._file.write(data)

    def close(self) -> None:
        """What AgeWriter has at its end; the file is closed by its commit."""

    def extents(self) -> bytes:
        open_one = [self._extent.digest()] if self._room < EXTENT else []
        return b"".join([*(self._extents or []), *open_one])

    def _digest_extents(self, view: memoryview, extents: list[bytes]) -> None:
        while view:
            part = view[:self._room]
            self._extent.update(part)
            self._room -= len(part)
            view = view[len(part):]
            if not self._room:
                extents.append(self._extent.digest())
                self._extent = hashlib.sha256()
                self._room = EXTENT
