# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What is run in the guest before its file systems freeze and after they have thawed."""
from __future__ import annotations

import glob
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence

from .errors import GuaranteeLost, GuestError

MEMORY = "/dev/shm"  # a file system in memory
LOCKED = "guestark-locked"
KEPT_OUTPUT = 2000  # characters of a hook's output that are told


@dataclass
class Hook:
    """Commands to run before and after, without a shell; either may be empty."""

    name: str
    before: Sequence[str]
    after: Sequence[str] = ()

    def prepare(self, seconds: float) -> None:
        """Do what is to be done before the freeze. Raises GuestError, also when it takes longer than ``seconds``."""
        _run(self.name, self.before, seconds)

    def release(self, seconds: float) -> None:
        """Undo it, after the thaw. Raises GuestError."""
        _run(self.name, self.after, seconds)


@dataclass
class TableLock:
    """MariaDB's or MySQL's global read lock, which lasts as long as the session that took it."""

    name: str
    command: Sequence[str]
    _client: Optional["subprocess.Popen[bytes]"] = field(default=None, repr=False)

    def prepare(self, seconds: float) -> None:
        """Take the lock. Raises GuestError."""
        try:
            self._client = subprocess.Popen(  # it lives until the release
                list(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise GuestError("Hook %s: %s cannot be run: %s." % (self.name, self.command[0], error.strerror)) from error
        said = self._ask("FLUSH TABLES WITH READ LOCK; SELECT '%s';" % LOCKED, seconds)
        if LOCKED not in said:
            self._end()
            raise GuestError("Hook %s: the tables were not locked: %s" % (self.name, said.strip() or "no answer in time"))

    def release(self, seconds: float) -> None:
        """Give the lock back. Raises GuaranteeLost when the session, and with it the lock, had ended before."""
        if self._client is None:
            return
        said = self._ask("UNLOCK TABLES; SELECT '%s';" % LOCKED, seconds)
        self._end()
        if LOCKED not in said:
            raise GuaranteeLost("Hook %s: the session that held the lock has ended: %s" % (self.name, said.strip()))

    def _ask(self, statement: str, seconds: float) -> str:
        client = self._client
        if client is None or client.stdin is None or client.stdout is None:
            return ""
        said, deadline = b"", time.monotonic() + seconds
        try:
            client.stdin.write(statement.encode() + b"\n")
            client.stdin.flush()
            while LOCKED.encode() not in said:
                ready = select.select([client.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
                data = os.read(client.stdout.fileno(), 4096) if ready else b""
                if not data:
                    break
                said += data
        except OSError:
            pass  # it has ended
        return said.decode("utf-8", "replace")[-KEPT_OUTPUT:]

    def _end(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if client.stdin:
            try:
                client.stdin.close()
            except OSError:
                pass
        try:
            client.wait(5)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
        if client.stdout:
            client.stdout.close()


def hook_of(described: Mapping[str, Any]) -> Any:
    """The hook that an option describes: kinds ``command``, ``postgresql`` and ``mariadb``. Raises GuestError."""
    kind = described["kind"]
    if kind == "command":
        before, after = described.get("before") or [], described.get("after") or []
        if not before and not after:
            raise GuestError("A hook of kind command needs before or after.")
        return Hook(os.path.basename((before or after)[0]), before, after)
    if kind == "postgresql":
        psql = _program("psql", "/usr/lib/postgresql/*/bin/psql", "/usr/pgsql-*/bin/psql")
        user = described.get("user") or "postgres"
        where = ["-p", str(described.get("port") or 5432), "-d", described.get("database") or "postgres"]
        host = ["-h", described["socket"]] if described.get("socket") else []
        return Hook("postgresql", ["runuser", "-u", user, "--", psql, "-X", "-q", *where, *host, "-c", "CHECKPOINT"])
    client = _program("mariadb", "mysql")
    defaults = ["--defaults-file=%s" % described["defaults_file"]] if described.get("defaults_file") else []
    socket = ["--socket=%s" % described["socket"]] if described.get("socket") else []
    return TableLock("mariadb", [client, *defaults, *socket, "--batch", "--skip-column-names", "--unbuffered"])


def _program(*names: str) -> str:
    """The first program that is there, by name or by pattern of paths. Raises GuestError."""
    for name in names:
        found = sorted(glob.glob(name)) if "/" in name else [shutil.which(name) or ""]
        if found and found[-1]:
            return found[-1]
    raise GuestError("The program %s is not installed in the guest." % names[0], "Install it, or leave its hook out.")


def _run(name: str, command: Sequence[str], seconds: float) -> None:
    if not command:
        return
    # into a file, not a pipe: a process that the program leaves behind holds a pipe open for as long as it lives
    with tempfile.TemporaryFile(dir=MEMORY) as output:
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise GuestError("Hook %s: %s cannot be run: %s." % (name, command[0], error.strerror)) from error
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise GuestError("Hook %s did not end within %g s." % (name, seconds)) from error
        if status:
            output.seek(-min(output.seek(0, os.SEEK_END), KEPT_OUTPUT), os.SEEK_END)
            said = output.read().decode("utf-8", "replace").strip()
            raise GuestError("Hook %s failed with status %d: %s" % (name, status, said))
