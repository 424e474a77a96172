# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against simulated pools: what an administrator's pool does, and does when it fails."""

from __future__ import annotations

import io
import tarfile
import threading
import time

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import client as client_module
from ansible_collections.guestark.xen.plugins.module_utils.xapi import connection, inventory, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    Ambiguous,
    CertificateUntrusted,
    NotFound,
    OutcomeUnknown,
    PoolError,
    TransferError,
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import Task, call_async, wait
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings
from ansible_collections.guestark.xen.plugins.module_utils.xapi.transfers import export_vm, import_vm
from ansible_collections.guestark.xen.tests.simulator_fixture import start_simulator

MIB = 1048576
MARK = snapshots.Mark("guestark 1.0.0", "run-1", "20261123T010000Z-000001-0123456789ab", "2026-11-24T01:00:00Z")
HOSTS = ["one", "two", "three"]


def disk(**more):
    return {"size": "24MiB", "files": {"/etc/hello": "hello", "/noise": {"random": {"seed": 7, "size": "6MiB"}}}, **more}


CONFIG = {
    "pools": {
        "lab": {
            "release": "8.3",
            "hosts": HOSTS,
            "users": {
                "root": {"password": "s3cret-Päss"},
                "backup": {"password": "b", "role": "vm-power-admin"},
                "operator": {"password": "o", "role": "vm-operator"},
            },
            "networks": {"lan": {}, "dmz": {}},
            "srs": {"shared": {"type": "nfs"}, "disks of two": {"type": "ext", "host": "two"}},
            "vms": {
                "web01": {"tags": ["gold"], "networks": ["lan", "dmz"], "disks": [disk(), {"size": "3MiB+512"}]},
                "local01": {"power_state": "Halted", "disks": [disk(sr="disks of two")]},
                "twin": {"power_state": "Halted", "disks": []},
            },
        },
        "old": {
            "release": "8.2",
            "hosts": ["single"],
            "networks": {"lan": {}},
            "srs": {"local": {"type": "ext"}},
            "vms": {"legacy": {"power_state": "Halted", "disks": [disk()]}, "served": {}},
        },
    }
}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    simulator = start_simulator(CONFIG, tmp_path_factory.mktemp("simulator"))
    yield simulator
    simulator.stop()


@pytest.fixture
def lab(simulator):
    """The pool whole again, whatever a test did to it; afterwards nothing may be left in it."""
    yield simulator
    simulator.control("DELETE", "/faults")
    for host in HOSTS:
        simulator.control("POST", "/hosts/lab/%s/resume" % host)
        if not state(simulator)["hosts"][host]["alive"]:
            simulator.control("POST", "/hosts/lab/%s/start" % host)
    if state(simulator)["coordinator"] != "one":
        simulator.control("POST", "/pools/lab/elect", {"host": "one"})
    if state(simulator)["vms"]["web01"] != "Running":  # its host was killed
        with connect(simulator) as client:
            client.call("VM.start", inventory.find_vm(client, name="web01")["ref"], False, False)
    nothing = ({}, [], 0, [])
    deadline = time.monotonic() + 10  # a pool lets go of things a little later
    while (left := remains(simulator)) != nothing and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == nothing


def state(simulator, pool="lab"):
    return simulator.control("GET", "/state")[pool]


def remains(simulator):
    left = state(simulator)
    return left["tasks"], left["snapshots"], left["snapshot_vdis"], left["attached"]


def connect(simulator, pool="lab", user=None, members=None, patience=30.0, **tls):
    described = simulator.ready["pools"][pool]
    password = CONFIG["pools"][pool]["users"][user]["password"] if user else described["password"]
    return PoolClient(
        members or described["members"], user or described["username"], password,
        TlsSettings(**(tls or {"ca_path": simulator.ready["ca"]})), patience=patience,
    )


@pytest.fixture
def client(lab):
    with connect(lab) as client:
        yield client
    assert state(lab)["sessions"] == 0


