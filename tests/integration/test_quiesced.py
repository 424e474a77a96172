# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests frozen from inside over SSH: real file systems, a real PostgreSQL, and a dead-man that fires."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
MIB = 1 << 20


@pytest.fixture(scope="module", name="guests")
def fixture_guests(make_guest):
    sizes = {"shop": 160 * MIB, "stock": 16 * MIB}
    return {name: make_guest(name, f"127.0.0.{90 + number}", size) for number, (name, size) in enumerate(sizes.items())}


@pytest.fixture(scope="module", name="config")
def fixture_config(guests):
    pool = {"hosts": ["one", "two"], "networks": {"LAN": {}}, "srs": {"Storage": {}}}
    vms = {
        name: {"tags": ["gold"], "disks": [{"size": guest.image.stat().st_size, "mirror": str(guest.image)}]}
        for name, guest in guests.items()
    }
    old = {"legacy": {"disks": [{"size": 4 * MIB}], "tools": {"feature-quiesce": "1"}}}
    return {"pools": {"production": {**pool, "vms": vms}, "recovery": pool, "old": {**pool, "release": "8.0", "vms": old}}}


@pytest.fixture(name="protect")
def fixture_protect(site, guests, tmp_path):
    """Run the playbook; ``about`` are variables of the VMs, ``own`` those of single ones."""
    pool = site.pool("production")
    inventory = tmp_path / "production.xen.yml"
    inventory.write_text(json.dumps({
        "plugin": "guestark.xen.pool", "local": True, "ca_path": pool["ca_path"], "hostname": pool["hostname"]}))

    def protect(fails=False, only=None, own=None, **about):
        settings = {
            "guestark_repository": str(site.repository), "guestark_recipients": [site.recipient],
            "guestark_signing_key": str(site.signing_key), "guestark_max_age": "0s", "guestark_max_frozen": 20, **about}
        hosts = {f"{name}-guest": guest.variables for name, guest in guests.items()}
        hosts |= {name: {
            "guestark_method": "quiesced", "guestark_guest": f"{name}-guest",
            "guestark_mount_points": [str(guest.mount)], **settings, **(own or {}).get(name, {}),
        } for name, guest in guests.items()}
        second = tmp_path / "guests.yml"
        chosen = {"hosts": {name: {} for name in ([only] if only else guests)}}
        second.write_text(json.dumps({"all": {"hosts": hosts, "children": {"chosen": chosen}}}))
        environment = {"XENSERVER_PASSWORD": pool["password"], "XENSERVER_CA_PATH": pool["ca_path"],
                       "ANSIBLE_INVENTORY_ENABLED": "guestark.xen.pool,ansible.builtin.yaml"}
        return site.playbook("-i", str(inventory), "-i", str(second), "guestark.xen.backup", "-e", "guestark_group=chosen",
                             fails=fails, **environment)

    return protect


def points(site, vm):
    """The VM's points, newest last."""
    listed = site.info(catalog_identities=[str(site.data_key)])["points"]
    return [point for point in listed if point["vm_uuid"] == site.uuid(vm)]


def meta(site, vm):
    return points(site, vm)[-1]


