# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The process in the guest that thaws what was frozen: when it is asked to, when time is up, or when it is to end.

It is started before anything is frozen, holds the file systems open, and from then on touches none of them: what it
writes is below /run, and it imports nothing later.
"""
from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn, Optional, Sequence

from . import mounts
from .errors import GuaranteeLost, GuestError
from .mounts import Mount

STATE = "/run/guestark"
SOCKET, LOCK = "keeper.sock", "lock"
HELD, LAST = "held.json", "last.json"  # what is frozen now, and what became of the last freeze
LONGEST_MESSAGE = 65536
ANSWER_SECONDS = 5.0
LOOK_SECONDS = 0.2
RFC3339 = "%Y-%m-%dT%H:%M:%SZ"


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message: one line of JSON. Nobody listening is no error."""
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def receive(connection: socket.socket, seconds: float) -> Optional[dict[str, Any]]:
    """The next message, or None when the other side has gone. Raises TimeoutError."""
    data, deadline = b"", time.monotonic() + seconds
    while not data.endswith(b"\n") and len(data) < LONGEST_MESSAGE:
        if not select.select([connection], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        try:
            one = connection.recv(1)  # never more than one message
        except OSError:
            return None
        if not one:
            return None
        data += one
    try:
        message = json.loads(data)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def write(name: str, content: dict[str, Any]) -> None:
    """Write a file of the state folder, whole or not at all."""
    temporary = os.path.join(STATE, name + ".new")
    with open(temporary, "w", encoding="utf-8") as sink:
        json.dump(content, sink)
    os.replace(temporary, os.path.join(STATE, name))


@dataclass
class Keeper:
    """Holds a freeze. ``targets`` are in the order of freezing, ``descriptors`` are open on them.

    ``freezer``: the connection to the process that freezes, which ends when that process does.
    """

    token: str
    targets: Sequence[Mount]
    descriptors: Sequence[int]
    hooks: Sequence[Any]
    max_frozen: float
    hook_timeout: float
    freezer: Optional[socket.socket]
    prepared: list[Any] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)  # what the freezer began to freeze, in that order
    foreign: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    complete: bool = False
    released: bool = False
    guaranteed: bool = True
    told_to_end: bool = False
    armed: float = 0.0
    since: str = ""

    def run(self) -> None:
        """Hold until there is a reason to release, and release."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self._hold()
        except Exception as error:  # whatever it is, the applications do not stay at rest
            self._tell({"failed": "The guest's keeper failed: %s." % error})
            self._run_after()

    def _hold(self) -> None:
        try:
            for hook in self.hooks:
                self.prepared.append(hook)  # a hook that failed half-way is released too
                hook.prepare(self.hook_timeout)
        except GuestError as error:
            self._run_after()
            self._tell({"failed": error.message})
            return
        with socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(STATE, SOCKET)
            if os.path.exists(path):
                os.unlink(path)
            listener.bind(path)
            listener.listen()
            self.armed, self.since = time.monotonic(), time.strftime(RFC3339, time.gmtime())
            write(HELD, {"token": self.token, "since": self.since, "mount_points": [one.path for one in self.targets]})
            self._tell({"armed": True, "since": self.since})
            try:
                reason, asker = self._wait(listener)
            except Exception as error:  # whatever it is: what is frozen must thaw
                self.warnings.append("The keeper failed: %s" % error)
                reason, asker = "failure", None
            result = self._release(reason, asker)
            os.unlink(path)
        if asker:
            send(asker, {"result": result})
            asker.close()

    def _end(self, _number: int, _frame: Any) -> None:
        self.told_to_end = True

    def _tell(self, message: dict[str, Any]) -> None:
        if self.freezer:
            send(self.freezer, message)

    def _wait(self, listener: socket.socket) -> tuple[str, Optional[socket.socket]]:
        """Why to release, and who is waiting for the result."""
        while True:
            if self.told_to_end:
                return "signal", None
            left = self.armed + self.max_frozen - time.monotonic()
            if left <= 0:
                return "deadline", None
            sources: list[socket.socket] = [listener] + ([self.freezer] if self.freezer else [])
            ready = select.select(sources, [], [], min(left, LOOK_SECONDS))[0]
            if self.freezer in ready and self._hear_freezer():
                return "failure", self.freezer
            if listener in ready:
                asker = self._hear_asker(listener, min(left, ANSWER_SECONDS))
                if asker:
                    return "request", asker

    def _hear_freezer(self) -> bool:
        """Take a message of the freezing process; whether it is to be released."""
        message = receive(self.freezer, ANSWER_SECONDS) if self.freezer else None
        if message is None:
            gone, self.freezer = self.freezer, None
            if gone:
                gone.close()
            return not self.complete  # it died before all was frozen: nobody would come
        if message.get("freezing") and not self.released:
            self.tried.append(message["freezing"])
            self._tell({"go": True})
        if message.get("foreign"):
            self.foreign.add(message["foreign"])
        if message.get("frozen") and not self.released:
            self.complete = True
            self._tell({"held": True})
        return bool(message.get("release"))

    def _hear_asker(self, listener: socket.socket, seconds: float) -> Optional[socket.socket]:
        """Take the question of somebody who connected; the connection, when it is to release this freeze."""
        connection = listener.accept()[0]
        try:
            message = receive(connection, seconds) or {}
        except TimeoutError:
            message = {}
        if message.get("release") and message.get("token") in (None, self.token):
            return connection
        send(connection, {"token": self.token, "since": self.since, "max_frozen": self.max_frozen})
        connection.close()
        return None

    def _thaw(self) -> bool:
        """Thaw what was frozen, outermost first; whether all of it was frozen until now.

        What the freezer never came to is not ours. What it is at last: the kernel lets nobody thaw a file system while
        it is writing what is dirty there, and the others must not wait for that.
        """
        intact = True
        paths = set(self.tried) - self.foreign
        ours = [one for one in zip(self.targets, self.descriptors) if one[0].path in paths]
        if not self.complete:
            ours = ours[-1:] + ours[:-1]
        for target, descriptor in reversed(ours):
            try:
                intact = mounts.thaw(descriptor) and intact
            except OSError as error:
                self.warnings.append("%s could not be thawed: %s." % (target.path, error.strerror))
                intact = False
        return intact

    def _release(self, reason: str, asker: Optional[socket.socket]) -> dict[str, Any]:
        """Thaw, run the hooks that come after, and put down what happened."""
        self.released = True
        intact = self._thaw()
        seconds = time.monotonic() - self.armed
        if self.freezer and asker is not self.freezer:  # it may be freezing still
            self._outlast_freezer()
        self._run_after()
        intact = intact and self.complete and reason == "request"
        result = {
            "token": self.token, "mount_points": [one.path for one in self.targets], "since": self.since,
            "frozen_seconds": round(seconds, 3), "intact": intact, "released_by": reason, "warnings": self.warnings,
            "consistency": ("application" if self.hooks and self.guaranteed else "filesystem") if intact else "crash",
            "hooks": [hook.name for hook in self.hooks],
        }
        write(LAST, result)
        os.unlink(os.path.join(STATE, HELD))
        return result

    def _outlast_freezer(self) -> None:
        """The process that freezes may be waiting in the kernel: what it freezes yet is thawed until it has ended."""
        self._tell({"released": True})
        while self.freezer:
            if select.select([self.freezer], [], [], LOOK_SECONDS)[0]:
                self._hear_freezer()
            self._thaw()

    def _run_after(self) -> None:
        while self.prepared:
            try:
                self.prepared.pop().release(self.hook_timeout)
            except GuaranteeLost as error:
                self.guaranteed = False
                self.warnings.append(error.message)
            except (GuestError, OSError) as error:
                self.warnings.append(str(error))


def become_daemon(keeper: Keeper, kept: Sequence[int]) -> NoReturn:
    """Go on as a process of its own that holds nothing but the open files ``kept``, run the keeper, and end."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in kept:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
                score.write("-1000")  # the last process to go when memory runs out
        except OSError:
            pass
        keeper.run()
    finally:
        os._exit(0)