def members_xva(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def read(client, ref, **options):
    with export_vm(client, ref, **options) as export:
        data = export.readall()
        export.finish()
    return data


# ---- sessions and coordinators


def test_any_member_leads_to_the_coordinator(lab):
    described = lab.ready["pools"]["lab"]["members"]
    for member in described:
        with connect(lab, members=[member]) as client:
            assert client.coordinator == described[0]
    assert state(lab)["sessions"] == 0


def test_members_without_scheme(lab):
    with connect(lab, members=[lab.ready["pools"]["lab"]["members"][1].removeprefix("https://")]) as client:
        assert client.call("pool.get_all")


def test_certificates_are_verified(lab):
    with pytest.raises(CertificateUntrusted):
        connect(lab, validate=True).__enter__()


def test_wrong_password(lab):
    pool = PoolClient(lab.ready["pools"]["lab"]["members"], "root", "wrong", TlsSettings(ca_path=lab.ready["ca"]))
    with pytest.raises(XapiError, match="does not accept this user name and password"):
        pool.__enter__()


def test_expired_sessions_are_renewed(client, lab):
    before = client.session
    lab.control("POST", "/sessions/expire")
    assert len(client.call("host.get_all")) == 3
    assert client.session != before


def test_a_new_coordinator_is_found_and_references_survive(client, lab):
    ref = inventory.find_vm(client, name="web01")["ref"]

    def fail_over():
        lab.control("POST", "/hosts/lab/one/kill")
        time.sleep(1.0)
        lab.control("POST", "/pools/lab/elect", {"host": "two"})

    thread = threading.Thread(target=fail_over)
    thread.start()
    lab.control("POST", "/faults", {"pool": "lab", "match": {"call": "VM.get_name_label"}, "fault": {"delay": 0.5}})
    names = []
    while thread.is_alive():
        names.append(client.call("VM.get_name_label", ref))
    thread.join()
    assert set(names) == {"web01"}
    assert client.call("VM.get_name_label", ref) == "web01"
    assert client.coordinator == lab.ready["pools"]["lab"]["members"][1]


def test_a_coordinator_that_hangs_is_given_up_for_its_successor(lab, monkeypatch):
    monkeypatch.setattr(client_module, "READ_TIMEOUT", 1.0)
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 1.0)
    with connect(lab) as client:
        lab.control("POST", "/hosts/lab/one/hang")
        lab.control("POST", "/pools/lab/elect", {"host": "three"})
        assert client.call("pool.get_all")
        assert client.coordinator == lab.ready["pools"]["lab"]["members"][2]


def test_a_pool_without_coordinator_ends_the_patience(lab):
    with connect(lab, patience=2.0) as client:
        lab.control("POST", "/hosts/lab/one/kill")
        with pytest.raises(PoolError, match="toolstack is starting|No connection"):
            client.call("pool.get_all")


def test_a_refusal_by_role_says_what_is_needed(lab):
    with connect(lab, user="operator") as client:
        vm = inventory.find_vm(client, name="web01")
        with pytest.raises(XapiError, match="role of this account does not suffice") as error:
            snapshots.take(client, vm["ref"], "s", MARK)
    assert "vm-power-admin" in error.value.remedy


# ---- tasks


def test_a_task_of_ours_is_destroyed_on_every_path(client, lab):
    with Task.create(client, "never adopted", {"run": "r"}) as task:
        assert client.call("task.get_name_description", task.ref) == "guestark run=r"
    with pytest.raises(KeyError), Task.create(client, "left"):
        raise KeyError
    assert state(lab)["tasks"] == {}


def test_progress_arrives_by_events(client):
    seen = []
    with Task.create(client, "watched") as task:
        def work():
            for progress in (0.25, 0.5):
                time.sleep(0.3)
                client.call("task.set_progress", task.ref, progress)
            client.call("task.set_result", task.ref, "<value><array><data><value>a</value></data></array></value>")
            client.call("task.set_status", task.ref, "success")

        thread = threading.Thread(target=work)
        thread.start()
        assert wait(client, task.ref, seen.append) == ["a"]
        thread.join()
    assert seen == [0.0, 0.25, 0.5]


def test_a_task_lost_with_its_coordinator(client, lab):
    task = Task.create(client, "lost")

    def fail_over():
        time.sleep(0.5)
        lab.control("POST", "/hosts/lab/one/kill")
        lab.control("POST", "/pools/lab/elect", {"host": "two"})

    thread = threading.Thread(target=fail_over)
    thread.start()
    with pytest.raises(OutcomeUnknown, match="has vanished"):
        wait(client, task.ref)
    thread.join()


def test_cancelling_from_outside(client):
    with Task.create(client, "cancelled") as task:
        client.call("task.set_error_info", task.ref, ["TASK_CANCELLED", task.ref])
        client.call("task.set_status", task.ref, "cancelled")
        with pytest.raises(XapiError) as error:
            wait(client, task.ref)
    assert error.value.code == "TASK_CANCELLED"


