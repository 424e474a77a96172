# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sparse layers: the files of which virtual disks are made.

A layer holds some byte ranges of a disk; what it does not hold shines through from its parent. Its bytes live in
sparse files of at most 1 TiB each, made when first written to, because no common file system takes one file of 64 TiB.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .storage import Volume

FILE_SPAN = 1 << 40
COPY_STEP = 1 << 20
ZEROS = bytes(COPY_STEP)


class Ranges:
    """A set of byte offsets, kept as sorted, disjoint, half-open ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def add(self, start: int, end: int) -> None:
        """Add [start, end), swallowing what it touches."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def cover(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Split [start, end) into (start, end, is in the set) pieces, in order and without gaps."""
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                yield start, end, False
                return
            if start < self._starts[index]:
                yield start, self._starts[index], False
            held = max(start, self._starts[index])
            start = min(end, self._ends[index])
            yield held, start, True
            index += 1


class SparseFile:
    """One sparse file; its descriptor lives as long as somebody reads it, even after the name is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def file_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is not a hole in a file, asking the file system instead of reading."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop


def steps(extents: Iterable[tuple[int, int]], step: int = COPY_STEP) -> Iterator[tuple[int, int]]:
    """Cut (start, end) extents into pieces of at most `step` bytes."""
    for start, end in extents:
        for position in range(start, end, step):
            yield position, min(end, position + step)


@dataclass(eq=False)
class Layer:
    """A part of a disk's content, over its parent's. Without a parent it holds everything; holes read as zeros."""

    stem: Path
    parent: Layer | None = None
    held: Ranges = field(default_factory=Ranges)
    files: dict[int, SparseFile] = field(default_factory=dict)
    children: set[Layer] = field(default_factory=set)
    volumes: set[Volume] = field(default_factory=set)

    def resolve(self, start: int, end: int) -> Iterator[tuple[Layer, int, int]]:
        """Yield (layer that answers, start, end) for every piece of [start, end)."""
        if self.parent is None:
            yield self, start, end
            return
        for piece_start, piece_end, held in self.held.cover(start, end):
            if held:
                yield self, piece_start, piece_end
            else:
                yield from self.parent.resolve(piece_start, piece_end)

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of what is not a hole in this layer's own files."""
        for number in sorted(self.files):
            base = number * FILE_SPAN
            low, high = max(start - base, 0), min(end - base, FILE_SPAN)
            if low < high:
                for piece_start, piece_end in file_extents(self.files[number].fd, low, high):
                    yield base + piece_start, base + piece_end

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from this layer's own files."""
        while len(view):
            number, position = divmod(offset, FILE_SPAN)
            step = min(len(view), FILE_SPAN - position)
            piece = view[:step]
            file = self.files.get(number)
            done = os.preadv(file.fd, [piece], position) if file else 0
            if done == 0:
                piece[:] = bytes(step)
                done = step
            view = view[done:]
            offset += done

    def write(self, offset: int, data: memoryview) -> None:
        """Write into this layer's own files, then say that it holds these bytes."""
        start = offset
        while len(data):
            number, position = divmod(offset, FILE_SPAN)
            file = self.files.get(number)
            if file is None:
                file = self.files[number] = SparseFile(self.stem.with_name(f"{self.stem.name}.{number:02}"))
            done = os.pwrite(file.fd, data[:FILE_SPAN - position], position)
            data = data[done:]
            offset += done
        if self.parent is not None:
            self.held.add(start, offset)

    def zero(self, start: int, end: int) -> None:
        """Make a range of this layer read as zeros, touching only what is not a hole already."""
        for piece_start, piece_end in steps(list(self.extents(start, end))):
            self.write(piece_start, memoryview(ZEROS)[:piece_end - piece_start])
        if self.parent is not None:
            self.held.add(start, end)

    def absorb(self, child: Layer) -> None:
        """Take over what `child`, which lies directly on this layer, holds."""
        for start, end in child.held:
            self.zero(start, end)
            copy_extents(child, self, start, end)

    def allocated(self) -> int:
        """Bytes the file system has set aside for this layer."""
        return sum(os.fstat(file.fd).st_blocks * 512 for file in self.files.values())

    def discard(self) -> None:
        """Remove this layer's files; readers that still hold them read on."""
        for file in self.files.values():
            file.path.unlink()


def copy_extents(source: Layer, target: Layer, start: int, end: int) -> None:
    """Copy what is not a hole in `source`'s own files within [start, end) into `target`."""
    buffer = memoryview(bytearray(COPY_STEP))
    for piece_start, piece_end in steps(source.extents(start, end)):
        view = buffer[:piece_end - piece_start]
        source.read_into(view, piece_start)
        target.write(piece_start, view)
