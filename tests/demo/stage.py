# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demonstrations share: playbooks run as an operator does, and a look at the simulated pools and their disks."""
from __future__ import annotations

import base64
import filecmp
import hashlib
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
STEP = 1 << 20

sys.path.insert(0, str(ROOT / "tests"))
from simulator_fixture import Simulator  # noqa: E402


def title(text: str) -> None:
    """Say what comes next."""
    print(f"\n\033[1m== {text}\033[0m", flush=True)


def play(pool: dict[str, Any], *arguments: str) -> str:
    """Run ansible-playbook as an operator would; the password comes by the environment. Return the output."""
    command = [str(ROOT / ".venv/bin/ansible-playbook"), *arguments]
    shown = shlex.join([Path(command[0]).name, *(argument.replace(f"{ROOT}/", "") for argument in arguments)])
    print(f"$ {shown}", flush=True)
    environment = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build/dev"), "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false", "ANSIBLE_FORKS": "2", "ANSIBLE_NOCOWS": "1",
        "XENSERVER_USER": pool["username"], "XENSERVER_PASSWORD": pool["password"],
        "ANSIBLE_INVENTORY_ENABLED": "guestark.xen.pool,auto,yaml", "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
    }
    output = []
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            output.append(line)
    with open(DEMO / "playbooks.log", "a", encoding="utf-8") as log:
        log.write(f"$ {shown}\n{''.join(output)}\n")
    if process.returncode:
        raise SystemExit(f"{shown} failed with status {process.returncode}")
    return "".join(output)


@contextmanager
def session(simulator: Simulator, pool: str) -> Iterator[Any]:
    """Calls of a pool: ``with session(simulator, "recovery") as call: call("VM.get_all")``."""
    described = simulator.ready["pools"][pool]
    context = ssl.create_default_context(cafile=simulator.ready["ca"])
    with xmlrpc.client.ServerProxy(described["members"][0], context=context) as proxy:
        key = proxy.session.login_with_password(described["username"], described["password"])["Value"]

        def call(name: str, *arguments: Any) -> Any:
            answer = getattr(proxy, name)(key, *arguments)
            if answer["Status"] != "Success":
                raise SystemExit(f"{name}: {answer['ErrorDescription']}")
            return answer["Value"]

        try:
            yield call
        finally:
            proxy.session.logout(key)


def disks_of(simulator: Simulator, pool: str, name: str) -> list[tuple[str, str]]:
    """(position, UUID) of a VM's disks, in their order."""
    with session(simulator, pool) as call:
        (vm,) = call("VM.get_by_name_label", name)
        vbds = [call("VBD.get_record", ref) for ref in call("VM.get_VBDs", vm)]
        return sorted((vbd["userdevice"], call("VDI.get_uuid", vbd["VDI"])) for vbd in vbds if vbd["type"] == "Disk")


def write_file(simulator: Simulator, name: str, path: str, content: bytes) -> None:
    """Write a file on the first disk of a VM of the production pool, as its guest does."""
    body = {"disk": 0, "file": path, "content_base64": base64.b64encode(content).decode()}
    simulator.control("POST", f"/vms/production/{name}/write", body)


def digests(simulator: Simulator, pool: str, name: str) -> list[str]:
    """SHA-256 of a VM's disks, in their order."""
    found = []
    for _position, uuid in disks_of(simulator, pool, name):
        digest = hashlib.sha256()
        with urllib.request.urlopen(f"{simulator.ready['control']}/disks/{pool}/{uuid}") as source:
            while piece := source.read(STEP):
                digest.update(piece)
        found.append(digest.hexdigest())
    return found


def unpack(simulator: Simulator, pool: str, name: str, folder: Path) -> None:
    """Take the files out of a VM's disks, with debugfs."""
    for position, uuid in disks_of(simulator, pool, name):
        image = folder.with_name(f"{folder.name}-{position}.img")
        (folder / position).mkdir(parents=True)
        with urllib.request.urlopen(f"{simulator.ready['control']}/disks/{pool}/{uuid}") as source, image.open("wb") as sink:
            shutil.copyfileobj(source, sink, STEP)
        command = ["debugfs", "-R", f"rdump / {folder / position}", str(image)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"})
        image.unlink()


def compare(before: Path, after: Path) -> int:
    """Compare two trees byte for byte and return how many files there are."""
    first = sorted(path.relative_to(before) for path in before.rglob("*"))
    if first != sorted(path.relative_to(after) for path in after.rglob("*")):
        raise SystemExit("The restored VM has other files than the lost one.")
    files = [path for path in first if (before / path).is_file()]
    for path in files:
        if not filecmp.cmp(before / path, after / path, shallow=False):
            raise SystemExit(f"{path} differs in the restored VM.")
    return len(files)


def lose(simulator: Simulator, pool: str, name: str) -> None:
    """Destroy a VM and its disks."""
    with session(simulator, pool) as call:
        (vm,) = call("VM.get_by_name_label", name)
        vbds = [call("VBD.get_record", ref) for ref in call("VM.get_VBDs", vm)]
        if call("VM.get_power_state", vm) != "Halted":
            call("VM.hard_shutdown", vm)
        call("VM.destroy", vm)
        for vbd in vbds:
            if vbd["type"] == "Disk":
                call("VDI.destroy", vbd["VDI"])
        if call("VM.get_by_name_label", name):
            raise SystemExit(f"{name} could not be destroyed.")
