# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk may hold after a power cut: the store's calls are recorded, then replayed up to any of them.

What was synced before the cut is there. Of the rest, any entry of a folder and any first part of a file may be there, or
not, each for itself: fewer promises than the journals of real file systems make.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from ansible_collections.guestark.xen.plugins.module_utils.repository import posix

FOLDER = -1  # an entry that is a folder


@dataclass
class Disk:
    """Files and folders below one path: as they are (``now``), and as far as they are certain to stay (``kept``)."""

    now: dict[int, bytearray] = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    entries: dict[str, dict[str, int]] = field(default_factory=lambda: {"": {}})
    pending: dict[str, list[tuple[str, int | None]]] = field(default_factory=dict)

    def add(self, folder: str, name: str, what: int) -> None:
        """A new entry, or one in the place of another."""
        self.pending.setdefault(folder, []).append((name, what))
        if what == FOLDER:
            self.entries.setdefault(f"{folder}{name}/", {})

    def drop(self, folder: str, name: str) -> None:
        """An entry goes."""
        self.pending.setdefault(folder, []).append((name, None))

    def sync_folder(self, folder: str) -> None:
        """What happened to the entries of a folder stays."""
        for name, what in self.pending.pop(folder, []):
            _change(self.entries[folder], name, what)

    def after_cut(self, survives: Callable[[], bool], part: Callable[[int], int]) -> dict[str, bytes | None]:
        """Paths and contents (None: a folder); ``survives`` and ``part`` decide about what was not synced."""
        entries = {folder: dict(held) for folder, held in self.entries.items()}
        for folder, changes in self.pending.items():
            for name, what in changes:
                if survives():
                    _change(entries[folder], name, what)
        contents: dict[int, bytes] = {}
        found: dict[str, bytes | None] = {}
        ahead = [""]
        while ahead:
            folder = ahead.pop()
            for name, what in entries[folder].items():
                if what == FOLDER:
                    found[folder + name] = None
                    ahead.append(f"{folder}{name}/")
                    continue
                if what not in contents:
                    kept = len(self.kept[what])
                    contents[what] = bytes(self.now[what][:kept + part(len(self.now[what]) - kept)])
                found[folder + name] = contents[what]
        return found


class Recorder:
    """Records what the store does below ``root``; ``after(count)`` is the disk after so many calls."""

    def __init__(self, root: Path, deaf_to: str = "") -> None:
        self._root = os.fspath(root)
        self._deaf_to = deaf_to  # "file", "folder": what is not synced, as if the code had forgotten it
        self._calls: list[Callable[[Disk], None]] = []
        self._files: dict[int, int] = {}
        self._start = self._found()

    def __len__(self) -> int:
        return len(self._calls)

    def __enter__(self) -> Recorder:
        wrapped = {name: getattr(self, "_" + name) for name in ("open", "write", "fsync", "link", "rename", "unlink", "mkdir")}
        posix.os = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)} | wrapped)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        posix.os = os

    def disks(self) -> Iterator[Disk]:
        """The disk before the first call and after each."""
        disk = self._start
        yield disk
        for call in self._calls:
            call(disk)
            yield disk

    def _found(self) -> Disk:
        disk = Disk()
        for place, folders, names in os.walk(self._root):
            folder = self._below(place)
            disk.entries.setdefault(folder, {})
            for name in folders:
                disk.add(folder, name, FOLDER)
            for name in names:
                path = os.path.join(place, name)
                node = self._node(os.stat(path).st_ino, new=True)
                data = Path(path).read_bytes()
                disk.now[node], disk.kept[node] = bytearray(data), data
                disk.add(folder, name, node)
            disk.sync_folder(folder)
        return disk

    def _below(self, path: str) -> str:
        below = os.path.relpath(path, self._root)
        return "" if below == "." else below + "/"

    def _folder(self, descriptor: int) -> str:
        return self._below(os.readlink("/proc/self/fd/%d" % descriptor))

    def _node(self, inode: int, new: bool = False) -> int:
        if new:  # the number of a file that is gone may come again
            self._files[inode] = max(self._files.values(), default=0) + 1
        return self._files[inode]

    def _open(self, path, flags, mode=0o777, *, dir_fd=None):
        file = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            folder, node = self._folder(dir_fd), self._node(os.fstat(file).st_ino, new=True)

            def call(disk: Disk) -> None:
                disk.now[node], disk.kept[node] = bytearray(), b""
                disk.add(folder, path, node)

            self._calls.append(call)
        return file

    def _write(self, file, data):
        written = os.write(file, data)
        node, copy = self._node(os.fstat(file).st_ino), bytes(memoryview(data)[:written])
        self._calls.append(lambda disk: disk.now[node].extend(copy))
        return written

    def _fsync(self, file):
        os.fsync(file)
        if os.path.isdir("/proc/self/fd/%d" % file):
            folder = self._folder(file)
            if self._deaf_to != "folder":
                self._calls.append(lambda disk: disk.sync_folder(folder))
        elif self._deaf_to != "file":
            node = self._node(os.fstat(file).st_ino)
            self._calls.append(lambda disk: disk.kept.update({node: bytes(disk.now[node])}))

    def _link(self, source, target, *, src_dir_fd, dst_dir_fd, follow_symlinks):
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        folder, node = self._folder(dst_dir_fd), self._node(os.stat(target, dir_fd=dst_dir_fd).st_ino)
        self._calls.append(lambda disk: disk.add(folder, target, node))

    def _rename(self, source, target, *, src_dir_fd, dst_dir_fd):
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        old, new = self._folder(src_dir_fd), self._folder(dst_dir_fd)
        node = self._node(os.stat(target, dir_fd=dst_dir_fd).st_ino)
        self._calls.append(lambda disk: (disk.add(new, target, node), disk.drop(old, source)))

    def _unlink(self, name, *, dir_fd):
        os.unlink(name, dir_fd=dir_fd)
        folder = self._folder(dir_fd)
        self._calls.append(lambda disk: disk.drop(folder, name))

    def _mkdir(self, name, mode, *, dir_fd):
        os.mkdir(name, mode, dir_fd=dir_fd)
        folder = self._folder(dir_fd)
        self._calls.append(lambda disk: disk.add(folder, name, FOLDER))


def lay_out(path: Path, found: dict[str, bytes | None]) -> None:
    """Write what ``after_cut`` found below a new folder."""
    path.mkdir()
    for name in sorted(found):
        data = found[name]
        if data is None:
            (path / name).mkdir(mode=0o700)
        else:
            (path / name).write_bytes(data)


def _change(entries: dict[str, int], name: str, what: int | None) -> None:
    if what is None:
        entries.pop(name, None)
    else:
        entries[name] = what