def test_frozen_together_thawed_and_equal(site, guests, protect):
    for guest in guests.values():
        (guest.mount / "note").write_text("committed")
    output = protect(guestark_freeze_group="shop")
    for name, guest in guests.items():
        assert not guest.is_frozen()
        point = meta(site, name)
        assert (point["method"], point["consistency"], point["group"]) == ("quiesced", "filesystem", "shop")
        assert point["frozen_seconds"] > 0 and point["skew_seconds"] >= 0
        (line,) = [line for line in output.splitlines() if line.strip().startswith(f"{name} ") and "new point" in line]
        assert "filesystem" in line and "s frozen" in line
    site.restore("stock")
    with site.api("recovery") as call:
        vdi, = [vdi for vdi in call("VDI.get_all_records").values() if vdi["name_label"].startswith("stock")]
    image = site.folder / "stock.img"
    image.write_bytes(site.simulator.control("GET", f"/disks/recovery/{vdi['uuid']}"))
    command = ["debugfs", "-R", "cat /note", str(image)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "committed"
    # a frozen file system's journal is empty: it needs no recovery
    shown = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" not in shown
    site.empty("recovery")


def test_a_young_point_is_enough_and_no_guest_is_frozen(site, guests, protect):
    before = [len(points(site, name)) for name in guests]
    output = protect(guestark_freeze_group="shop", guestark_max_age="4h")
    assert output.count(" unchanged ") == 2 and "Freeze the guest" not in output
    assert [len(points(site, name)) for name in guests] == before
    # one that is worth less than what is demanded by name is not enough
    hooks = [{"kind": "command", "before": ["true"]}]
    demands = {"guestark_consistency": "application", "guestark_hooks": hooks, "guestark_max_age": "4h"}
    assert "new point" in protect(only="stock", guestark_catalog_identities=[str(site.data_key)], **demands)
    assert "unchanged" in protect(only="stock", guestark_catalog_identities=[str(site.data_key)], **demands)


def test_if_one_of_a_group_cannot_be_frozen_none_gets_a_point(site, guests, protect):
    before = [len(points(site, name)) for name in guests]
    output = protect(fails=True, guestark_freeze_group="shop", own={"stock": {"guestark_mount_points": ["/nowhere"]}})
    assert output.count(" NOT SAFE ") == 2 and "Nothing is mounted on /nowhere" in output and "Not frozen: stock" in output
    assert [len(points(site, name)) for name in guests] == before
    assert not any(guest.is_frozen() for guest in guests.values())


def test_an_old_pool_does_it_by_the_guests_tools(site, tmp_path):
    pool = site.pool("old")
    uuid = site.simulator.ready["pools"]["old"]["vms"]["legacy"]
    inventory, play = tmp_path / "inventory.yml", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"legacy": {
        "ansible_connection": "local", "xen_uuid": uuid, "xen_pool_members": pool["hostname"],
        "guestark_repository": str(site.repository), "guestark_recipients": [site.recipient],
        "guestark_signing_key": str(site.signing_key), "guestark_quiesce_through": "pool"}}}}))
    show = {"ansible.builtin.debug": {"var": "backup_quiesced_result.point"}, "name": "Point"}
    play.write_text(json.dumps([{
        "hosts": "legacy", "gather_facts": False, "roles": ["guestark.xen.backup_quiesced"], "post_tasks": [show]}]))
    output = site.playbook("-i", str(inventory), str(play), XENSERVER_PASSWORD=pool["password"],
                           XENSERVER_CA_PATH=pool["ca_path"], ANSIBLE_INVENTORY_ENABLED="ansible.builtin.yaml")
    assert "consistency: filesystem" in output and "method: quiesced" in output


def test_a_dead_man_that_fires_makes_no_point_that_claims_more(site, guests, protect):
    before = len(points(site, "stock"))
    site.simulator.control("POST", "/faults", {"match": {"call": "VM.snapshot"}, "fault": {"delay": 4}})
    output = protect(fails=True, only="stock", guestark_max_frozen=1)
    assert "NOT SAFE" in output and "not sure that the guest was frozen" in " ".join(output.split())
    assert guests["stock"].thaws() and len(points(site, "stock")) == before
    site.simulator.control("POST", "/faults", {"match": {"call": "VM.snapshot"}, "fault": {"delay": 4}})
    output = protect(only="stock", guestark_max_frozen=1, guestark_fallback=True)
    assert meta(site, "stock")["consistency"] == "crash" and "DEGRADED" in output


