# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What a repository needs of the place it lies in. ``posix.py`` and ``object_store.py`` provide it."""
from __future__ import annotations

from typing import BinaryIO, Protocol, Sequence, Union

Data = Union[bytes, bytearray, memoryview]

MOST_READ = 64 * 1024 * 1024


class StoreWriter(Protocol):
    """A new object under way; nobody sees it before its ``commit()``. ``size``: bytes written so far."""

    size: int

    def write(self, data: Data) -> int:
        """Append ``data``."""

    def commit(self) -> None:
        """Make the object durable and visible. ObjectExists when its name is taken."""

    def abort(self) -> None:
        """Forget the object; harmless at any time."""


class Spool(Protocol):
    """A nameless temporary file: written from its beginning to its end, then read."""

    def write(self, data: Data) -> int:
        """Append ``data``."""

    def reading(self) -> BinaryIO:
        """What was written, from the beginning; valid until ``close()``."""

    def close(self) -> None:
        """Forget the content; harmless when done twice."""


class Store(Protocol):
    """Objects with names such as ``vm/x/pt/y``, written once. ``path`` is what messages call the store.

    Every method raises RepositoryError (NoSpace, ObjectExists, ObjectMissing, Retained where they fit), and ValueError
    for what is no name.
    """

    path: str

    def make_root(self) -> None:
        """Make the place itself, where that is needed."""

    def create(self, name: str) -> StoreWriter:
        """Begin a new object."""

    def put(self, name: str, data: bytes) -> None:
        """Create a small object. ObjectExists when there is one of that name."""

    def replace(self, name: str, data: bytes) -> None:
        """Put ``data`` in the place of an object, atomically. For leases, which may be lost."""

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading, seekable and unbuffered: a read gives all that was asked for, if it is there."""

    def read(self, name: str) -> bytes:
        """The whole of a small object, at most ``MOST_READ`` bytes."""

    def list(self, folder: str) -> Sequence[str]:
        """Names of the objects directly in ``folder`` (ends with ``/``), sorted; empty when there is no such folder."""

    def folders(self, folder: str) -> Sequence[str]:
        """Names (last part only) of the folders directly in ``folder``, sorted."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def size(self, name: str) -> int:
        """Length of an object in bytes."""

    def modified(self, name: str) -> float:
        """When an object was last written, by the store's own clock: compare with ``now()`` only."""

    def now(self) -> float:
        """What the store's own clock says."""

    def remove(self, name: str) -> None:
        """Remove an object, or do nothing when there is none. Only ever for what no committed point lists."""

    def free_space(self) -> int:
        """Bytes that can still be written."""

    def scratch(self) -> Spool:
        """A temporary file; it is gone when closed, or when its process is."""

    def probe(self) -> None:
        """Try what everything here rests on. RepositoryError for a store that does not do as it is told."""
