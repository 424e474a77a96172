# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs killed and streams cut at random, over chains by digest and by CBT, with pruning and compaction between.

Afterwards every listed point restores byte for byte, by the module and by the repository's own recipe. GUESTARK_PROOFS
has 200 of each die, else it is 20.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.files import load_signers
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.record import PointRecord
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.xva.ova import Ova
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.importer_model import import_disks

MIB = 1024 * 1024
EACH = 200 if os.environ.get("GUESTARK_PROOFS") else 20
SIZES = (6 * MIB, 2 * MIB + 512)
VMS = {"compared": False, "tracked": True}  # and whether the pool may track what changes
TOOLS = ("sh", "ssh-keygen", "sha256sum", "age", "zstd", "tar")
SECONDS = {"xen_vm_export": 1.3, "xen_backup_prune": 0.8, "xen_backup_compact": 1.0}  # what a run takes, more or less


@pytest.fixture(scope="module", name="config")
def fixture_config():
    disks = [{"size": size} for size in SIZES]
    pool = {"hosts": ["one", "two"], "networks": {"LAN": {"purpose": "nbd"}}, "srs": {"Storage": {}}}
    vms = {name: {"disks": disks} for name in VMS}
    return {"pools": {"production": {**pool, "vms": vms}, "recovery": {**pool, "hosts": ["spare"]}}}


@dataclass
class Story:
    """A VM's runs: what its disks held in each point, and how the runs ended."""

    site: Any
    vm: str
    catalog: str
    chance: random.Random
    held: dict[str, list[str]] = field(default_factory=dict)
    ends: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)

    @property
    def killed(self) -> int:
        """How many runs were killed."""
        return sum(count for (_module, how), count in self.ends.items() if how == "killed")

    def points(self) -> list[PointRecord]:
        """The VM's points as a mover finds them."""
        if not (self.site.repository / "repository.json").exists():
            return []
        repository = Repository.open(PosixStore(str(self.site.repository)))
        return repository.points(self.site.uuid(self.vm), load_signers(str(self.site.signers)))

    def write(self) -> None:
        """Let the guest write somewhere."""
        disk = self.chance.randrange(2)
        length = self.chance.choice([1, 4096, 65536, MIB])
        offset = self.chance.randrange(SIZES[disk] - length + 1)
        self.site.simulator.control("POST", f"/vms/production/{self.vm}/write", {
            "disk": disk, "offset": offset, "random": {"seed": self.chance.randrange(1 << 30), "bytes": length}})

    def options(self, module: str) -> dict[str, Any]:
        """Options of the module for this VM."""
        site = self.site
        if module == "xen_vm_export":
            return site.export_options(self.vm, catalog_identities=[self.catalog], change_tracking=VMS[self.vm])
        where = {"repository": str(site.repository), "allowed_signers": str(site.signers), "vm": site.uuid(self.vm)}
        if module == "xen_backup_prune":
            return {**where, "keep_last": 4, "min_age": "0s", "grace": "0s"}
        return {**where, "layers": 4, "identities": [str(site.data_key)], "recipients": [site.recipient],
                "catalog_identities": [self.catalog], "signing_key": str(site.signing_key)}

    def run(self, module: str, seconds: float | None = None) -> str:
        """Run a module, for so long at most, and take note of the points that are there then."""
        before = {str(one.point) for one in self.points()}
        if module == "xen_vm_export":
            self.write()
        now = self.site.disks("production", self.vm)
        how = run(self.site, module, self.options(module), seconds)
        there = self.points()
        assert not [one.problem for one in there if one.problem or not one.trusted]
        made = [one for one in there if str(one.point) not in before]
        for one in made:
            self.held[str(one.point)] = self.held[str(one.parent)] if one.kind == "synthetic" else now
            self.kinds[one.kind] += 1
        assert len(made) <= 1 and (made or how != "success" or module != "xen_vm_export")
        self.ends[module, how] += 1
        return how

    def prove(self) -> None:
        """Restore every listed point in both ways."""
        for one in self.points():
            expected = self.held[str(one.point)]
            assert by_recipe(self.site, one) == expected, f"{one.point} by the recipe"
            assert by_module(self.site, one) == expected, f"{one.point} by the module"


