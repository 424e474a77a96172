# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What a running transfer says of itself: one JSON line per report, for whoever watches the file."""
from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Callable, Optional

FIRST_AFTER = 10.0  # seconds
EVERY = 30.0  # seconds; job controllers cut off jobs that are silent for five minutes


@dataclass(frozen=True)
class Report:
    """A moment of a transfer: ``done`` and ``total`` are bytes of virtual disk, ``rate`` is bytes per second."""

    phase: str
    vm: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    rate: float = 0.0


class Progress:
    """Reports each phase at once, and a running phase after 10 s and then every 30 s.

    ``path`` is a file to append to (JSON lines, created by the watcher); without one nothing is written.
    """

    def __init__(self, vm: str, path: Optional[str] = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.vm = vm
        self._path = path
        self._clock = clock
        self._began = clock()
        self._phase = ""
        self._next = self._began + FIRST_AFTER

    def phase(self, name: str) -> None:
        """Say that another phase begins."""
        self._phase = name
        self._began = self._clock()
        self._next = self._began + FIRST_AFTER
        self._write(Report(name, self.vm))

    def advance(self, done: int, total: int) -> None:
        """Say how far the phase is; cheap, to be called for every block."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY
        seconds = now - self._began
        self._write(Report(self._phase, self.vm, done, total, round(seconds, 1), done / seconds if seconds else 0.0))

    def _write(self, report: Report) -> None:
        if not self._path:
            return
        line = (json.dumps(asdict(report)) + "\n").encode()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._path = None  # the watcher is gone: a backup does not fail for want of an audience
            return
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
