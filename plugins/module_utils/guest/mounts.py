# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""File systems of a guest and freezing them. Source: proc_pid_mountinfo(5), linux/fs.h (FIFREEZE, FITHAW)."""
from __future__ import annotations

import errno
import fcntl
import os
import re
from dataclasses import dataclass
from typing import Sequence

from .errors import GuestError

FREEZABLE = frozenset("ext2 ext3 ext4 xfs btrfs f2fs jfs nilfs2 gfs2 reiserfs ocfs2 bcachefs".split())
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878  # _IOWR('X', 119, int), _IOWR('X', 120, int)


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, of what type, its device's numbers, whether it can be written, the mount's number."""

    path: str
    kind: str
    device: str
    writable: bool
    number: int = 0


def mounted(mountinfo: str) -> list[Mount]:
    """The mounts that ``/proc/self/mountinfo`` lists, in the order in which they were mounted."""
    found = []
    for line in mountinfo.splitlines():
        before, _dash, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 6 or len(kind) < 3:
            continue
        path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), fields[4])
        options = {*fields[5].split(","), *kind[2].split(",")}
        found.append(Mount(path, kind[0], fields[2], "ro" not in options, int(fields[0])))
    return found


def within_reach(mount: Mount) -> bool:
    """Whether its path leads to it: another mount may lie over it or over a folder above it."""
    try:
        descriptor = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with open("/proc/self/fdinfo/%d" % descriptor, encoding="ascii") as source:
            return "mnt_id:\t%d\n" % mount.number in source.read()
    finally:
        os.close(descriptor)


def chosen(mounts: Sequence[Mount], paths: Sequence[str]) -> list[Mount]:
    """The file systems to freeze, innermost first; each once, however often it is mounted.

    ``paths``: mount points; without any, all that can be frozen. Raises GuestError for one that cannot be.
    """
    at = {mount.path: mount for mount in mounts}  # what was mounted last hides what was there before
    fit = sorted(mount.path for mount in at.values() if mount.kind in FREEZABLE and mount.writable)
    for path in paths:
        mount = at.get(os.path.normpath(path))
        if mount is None:
            raise GuestError("Nothing is mounted on %s." % path, "Name some of these: %s." % ", ".join(fit))
        if mount.kind not in FREEZABLE or not mount.writable:
            how = "is mounted read-only" if mount.kind in FREEZABLE else "is of type %s" % mount.kind
            raise GuestError("%s cannot be frozen: it %s." % (path, how), "Leave it out of mount_points.")
    wanted = {os.path.normpath(path) for path in paths}
    found: list[Mount] = []
    for mount in at.values():
        fits = mount.path in wanted if paths else mount.kind in FREEZABLE and mount.writable
        if fits and mount.device not in [one.device for one in found]:
            found.append(mount)
    if not found:
        raise GuestError("There is no file system here that can be frozen.")
    return found[::-1]


def freeze(descriptor: int) -> None:
    """Freeze the file system of an open file: what is dirty is written, further writes wait. Raises OSError."""
    fcntl.ioctl(descriptor, FIFREEZE, 0)


def thaw(descriptor: int) -> bool:
    """Thaw it; whether it was frozen until now. Raises OSError."""
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
