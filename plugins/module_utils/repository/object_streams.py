# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Objects in an object store as files: one is written in parts that become visible together, or read in ranges."""
from __future__ import annotations

import ctypes
import io
import os
import queue
import threading
from typing import Any, Iterator, Optional

from .errors import ObjectExists, RepositoryError
from .object_errors import explain, explaining
from .store import Data, Store

# what is not longer is written by one conditional request
SHORT = 4 * 1024 * 1024
PIECE = 1024 * 1024
# 10 000 parts are allowed: the least there may be is enough for 48 GiB, and a segment has 32 at most. Two are under way
# and one is being filled: the memory this takes
PART = 5 * 1024 * 1024
CONCURRENCY = 2
LEAST_AHEAD = 64 * 1024
MOST_AHEAD = 2 * 1024 * 1024

_POLL = 0.5
_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 512 * 1024


class _Aborted(Exception):
    """Makes the library abort an upload: it does so when its source fails."""


class ObjectStoreWriter:
    """A new object under way: short ones are kept until ``commit()``, long ones uploaded in parts by a thread.

    Nothing is visible before ``commit()``. ``abort()`` (harmless at any time) removes the parts. Where the process is
    killed, the parts stay, invisible, until the store's own rule for abandoned uploads removes them.
    """

    def __init__(self, store: Store, library: Any, bucket: Any, name: str) -> None:
        self.name = name
        self.size = 0
        self._store = store
        self._library = library
        self._bucket = bucket
        self._held = bytearray()
        self._pieces: queue.Queue[Any] = queue.Queue(1)  # bytes, None for the end, or an exception
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[Exception] = None
        self._done = False

    def write(self, data: Data) -> int:
        """Append ``data``."""
        self._held += data
        self.size += len(data)
        if len(self._held) > (PIECE if self._thread else SHORT):
            piece, self._held = self._held, bytearray()
            self._begin()
            self._give(bytes(piece))
        return len(data)

    def commit(self) -> None:
        """Make the object visible. ObjectExists when its name is taken."""
        if self._thread is None:
            self._done = True
            self._store.put(self.name, bytes(self._held))
            return
        if self._store.exists(self.name):  # the name is random: this is about mistakes, not about races
            raise ObjectExists("Cannot write %s: it exists." % self.name)
        if self._held:
            self._give(bytes(self._held))
        self._give(None)
        self._thread.join()
        self._done = True
        self._check()

    def abort(self) -> None:
        """Give the object up."""
        self._held.clear()
        if self._done or self._thread is None:
            return
        self._done = True
        while self._thread.is_alive():
            try:
                self._pieces.put(_Aborted(), timeout=_POLL)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _check(self) -> None:
        """See that the whole object is there. That settles it too when the answer to the last request was lost."""
        try:
            size = self._store.size(self.name)
        except RepositoryError:
            if self._error:
                raise explain("write", self.name, self._error) from None
            raise
        if size != self.size:
            raise RepositoryError(
                "%s has %d bytes instead of the %d that were written." % (self.name, size, self.size), "Check the store."
            )

    def _begin(self) -> None:
        if self._thread is None:
            _return_what_is_freed()
            self._thread = threading.Thread(target=self._upload, name="guestark-upload", daemon=True)
            self._thread.start()

    def _give(self, piece: Optional[bytes]) -> None:
        """Hand a piece to the upload, as soon as it has room for it."""
        while self._thread is not None and self._thread.is_alive():
            try:
                self._pieces.put(piece, timeout=_POLL)
                return
            except queue.Full:
                continue
        raise explain("write", self.name, self._error or RuntimeError("the upload has ended"))

    def _upload(self) -> None:
        try:
            self._library.put(
                self._bucket, self.name, self._source(), use_multipart=True, chunk_size=PART, max_concurrency=CONCURRENCY
            )
        except Exception as error:  # told by whoever writes or commits next
            self._error = error

    def _source(self) -> Iterator[bytes]:
        while True:
            piece = self._pieces.get()
            if piece is None:
                return
            if isinstance(piece, _Aborted):
                raise piece
            yield piece


def _return_what_is_freed() -> None:
    """Have the C library give large buffers back when they are freed, where it can be told to.

    Else every thread, ours and the library's, keeps a heap of them: a quarter of the memory of a backup.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


class ObjectStoreFile(io.RawIOBase):
    """An object being read in ranges. A read that goes on where the last one ended fetches ahead, up to 2 MiB.

    Raises RepositoryError.
    """

    def __init__(self, library: Any, bucket: Any, name: str, size: int) -> None:
        super().__init__()
        self.name = name
        self._library = library
        self._bucket = bucket
        self._size = size
        self._position = 0
        self._start = 0
        self._held = memoryview(b"")
        self._ahead = LEAST_AHEAD

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Choose where the next read begins."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the object goes."""
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self._position < self._size:
            at = self._position - self._start
            if not 0 <= at < len(self._held):
                self._fetch(len(view) - filled)
                at = 0
            part = self._held[at:at + len(view) - filled]
            view[filled:filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
        return filled

    def close(self) -> None:
        """Forget what was fetched."""
        self._held = memoryview(b"")
        super().close()

    def _fetch(self, wanted: int) -> None:
        goes_on = self._position == self._start + len(self._held)
        self._ahead = min(2 * self._ahead, MOST_AHEAD) if goes_on else LEAST_AHEAD
        length = min(max(wanted, self._ahead), self._size - self._position)
        self._held = memoryview(b"")  # two of them would be twice the memory
        with explaining("read", self.name):
            data = self._library.get_range(self._bucket, self.name, start=self._position, length=length)
            self._held, self._start = memoryview(data), self._position
        if len(self._held) != length:
            raise RepositoryError(
                "%s gave %d bytes instead of %d." % (self.name, len(self._held), length), "Check the store."
            )
