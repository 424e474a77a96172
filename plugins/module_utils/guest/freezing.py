# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Freezing a guest's file systems and thawing them: what a task asks for, done with the help of the keeper."""
from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from typing import Any, Mapping, Optional, Sequence
from uuid import uuid4

from . import keeper, mounts
from .errors import GuestError
from .hooks import hook_of
from .keeper import HELD, LAST, LOCK, SOCKET, STATE, Keeper
from .mounts import Mount

START_SECONDS = 10.0
LONGEST_FROZEN = 600
TOO_LATE = "Freezing took longer than max_frozen: the guest has thawed."


def targets(mount_points: Sequence[str]) -> list[Mount]:
    """The file systems that would be frozen, innermost first. Raises GuestError."""
    if os.geteuid() != 0:
        raise GuestError("Only root can freeze file systems.", "Let the task become root (become: true).")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
        found = mounts.mounted(source.read())
    seen = [mount for mount in found if mount.kind not in mounts.FREEZABLE or mounts.within_reach(mount)]
    return mounts.chosen(seen, mount_points)


def freeze(
    mount_points: Sequence[str], hooks: Sequence[Mapping[str, Any]], max_frozen: int, hook_timeout: int
) -> dict[str, Any]:
    """Freeze file systems for ``max_frozen`` seconds at most; return the freeze: token, mount_points, since, consistency.

    Raises GuestError; then nothing is frozen by us.
    """
    found = targets(mount_points)
    prepared = [hook_of(hook) for hook in hooks]
    if not 1 <= max_frozen <= LONGEST_FROZEN:
        raise GuestError("max_frozen is %d seconds." % max_frozen, "Choose 1 to %d." % LONGEST_FROZEN)
    lock = _lock()
    descriptors: list[int] = []
    try:
        for target in found:
            descriptors.append(os.open(target.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        ours, theirs = socket.socketpair()
        token = str(uuid4())
        daemon = Keeper(token, found, descriptors, prepared, float(max_frozen), float(hook_timeout), theirs)
        child = os.fork()
        if child == 0:
            keeper.become_daemon(daemon, [lock, theirs.fileno(), *descriptors])
        theirs.close()
        with ours:
            os.waitpid(child, 0)
            since = _armed(ours, START_SECONDS + (1 + len(hooks)) * hook_timeout)
            _freeze_all(ours, found, descriptors)
        return {
            "token": token, "mount_points": [target.path for target in found], "since": since,
            "consistency": "application" if hooks else "filesystem",
        }
    finally:
        for descriptor in (lock, *descriptors):
            os.close(descriptor)


def is_frozen() -> bool:
    """Whether a freeze of ours is being held."""
    return os.path.exists(os.path.join(STATE, HELD))


def thaw(token: Optional[str]) -> tuple[bool, Optional[dict[str, Any]]]:
    """Thaw what is frozen: whether anything was, and what became of the freeze (None when nothing is known of it).

    ``token`` names the freeze that is meant. Raises GuestError when another one is being held.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.path.join(STATE, SOCKET))
        except OSError:
            return _without_keeper(token)
        keeper.send(connection, {"release": True, "token": token})
        try:
            answer = keeper.receive(connection, 2 * LONGEST_FROZEN)
        except TimeoutError as error:
            raise GuestError("The guest's keeper does not answer.", "Look at the guest: its hooks may hang.") from error
    if answer is None:  # its time was up just then
        return _without_keeper(token)
    if "result" not in answer:
        raise GuestError(
            "Another freeze is being held since %s." % answer.get("since"), "Wait for it, or name no token to end it."
        )
    return True, answer["result"]


def _without_keeper(token: Optional[str]) -> tuple[bool, Optional[dict[str, Any]]]:
    try:
        lock = _lock()
    except GuestError:
        return False, _last(token)  # it is about to end
    try:
        held = _read(HELD)
        if held is None:
            return False, _last(token)
        # a keeper that was killed: what it held is thawed in its place
        for path in reversed(held["mount_points"]):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                mounts.thaw(descriptor)
            finally:
                os.close(descriptor)
        result = {**held, "intact": False, "consistency": "crash", "released_by": "recovery", "hooks": [], "warnings": [
            "The keeper had been killed; hooks that come after were not run."]}
        keeper.write(LAST, result)
        os.unlink(os.path.join(STATE, HELD))
        return True, result
    finally:
        os.close(lock)


def _last(token: Optional[str]) -> Optional[dict[str, Any]]:
    last = _read(LAST)
    return last if last and token == last.get("token") else None


def _read(name: str) -> Optional[dict[str, Any]]:
    try:
        with open(os.path.join(STATE, name), encoding="utf-8") as source:
            found = json.load(source)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lock() -> int:
    """The lock that a freeze holds, as an open file. Raises GuestError when it is held."""
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    descriptor = os.open(os.path.join(STATE, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        held = _read(HELD) or {}
        raise GuestError(
            "The guest is frozen already, since %s." % held.get("since", "a moment ago"),
            "Two runs are at work on it: wait for the other one. It ends by itself.",
        ) from error
    return descriptor


def _armed(connection: socket.socket, seconds: float) -> str:
    try:
        answer = keeper.receive(connection, seconds)
    except TimeoutError as error:
        raise GuestError("The guest's keeper did not start in time. Nothing was frozen.") from error
    if answer is None or not answer.get("armed"):
        raise GuestError("%s Nothing was frozen." % (answer or {}).get("failed", "The guest's keeper did not start."))
    return str(answer["since"])


def _freeze_all(connection: socket.socket, found: Sequence[Mount], descriptors: Sequence[int]) -> None:
    for target, descriptor in zip(found, descriptors):
        if not _asked(connection, {"freezing": target.path}).get("go"):
            raise GuestError(TOO_LATE, "Give it more seconds.")
        try:
            mounts.freeze(descriptor)
        except OSError as error:
            if error.errno == errno.EBUSY:  # somebody else froze it, who is to thaw it
                keeper.send(connection, {"foreign": target.path})
            keeper.send(connection, {"release": True})
            _await_release(connection)
            why = "it is frozen already, by somebody else" if error.errno == errno.EBUSY else error.strerror
            raise GuestError("%s could not be frozen: %s. What was frozen has been thawed." % (target.path, why)) from error
    if not _asked(connection, {"frozen": True}).get("held"):
        raise GuestError(TOO_LATE, "Give it more seconds.")


def _asked(connection: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
    """The keeper's answer; empty when it gives none."""
    keeper.send(connection, message)
    try:
        return keeper.receive(connection, START_SECONDS) or {}
    except TimeoutError:
        return {}


def _await_release(connection: socket.socket) -> None:
    try:
        keeper.receive(connection, LONGEST_FROZEN)
    except TimeoutError:
        pass
