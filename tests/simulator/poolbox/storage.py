# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual disks as copy-on-write chains of sparse files.

    storage = Storage(directory)
    storage.create("uuid-a", 64 << 40)
    with storage.open("uuid-a") as disk:
        disk.pwrite(4096, b"hello")
        list(disk.data_extents())
    storage.snapshot("uuid-a", "uuid-b")

No disk is ever read whole or held in memory, and every call may come from any thread. A snapshot freezes the layer
its source writes to; whoever writes next gets a layer of its own. A layer that only one other layer still needs is
merged with it, as garbage collection on a real storage repository does.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from .layers import COPY_STEP, Layer, Ranges, copy_extents, file_extents, steps
from .tracking import Tracking

Buffer = bytes | bytearray | memoryview
EDIT_STEP = 4096


class Target(Protocol):
    """What a disk's content is written to."""

    def pwrite(self, offset: int, data: memoryview, /) -> None: ...


class Volume:
    """A disk of this storage: its size and the layer on top of its chain."""

    def __init__(self, uuid: str, size: int, layer: Layer) -> None:
        self.uuid = uuid
        self.size = size
        self.handles = 0
        self.doomed = False
        self.layer = layer
        layer.volumes.add(self)


class Disk:
    """An open disk. A handle keeps the disk's content alive even when the disk is destroyed meanwhile."""

    def __init__(self, storage: Storage, volume: Volume) -> None:
        self._storage = storage
        self._volume = volume
        self._closed = False

    @property
    def size(self) -> int:
        return self._volume.size

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the handle back; may be called twice."""
        if not self._closed:
            self._closed = True
            self._storage.release(self._volume)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes at `offset`; what lies beyond the end of the disk reads as zeros."""
        for layer, start, end in self._storage.resolve(self._volume, offset, offset + len(view)):
            layer.read_into(view[start - offset:end - offset], start)

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`, fewer at the end of the disk."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset`. Raises ValueError beyond the disk's end, OSError when the file system is full."""
        self._storage.write(self._volume, offset, memoryview(data))

    def data_extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of everything that may hold other bytes than zero, in order, over the whole chain."""
        end = self.size if end is None else end
        for layer, piece_start, piece_end in self._storage.resolve(self._volume, start, end):
            for data_start, data_end in layer.extents(piece_start, piece_end):
                yield data_start, data_end - data_start


class Storage:
    """All disks of one pool, in one directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = threading.RLock()
        self._volumes: dict[str, Volume] = {}
        self._mirrored: dict[str, Path] = {}
        self._numbers = itertools.count(1)
        self._tracking = Tracking()

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._volumes

    def create(self, uuid: str, size: int) -> None:
        """Make an empty disk of `size` bytes, which reads as zeros."""
        with self._lock:
            self._add(uuid, size, self._new_layer(None))

    def adopt(self, uuid: str, image: Path, size: int | None = None) -> None:
        """Make a disk with the content of a raw image file, by default as large as the file; its holes stay holes."""
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as source:
            length = os.fstat(source.fileno()).st_size
            if size is not None and length > size:
                raise ValueError(f"{image} is larger than the {size} bytes of its disk")
            layer = self._new_layer(None)
            _copy_image(source.fileno(), length, layer)
            self._add(uuid, length if size is None else size, layer)

    def adopt_tree(self, uuid: str, tree: Path, size: int) -> None:
        """Make a disk of `size` bytes that is an ext4 file system, not partitioned, of the files under `tree`."""
        image = self._directory / f"{uuid}.ext4"
        try:
            with open(image, "xb") as file:
                file.truncate(size)
            command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1", "-d", str(tree)]
            subprocess.run([*command, str(image)], check=True, capture_output=True, env=os.environ | {"PATH": _PATH})
            self.adopt(uuid, image)
        finally:
            image.unlink(missing_ok=True)

    def mirror(self, uuid: str, image: Path) -> None:
        """From now on the disk's content is that of a raw image file, whenever somebody looks."""
        self._mirrored[uuid] = image

    def _refresh(self, uuid: str) -> None:
        """Take over what has changed in the image that a disk mirrors; beyond its end the disk keeps what it has."""
        image = self._mirrored.get(uuid)
        if image is not None:
            with self._lock:
                volume = self._volumes[uuid]
                volume.handles += 1
                with Disk(self, volume) as disk:
                    _write_back(image, disk)

    def snapshot(self, source: str, target: str) -> None:
        """Make `target` the content `source` has now; costs neither space nor time. The source may be in use.

        A log of changes, if the source has one, goes to the target, and the source begins another.
        """
        self._refresh(source)
        with self._lock:  # no write may come between content and log
            self._share(source, target)
            self._tracking.split(source, target)

    def clone(self, source: str, target: str) -> None:
        """Make `target` the content `source` has now, without a log of changes."""
        self._refresh(source)
        self._share(source, target)

    def _share(self, source: str, target: str) -> None:
        with self._lock:
            volume = self._volumes[source]
            self._add(target, volume.size, volume.layer)

    def copy(self, source: str, target: str) -> None:
        """Make `target` an independent copy that shares nothing with `source`."""
        with self._lock:
            frozen = f"{source}.{next(self._numbers)}"
            self.clone(source, frozen)
            volume = self._volumes[frozen]
        layer = self._new_layer(None)
        for part, start, end in self.resolve(volume, 0, volume.size):
            copy_extents(part, layer, start, end)
        with self._lock:
            self._add(target, volume.size, layer)
            self.destroy(frozen)

    def resize(self, uuid: str, size: int) -> None:
        """Grow a disk; the new part reads as zeros. Raises ValueError when it would shrink."""
        with self._lock:
            volume = self._volumes[uuid]
            if size < volume.size:
                raise ValueError("a disk cannot shrink")
            volume.size = size
            self._tracking.grow(uuid, size)

    def destroy(self, uuid: str) -> None:
        """Remove a disk, whose content may be gone already, and its log of changes."""
        with self._lock:
            if uuid in self._volumes or uuid not in self._tracking:
                self.drop_data(uuid)
            self._tracking.remove(uuid)

    def drop_data(self, uuid: str) -> None:
        """Remove a disk's content and every layer nobody else needs, at once or when its last handle is closed."""
        with self._lock:
            volume = self._volumes.pop(uuid)
            self._mirrored.pop(uuid, None)
            volume.doomed = True
            if not volume.handles:
                self._drop(volume)

    def open(self, uuid: str) -> Disk:
        """Open a disk. Raises KeyError when there is none of that uuid."""
        self._refresh(uuid)
        with self._lock:
            volume = self._volumes[uuid]
            volume.handles += 1
            return Disk(self, volume)

    def size(self, uuid: str) -> int:
        """Virtual size in bytes."""
        return self._volumes[uuid].size

    def depth(self, uuid: str) -> int:
        """How many layers a disk is made of."""
        with self._lock:
            return sum(1 for _layer in _chain(self._volumes[uuid].layer))

    def allocated(self, uuid: str) -> int:
        """Bytes that only this disk needs: what destroying it would set free."""
        with self._lock:
            total = 0
            layer: Layer | None = self._volumes[uuid].layer
            users = 1
            while layer is not None and len(layer.volumes) + len(layer.children) == users:
                total += layer.allocated()
                layer = layer.parent
            return total

    def used(self, uuids: Iterable[str]) -> int:
        """Bytes all these disks take together, every shared layer counted once."""
        with self._lock:
            layers = {layer for uuid in uuids if uuid in self._volumes for layer in _chain(self._volumes[uuid].layer)}
            return sum(layer.allocated() for layer in layers)

    def changed(self, older: str, newer: str) -> list[tuple[int, int]]:
        """(offset, length) of everything written on either side since the two disks' chains parted.

        Disks that share no layer differ everywhere either of them has data.
        """
        with self._lock:
            ours, theirs = set(_chain(self._volumes[newer].layer)), set(_chain(self._volumes[older].layer))
            size = max(self._volumes[newer].size, self._volumes[older].size)
            ranges: list[tuple[int, int]] = []
            for layer in ours ^ theirs:
                ranges += layer.extents(0, size) if layer.parent is None else layer.held
        return sorted((start, end - start) for start, end in ranges)

    def track(self, uuid: str) -> None:
        """Keep a log of the blocks that are written to a disk from now on."""
        self._refresh(uuid)
        with self._lock:
            self._tracking.start(uuid, self._volumes[uuid].size)

    def untrack(self, uuid: str) -> None:
        """End a disk's log; those of its snapshots stay."""
        with self._lock:
            self._tracking.remove(uuid)

    def changed_blocks(self, older: str, newer: str) -> bytes:
        """The bitmap of what was written after `older` and until `newer`, as their logs say. Raises Unrelated."""
        self._refresh(newer)
        with self._lock:
            return self._tracking.changed(older, newer)

    @contextmanager
    def edit(self, uuid: str) -> Iterator[Path]:
        """Lend the disk as one flat image file; what the caller changed in it is written back to the disk."""
        image = self._directory / f"{uuid}.{next(self._numbers)}.edit"
        with self.open(uuid) as disk:
            try:
                with open(image, "xb", buffering=0) as file:
                    file.truncate(disk.size)
                    _pour(disk, file.fileno())
                yield image
                _write_back(image, disk)
            finally:
                image.unlink(missing_ok=True)

    def resolve(self, volume: Volume, start: int, end: int) -> list[tuple[Layer, int, int]]:
        """The layers that answer for [start, end), piece by piece; they may be read without the lock."""
        with self._lock:
            return list(volume.layer.resolve(start, end))

    def write(self, volume: Volume, offset: int, data: memoryview) -> None:
        """Write through a handle, on a layer nobody else sees."""
        if offset < 0 or offset + len(data) > volume.size:
            raise ValueError("write beyond the end of the disk")
        with self._lock:
            layer = volume.layer
            if len(layer.volumes) + len(layer.children) > 1:
                child = self._new_layer(layer)
                layer.children.add(child)
                layer.volumes.discard(volume)
                child.volumes.add(volume)
                volume.layer = layer = child
            layer.write(offset, data)
            self._tracking.mark(volume.uuid, offset, offset + len(data))

    def release(self, volume: Volume) -> None:
        """Take a handle back."""
        with self._lock:
            volume.handles -= 1
            if volume.doomed and not volume.handles:
                self._drop(volume)

    def _add(self, uuid: str, size: int, layer: Layer) -> None:
        with self._lock:
            if uuid in self._volumes:
                raise ValueError(f"there is a disk {uuid} already")
            self._volumes[uuid] = Volume(uuid, size, layer)

    def _new_layer(self, parent: Layer | None) -> Layer:
        return Layer(self._directory / f"layer-{next(self._numbers):06}", parent)

    def _drop(self, volume: Volume) -> None:
        layer: Layer | None = volume.layer
        volume.layer.volumes.discard(volume)
        while layer is not None and not layer.volumes and not layer.children:
            layer.discard()
            if layer.parent is not None:
                layer.parent.children.discard(layer)
            layer = layer.parent
        if layer is not None and not layer.volumes and len(layer.children) == 1:
            self._merge(layer)

    def _merge(self, layer: Layer) -> None:
        """Pull the only child of `layer` down into it; readers of the child still find what they need."""
        child = next(iter(layer.children))
        layer.absorb(child)
        layer.children = child.children
        layer.volumes = child.volumes
        for grandchild in layer.children:
            grandchild.parent = layer
        for volume in layer.volumes:
            volume.layer = layer
        child.discard()


