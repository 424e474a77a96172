# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine reached over SSH, for tests: a real sshd on loopback with keys of its own, stopped by its own id."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

START_SECONDS = 20.0
PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd refuses to start without it; a boot makes it

CONFIGURATION = """\
ListenAddress {address}:{port}
HostKey {folder}/host.key
AuthorizedKeysFile {folder}/user.key.pub
AllowUsers {user}
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
"""


class Sshd:
    """A running sshd. ``variables`` are what an inventory says of the machine.

    ``private``: a folder of its own, in memory, that no other machine of the tests sees.
    """

    def __init__(self, folder: Path, address: str, private: str = "") -> None:
        folder.mkdir()
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / f"{name}.key")]
            subprocess.run(command, check=True)
        with socket.create_server((address, 0)) as free:
            port = int(free.getsockname()[1])
        user = getpass.getuser()
        configuration = folder / "sshd_config"
        configuration.write_text(CONFIGURATION.format(address=address, port=port, folder=folder, user=user))
        host_key = (folder / "host.key.pub").read_text().split()
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"[{address}]:{port} {host_key[0]} {host_key[1]}\n")
        self.variables: dict[str, Any] = {
            "ansible_connection": "ssh", "ansible_host": address, "ansible_port": port, "ansible_user": user,
            "ansible_ssh_private_key_file": str(folder / "user.key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
        }
        if not PRIVILEGE_SEPARATION.exists():
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
        self._log = folder / "sshd.log"
        program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or "sshd"
        command = [program, "-D", "-e", "-f", str(configuration)]
        if private:
            Path(private).mkdir(exist_ok=True)
            script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, private, *command]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log)
        self._wait(address, port)

    def _wait(self, address: str, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((address, port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError("sshd did not start:\n" + self._log.read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it. Connections that are open are served to their end by processes of their own."""
        self._process.terminate()
        self._process.wait()

    def disconnect(self) -> None:
        """End it with all its connections, as when the network goes."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.stop()
        for child in children:
            for process in (*Path(f"/proc/{child}/task/{child}/children").read_text().split(), child):
                os.kill(int(process), signal.SIGKILL)