def run(site: Any, module: str, options: dict[str, Any], seconds: float | None = None) -> str:
    """Run a module in a process of its own and say how it ended: success, failure, killed."""
    arguments = site.folder / f"arguments-{random.randrange(1 << 60):x}.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
    environment = os.environ | {"PYTHONPATH": site.settings["ANSIBLE_COLLECTIONS_PATH"]}
    name = f"ansible_collections.guestark.xen.plugins.modules.{module}"
    with subprocess.Popen([sys.executable, "-m", name, str(arguments)], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=seconds or 120)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            assert seconds, output + errors
    arguments.unlink()
    if process.returncode < 0:
        return "killed"
    result = json.loads(output.splitlines()[-1])
    assert ("failure" in result) is bool(process.returncode), output + errors  # a failure of ours
    return "failure" if process.returncode else "success"


def by_module(site: Any, record: PointRecord) -> list[str]:
    """Digests of the disks that xen_vm_restore makes of a point."""
    name = f"back-{record.point}"
    assert run(site, "xen_vm_restore", site.restore_options(
        record.vm_uuid, point=str(record.point), name=name, macs="new", networks={})) == "success"
    found = site.disks("recovery", name)
    site.empty("recovery")
    return found


def by_recipe(site: Any, record: PointRecord) -> list[str]:
    """Digests of the disks in the archive that restore-xva.sh makes of a point."""
    out = site.folder / f"{record.point}.xva"
    listed = f"vm/{record.vm_uuid}/pt/{record.point}.sum"
    command = ["sh", "restore-xva.sh", str(site.data_key), str(site.signers), listed, str(out)]
    done = subprocess.run(command, cwd=site.repository, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    archive = out.read_bytes()
    out.unlink()
    length = int(archive[124:135], 8)
    disks = sorted(Ova.parse(archive[512:512 + length]).disks, key=lambda disk: int(disk.userdevice))
    images = import_disks(archive, {disk.label: disk.virtual_size for disk in disks})
    return [hashlib.sha256(images[disk.label]).hexdigest() for disk in disks]


@pytest.fixture(name="stories", scope="module")
def fixture_stories(site):
    if not all(map(shutil.which, TOOLS)):
        pytest.skip("needs " + ", ".join(TOOLS))
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    stories = [Story(site, vm, catalog, random.Random(vm)) for vm in VMS]
    for story in stories:
        for _step in range(2):
            assert story.run("xen_vm_export") == "success"
    return stories


def settle(site: Any, stories: list[Story]) -> None:
    """Show that a run with nothing in its way succeeds, that all points restore, and leave nothing on the pool."""
    for story in stories:
        assert story.run("xen_vm_export") == "success"
        story.prove()
    site.one("xen_quiesce", **site.pool("production"), state="released", leftovers=True, min_age="0s")
    site.simulator.control("POST", "/clock/advance", {"seconds": 7200})
    site.simulator.control("POST", "/sessions/expire")


def test_runs_that_are_killed(site, stories):
    def worker(story: Story) -> None:
        for _turn in range(5 * EACH):
            if story.killed >= EACH // 2:
                return
            module = story.chance.choices(list(SECONDS), [6, 1, 1])[0]
            story.run(module, story.chance.uniform(0.15, SECONDS[module]))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(worker, stories))
    settle(site, stories)
    assert sum(story.killed for story in stories) >= EACH
    assert all(story.kinds["incremental"] for story in stories)
    print([(dict(story.ends), dict(story.kinds)) for story in stories])


def test_streams_that_are_cut(site, stories):
    """The VMs take turns: a fault is for the next transfer of its kind, whoever begins it."""
    cut: Counter = Counter()
    for story in stories:
        for _turn in range(5 * EACH):
            if cut[story.vm] >= EACH // 2:
                break
            kind = "nbd" if VMS[story.vm] and story.chance.random() < 0.8 else "export"
            at = story.chance.randrange(1, 3 * MIB if kind == "nbd" else 5 * MIB)
            fault = {"cut_at": at, "reset": story.chance.random() < 0.5}
            site.simulator.control("POST", "/faults", {"match": {"kind": kind}, "fault": fault, "times": 100})
            cut[story.vm] += story.run("xen_vm_export") == "failure"
            site.simulator.control("DELETE", "/faults")
            if story.chance.random() < 0.2:
                story.run(story.chance.choice(["xen_backup_prune", "xen_backup_compact"]))
    settle(site, stories)
    assert sum(cut.values()) >= EACH
    print(f"{dict(cut)} runs failed; points: {[dict(story.kinds) for story in stories]}")
