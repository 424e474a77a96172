# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools and their hosts."""
from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .database import Database
from .faults import FaultBook
from .model import Release

if TYPE_CHECKING:
    from .http_server import Listener
    from .nbd_server import NbdServer
    from .storage import Storage


@dataclass
class Host:
    """A host: where it listens and whether it does. ``emergency`` is the code all calls get when it lost its pool."""

    ref: str
    name: str
    address: str
    port: int = 0
    alive: bool = True
    emergency: str | None = None
    listener: Listener | None = None
    nbd: NbdServer | None = None

    @property
    def servers(self) -> list[Listener | NbdServer]:
        """What listens on it."""
        return [server for server in (self.listener, self.nbd) if server]

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"https://{self.address}:{self.port}"


@dataclass
class Account:
    """Somebody who may log in; root has the role pool-admin."""

    name: str
    password: str
    role: str = "pool-admin"


@dataclass
class Guest:
    """How a guest behaves. ``shutdown``: seconds it takes to shut down when asked, or None for never.

    ``saving``: seconds that writing its memory takes. ``fails``: what of a checkpoint goes wrong, ``suspend`` or
    ``resume``, or nothing.
    """

    shutdown: float | None = 0.0
    saving: float = 0.0
    fails: str = ""


@dataclass
class Pool:
    """A pool: its database, disks and hosts. ``coordinator`` is the ref of the host that answers RPC."""

    name: str
    db: Database
    storage: Storage
    hosts: list[Host]
    coordinator: str
    faults: FaultBook
    accounts: dict[str, Account] = field(default_factory=dict)
    state_dir: Path = Path()
    # what event.next is to tell a session: from which generation on, which classes
    registered: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)  # by UUID; those that are not there do as they are told
    nbd_lag: float = 0.2  # seconds until a disk that was read by NBD is let go
    # what a background worker does when a task is to be stopped, by task ref
    on_cancel: dict[str, Callable[[], None]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)  # how often each was made, whatever came of it
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def count_call(self, name: str) -> None:
        """Note that a call was made."""
        with self._counting:
            self.calls[name] += 1

    @property
    def release(self) -> Release:
        """The release its hosts run."""
        return self.db.model.release

    @property
    def ref(self) -> str:
        """The pool's own row."""
        return self.db.refs("pool")[0]

    def guest(self, vm: str) -> Guest:
        """How the guest of a VM's ref behaves."""
        return self.guests.get(self.db.field("VM", vm, "uuid"), Guest())

    def host(self, ref: str) -> Host:
        """The host of a ref."""
        return next(host for host in self.hosts if host.ref == ref)


@dataclass
class World:
    """Everything one simulator serves."""

    pools: dict[str, Pool]
    state_dir: Path
    ca_path: Path = Path()
    control_url: str = ""
