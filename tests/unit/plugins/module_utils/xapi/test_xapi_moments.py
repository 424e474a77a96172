# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The four methods on simulated pools: what each reaches, what stands against it, and guests that are given back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import janitor, moments, power, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import NotFound, XapiError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm
from ansible_collections.guestark.xen.plugins.module_utils.xapi.moments import Moment, NotReachable, Wish
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings
from ansible_collections.guestark.xen.tests.simulator_fixture import start_simulator
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import MARK, connect

USERS = {"root": {"password": "secret"}, "backup": {"password": "other", "role": "vm-power-admin"}}
SRS = {"Storage": {"size": "20GiB"}, "Tiny": {"size": "64MiB"}}
POOL = {"users": USERS, "hosts": ["one", "two"], "networks": {"LAN": {}}, "srs": SRS}
DISK = {"size": "4MiB"}
CONFIG = {"pools": {
    "lab": {**POOL, "vms": {
        "web": {"memory": "256MiB", "disks": [DISK, {**DISK, "name": "scratch [NOBAK]"}]},
        "off": {"power_state": "Halted", "disks": [DISK]},
        "held": {"power_state": "Paused", "disks": [DISK]},
        "usb": {"devices": ["vusb"]}, "card": {"devices": ["pci"]}, "gpu": {"devices": ["vgpu"]},
        "tpm": {"devices": ["vtpm"]}, "big": {"suspend_sr": "Tiny"},
        "stubborn": {"tools": {"data-cant-suspend-reason": "it is busy"}},
    }},
    "poor": {**POOL, "release": "8.2", "restrictions": ["checkpoint"], "vms": {
        "web": {"disks": [DISK, {**DISK, "name": "scratch [NOBAK]"}]}}},
    "nowhere": {**POOL, "suspend_sr": None, "vms": {"web": {"disks": [DISK]}}},
    "old": {**POOL, "release": "8.0", "vms": {"web": {"disks": [DISK], "tools": {"feature-quiesce": "1"}}}},
}}
MEMORY = Wish("live_memory")


@pytest.fixture(scope="module", name="box")
def fixture_box(tmp_path_factory):
    simulator = start_simulator(CONFIG, tmp_path_factory.mktemp("moments"))
    yield simulator
    simulator.stop()


@pytest.fixture(name="client")
def fixture_client(box):
    with connect(box, "lab") as client:
        yield client
        box.control("DELETE", "/faults")
        assert snapshots.leftovers(client) == []
        assert [vm["name_label"] for vm in client.call("VM.get_all_records").values() if power.Hold.read(vm)] == []


@pytest.fixture(name="behave")
def fixture_behave(box):
    def behave(name, **how):
        changed.append(name)
        box.control("POST", f"/vms/lab/{name}/guest", how)

    changed: list[str] = []
    yield behave
    for name in changed:
        box.control("POST", f"/vms/lab/{name}/guest", {})


def take(client, name, wish):
    """What a wish comes to, and the snapshot's power state; the snapshot is removed."""
    planned = moments.plan(client, find_vm(client, name=name), wish)
    taken, moment = moments.take(client, planned, f"moment of {name}", MARK)
    record = client.call("VM.get_record", taken.ref)
    assert Moment.read(record) == moment
    snapshots.remove(client, taken)
    return moment, record


def state_of(client, name):
    return find_vm(client, name=name)["power_state"]


@pytest.mark.parametrize(("wish", "grade", "kind"), [
    (Wish(), "crash", "Halted"), (Wish("offline"), "cold", "Halted"), (MEMORY, "memory", "Suspended"),
])
def test_what_each_method_reaches(client, wish, grade, kind):
    moment, record = take(client, "web", wish)
    assert (moment.method, moment.consistency, moment.degraded) == (wish.method, grade, "")
    assert record["power_state"] == kind and state_of(client, "web") == "Running"
    assert (moment.down_seconds is not None) is (wish.method == "offline")
    assert (moment.frozen_seconds is not None) is (wish.method == "live_memory")


