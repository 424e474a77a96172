# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back up, lose and restore virtual machines of simulated pools, with the collection's own playbooks."""
from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chain import Chapter
from stage import DEMO, ROOT, Simulator, compare, disks_of, lose, play, title, unpack

from s3_fixture import start_s3
from simulator_fixture import start_simulator

LOST = "db01"


def write_inventory(pool: dict[str, Any], ca: str) -> Path:
    """The inventory of the production pool."""
    path = DEMO / "production.xen.yml"
    lines = ["plugin: guestark.xen.pool", f"ca_path: {ca}", "local: true", "hostname:"]
    path.write_text("\n".join(lines + [f"  - {member}" for member in pool["members"]]) + "\n")
    return path


def write_policies(signers: Path, s3: dict[str, Any]) -> tuple[Path, Path]:
    """What the groups of the inventory stand for; and where the object store is, and what opens it."""
    (DEMO / "group_vars").mkdir()
    (DEMO / "group_vars/tag_web.yml").write_text("guestark_change_tracking: true\n")
    believed, store = DEMO / "believed.yml", DEMO / "object-store.yml"
    believed.write_text(f"guestark_allowed_signers: {signers}\n")
    store.touch(0o600)
    store.write_text(json.dumps({"guestark_repository": "s3://guestark/vms", "guestark_storage_options": s3}, indent=1) + "\n")
    return believed, store


def show(simulator: Simulator, s3: dict[str, Any]) -> None:
    """The demonstration."""
    production = simulator.ready["pools"]["production"]
    inventory = write_inventory(production, simulator.ready["ca"])
    believed, store = write_policies(DEMO / "keys/allowed_signers", s3)
    os.environ["XENSERVER_CA_PATH"] = simulator.ready["ca"]
    title("Keys: one to recover, one to read the catalog, one to sign")
    play(production, str(ROOT / "tests/demo/keys.yml"), "-e", f"demo={DEMO}")
    where = ["-e", f"@{DEMO}/protection.yml", "-e", f"@{believed}"]
    protect = ["-i", str(inventory), "guestark.xen.backup"]
    title(f"Backup of all VMs of the production pool: {', '.join(production['vms'])}")
    play(production, *protect, *where)
    title("The same again: every VM has a restore point younger than four hours, so nothing changes")
    if "new point" in play(production, *protect, *where):
        raise SystemExit("The second run made new restore points.")
    Chapter(simulator, "the directory", [*protect, *where], where).show(full=False)
    there = [*where, "-e", f"@{store}"]
    Chapter(simulator, "a bucket of an S3 server", [*protect, *there], there).show(full=True)
    recover(simulator, there)
    title("Report: what is protected (every stored object was read and is what was written)")
    play(production, str(ROOT / "tests/demo/report.yml"), *where, "-e", f"demo={DEMO}")
    print((DEMO / "report.txt").read_text())


def recover(simulator: Simulator, where: list[str]) -> None:
    """Lose a VM and bring it back in the other pool, from the newest point."""
    recovery = simulator.ready["pools"]["recovery"]
    title(f"Disaster: {LOST} and its disks are destroyed")
    unpack(simulator, "production", LOST, DEMO / "files" / "before")
    lose(simulator, "production", LOST)
    print(f"The production pool has no {LOST} any more.")
    title(f"Recovery: {LOST} is restored into the recovery pool")
    wish = {
        "restore_vm": LOST, "restore_pool_members": recovery["members"], "restore_networks": {"Storage": "Recovery LAN"},
        "restore_start": True, "guestark_identities": [str(DEMO / "keys/data.key")],
    }
    (DEMO / "recovery.yml").write_text(json.dumps(wish, indent=1) + "\n")
    play(recovery, "guestark.xen.restore", *where, "-e", f"@{DEMO}/recovery.yml")
    title("Proof: the files of the restored VM against those of the lost one")
    unpack(simulator, "recovery", LOST, DEMO / "files" / "after")
    count = compare(DEMO / "files" / "before", DEMO / "files" / "after")
    print(f"{count} files on {len(disks_of(simulator, 'recovery', LOST))} disks are equal, byte for byte.")
    shutil.rmtree(DEMO / "files")


def main() -> None:
    """Run the demonstration in a fresh folder demo/."""
    shutil.rmtree(DEMO, ignore_errors=True)
    for name in ("keys", "servers"):
        (DEMO / name).mkdir(parents=True)
    began = time.monotonic()
    title("Two simulated pools start, production (three hosts) and recovery (one host), and an S3 server")
    with ExitStack() as stack:
        s3 = start_s3(DEMO / "servers")
        stack.callback(s3.stop)
        simulator = start_simulator(ROOT / "tests/simulator/examples/demo.yml", DEMO / "servers")
        stack.callback(simulator.stop)
        show(simulator, s3.options)
    shutil.rmtree(DEMO / "servers")
    print(f"Done in {time.monotonic() - began:.0f} s. Look around in demo/: repository, keys, playbooks.log, report.txt.")


if __name__ == "__main__":
    sys.exit(main())
