# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""A store in a directory of a local or mounted file system: objects appear whole and durable, or not at all."""
from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import BinaryIO, Iterator, Optional, Sequence

from .errors import NoSpace, ObjectExists, ObjectMissing, RepositoryError
from .layout import TEMPORARY, parts
from .store import MOST_READ, Data

_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_RENAME_NOREPLACE = 1  # linux/fs.h
_WRITE_BACK = 16 * 1024 * 1024


class PosixStore:
    """Objects below a directory. Names are relative, with ``/``; no symbolic link below the directory is followed.

    Every method raises RepositoryError (NoSpace, ObjectExists, ObjectMissing where they fit) and no OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def make_root(self) -> None:
        """Make the directory itself where its parent exists."""
        with reporting("make", self.path), suppress(FileExistsError):
            os.mkdir(self.path, 0o700)

    def create(self, name: str) -> PosixWriter:
        """Begin a new object; nobody sees it before its ``commit()``."""
        return PosixWriter(self, name)

    def put(self, name: str, data: bytes) -> None:
        """Create a small object. ObjectExists when there is one of that name."""
        writer = self.create(name)
        try:
            writer.write(data)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def replace(self, name: str, data: bytes) -> None:
        """Put ``data`` in the place of an object, atomically. For leases, which may be lost: nothing is synced."""
        temporary = _temporary_name(name)
        with reporting("replace", name):
            with self.folder(temporary, make=True) as (source, leaf):
                file = os.open(leaf, os.O_WRONLY | _NEW_FILE, 0o600, dir_fd=source)
                try:
                    _write_all(file, data)
                finally:
                    os.close(file)
                with self.folder(name, make=True) as (target, final):
                    os.rename(leaf, final, src_dir_fd=source, dst_dir_fd=target)

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading, seekable and unbuffered."""
        with reporting("open", name), self.folder(name) as (folder, leaf):
            # O_NONBLOCK: a pipe planted under that name must not block us
            file = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                os.close(file)
                raise RepositoryError("%s is not a regular file." % name)
            return open(file, "rb", buffering=0)

    def read(self, name: str) -> bytes:
        """The whole of a small object, at most 64 MiB."""
        with self.open(name) as file, reporting("read", name):
            data = bytearray()
            while len(data) <= MOST_READ:
                part = file.read(1024 * 1024)
                if not part:
                    return bytes(data)
                data += part
            raise RepositoryError("%s is larger than anything that belongs there." % name)

    def list(self, folder: str) -> Sequence[str]:
        """Names of the objects directly in ``folder`` (ends with ``/``), sorted; empty when there is no such folder."""
        return [name for name, mode in self._entries(folder) if not stat.S_ISDIR(mode)]

    def folders(self, folder: str) -> Sequence[str]:
        """Names (last part only) of the folders directly in ``folder``, sorted."""
        return [name[len(folder):] for name, mode in self._entries(folder) if stat.S_ISDIR(mode)]

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        try:
            self._stat(name)
        except ObjectMissing:
            return False
        return True

    def size(self, name: str) -> int:
        """Length of an object in bytes."""
        return self._stat(name).st_size

    def modified(self, name: str) -> float:
        """When an object was last written, by the store's own clock: compare with ``now()`` only."""
        return self._stat(name).st_mtime

    def now(self) -> float:
        """What the store's own clock says."""
        name = TEMPORARY + "now.%s" % secrets.token_hex(6)
        self.replace(name, b"")
        try:
            return self.modified(name)
        finally:
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove an object, or do nothing when there is none. Only ever for what no committed point lists."""
        with reporting("remove", name), suppress(FileNotFoundError), self.folder(name) as (folder, leaf):
            os.unlink(leaf, dir_fd=folder)
            if not name.startswith(TEMPORARY):
                _sync_folder(folder)  # the order of removals must survive a power cut

    def free_space(self) -> int:
        """Bytes that can still be written."""
        with reporting("look at", self.path):
            found = os.statvfs(self.path)
            return found.f_bavail * found.f_frsize

    def scratch(self) -> Scratch:
        """A nameless temporary file; it is gone when closed, or when its process is."""
        name = TEMPORARY + "scratch.%s" % secrets.token_hex(6)
        with reporting("write", name), self.folder(name, make=True) as (folder, leaf):
            file = os.open(leaf, os.O_RDWR | _NEW_FILE, 0o600, dir_fd=folder)
            os.unlink(leaf, dir_fd=folder)
            return Scratch(file)

    def probe(self) -> None:
        """Try what everything here rests on: writing, reading it back, and that a name cannot be taken twice."""
        _refuse_soft_mount(self.path)
        name = TEMPORARY + "probe.%s" % secrets.token_hex(6)
        self.put(name, b"first")
        try:
            with suppress(ObjectExists):
                self.put(name, b"second")
            if self.read(name) != b"first":
                raise RepositoryError(
                    "%s lets a file replace another unasked." % self.path,
                    "Use a file system that supports hard links.",
                )
        finally:
            self.remove(name)

    @contextmanager
    def folder(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of ``name`` one part at a time and give its descriptor and the name's last part.

        Raises ValueError for what is no name, and OSError; ELOOP or ENOTDIR where a part is a symbolic link.
        """
        places = parts(name)
        here = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in places[:-1]:
                here = _step(here, part, make)
            yield here, places[-1]
        finally:
            os.close(here)

    def _entries(self, folder: str) -> Iterator[tuple[str, int]]:
        with reporting("list", folder):
            try:
                with self.folder(folder + "x") as (here, _leaf):
                    # .nfs…: what an NFS client keeps of files removed while they were open
                    leaves = sorted(leaf for leaf in os.listdir(here) if not leaf.startswith(".nfs"))
                    for leaf in leaves:
                        with suppress(FileNotFoundError):
                            yield folder + leaf, os.stat(leaf, dir_fd=here, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return

    def _stat(self, name: str) -> os.stat_result:
        with reporting("look at", name), self.folder(name) as (folder, leaf):
            found = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise RepositoryError("%s is not a regular file." % name)
            return found


class PosixWriter:
    """A new object under way, in a temporary file on the same file system.

    ``commit()`` makes it durable and then visible; ``abort()`` (harmless at any time) forgets it. After an error the
    object is lost: a failed fsync cannot be repeated, because the kernel forgets what it could not write.
    """

    def __init__(self, store: PosixStore, name: str) -> None:
        self.name = name
        self.size = 0
        self._store = store
        self._temporary = _temporary_name(name)
        self._pushed = 0
        self._file: Optional[int] = None
        with reporting("write", name), store.folder(self._temporary, make=True) as (folder, leaf):
            self._file = os.open(leaf, os.O_WRONLY | _NEW_FILE, 0o600, dir_fd=folder)

    def write(self, data: Data) -> int:
        """Append ``data``; give it in large pieces, nothing is buffered here."""
        with reporting("write", self.name):
            _write_all(self._file, data)  # type: ignore[arg-type]
            self.size += len(data)
            if self.size - self._pushed >= _WRITE_BACK:
                self._push()
        return len(data)

    def commit(self) -> None:
        """Make the object durable and visible. ObjectExists when its name is taken."""
        with reporting("write", self.name):
            os.fsync(self._file)  # type: ignore[arg-type]  # open until it is committed or given up
            file, self._file = self._file, None
            os.close(file)  # type: ignore[arg-type]  # NFS reports a full server only here
            with self._store.folder(self._temporary) as (source, leaf):
                with self._store.folder(self.name, make=True) as (target, final):
                    _publish(source, leaf, target, final)
                    _sync_folder(target)
                with suppress(OSError):
                    os.unlink(leaf, dir_fd=source)

    def abort(self) -> None:
        """Close and remove the temporary file."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)
        with suppress(RepositoryError):
            self._store.remove(self._temporary)

    def _push(self) -> None:
        # starts writing back what is dirty and drops what was written: fsync has little left to do, and the page
        # cache keeps what the machine needs (mm/fadvise.c: DONTNEED begins with an asynchronous flush)
        start = max(0, self._pushed - 4 * _WRITE_BACK)
        with suppress(OSError):  # advice; a file system may not take it
            os.posix_fadvise(self._file, start, self.size - start, os.POSIX_FADV_DONTNEED)  # type: ignore[arg-type]
        self._pushed = self.size


class Scratch:
    """A nameless temporary file: written from its beginning to its end, then read."""

    def __init__(self, file: int) -> None:
        self._file: Optional[int] = file

    def write(self, data: Data) -> int:
        """Append ``data``."""
        with reporting("write", "a temporary file"):
            _write_all(self._file, data)  # type: ignore[arg-type]  # open until close()
        return len(data)

    def reading(self) -> BinaryIO:
        """What was written, from the beginning; valid until ``close()``."""
        os.lseek(self._file, 0, os.SEEK_SET)  # type: ignore[arg-type]
        return open(self._file, "rb", buffering=0, closefd=False)  # type: ignore[arg-type]

    def close(self) -> None:
        """Forget the content; harmless when done twice."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # nothing in it is wanted any more
                os.close(file)


@contextmanager
def reporting(doing: str, name: str) -> Iterator[None]:
    """Turn an OSError into what an administrator can act on."""
    try:
        yield
    except OSError as error:
        raise _explain(doing, name, error) from error


def _explain(doing: str, name: str, error: OSError) -> RepositoryError:
    said = "Cannot %s %s: %s." % (doing, name, os.strerror(error.errno) if error.errno else error)
    if isinstance(error, FileExistsError):
        return ObjectExists(said)
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(said, "Check that the repository's path is right and its file system mounted.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(said, "Make room or use a larger repository; earlier restore points are untouched.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RepositoryError(said, "Check the owner, the permissions and the mount options of the repository.")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return RepositoryError(said, "A symbolic link or a file stands where a folder belongs; it is not followed.")
    return RepositoryError(said, "Check the repository's storage.")


def _temporary_name(name: str) -> str:
    return "%s%s.%s" % (TEMPORARY, ",".join(parts(name)), secrets.token_hex(6))


def _write_all(file: int, data: Data) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view):]