_PATH = f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}"


def _chain(layer: Layer | None) -> Iterator[Layer]:
    while layer is not None:
        yield layer
        layer = layer.parent


def _copy_image(fd: int, length: int, layer: Layer) -> None:
    buffer = memoryview(bytearray(COPY_STEP))
    for start, end in steps(file_extents(fd, 0, length)):
        view = buffer[:end - start]
        layer.write(start, view[:os.preadv(fd, [view], start)])


def _pour(disk: Disk, fd: int) -> None:
    buffer = memoryview(bytearray(COPY_STEP))
    for start, end in steps((start, start + length) for start, length in disk.data_extents()):
        view = buffer[:end - start]
        disk.read_into(start, view)
        os.pwrite(fd, view, start)


def _write_back(image: Path, disk: Disk) -> None:
    """Write what differs between an image and a disk to the disk, in pieces of 4 KiB."""
    with open(image, "rb", buffering=0) as file:
        ranges = Ranges()
        for start, length in disk.data_extents():
            ranges.add(start, start + length)
        for start, end in file_extents(file.fileno(), 0, disk.size):
            ranges.add(start, end)
        for start, end in steps(ranges):
            ours, theirs = disk.pread(start, end - start), os.pread(file.fileno(), end - start, start)
            if ours != theirs:
                for low, high in steps([(0, end - start)], EDIT_STEP):
                    if ours[low:high] != theirs[low:high]:
                        disk.pwrite(start + low, theirs[low:high])