@pytest.mark.parametrize("method", ["normal", "offline", "live_memory"])
def test_the_role_vm_power_admin_is_enough(box, client, method):
    with PoolClient(box.ready["pools"]["lab"]["members"], "backup", "other", TlsSettings(ca_path=box.ready["ca"])) as least:
        assert take(least, "web", Wish(method))[0].method == method
        assert janitor.guests(least, timedelta(0)) == janitor.objects(least, timedelta(0)) == []


def test_old_releases_quiesce_themselves(box):
    with connect(box, "old") as client:
        moment, record = take(client, "web", Wish("quiesced"))
    assert moment.consistency == "filesystem" and record["snapshot_info"]["disk-snapshot-type"] == "quiesced"


@pytest.mark.parametrize("method", moments.METHODS)
def test_a_guest_that_is_off_stays_off_and_is_cold(client, method):
    moment, _record = take(client, "off", Wish(method))
    assert (moment.method, moment.consistency, moment.degraded) == ("normal", "cold", "")
    assert state_of(client, "off") == "Halted"


def test_a_paused_guest_is_paused_again(client):
    assert take(client, "held", MEMORY)[0].consistency == "memory"
    assert state_of(client, "held") == "Paused"


@pytest.mark.parametrize(("pool", "name", "wish", "reason"), [
    ("lab", "usb", MEMORY, "virtual USB"), ("lab", "card", MEMORY, "PCI device"), ("lab", "gpu", MEMORY, "virtual GPU"),
    ("lab", "tpm", MEMORY, "virtual TPM"), ("lab", "stubborn", MEMORY, "it is busy"), ("lab", "big", MEMORY, "are free"),
    ("poor", "web", MEMORY, "licence"), ("nowhere", "web", MEMORY, "no storage repository for its memory"),
    ("lab", "web", Wish("quiesced"), "removed in release 8.1"), ("lab", "held", Wish("offline"), "paused"),
    ("lab", "off", Wish("live_memory", "memory"), "halted"), ("lab", "web", Wish("normal", "filesystem"), "reaches crash"),
])
def test_what_cannot_be_is_refused_before_anything_is_touched(box, pool, name, wish, reason):
    with connect(box, pool) as client:
        before = find_vm(client, name=name)
        with pytest.raises(NotReachable, match=reason):
            moments.plan(client, before, wish)
        assert find_vm(client, name=name) == before


def test_a_fallback_says_what_it_is(box):
    with connect(box, "poor") as client:
        moment, _record = take(client, "web", Wish("live_memory", fallback=True))
    assert (moment.method, moment.consistency) == ("normal", "crash") and "licence" in moment.degraded


def test_a_guest_whose_start_is_blocked_is_not_shut_down(client):
    vm = find_vm(client, name="web")
    client.call("VM.add_to_blocked_operations", vm["ref"], "start", "by the owner")
    with pytest.raises(NotReachable, match="by the owner"):
        moments.plan(client, find_vm(client, name="web"), Wish("offline"))
    client.call("VM.remove_from_blocked_operations", vm["ref"], "start")


def test_who_shuts_down_late_is_started_again(client, behave, monkeypatch):
    behave("web", shutdown=2)
    with pytest.raises(power.StillRunning, match="did not shut down within 1 s"):
        take(client, "web", Wish("offline", shutdown_timeout=1))
    assert state_of(client, "web") == "Running"
    assert find_vm(client, name="web")["domid"] != "0"


def test_who_never_shuts_down_runs_on_and_the_note_stays_as_long_as_it_may_obey(client, behave, monkeypatch):
    monkeypatch.setattr(power, "LATE_SECONDS", 0.5)
    behave("web", shutdown="never")
    with pytest.raises(power.StillRunning):
        take(client, "web", Wish("offline", shutdown_timeout=1))
    vm = find_vm(client, name="web")
    assert vm["power_state"] == "Running" and power.Hold.read(vm).asked
    assert power.give_back(client, vm["ref"]) is False
    monkeypatch.setattr(power, "STILL_ASKED", timedelta(0))
    assert power.give_back(client, vm["ref"]) is True


