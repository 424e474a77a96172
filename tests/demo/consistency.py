# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back up four guests by four methods, and bring one back with its memory, with the collection's own playbooks."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from stage import ROOT, play, title

import guest_fixture  # noqa: E402
from simulator_fixture import start_simulator  # noqa: E402

FOLDER = ROOT / "demo" / "consistency"
POOL: dict[str, Any] = {"hosts": ["xen1", "xen2"], "networks": {"LAN": {}}, "srs": {"Storage": {}}}
FILES = {"/srv/data": {"random": {"seed": 1, "size": "60MiB"}}}
VMS: dict[str, Any] = {
    "web01": {"tags": ["normal"], "disks": [{"size": "256MiB", "files": FILES}]},
    "mail01": {"tags": ["offline"], "disks": [{"size": "256MiB", "files": FILES}], "guest": {"shutdown": 3}},
    "desk01": {"tags": ["live"], "memory": "512MiB", "disks": [{"size": "128MiB", "files": FILES}], "guest": {"saving": 1.5}},
}
METHODS = {"tag_offline": "offline", "tag_live": "live_memory", "tag_quiesced": "quiesced"}


def guests(stack: ExitStack) -> dict[str, guest_fixture.Guest]:
    """A guest with a real file system on a machine reached over SSH; none where this one cannot mount it."""
    try:
        guest = guest_fixture.Guest("shop01", "127.0.0.99", 64 << 20)
    except (guest_fixture.CannotMount, OSError, subprocess.CalledProcessError) as error:
        print(f"There is no guest to be quiesced: {error}")
        return {}
    stack.callback(guest.stop)
    (guest.mount / "orders").write_text("1\n2\n3\n")
    return {"shop01": guest}


def inventories(ready: dict[str, Any], there: dict[str, guest_fixture.Guest]) -> list[str]:
    """Arguments for the pool's inventory, and for the file that says which tag stands for which method."""
    pool, policies = FOLDER / "production.xen.yml", FOLDER / "policies.yml"
    pool.write_text(json.dumps({
        "plugin": "guestark.xen.pool", "ca_path": ready["ca"], "local": True, "hostname": ready["pools"]["production"]["members"],
    }, indent=1) + "\n")
    hosts = {f"{name}-guest": guest.variables for name, guest in there.items()}
    hosts |= {name: {"guestark_guest": f"{name}-guest", "guestark_mount_points": [str(guest.mount)]}
              for name, guest in there.items()}
    children = {group: {"vars": {"guestark_method": method}} for group, method in METHODS.items()}
    children["protected"] = {"children": {"tag_normal": {}, **{group: {} for group in METHODS}}}
    policies.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}, indent=1) + "\n")
    return ["-i", str(pool), "-i", str(policies)]


def show(stack: ExitStack) -> None:
    """The demonstration."""
    there = guests(stack)
    vms = VMS | {
        name: {"tags": ["quiesced"], "disks": [{"size": guest.image.stat().st_size, "mirror": str(guest.image)}]}
        for name, guest in there.items()
    }
    simulator = start_simulator({"pools": {"production": {**POOL, "vms": vms}, "recovery": POOL}}, FOLDER)
    stack.callback(simulator.stop)
    production, recovery = simulator.ready["pools"]["production"], simulator.ready["pools"]["recovery"]
    os.environ["XENSERVER_CA_PATH"] = simulator.ready["ca"]
    title("Keys")
    play(production, str(ROOT / "tests/demo/keys.yml"), "-e", f"demo={FOLDER}")
    title(f"Backup of {', '.join(vms)}: each by the method that its tag stands for")
    arguments = inventories(simulator.ready, there)
    play(production, *arguments, "guestark.xen.backup", "-e", "guestark_group=protected", "-e", f"@{FOLDER}/protection.yml")
    title("desk01 is restored into the recovery pool with its memory, and goes on where it was")
    where = {
        "restore_vm": "desk01", "restore_pool_members": recovery["members"], "restore_start": True,
        "guestark_identities": [str(FOLDER / "keys/data.key")], "guestark_allowed_signers": str(FOLDER / "keys/allowed_signers"),
    }
    play(recovery, "guestark.xen.restore", "-e", f"@{FOLDER}/protection.yml", "-e", json.dumps(where))
    title("Report: what each point is worth, and what it cost the guest")
    play(production, str(ROOT / "tests/demo/consistency.yml"), "-e", f"@{FOLDER}/protection.yml", "-e", f"demo={FOLDER}")
    print((FOLDER / "report.txt").read_text())


def main() -> None:
    """Run the demonstration in a fresh folder demo/consistency/."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "keys").mkdir(parents=True)
    began = time.monotonic()
    with ExitStack() as stack:
        show(stack)
    shutil.rmtree(FOLDER / "simulator-state")
    print(f"Done in {time.monotonic() - began:.0f} s. Look around in demo/consistency/.")


if __name__ == "__main__":
    sys.exit(main())
