# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The advisory lease on a VM: it saves two runs from doing the same work. Nothing is right or wrong because of it."""
from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import Any, Optional

from .errors import LeaseHeld, ObjectExists, ObjectMissing, RepositoryError, Retained
from .layout import lease_name
from .store import Store

# A lease is stale when it has not changed for this long while somebody looked on: no two clocks are compared, and NFS
# clients may see a renewal up to a minute late.
STALE = 120.0
RENEWAL = 30.0
POLL = 2.0


class Lease(AbstractContextManager):  # type: ignore[type-arg]
    """Held within ``with``; entering waits at most ``wait_timeout`` seconds for another holder, then raises LeaseHeld.

    ``certain``: whoever held it before is known to be gone: it was released, or its process is dead on this machine.
    ``lost``: another run took it; both may go on.
    """

    def __init__(self, store: Store, vm_uuid: str, wait_timeout: float = 900.0) -> None:
        self.vm_uuid = vm_uuid
        self.certain = False
        self.lost = False
        self._store = store
        self._name = lease_name(vm_uuid)
        self._wait_timeout = wait_timeout
        self._nonce = secrets.token_hex(8)
        self._count = 0
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> Lease:
        self._acquire()
        self._thread = threading.Thread(target=self._renew, name="guestark-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(RepositoryError):  # what stays is recognised as stale
            if self._read().get("nonce") == self._nonce:
                try:
                    self._store.remove(self._name)
                except Retained:  # whoever may remove nothing must not make the next run wait
                    self._store.replace(self._name, self._state(released=True))

    def _acquire(self) -> None:
        deadline = time.monotonic() + self._wait_timeout
        seen: Any = None
        since = 0.0
        while True:
            try:
                self._store.put(self._name, self._state())
                self.certain = True
                return
            except ObjectExists:
                holder = self._read()
            now = time.monotonic()
            if holder != seen:
                seen, since = holder, now
            if (holder.get("released") or _is_dead(holder) or now - since >= STALE) and self._take_over():
                self.certain = _is_dead(holder)
                return
            if now >= deadline:
                raise LeaseHeld(
                    "Another run is at work on this VM: process %s on %s." % (holder.get("pid"), holder.get("host")),
                    "Wait for it to end, or end it; a run that died is noticed within %d seconds." % STALE,
                )
            time.sleep(POLL)

    def _take_over(self) -> bool:
        self._store.replace(self._name, self._state())
        return bool(self._read().get("nonce") == self._nonce)

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL):
            with suppress(RepositoryError):  # advisory: the next renewal may succeed
                if self._read().get("nonce") != self._nonce:
                    self.lost = True
                    return
                self._count += 1
                self._store.replace(self._name, self._state())

    def _state(self, **more: Any) -> bytes:
        state = {**_process(os.getpid()), "host": socket.gethostname(), "nonce": self._nonce, "n": self._count, **more}
        return json.dumps({"owner": "guestark", **state}, sort_keys=True).encode("utf-8") + b"\n"

    def _read(self) -> dict[str, Any]:
        """The lease as it is; empty when there is none or nobody could have written it."""
        try:
            text = self._store.read(self._name)
        except ObjectMissing:
            return {}
        try:
            state = json.loads(text)
        except (ValueError, RecursionError):
            return {"malformed": text}
        return state if isinstance(state, dict) else {"malformed": text}


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from every other one, ever: kernel boot, process namespace, number, start."""
    return {
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _namespace(),
        "pid": pid,
        "start": _start(pid),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is certainly no more: it ran here since the last boot, and its process is gone."""
    pid, boot = holder.get("pid"), holder.get("boot_id")
    if not boot or not isinstance(pid, int):
        return False
    here = _process(pid)
    same_place = boot == here["boot_id"] and holder.get("pid_namespace") == here["pid_namespace"]
    return bool(same_place and here["pid_namespace"] and holder.get("start") != here["start"])


def _text(path: str) -> str:
    try:
        with open(path, encoding="latin-1") as file:
            return file.read().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When a process started, in ticks since boot; empty when there is none, or only what its parent has not reaped."""
    # proc(5): the fields after the command's name, which may hold anything, begin with the state; starttime is the 22nd
    fields = _text("/proc/%d/stat" % pid).rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]