def test_a_guest_may_be_switched_off_which_is_worth_less(client, behave):
    behave("web", shutdown="never")
    moment, _record = take(client, "web", Wish("offline", shutdown_timeout=1, hard_shutdown=True))
    assert (moment.method, moment.consistency) == ("offline", "crash") and state_of(client, "web") == "Running"
    with pytest.raises(NotReachable, match="crash only"):
        take(client, "web", Wish("offline", "cold", shutdown_timeout=1, hard_shutdown=True))
    assert state_of(client, "web") == "Running"


def test_who_does_not_shut_down_may_be_taken_as_it_runs(client, behave, monkeypatch):
    monkeypatch.setattr(power, "LATE_SECONDS", 0.2)
    monkeypatch.setattr(power, "STILL_ASKED", timedelta(0))
    behave("web", shutdown="never")
    moment, _record = take(client, "web", Wish("offline", shutdown_timeout=1, fallback=True))
    assert (moment.method, moment.consistency) == ("normal", "crash") and "did not shut down" in moment.degraded


@pytest.mark.parametrize("wish", [Wish("offline"), MEMORY])
def test_a_snapshot_that_fails_leaves_the_guest_running(client, box, wish):
    call = "VM.checkpoint" if wish is MEMORY else "VM.snapshot"
    box.control("POST", "/faults", {"match": {"call": call}, "fault": {"error": ["SR_BACKEND_FAILURE_44", "", "full", ""]}})
    with pytest.raises(XapiError, match="SR_BACKEND_FAILURE_44"):
        take(client, "web", wish)
    assert state_of(client, "web") == "Running"


@pytest.mark.parametrize("fails", ["suspend", "resume"])
def test_a_checkpoint_that_fails_leaves_the_guest_running_and_no_snapshot(client, behave, fails):
    behave("web", fails=fails)
    with pytest.raises(XapiError, match="VM_CHECKPOINT_"):
        take(client, "web", MEMORY)
    assert state_of(client, "web") == "Running" and find_vm(client, name="web")["snapshots"] == []


def test_a_guest_that_cannot_be_started_is_an_error_and_is_brought_back_later(client, box):
    fault = {"match": {"call": "VM.start"}, "fault": {"error": ["VM_REQUIRES_SR", "a", "b"]}, "times": 0}
    box.control("POST", "/faults", fault)
    with pytest.raises(power.GuestNotBack, match="was Running before and is Halted now"):
        take(client, "web", Wish("offline"))
    box.control("DELETE", "/faults")
    (found,) = janitor.guests(client, timedelta(0))
    assert (found.kind, found.name, found.remedy) == ("guest", "web", "brought back from Halted to Running")
    assert janitor.guests(client, timedelta(hours=1)) == []
    janitor.heal(client, found)
    assert state_of(client, "web") == "Running" and janitor.guests(client, timedelta(0)) == []


def test_a_start_that_fails_for_a_moment_is_tried_again(client, box):
    fault = {"match": {"call": "VM.start"}, "fault": {"error": ["HOST_NOT_ENOUGH_FREE_MEMORY", "1", "0"]}, "times": 2}
    box.control("POST", "/faults", fault)
    assert take(client, "web", Wish("offline"))[0].consistency == "cold"
    assert state_of(client, "web") == "Running"


def test_somebody_starts_it_in_between(client, box):
    """A point must not claim that the guest was off when it was not."""
    web = find_vm(client, name="web")
    planned = moments.plan(client, web, Wish("offline"))
    stopped = moments.stop

    def stop_and_start(*arguments):
        clean = stopped(*arguments)
        client.call("VM.start", web["ref"], False, False)
        return clean

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "stop", stop_and_start)
        with pytest.raises(NotReachable, match="crash only"):
            moments.take(client, planned, "moment", MARK)
    assert state_of(client, "web") == "Running"


