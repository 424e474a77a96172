# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory of backups, restores and verification, whatever the size of the disk and the number of layers."""

from __future__ import annotations

import json

import pytest
from ansible_collections.guestark.xen.tests.peak import peak_of
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    DATA,
    SIGNERS,
    VM,
    back_up,
    disk,
    lay,
    make,
)

MIB = 1024 * 1024
BACKUP, RESTORE = 96, 128  # MiB
LAYERS = 100
WRITES = 64  # places, spread over the whole disk
SIZE = 64 << 40
TRACKED = 4 << 40  # the largest whose changes are asked for
READ = """
import sys
from ansible_collections.guestark.xen.plugins.module_utils.age.files import load_identities, load_signers
from ansible_collections.guestark.xen.plugins.module_utils.engine.archive import open_point
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.engine.verify import verify
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
path, key, what = sys.argv[1:]
repository, identities = Repository.open(PosixStore(path)), load_identities([key])
record = repository.points()[-1]
if what == "verify":
    assert not list(verify(repository, [record], "content", identities, Progress("vm")))
else:
    with open_point(repository, record, identities) as archive:
        print(sum(len(unit) for unit in archive.units()))
"""


@pytest.fixture(scope="module", name="config")
def fixture_config():
    pool = {"hosts": ["one"], "networks": {"LAN": {"purpose": "nbd"}}, "srs": {"Storage": {"size": "200TiB"}}}
    vms = {"huge": {"disks": [{"size": SIZE}]}, "tracked": {"disks": [{"size": TRACKED}]}}
    return {"pools": {"production": {**pool, "vms": vms}, "recovery": pool}}


def module(site, name: str, options) -> tuple[float, dict]:
    """Run a module as its process alone."""
    arguments = site.folder / "arguments.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
    memory, output = peak_of(f"ansible_collections.guestark.xen.plugins.modules.{name}", str(arguments),
                             collections=site.settings["ANSIBLE_COLLECTIONS_PATH"])
    return memory, json.loads(output.splitlines()[-1])


def write(site, vm: str, size: int, seed: int) -> None:
    """Let the guest write all over its disk."""
    for place in range(WRITES):
        site.simulator.control("POST", f"/vms/production/{vm}/write", {
            "disk": 0, "offset": size // WRITES * place // MIB * MIB, "random": {"seed": seed + place, "bytes": MIB}})


@pytest.mark.parametrize(("vm", "size", "how"), [("huge", SIZE, "digest"), ("tracked", TRACKED, "cbt")])
def test_a_large_disk_takes_no_more_memory_than_others(site, vm, size, how):
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    found, points = {}, []
    for turn in range(2):
        write(site, vm, size, turn * 1000)
        found[f"backup {turn}"], result = module(site, "xen_vm_export", site.export_options(
            vm, catalog_identities=[catalog], change_tracking=True))
        points.append(result["point"])
    assert [one["kind"] for one in points] == ["full", "incremental"] and points[1]["changes_by"] == how
    assert ("too much memory" in points[1].get("changes_reason", "")) is (how == "digest")
    found["verify"], _result = module(site, "xen_backup_verify", {
        "repository": str(site.repository), "allowed_signers": str(site.signers), "identities": [str(site.data_key)],
        "level": "content", "vm": site.uuid(vm), "point": "latest"})
    found["restore"], _result = module(site, "xen_vm_restore", site.restore_options(vm, networks={}))
    print({name: round(memory) for name, memory in found.items()})
    assert all(memory <= (BACKUP if name.startswith("backup") else RESTORE) for name, memory in found.items()), found


def test_a_hundred_layers_take_no_more_memory_than_is_allowed(site, tmp_path):
    repository = make(tmp_path / "repository")
    key = tmp_path / "data.key"
    key.write_text(DATA.to_string() + "\n")
    content = {number: number for number in range(8)}
    record = back_up(repository, [disk(0, 8 * MIB, content)])
    for layer in range(1, LAYERS):
        content[layer % 8] = layer * 100
        record = lay(repository, record, [disk(0, 8 * MIB, content)])
    assert len(repository.points(VM, SIGNERS)[-1].indexes) == LAYERS
    reader = tmp_path / "reader.py"
    reader.write_text(READ)
    found = {what: peak_of(str(reader), str(tmp_path / "repository"), str(key), what,
                           collections=site.settings["ANSIBLE_COLLECTIONS_PATH"])[0]
             for what in ("verify", "restore")}
    print({name: round(memory) for name, memory in found.items()})
    assert max(found.values()) <= RESTORE, found
