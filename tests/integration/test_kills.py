# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hundred runs killed at random moments, by all methods: no guest left off or frozen, no orphans, no false claims."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.files import load_identities, load_signers
from ansible_collections.guestark.xen.plugins.module_utils.engine.archive import open_point
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository

VMS = ("one", "two", "three", "four")
METHODS = (
    {"method": "normal"}, {"method": "offline"}, {"method": "offline", "downtime": "backup"}, {"method": "live_memory"},
)
DIRECT, BY_PLAYBOOK = 42, 16  # kills by each of two workers, and of whole playbooks
LONGEST_RUN = 1.2  # seconds a module takes here, more or less
MAX_FROZEN = 8


@pytest.fixture(scope="module", name="guest")
def fixture_guest(make_guest):
    return make_guest("stock", "127.0.0.94", 16 << 20)


@pytest.fixture(scope="module", name="config")
def fixture_config(guest):
    pool = {"hosts": ["one", "two"], "networks": {"LAN": {}}, "srs": {"Storage": {}}}
    disk = {"size": "16MiB", "files": {"/data": {"random": {"seed": 1, "size": "8MiB"}}}}
    slow = {"guest": {"shutdown": 0.3, "saving": 0.2}, "memory": "64MiB"}
    vms = {name: {"disks": [disk], **slow} for name in VMS}
    vms["stock"] = {"disks": [{"size": "16MiB", "mirror": str(guest.image)}]}
    return {"pools": {"production": {**pool, "vms": vms}, "recovery": {**pool, "hosts": ["spare"]}}}


def killed(command, environment, seconds):
    """Run a command for some seconds at most, then kill it and all its children."""
    with subprocess.Popen(command, env=os.environ | environment, start_new_session=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def test_a_hundred_kills(site, guest, tmp_path):
    catalog = str(tmp_path / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    chance = random.Random(20261123)
    environment = {"PYTHONPATH": site.settings["ANSIBLE_COLLECTIONS_PATH"]}

    def worker(number, vms):
        outcomes: list[int] = []
        for turn in range(3 * DIRECT):
            if outcomes.count(-signal.SIGKILL) == DIRECT:
                break
            vm, how, seconds = chance.choice(vms), chance.choice(METHODS), chance.uniform(0.2, LONGEST_RUN)
            arguments = tmp_path / f"arguments-{number}-{turn}.json"
            options = site.export_options(vm, catalog_identities=[catalog], **how)
            arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
            name = "ansible_collections.guestark.xen.plugins.modules.xen_vm_export"
            outcomes.append(killed([sys.executable, "-m", name, str(arguments)], environment, seconds))
        return outcomes

    with ThreadPoolExecutor(2) as threads:
        outcomes = sum(threads.map(worker, (1, 2), (VMS[:2], VMS[2:])), [])
    play = quiesced_play(site, guest, tmp_path, catalog)
    for _turn in range(3 * BY_PLAYBOOK):
        if outcomes.count(-signal.SIGKILL) == 2 * DIRECT + BY_PLAYBOOK:
            break
        outcomes.append(killed(play, site.settings | {
            "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml",
            "XENSERVER_PASSWORD": site.pool("production")["password"],
            "XENSERVER_CA_PATH": site.pool("production")["ca_path"]}, chance.uniform(1, 7)))
    deaths = outcomes.count(-signal.SIGKILL)
    assert deaths == 2 * DIRECT + BY_PLAYBOOK == 100
    assert guest.thaws()
    wait_for_tasks(site)
    site.one("xen_quiesce", **site.pool("production"), state="released", leftovers=True, min_age="0s")
    state = site.state("production")
    assert {vm: state["vms"][vm] for vm in (*VMS, "stock")} == dict.fromkeys((*VMS, "stock"), "Running")
    assert (state["snapshots"], state["snapshot_vdis"], state["attached"]) == ([], 0, [])
    assert "pending" not in state["tasks"].values()
    assert site.info(seal=True)["findings"] == []
    counted = check_claims(site)
    assert counted["incremental"] > 0
    print(f"{deaths} of {len(outcomes)} runs were killed; points that are there: {counted}")
    expire(site)


def quiesced_play(site, guest, tmp_path, catalog):
    """The command that runs the role backup_quiesced."""
    pool = site.pool("production")
    settings = {
        "xen_pool_members": pool["hostname"], "xen_uuid": site.uuid("stock"), "ansible_connection": "local",
        "guestark_repository": str(site.repository), "guestark_recipients": [site.recipient], "guestark_max_age": "0s",
        "guestark_catalog_identities": [catalog], "guestark_signing_key": str(site.signing_key), "guestark_guest": "stock-guest",
        "guestark_mount_points": [str(guest.mount)], "guestark_max_frozen": MAX_FROZEN}
    inventory, play = tmp_path / "inventory.yml", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"stock": settings, "stock-guest": guest.variables}}}))
    play.write_text(json.dumps([{"hosts": "stock", "gather_facts": False, "roles": ["guestark.xen.backup_quiesced"]}]))
    return [os.path.join(os.path.dirname(sys.executable), "ansible-playbook"), "-i", str(inventory), str(play)]


def wait_for_tasks(site):
    """What the pool was told to do ends some time after who told it has died."""
    deadline = time.monotonic() + 30
    with site.api("production") as call:
        def busy():
            return [vm for vm in call("VM.get_all_records").values() if vm["current_operations"]]
        while busy() and time.monotonic() < deadline:
            time.sleep(0.2)


def check_claims(site):
    """What each point is, as its own description and file systems tell; how many there are of each sort."""
    repository = Repository.open(PosixStore(str(site.repository)))
    identities, signers = load_identities([str(site.data_key)]), load_signers(str(site.signers))
    counted: dict[str, int] = {}
    for record in repository.points(None, signers):
        claim = repository.meta(record, identities)["consistency"]
        for sort in (claim, record.kind):
            counted[sort] = counted.get(sort, 0) + 1
        with open_point(repository, record, identities) as archive:
            vm = archive.ova.vm
            before = vm["snapshot_info"].get("power-state-at-snapshot", vm["power_state"])
            assert archive.ova.has_memory is (claim == "memory")
            assert (before == "Halted") is (claim == "cold")
            blocks = b"".join(bytes(unit) for unit in archive.units())  # every digest is checked
            if claim == "filesystem":
                superblock = blocks[512 + 1024:512 + 2048]
                assert superblock[56:58] == b"\x53\xef" and not superblock[96] & 4  # no recovery is needed
    return counted


def expire(site):
    """The pool keeps sessions of those that died for a day, and tasks that have ended for an hour."""
    site.simulator.control("POST", "/clock/advance", {"seconds": 7200})
    site.simulator.control("POST", "/sessions/expire")