def test_a_copy_of_a_note_is_none(client):
    web, off = find_vm(client, name="web"), find_vm(client, name="off")
    power.hold(client, web, "offline", "")
    client.call("VM.add_to_other_config", off["ref"], power.HELD, client.call("VM.get_other_config", web["ref"])[power.HELD])
    assert power.Hold.read(find_vm(client, name="off")) is None
    assert power.give_back(client, off["ref"]) is False and state_of(client, "off") == "Halted"
    assert power.give_back(client, web["ref"]) is True
    client.call("VM.remove_from_other_config", off["ref"], power.HELD)


def test_disks_are_left_out_by_name_and_by_option(client):
    moment, record = take(client, "web", Wish())
    assert [(one["name"], one["reason"]) for one in moment.excluded] == [("scratch [NOBAK]", "[NOBAK]")]
    assert len(record["VBDs"]) == 2  # the disk that is left, and the CD drive
    moment, record = take(client, "web", Wish(exclude=["0"]))
    assert [one["reason"] for one in moment.excluded] == ["excluded", "[NOBAK]"]
    with pytest.raises(NotFound, match="no disk 'other'"):
        moments.plan(client, find_vm(client, name="web"), Wish(exclude=["other"]))


def test_where_disks_cannot_be_left_out(box, client):
    planned = moments.plan(client, find_vm(client, name="web"), MEMORY)
    assert planned.ignored == [] and "scratch [NOBAK]" in planned.warnings[0]
    with connect(box, "poor") as poor:
        web = find_vm(poor, name="web")
        assert "releases from 8.3 on" in moments.plan(poor, web, Wish()).warnings[0]
        with pytest.raises(NotReachable, match="cannot be left out"):
            moments.plan(poor, web, Wish(exclude=["0"]))


@pytest.mark.parametrize("grade", moments.GRADES)
def test_every_grade_is_good_enough_for_itself_and_for_a_crash(grade):
    assert {grade, "crash"} <= set(moments.SATISFIES[grade])
    assert "memory" not in moments.SATISFIES["cold"] and "cold" not in moments.SATISFIES["memory"]


def test_the_janitor_removes_what_has_an_expiry_and_nothing_else(client):
    web = find_vm(client, name="web")
    kept = snapshots.take(client, web["ref"], "kept", snapshots.Mark("test", "", "", "")).ref
    left = snapshots.take(client, web["ref"], "left", snapshots.Mark("test", "", "", "2026-01-01T00:00:00Z")).ref
    theirs = client.call("VM.snapshot", web["ref"], "theirs")
    task = client.call("task.create", "Export of VM web", "guestark run=1")
    other = client.call("task.create", "something", "else")
    assert janitor.objects(client, timedelta(hours=1)) == []
    found = janitor.objects(client, timedelta(0))
    assert [(one.kind, one.name) for one in found] == [("snapshot", "left"), ("task", "Export of VM web")]
    for one in found:
        janitor.heal(client, one)
    rest = client.call("VM.get_all_records")
    assert kept in rest and theirs in rest and left not in rest
    assert task not in client.call("task.get_all") and other in client.call("task.get_all")
    client.call("task.set_status", other, "cancelled")
    client.call("task.destroy", other)
    snapshots.remove(client, kept)
    snapshots.remove(client, theirs)


def test_a_guest_that_another_run_holds_is_left_to_it(client, monkeypatch):
    web = find_vm(client, name="web")
    power.hold(client, web, "offline", "another repository")
    with pytest.raises(power.HeldByAnother, match="held by another run"):
        take(client, "web", Wish("offline"))
    assert state_of(client, "web") == "Running" and power.Hold.read(find_vm(client, name="web")).scope == "another repository"
    assert take(client, "web", Wish())[0].consistency == "crash"
    monkeypatch.setattr(power, "ALIVE", timedelta(0))
    assert take(client, "web", Wish("offline"))[0].consistency == "cold"
