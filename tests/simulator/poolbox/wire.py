# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of a transfer on their way out or in, and the faults that may befall them.

A fault rule for a transfer matches on `kind` (export, import, export_raw_vdi, import_raw_vdi), `path` ("/export" …),
`vm`, `vdi`, `sr` (UUIDs, as far as the request names one), `pool` and `host` (names). What its fault may say:

    delay: seconds        before anything is answered
    error: [CODE, …]      fail before anything is answered: an error page, and the task fails
    cut_at: N             close the connection after N bytes; with reset: true by RST, otherwise by FIN
    stall_at: N           say and read nothing more after N bytes, for `seconds`, or until the client gives up
    late_error: [CODE, …] fail with this error after `after` bytes (0 when not given) or, with after: end, after
                          the last; with silent: true no error page goes to the client, only the task tells
    corrupt_chunk: N      spoil data member N of an archive (from 0, over all disks) after its checksum was made
    keep_alive: N         put an empty member after every N members that are left out for being zero
    checksum: sha1        write checksum members of that kind, or of kind xxhash
    sr_full: true | N     no room for disks on import; or none left after N bytes of content

Positions count bytes of the body as they are on the wire, compressed or not. Several of these may come together.
"""

from __future__ import annotations

import math
import select
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import zstandard

from .errors import ApiError

PROGRESS_SECONDS = 10.0
READ_STEP = 1 << 20


class Connection(Protocol):
    """What a transfer needs of the HTTP server's side of a connection."""

    def send(self, data: bytes | memoryview, /) -> None: ...

    rfile: Any
    wait: Callable[[], None]

    def fileno(self) -> int: ...

    def abort(self, reset: bool) -> None: ...


class Cut(Exception):
    """The connection was broken on purpose, or by the client; there is nobody to answer to."""


class SilentError(ApiError):
    """An error of which only the task tells."""


class Wire:
    """The body of one request or answer."""

    def __init__(self, connection: Connection, fault: Mapping[str, Any] | None = None) -> None:
        self._connection = connection
        self._fault = fault or {}
        self._events = sorted(_events(self._fault), key=lambda event: event[0])
        self.moved = 0

    def write(self, data: bytes | memoryview) -> None:
        """Send all of `data`, as far as no fault comes in between. Raises Cut when the client is gone."""
        while self._events and self._events[0][0] <= self.moved + len(data):
            position, name = self._events.pop(0)
            first = max(int(position) - self.moved, 0)
            self._send(data[:first])
            data = data[first:]
            self._happen(name)
        self._send(data)

    def readinto(self, buffer: memoryview) -> int:
        """Receive until the buffer is full; fewer bytes only where the client, or a fault, has ended it."""
        done = 0
        while done < len(buffer) and (count := self._receive(self._connection.rfile.readinto, buffer[done:])):
            done += count
        return done

    def readinto1(self, buffer: memoryview) -> int:
        """Receive what has come; 0 when there will be no more."""
        return self._receive(self._connection.rfile.readinto1, buffer)

    def _receive(self, readinto: Callable[[memoryview], int | None], buffer: memoryview) -> int:
        self._connection.wait()
        try:
            while self._events and self._events[0][0] <= self.moved:
                self._happen(self._events.pop(0)[1])
            if self._events:
                buffer = buffer[:int(min(self._events[0][0] - self.moved, len(buffer)))]
            count = readinto(buffer) or 0
        except (Cut, OSError):
            return 0
        self.moved += count
        return count

    def end(self) -> None:
        """Say that the last byte has moved."""
        if self._fault.get("after") == "end":
            self._happen("late_error")

    def _send(self, data: bytes | memoryview) -> None:
        try:
            if len(data):
                self._connection.send(data)
        except OSError as error:
            raise Cut(str(error)) from error
        self.moved += len(data)

    def _happen(self, name: str) -> None:
        if name == "cut_at":
            self._connection.abort(bool(self._fault.get("reset")))
            raise Cut("cut on purpose")
        if name == "stall_at":
            stall(self._connection.fileno(), self._fault.get("seconds"))
        else:
            kind = SilentError if self._fault.get("silent") else ApiError
            raise kind(*self._fault["late_error"])


def _events(fault: Mapping[str, Any]) -> list[tuple[float, str]]:
    events: list[tuple[float, str]] = [(fault[name], name) for name in ("cut_at", "stall_at") if name in fault]
    if "late_error" in fault and fault.get("after") != "end":
        events.append((fault.get("after", 0), "late_error"))
    return events


def stall(fd: int, seconds: float | None) -> None:
    """Do nothing for some seconds, or until the other side closes the connection. Raises Cut when it did."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    if poll.poll(None if seconds is None else seconds * 1000):
        raise Cut("the client gave up")


class Progress:
    """Tells a task how far a transfer is and asks whether it is cancelled: at the start, then every ten seconds."""

    def __init__(self, task: Any, total: int) -> None:
        self._task = task
        self._total = max(total, 1)
        self._next = -math.inf

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._task.progress(min(done / self._total, 1.0))
            self.check()

    def check(self) -> None:
        """Raise TASK_CANCELLED when the task was cancelled."""
        if self._task.cancelled():
            raise ApiError("TASK_CANCELLED", self._task.ref)


class Packer:
    """Compresses what is written, as `gzip` and `zstd` do by default: one stream, one thread."""

    def __init__(self, kind: str, write: Callable[[bytes], None]) -> None:
        self._write = write
        if kind == "zstd":
            self._packer: Any = zstandard.ZstdCompressor(write_checksum=True).compressobj()
        else:
            self._packer = zlib.compressobj(wbits=31)

    def write(self, data: bytes | memoryview) -> None:
        """Compress and send."""
        self._write(self._packer.compress(data))

    def end(self) -> None:
        """Send what is left."""
        self._write(self._packer.flush())
