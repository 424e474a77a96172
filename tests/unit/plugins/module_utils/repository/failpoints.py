# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the store's calls to the operating system fail, or end the process, at a chosen one."""
from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace

from ansible_collections.guestark.xen.plugins.module_utils.repository import posix

CHANGES = ("write", "fsync", "link", "rename", "unlink")
BOUNDARIES = (
    "open", "write", "fsync", "close", "link", "rename", "unlink", "mkdir", "stat", "listdir", "posix_fadvise",
)


class Failpoints:
    """Counts the calls, or those of ``names``, and does ``act(name)`` before the one with number ``at`` (from 0), once."""

    def __init__(self, act, at: int = -1, names: tuple[str, ...] = BOUNDARIES) -> None:
        self.count = 0
        self.calls: list[str] = []
        self._act = act
        self._at = at
        self._os = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
        for name in names:
            setattr(self._os, name, self._wrapped(name, getattr(os, name)))

    def __enter__(self) -> Failpoints:
        posix.os = self._os
        return self

    def __exit__(self, *exc_info) -> None:
        posix.os = os

    def _wrapped(self, name, function):
        def call(*args, **kwargs):
            number, self.count = self.count, self.count + 1
            self.calls.append(name)
            if number == self._at:
                self._act(name)
            return function(*args, **kwargs)

        return call


def kill(_name: str) -> None:
    """End the process as a power cut or the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(at: int, work) -> bool:
    """Do ``work`` in a process that is killed at its call ``at``; False when it ended before."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with Failpoints(kill, at):
                work()
            status = 0
        finally:
            os._exit(status)
    _pid, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "failed instead of being killed at %d" % at
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFSIGNALED(status)


def fail_with(number: int):
    """Raise OSError with this errno."""
    def act(name: str) -> None:
        raise OSError(number, "%s: %s" % (name, errno.errorcode[number]))

    return act