def test_a_snapshot_that_fails_thaws_the_guest(site, guests, protect):
    site.fault("VM.snapshot", error=["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""])
    output = protect(fails=True, only="stock")
    assert "SR_BACKEND_FAILURE_44" in output and not guests["stock"].is_frozen()


def test_a_hook_that_fails_freezes_nothing(site, guests, protect):
    before = len(points(site, "stock"))
    hooks = [{"kind": "command", "before": ["sh", "-c", "echo the queue is full; exit 3"], "after": ["true"]}]
    output = protect(fails=True, only="stock", guestark_hooks=hooks)
    assert "the queue is full" in output and "Nothing was frozen" in output and len(points(site, "stock")) == before


def test_an_application_is_demanded_without_a_hook(site, guests, protect):
    output = protect(fails=True, only="stock", guestark_consistency="application")
    assert "application needs hooks" in " ".join(output.split()) and not guests["stock"].is_frozen()


def test_a_controller_that_is_killed_while_the_guest_is_frozen(site, guests, protect, wait_until, tmp_path):
    site.simulator.control("POST", "/faults", {"match": {"call": "VM.snapshot"}, "fault": {"delay": 3}})
    ended = []
    thread = threading.Thread(target=lambda: ended.append(protect(fails=True, only="stock", guestark_max_frozen=6)))
    thread.start()
    wait_until(lambda: site.state()["tasks"])  # the snapshot has begun, so the guest is frozen
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"ansible-playbook" in words and str(tmp_path).encode() in words:
            os.kill(int(folder.name), signal.SIGKILL)
    thread.join(60)
    assert ended and guests["stock"].is_frozen()
    assert guests["stock"].thaws()
    wait_until(lambda: not site.state()["tasks"])
    assert len(site.state()["snapshots"]) == 1
    site.one("xen_quiesce", **site.pool("production"), state="released", leftovers=True, min_age="0s")
    assert site.state()["snapshots"] == []
    protect(only="stock")
    site.simulator.control("POST", "/clock/advance", {"seconds": 7200})  # what the dead run left of tasks and sessions
    site.simulator.control("POST", "/sessions/expire")


def test_the_coordinator_changes_while_the_guest_is_frozen(site, guests, protect):
    """The pool elects another one, and all sessions end, right before the snapshot."""
    control = site.simulator.ready["control"]
    elect = ["curl", "-sf", "-X", "POST", f"{control}/pools/production/elect", "-d", json.dumps({"host": "two"})]
    output = protect(only="stock", guestark_hooks=[{"kind": "command", "before": elect}])
    assert site.state()["coordinator"] == "two" and "new point" in output and not guests["stock"].is_frozen()
    assert meta(site, "stock")["consistency"] == "application"
    site.simulator.control("POST", "/pools/production/elect", {"host": "one"})


def test_two_runs_on_one_guest_at_once(site, guests, protect):
    """The second one is refused by the guest, and disturbs neither the first one nor what it made."""
    before = len(points(site, "stock"))
    site.simulator.control("POST", "/faults", {"match": {"call": "VM.snapshot"}, "fault": {"delay": 4}})
    outputs = []
    threads = [threading.Thread(target=lambda: outputs.append(protect(only="stock", fails=None))) for _number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    verdicts = sorted("new point" if "new point" in output else "NOT SAFE" for output in outputs)
    assert verdicts == ["NOT SAFE", "new point"] and any("is frozen already" in output for output in outputs)
    assert not guests["stock"].is_frozen() and len(points(site, "stock")) == before + 1


@pytest.fixture(name="database")
def fixture_database(guests):
    """A PostgreSQL whose data are on the shop's disk, in a folder that is its own."""
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed")
    sockets = tempfile.mkdtemp(prefix="postgres-")
    subprocess.run(["chown", "postgres:", sockets], check=True)
    server = Postgres(guests["shop"].mount / "data", sockets)
    server.run("initdb", "-A", "trust", "-D", str(server.data))
    server.start()
    server.sql("create table orders (id bigserial primary key, filler text)")
    yield server
    server.stop()
    shutil.rmtree(sockets)


class Postgres:
    """A server that listens on a socket in a folder only."""

    def __init__(self, data: Path, sockets: str) -> None:
        self.data, self.sockets = data, sockets
        data.mkdir(exist_ok=True)
        subprocess.run(["chown", "-R", "postgres:", str(data)], check=True)
        data.chmod(0o700)

    def run(self, program, *arguments):
        command = ["runuser", "-u", "postgres", "--", str(BINARIES[-1] / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", timeout=120).stdout

    def start(self):
        options = f"-c listen_addresses='' -k {self.sockets} -c shared_buffers=16MB"
        self.run("pg_ctl", "-w", "-D", str(self.data), "-o", options, "-l", f"{self.sockets}/log", "start")

    def stop(self):
        self.run("pg_ctl", "-w", "-m", "fast", "-D", str(self.data), "stop")

    def sql(self, statement):
        return self.run("psql", "-XAtq", "-h", self.sockets, "-d", "postgres", "-c", statement).split()


def test_every_row_committed_before_the_freeze_is_in_the_restored_database(site, guests, database, protect, tmp_path):
    committed = Path(database.sockets) / "committed"
    before_freeze = Path(database.sockets) / "committed before the freeze"
    stop = threading.Event()
    writer = subprocess.Popen(
        ["runuser", "-u", "postgres", "--", str(BINARIES[-1] / "psql"), "-XAtq", "-h", database.sockets, "-d", "postgres"],
        stdin=subprocess.PIPE, stdout=committed.open("wb"), cwd="/")

    def write():
        while not stop.is_set():
            writer.stdin.write(b"insert into orders (filler) select repeat('x', 500) returning id;\n")
            writer.stdin.flush()
            time.sleep(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        time.sleep(1)
        hooks = [
            {"kind": "postgresql", "socket": database.sockets},
            {"kind": "command", "before": ["cp", str(committed), str(before_freeze)],
             "after": ["touch", f"{before_freeze}.after"]},
        ]
        protect(only="shop", guestark_hooks=hooks, guestark_consistency="application")
        time.sleep(0.5)
    finally:
        stop.set()
        thread.join()
        writer.stdin.close()
        writer.wait()
    assert Path(f"{before_freeze}.after").exists()
    point = meta(site, "shop")
    assert (point["consistency"], point["method"]) == ("application", "quiesced")
    acknowledged = {int(line) for line in before_freeze.read_text().splitlines()}
    written = len(committed.read_text().splitlines())
    assert 0 < len(acknowledged) < written  # it was written before, during and after
    site.restore("shop")
    with site.api("recovery") as call:
        (vdi,) = [vdi for vdi in call("VDI.get_all_records").values() if vdi["name_label"].startswith("shop")]
    image, mount = tmp_path / "restored.img", Path(tempfile.mkdtemp(prefix="restored-"))
    image.write_bytes(site.simulator.control("GET", f"/disks/recovery/{vdi['uuid']}"))
    mount.chmod(0o755)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        restored = Postgres(mount / "data", tempfile.mkdtemp(prefix="postgres-"))
        subprocess.run(["chown", "postgres:", restored.sockets], check=True)
        (mount / "data" / "postmaster.pid").unlink(missing_ok=True)  # a snapshot of a running server has it
        restored.start()
        try:
            rows = {int(row) for row in restored.sql("select id from orders")}
            assert acknowledged <= rows
        finally:
            restored.stop()
            shutil.rmtree(restored.sockets)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        mount.rmdir()
    site.empty("recovery")


def test_the_connection_drops_while_the_guest_is_frozen(site, guests, protect, wait_until):
    """The machine cannot be reached any more: it thaws by itself, and the run is red."""
    guest, before = guests["stock"], len(points(site, "stock"))
    site.simulator.control("POST", "/faults", {"match": {"call": "VM.snapshot"}, "fault": {"delay": 3}})
    outputs = []
    thread = threading.Thread(target=lambda: outputs.append(protect(fails=True, only="stock", guestark_max_frozen=6)))
    thread.start()
    wait_until(lambda: site.state()["tasks"])
    guest.disconnect()
    assert guest.is_frozen() and guest.thaws()
    thread.join(120)
    assert outputs and "NOT SAFE" in outputs[0] and len(points(site, "stock")) == before
