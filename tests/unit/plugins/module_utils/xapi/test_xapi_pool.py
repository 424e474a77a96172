# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against simulated pools: sessions, coordinators, tasks, and what is in a pool."""

from __future__ import annotations

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
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import Task, wait
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import (
    HOSTS,
    MARK,
    MIB,
    connect,
    state,
)


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


@pytest.mark.trap(34)
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


@pytest.mark.trap(35)
def test_a_refusal_by_role_says_what_is_needed(lab):
    with connect(lab, user="operator") as client:
        vm = inventory.find_vm(client, name="web01")
        with pytest.raises(XapiError, match="role of this account does not suffice") as error:
            snapshots.take(client, vm["ref"], "s", MARK)
    assert "vm-power-admin" in error.value.remedy


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
            time.sleep(0.3)  # events of one object that come together become one
            client.call("task.set_result", task.ref, "<value><array><data><value>a</value></data></array></value>")
            client.call("task.set_status", task.ref, "success")

        thread = threading.Thread(target=work)
        thread.start()
        assert wait(client, task.ref, seen.append) == ["a"]
        thread.join()
    assert seen[:3] == [0.0, 0.25, 0.5]


@pytest.mark.trap(34)
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


def test_guests_are_found_by_name_and_uuid(client, lab):
    uuid = lab.ready["pools"]["lab"]["vms"]["web01"]
    assert inventory.find_vm(client, name="web01")["uuid"] == uuid
    assert inventory.find_vm(client, uuid=uuid)["name_label"] == "web01"
    for missing in ({"name": "nobody"}, {"uuid": "00000000-0000-4000-8000-000000000000"}):
        with pytest.raises(NotFound):
            inventory.find_vm(client, **missing)


def test_templates_snapshots_and_control_domains_are_no_guests(client):
    web01 = inventory.find_vm(client, name="web01")
    snapshot = snapshots.take(client, web01["ref"], "web01", MARK).ref  # same name on purpose
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