# ---- inventory


def test_guests_are_found_by_name_and_uuid(client, lab):
    uuid = lab.ready["pools"]["lab"]["vms"]["web01"]
    assert inventory.find_vm(client, name="web01")["uuid"] == uuid
    assert inventory.find_vm(client, uuid=uuid)["name_label"] == "web01"
    for missing in ({"name": "nobody"}, {"uuid": "00000000-0000-4000-8000-000000000000"}):
        with pytest.raises(NotFound):
            inventory.find_vm(client, **missing)


def test_templates_snapshots_and_control_domains_are_no_guests(client):
    web01 = inventory.find_vm(client, name="web01")
    snapshot = snapshots.take(client, web01["ref"], "web01", MARK)  # same name on purpose
    try:
        assert inventory.find_vm(client, name="web01")["ref"] == web01["ref"]
        for name in ("Other install media", "Control domain on host: one"):
            with pytest.raises(NotFound):
                inventory.find_vm(client, name=name)
        with pytest.raises(NotFound):
            inventory.find_vm(client, uuid=client.call("VM.get_uuid", snapshot))
    finally:
        snapshots.remove(client, snapshot)


def test_duplicate_names_are_told_with_their_uuids(client):
    first = inventory.find_vm(client, name="twin")
    second = client.call("VM.clone", first["ref"], "twin")
    try:
        with pytest.raises(Ambiguous) as error:
            inventory.find_vm(client, name="twin")
        assert first["uuid"] in str(error.value) and client.call("VM.get_uuid", second) in str(error.value)
    finally:
        snapshots.remove(client, second)


def test_storage_and_networks(client, lab):
    ref, record = inventory.find_sr(client)
    assert record["name_label"] == "shared"
    assert inventory.find_sr(client, "shared") == (ref, record)
    assert inventory.find_sr(client, record["uuid"])[0] == ref
    assert inventory.find_network(client, "dmz")[1]["name_label"] == "dmz"
    for find, name in ((inventory.find_sr, "none"), (inventory.find_network, "none")):
        with pytest.raises(NotFound, match="none"):
            find(client, name)


def test_a_pool_without_default_storage(client):
    pool = client.call("pool.get_all")[0]
    default = client.call("pool.get_default_SR", pool)
    client.call("pool.set_default_SR", pool, "OpaqueRef:NULL")
    try:
        with pytest.raises(NotFound, match="no default storage repository"):
            inventory.find_sr(client)
    finally:
        client.call("pool.set_default_SR", pool, default)


def test_facts_of_all_guests_in_a_fixed_number_of_calls(client, monkeypatch):
    calls = []
    call = PoolClient.call
    monkeypatch.setattr(PoolClient, "call", lambda self, method, *a, **k: calls.append(method) or call(self, method, *a, **k))
    facts = inventory.vm_facts(client)
    assert [vm["name"] for vm in facts] == ["local01", "twin", "web01"]
    assert calls == [name + ".get_all_records" for name in inventory.CLASSES]
    web01 = facts[-1]
    assert [(one["device"], one["size"], one["sr"], one["sr_type"]) for one in web01["disks"]] == [
        ("0", 24 * MIB, "shared", "nfs"), ("1", 3 * MIB + 512, "shared", "nfs")
    ]
    assert [one["network"] for one in web01["interfaces"]] == ["lan", "dmz"]
    assert web01["tags"] == ["gold"] and web01["host"] in HOSTS and web01["memory"] == 1 << 30
    assert inventory.vm_facts(client, [web01["uuid"]]) == [web01]


def test_what_the_guest_says_of_itself(lab):
    with connect(lab, "old") as client:
        legacy, served = inventory.vm_facts(client)
    assert (served["addresses"], served["os"], served["host"]) == (["192.0.2.10"], "Debian GNU/Linux 12", "single")
    assert (legacy["addresses"], legacy["os"], legacy["host"]) == ([], "", None)


# ---- snapshots


