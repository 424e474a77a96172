# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests for tests: a real file system in an image that a simulated VM mirrors, on a machine reached over SSH."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sshd_fixture

STATE = "/run/guestark"
KEEPER_SECONDS = 20.0


class CannotMount(Exception):
    """This machine cannot mount a file system through a loop device."""


class Guest:
    """A file system mounted on ``mount``, whose disk is the file ``image``; ``variables`` reach the machine.

    Raises CannotMount.
    """

    def __init__(self, name: str, address: str, size: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"guest-{name}-"))
        self.folder.chmod(0o755)
        self.image, self.mount = self.folder / "disk.img", self.folder / "mnt"
        self.mount.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(self.image)], check=True)
        command = ["mount", "-o", "loop", str(self.image), str(self.mount)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMount(f"this machine cannot mount a file system through a loop device: {done.stderr.strip()}")
        self._sshd = sshd_fixture.Sshd(self.folder / "sshd", address, STATE)

    @property
    def variables(self) -> dict[str, Any]:
        """What an inventory says of it: also that Ansible's own files would go where nothing can be written when frozen."""
        own = {"ansible_remote_tmp": str(self.mount / "tmp"), "ansible_python_interpreter": sys.executable}
        return {**self._sshd.variables, **own, "ansible_pipelining": False}

    def is_frozen(self) -> bool:
        """Whether its file system is frozen: freezing it once more is refused then."""
        done = subprocess.run(["fsfreeze", "-f", str(self.mount)], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["fsfreeze", "-u", str(self.mount)], check=True)
        return done.returncode != 0

    def thaws(self) -> bool:
        """Whether it is thawed, now or within some seconds."""
        deadline = time.monotonic() + KEEPER_SECONDS
        while self.is_frozen() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.is_frozen()

    def disconnect(self) -> None:
        """From now on nobody reaches it."""
        self._sshd.disconnect()

    def stop(self) -> None:
        """Unmount it, and let nothing be left."""
        frozen = self.is_frozen()
        if frozen:
            subprocess.run(["fsfreeze", "-u", str(self.mount)], check=True)
        self._sshd.stop()
        subprocess.run(["umount", "-l", str(self.mount)], check=True)
        shutil.rmtree(self.folder)
        assert not frozen, "the guest was left frozen"