def _step(here: int, part: str, make: bool) -> int:
    """Exchange a folder's descriptor for that of the folder ``part`` in it."""
    try:
        below = os.open(part, _FOLDER, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=here)
        _sync_folder(here)
        below = os.open(part, _FOLDER, dir_fd=here)
    os.close(here)
    return below


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # folders that need no syncing, or cannot be synced
            raise


def _publish(source: int, leaf: str, target: int, final: str) -> None:
    """Give the finished file its name; FileExistsError when that is taken."""
    try:
        os.link(leaf, final, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        # a reply of an NFS server may get lost: that the file has two names now says it was done
        if _count_names(source, leaf) == 2:
            return
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_no_replace(source, leaf, target, final)


def _count_names(folder: int, leaf: str) -> int:
    # opening makes an NFS client ask its server
    file = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.fstat(file).st_nlink
    finally:
        os.close(file)


def _rename_no_replace(source: int, leaf: str, target: int, final: str) -> None:
    """For file systems without hard links (CIFS, FAT)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if rename(source, os.fsencode(leaf), target, os.fsencode(final), _RENAME_NOREPLACE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _refuse_soft_mount(path: str, mounts: str = "/proc/self/mountinfo") -> None:
    """Raise RepositoryError for NFS mounted ``soft``: it gives up on writes that a server then still does, or not."""
    try:
        device = os.stat(path).st_dev
        with open(mounts, encoding="utf-8", errors="replace") as lines:
            entries = [line.split() for line in lines]
    except OSError:
        return  # no Linux, or a path about which the next step says more
    here = "%d:%d" % (os.major(device), os.minor(device))
    for entry in entries:
        kind, options = entry[entry.index("-") + 1], entry[-1].split(",")
        if entry[2] == here and kind.startswith("nfs") and ("soft" in options or "softerr" in options):
            raise RepositoryError(
                "%s is an NFS mount with the option %r, which loses writes." % (path, "soft"),
                "Mount it with hard,proto=tcp,nfsvers=4.1 or newer.",
            )