def test_a_snapshot_is_marked_with_its_disks_and_goes_with_them(client, lab):
    web01 = inventory.find_vm(client, name="web01")
    ref = snapshots.take(client, web01["ref"], "guestark web01", MARK)
    record = client.call("VM.get_record", ref)
    assert record["is_a_snapshot"] and record["snapshot_of"] == web01["ref"]
    assert snapshots.Mark.read(record) == MARK
    assert state(lab)["snapshot_vdis"] == 2
    (leftover,) = snapshots.leftovers(client)
    assert (leftover.kind, leftover.ref, leftover.vm_uuid, leftover.mark) == ("VM", ref, web01["uuid"], MARK)
    assert snapshots.leftovers(client, web01["ref"]) == [leftover]
    assert snapshots.leftovers(client, inventory.find_vm(client, name="twin")["ref"]) == []
    snapshots.remove_leftover(client, leftover)
    snapshots.remove(client, ref)  # gone already
    assert state(lab)["snapshots"] == []


def test_disks_whose_snapshot_vm_is_gone_are_found_by_their_own_mark(client):
    web01 = inventory.find_vm(client, name="web01")
    ref = snapshots.take(client, web01["ref"], "half removed", MARK)
    client.call("VM.destroy", ref)
    found = snapshots.leftovers(client, web01["ref"])
    assert [one.kind for one in found] == ["VDI", "VDI"]
    for leftover in found:
        snapshots.remove_leftover(client, leftover)
    assert snapshots.leftovers(client) == []


def test_a_copied_mark_is_no_mark(client):
    twin = inventory.find_vm(client, name="twin")
    ours = snapshots.take(client, twin["ref"], "ours", MARK)
    copied = client.call("VM.get_other_config", ours)
    theirs = client.call("VM.snapshot", twin["ref"], "theirs")
    for key, value in copied.items():
        client.call("VM.remove_from_other_config", theirs, key)
        client.call("VM.add_to_other_config", theirs, key, value)
    assert [one.ref for one in snapshots.leftovers(client)] == [ours]
    snapshots.remove(client, ours)
    snapshots.remove(client, theirs)


def test_the_snapshots_of_others_are_not_found(client):
    twin = inventory.find_vm(client, name="twin")
    theirs = client.call("VM.snapshot", twin["ref"], "guestark run-1")
    assert snapshots.leftovers(client) == []
    snapshots.remove(client, theirs)


def test_disks_can_be_left_out(client, lab):
    web01 = inventory.find_vm(client, name="web01")
    vdis = [client.call("VBD.get_VDI", vbd) for vbd in web01["VBDs"] if client.call("VBD.get_type", vbd) == "Disk"]
    ref = snapshots.take(client, web01["ref"], "one disk", MARK, ignore_vdis=vdis[:1])
    assert state(lab)["snapshot_vdis"] == 1
    snapshots.remove(client, ref)


def test_a_release_that_cannot_leave_disks_out(lab):
    with connect(lab, "old") as client:
        legacy = inventory.find_vm(client, name="legacy")
        with pytest.raises(XapiError, match="VM.snapshot takes 2 parameters on this release, not 3"):
            snapshots.take(client, legacy["ref"], "s", MARK, ignore_vdis=["OpaqueRef:x"])
        snapshots.remove(client, snapshots.take(client, legacy["ref"], "s", MARK))
    assert state(lab, "old")["snapshot_vdis"] == 0


def test_a_snapshot_that_cannot_be_marked_does_not_stay(client, lab):
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VDI.add_to_other_config"}, "fault": {"error": ["SR_HAS_NO_PBDS", "x"]},
    })
    with pytest.raises(XapiError, match="not plugged"):
        snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
    assert state(lab)["snapshots"] == [] and state(lab)["snapshot_vdis"] == 0


def test_a_busy_disk_is_tried_again(client, lab):
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VDI.destroy"}, "fault": {"error": ["VDI_IN_USE", "x", "destroy"]}, "times": 2,
    })
    snapshots.remove(client, ref)
    assert state(lab)["snapshot_vdis"] == 0


def test_a_disk_that_stays_busy_is_told_and_the_others_go(client, lab, monkeypatch):
    monkeypatch.setattr(snapshots, "BUSY_SECONDS", 0.0)
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VDI.destroy"}, "fault": {"error": ["VDI_IN_USE", "x", "destroy"]},
    })
    with pytest.raises(XapiError, match="disk .* of s failed: the disk is attached or busy"):
        snapshots.remove(client, ref)
    (left,) = snapshots.leftovers(client)
    snapshots.remove_leftover(client, left)


