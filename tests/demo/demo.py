# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back up, lose and restore virtual machines of simulated pools, with the collection's own playbooks."""
from __future__ import annotations

import base64
import filecmp
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
import xmlrpc.client
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
LOST = "db01"
STEP = 1 << 20
READY_SECONDS = 120


def title(text: str) -> None:
    """Say what comes next."""
    print(f"\n\033[1m== {text}\033[0m", flush=True)


class Simulator:
    """The pools; stopped by its own process id, whatever happens."""

    def __enter__(self) -> Simulator:
        ready = DEMO / "ready.json"
        command = [ROOT / "tests/simulator/run", "--config", ROOT / "tests/simulator/examples/demo.yml"]
        with open(DEMO / "simulator.log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--state", DEMO / "pools", "--ready", ready], stdout=log, stderr=log, start_new_session=True
            )
        for _wait in range(READY_SECONDS * 10):
            if ready.exists():
                self.ready: dict[str, Any] = json.loads(ready.read_text())
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.__exit__()
        raise SystemExit(f"The simulator did not start; see {DEMO / 'simulator.log'}")

    def __exit__(self, *_exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def calls(self, pool: str) -> tuple[Any, str]:
        """A proxy of the pool's coordinator and a session."""
        described = self.ready["pools"][pool]
        context = ssl.create_default_context(cafile=self.ready["ca"])
        proxy = xmlrpc.client.ServerProxy(described["members"][0], context=context)
        return proxy, proxy.session.login_with_password(described["username"], described["password"])["Value"]


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


def disks_of(simulator: Simulator, pool: str, name: str) -> list[tuple[str, str]]:
    """(position, UUID) of a VM's disks, in their order."""
    api, session = simulator.calls(pool)
    (vm,) = api.VM.get_by_name_label(session, name)["Value"]
    found = []
    for ref in api.VM.get_VBDs(session, vm)["Value"]:
        vbd = api.VBD.get_record(session, ref)["Value"]
        if vbd["type"] == "Disk":
            found.append((vbd["userdevice"], api.VDI.get_uuid(session, vbd["VDI"])["Value"]))
    api.session.logout(session)
    return sorted(found)


def write_file(simulator: Simulator, name: str, path: str, content: bytes) -> None:
    """Write a file on the first disk of a VM, as its guest does."""
    body = json.dumps({"disk": 0, "file": path, "content_base64": base64.b64encode(content).decode()}).encode()
    url = f"{simulator.ready['control']}/vms/production/{name}/write"
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")).close()


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


def lose(simulator: Simulator, name: str) -> None:
    """Destroy a VM of the production pool and its disks."""
    api, session = simulator.calls("production")
    (vm,) = api.VM.get_by_name_label(session, name)["Value"]
    vbds = [api.VBD.get_record(session, ref)["Value"] for ref in api.VM.get_VBDs(session, vm)["Value"]]
    api.VM.hard_shutdown(session, vm)
    api.VM.destroy(session, vm)
    for vbd in vbds:
        if vbd["type"] == "Disk":
            api.VDI.destroy(session, vbd["VDI"])
    left = api.VM.get_by_name_label(session, name)["Value"]
    api.session.logout(session)
    if left:
        raise SystemExit(f"{name} could not be destroyed.")


def write_inventory(pool: dict[str, Any], ca: str) -> Path:
    """The inventory of the production pool."""
    path = DEMO / "production.xen.yml"
    lines = ["plugin: guestark.xen.pool", f"ca_path: {ca}", "local: true", "hostname:"]
    path.write_text("\n".join(lines + [f"  - {member}" for member in pool["members"]]) + "\n")
    return path


def show(simulator: Simulator) -> None:
    """The demonstration."""
    production, recovery = simulator.ready["pools"]["production"], simulator.ready["pools"]["recovery"]
    inventory = write_inventory(production, simulator.ready["ca"])
    title("Keys: one to recover, one to read the catalog, one to sign")
    play(production, str(ROOT / "tests/demo/keys.yml"), "-e", f"demo={DEMO}")
    protect = ["-i", str(inventory), "guestark.xen.backup", "-e", f"@{DEMO}/protection.yml"]
    environment = {"XENSERVER_CA_PATH": simulator.ready["ca"]}
    os.environ.update(environment)
    title(f"Backup of all VMs of the production pool: {', '.join(production['vms'])}")
    play(production, *protect)
    title("The same again: every VM has a restore point younger than four hours, so nothing changes")
    again = play(production, *protect)
    if "new point" in again:
        raise SystemExit("The second run made new restore points.")
    title(f"The guest of {LOST} writes a file; new points of the VMs tagged gold store what changed")
    write_file(simulator, LOST, "/note", b"written between two backups\n")
    third = play(production, *protect, "-e", "guestark_group=tag_gold", "-e", "guestark_max_age=0s")
    if " incremental, " not in third or " full, " in third:
        raise SystemExit("The third run did not store what changed, and that alone.")
    title(f"Disaster: {LOST} and its disks are destroyed")
    unpack(simulator, "production", LOST, DEMO / "files" / "before")
    lose(simulator, LOST)
    print(f"The production pool has no {LOST} any more.")
    title(f"Recovery: {LOST} is restored into the recovery pool")
    where = {
        "restore_vm": LOST, "restore_pool_members": recovery["members"], "restore_networks": {"Storage": "Recovery LAN"},
        "restore_start": True, "guestark_identities": [str(DEMO / "keys/data.key")],
        "guestark_allowed_signers": str(DEMO / "keys/allowed_signers"),
    }
    (DEMO / "recovery.yml").write_text(json.dumps(where, indent=1) + "\n")
    play(recovery, "guestark.xen.restore", "-e", f"@{DEMO}/protection.yml", "-e", f"@{DEMO}/recovery.yml")
    title("Proof: the files of the restored VM against those of the lost one")
    unpack(simulator, "recovery", LOST, DEMO / "files" / "after")
    count = compare(DEMO / "files" / "before", DEMO / "files" / "after")
    print(f"{count} files on {len(disks_of(simulator, 'recovery', LOST))} disks are equal, byte for byte.")
    shutil.rmtree(DEMO / "files")
    title("Report: what is protected (every stored object was read and is what was written)")
    play(production, str(ROOT / "tests/demo/report.yml"), "-e", f"@{DEMO}/protection.yml", "-e", f"demo={DEMO}")
    print((DEMO / "report.txt").read_text())


def main() -> None:
    """Run the demonstration in a fresh folder demo/."""
    shutil.rmtree(DEMO, ignore_errors=True)
    (DEMO / "keys").mkdir(parents=True)
    began = time.monotonic()
    title("Two simulated pools start: production (three hosts) and recovery (one host)")
    with Simulator() as simulator:
        show(simulator)
    shutil.rmtree(DEMO / "pools")
    print(f"Done in {time.monotonic() - began:.0f} s. Look around in demo/: repository, keys, playbooks.log, report.txt.")


if __name__ == "__main__":
    sys.exit(main())
