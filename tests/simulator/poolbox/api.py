# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where implementations of methods and of HTTP handlers are registered, and what they are given."""
from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .database import Database
from .model import NULL, Release
from .pool import Host, Pool
from .tasks import TaskHandle

METHODS: dict[str, Callable[..., Any]] = {}
HANDLERS: dict[tuple[str, str], Callable[..., None]] = {}


@dataclass
class Context:
    """Who asks what of whom. ``session`` is a ref; ``task`` is there while a task goes with the call."""

    pool: Pool
    host: Host
    session: str = NULL
    task: TaskHandle | None = None

    @property
    def db(self) -> Database:
        """The pool's database."""
        return self.pool.db

    @property
    def release(self) -> Release:
        """The release of the pool."""
        return self.pool.release


@dataclass
class Request:
    """An HTTP request. Its body, if any, is yet to be read; the answer is written by whoever handles it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    version: str
    rfile: BinaryIO
    connection: socket.socket
    cookies: dict[str, str] = field(default_factory=dict)
    answered: bool = False
    wait: Callable[[], None] = lambda: None  # returns when the host is not hung

    def send(self, data: bytes | memoryview) -> None:
        """Write to the client."""
        self.wait()
        self.answered = True
        self.connection.sendall(data)

    def send_head(self, version: str, status: int, reason: str, headers: dict[str, str]) -> None:
        """Write a status line and headers: ``send_head("1.1", 200, "OK", {…})``."""
        lines = [f"HTTP/{version} {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def readinto(self, buffer: memoryview) -> int | None:
        """Read some of the body; 0 when the client closed its side."""
        return self.rfile.readinto1(buffer) if hasattr(self.rfile, "readinto1") else self.rfile.readinto(buffer)

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self.connection.fileno()

    def close(self) -> None:
        """End the connection; nothing more is sent."""
        self.answered = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def abort(self, reset: bool) -> None:
        """Break the connection, by RST or by FIN, without a word of TLS."""
        self.answered = True
        break_off(self.connection, reset)


def break_off(connection: socket.socket, reset: bool) -> None:
    """End a connection, by RST or by FIN, without a word of TLS."""
    raw = socket.socket(fileno=connection.detach())
    if reset:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def method(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the implementation of ``Class.method``: a function of a Context and the parameters."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = function
        return function

    return register


def handler(verb: str, path: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register an HTTP handler: a function of a Request and a Context (without a session: the handler checks)."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        HANDLERS[verb, path] = function
        return function

    return register