def test_a_disk_another_guest_uses_stays(client, lab):
    twin = inventory.find_vm(client, name="twin")
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
    vdi = next(
        vbd["VDI"] for vbd in (client.call("VBD.get_record", vbd) for vbd in client.call("VM.get_VBDs", ref))
        if vbd["type"] == "Disk"
    )
    record = {"VM": twin["ref"], "VDI": vdi, "userdevice": "7", "bootable": False, "mode": "RO", "type": "Disk",
              "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    vbd = client.call("VBD.create", record)
    snapshots.remove(client, ref)
    assert client.call("VDI.get_uuid", vdi)
    client.call("VBD.destroy", vbd)
    (left,) = snapshots.leftovers(client)
    snapshots.remove_leftover(client, left)


def test_an_error_of_the_storage_reaches_the_caller(client, lab):
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VM.snapshot"},
        "fault": {"error": ["SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", ""]},
    })
    with pytest.raises(XapiError, match="VM.snapshot of VM web01 failed: the chain of snapshots") as error:
        snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
    assert "coalesce" in error.value.remedy


def test_call_async_leaves_no_task(client, lab):
    twin = inventory.find_vm(client, name="twin")
    with pytest.raises(XapiError):
        call_async(client, "VM.start", "OpaqueRef:gone", False, False)
    ref = call_async(client, "VM.clone", twin["ref"], "copy")
    assert client.call("VM.get_name_label", ref) == "copy"
    snapshots.remove(client, ref)


# ---- transfers


@pytest.fixture
def snapshot(client):
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "exported", MARK)
    yield ref
    snapshots.remove(client, ref)


def fault(lab, kind, **fault):
    lab.control("POST", "/faults", {"pool": "lab", "match": {"path": "/" + kind}, "fault": fault})


def test_an_export_is_whole(client, snapshot):
    data = read(client, snapshot)
    assert data[-1024:] == bytes(1024)
    names = members_xva(data)
    assert names[0] == "ova.xml" and any(name.endswith("/00000000") for name in names)


def test_an_export_is_imported_again(client, lab, snapshot):
    data = read(client, snapshot)
    sr = inventory.find_sr(client, "shared")[0]
    for length in (None, len(data)):
        refs = import_vm(client, sr, (data[i:i + 3 * MIB] for i in range(0, len(data), 3 * MIB)), length=length)
        assert [client.call("VM.get_name_label", ref) for ref in refs] == ["exported"]
        for ref in refs:
            snapshots.remove(client, ref)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_both_ways(client, snapshot, compression):
    data = read(client, snapshot, compression=compression)
    assert data[:4] == (b"\x28\xb5\x2f\xfd" if compression == "zstd" else data[:4])
    sr = inventory.find_sr(client, "shared")[0]
    for length in (None, len(data)):
        (ref,) = import_vm(client, sr, [data], length=length)
        snapshots.remove(client, ref)


def test_transfers_follow_the_storage_to_another_host(client):
    local01 = inventory.find_vm(client, name="local01")
    data = read(client, local01["ref"])
    (ref,) = import_vm(client, inventory.find_sr(client, "disks of two")[0], [data])
    assert client.call("VM.get_name_label", ref) == "local01"
    snapshots.remove(client, ref)


def test_the_least_roles(lab):
    with connect(lab, user="backup") as client:
        ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK)
        data = read(client, ref)
        (vm,) = import_vm(client, inventory.find_sr(client)[0], [data])
        snapshots.remove(client, vm)
        snapshots.remove(client, ref)
    with connect(lab, user="operator") as client, pytest.raises(XapiError) as error:
        read(client, inventory.find_vm(client, name="local01")["ref"])
    assert error.value.code == "RBAC_PERMISSION_DENIED"


def test_a_running_vm_is_not_exported(client):
    with pytest.raises(XapiError, match="Export of VM web01 failed: the VM is running"):
        read(client, inventory.find_vm(client, name="web01")["ref"], subject="VM web01")


def test_storage_no_host_sees(client, lab):
    lab.control("POST", "/hosts/lab/two/kill")
    with pytest.raises(XapiError) as error:
        read(client, inventory.find_vm(client, name="local01")["ref"])
    assert error.value.code == "NO_HOSTS_AVAILABLE"


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_export(client, lab, snapshot, reset):
    fault(lab, "export", cut_at=2 * MIB + 5, reset=reset)
    with pytest.raises((TransferError, XapiError), match="VM web01"):
        read(client, snapshot, subject="VM web01")


def test_a_late_error(client, lab, snapshot):
    fault(lab, "export", late_error=["VDI_IO_ERROR", "Device I/O errors"], after=2 * MIB)
    with pytest.raises(XapiError, match="reading or writing a disk failed"):
        read(client, snapshot)


def test_an_error_after_the_last_byte(client, lab, snapshot):
    fault(lab, "export", late_error=["VDI_IO_ERROR", "Device I/O errors"], after="end", silent=True)
    with pytest.raises(XapiError, match="reading or writing a disk failed"):
        read(client, snapshot)


def test_a_stalled_export(client, lab, snapshot):
    fault(lab, "export", stall_at=2 * MIB)
    with pytest.raises(TransferError, match="stalled: no byte for 2 s, after %d bytes" % (2 * MIB)) as error:
        read(client, snapshot, stall_timeout=2.0)
    assert error.value.transferred == 2 * MIB


def test_a_host_that_dies_in_an_export(client, lab):
    local01 = inventory.find_vm(client, name="local01")["ref"]
    fault(lab, "export", stall_at=2 * MIB)
    with pytest.raises((TransferError, XapiError, OutcomeUnknown)):
        with export_vm(client, local01, stall_timeout=30.0) as export:
            buffer = bytearray(MIB)
            export.readinto(buffer)
            lab.control("POST", "/hosts/lab/two/kill")
            while export.readinto(buffer):
                pass
            export.finish()


def test_an_export_that_is_given_up_frees_the_vm(client, snapshot):
    with export_vm(client, snapshot) as export:
        export.readinto(bytearray(MIB))
    deadline = time.monotonic() + 30
    while client.call("VM.get_current_operations", snapshot) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert read(client, snapshot)[-1024:] == bytes(1024)


def test_a_cancelled_export(client, lab, snapshot):
    fault(lab, "export", stall_at=2 * MIB, seconds=10.5)  # hosts look every ten seconds whether they are to stop
    with pytest.raises(XapiError) as error, export_vm(client, snapshot) as export:
        (task,) = [ref for ref in state(lab)["tasks"]]
        client.call("task.cancel", task)
        export.readall()
        export.finish()
    assert error.value.code == "TASK_CANCELLED"


@pytest.fixture
def archive(client, snapshot):
    return read(client, snapshot)


def imports(client, chunks, **options):
    before = set(client.call("VM.get_all"))
    try:
        return import_vm(client, inventory.find_sr(client, "shared")[0], chunks, **options)
    finally:
        # the pool removes what it had made when it notices, which may be a little later
        deadline = time.monotonic() + 10
        while (left := set(client.call("VM.get_all")) - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, "VMs stayed"


@pytest.mark.parametrize("known", [False, True])
def test_a_truncated_archive(client, archive, known):
    with pytest.raises(XapiError) as error:
        imports(client, [archive[:5 * MIB]], length=len(archive) if known else None)
    assert error.value.code == "IMPORT_ERROR_PREMATURE_EOF"


def test_a_damaged_archive(client, archive):
    damaged = bytearray(archive)
    damaged[len(archive) // 2] ^= 1
    with pytest.raises(XapiError) as error:
        imports(client, [bytes(damaged)])
    assert error.value.code == "IMPORT_ERROR"


def test_what_is_no_archive(client):
    with pytest.raises(XapiError):
        imports(client, [b"x" * 100000])


def test_a_full_storage(client, lab, archive):
    fault(lab, "import", sr_full=MIB)
    with pytest.raises(XapiError, match="space"):
        imports(client, [archive])


def test_a_cut_import(client, lab, archive):
    fault(lab, "import", cut_at=2 * MIB, reset=True)
    with pytest.raises((TransferError, XapiError)):
        imports(client, [archive] * 20)


def test_a_stalled_import(client, lab, archive):
    fault(lab, "import", stall_at=2 * MIB)
    with pytest.raises(TransferError, match="stalled"):
        imports(client, [archive] * 20, stall_timeout=2.0)


def test_storage_that_is_gone(client):
    with pytest.raises((XapiError, TransferError)):
        import_vm(client, "OpaqueRef:00000000-0000-0000-0000-000000000000", [b"x"])


def test_the_source_fails(client, archive):
    def source():
        yield archive[:2 * MIB]
        raise ValueError("the source")

    with pytest.raises(ValueError, match="the source"):
        imports(client, source())
