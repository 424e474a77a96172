# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of simulated pools: marked, found again, removed."""

from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import inventory, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import call_async
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import (
    MARK,
    connect,
    state,
)


@pytest.mark.trap(28)
def test_a_snapshot_is_marked_with_its_disks_and_goes_with_them(client, lab):
    web01 = inventory.find_vm(client, name="web01")
    ref = snapshots.take(client, web01["ref"], "guestark web01", MARK).ref
    record = client.call("VM.get_record", ref)
    assert record["is_a_snapshot"] and record["snapshot_of"] == web01["ref"]
    assert snapshots.Mark.read(record) == MARK
    assert state(lab)["snapshot_vdis"] == 2
    (leftover,) = snapshots.leftovers(client)
    assert (leftover.kind, leftover.ref, leftover.vm_uuid, leftover.mark) == ("VM", ref, web01["uuid"], MARK)
    assert snapshots.leftovers(client, web01["uuid"]) == [leftover]
    assert snapshots.leftovers(client, inventory.find_vm(client, name="twin")["uuid"]) == []
    snapshots.remove_leftover(client, leftover)
    snapshots.remove(client, ref)  # gone already
    assert state(lab)["snapshots"] == []


def test_disks_whose_snapshot_vm_is_gone_are_found_by_their_own_mark(client):
    web01 = inventory.find_vm(client, name="web01")
    ref = snapshots.take(client, web01["ref"], "half removed", MARK).ref
    client.call("VM.destroy", ref)
    found = snapshots.leftovers(client, web01["uuid"])
    assert [one.kind for one in found] == ["VDI", "VDI"]
    for leftover in found:
        snapshots.remove_leftover(client, leftover)
    assert snapshots.leftovers(client) == []


def test_a_copied_mark_is_no_mark(client):
    twin = inventory.find_vm(client, name="twin")
    ours = snapshots.take(client, twin["ref"], "ours", MARK).ref
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
    ref = snapshots.take(client, web01["ref"], "one disk", MARK, ignore_vdis=vdis[:1]).ref
    assert state(lab)["snapshot_vdis"] == 1
    snapshots.remove(client, ref)


@pytest.mark.trap(21)
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


def test_a_snapshot_of_a_run_that_died_before_it_could_mark_it_is_found(client, lab, monkeypatch):
    vm = inventory.find_vm(client, name="web01")["ref"]

    def die(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as dead:
        dead.setattr(snapshots, "_disks", die)
        dead.setattr(snapshots, "remove", lambda *_arguments: None)
        with pytest.raises(KeyboardInterrupt):
            snapshots.take(client, vm, "s of this very point", MARK)
    client.call("VM.add_to_other_config", vm, snapshots.TAKING, MARK.intention("s of the next point", "x"))
    theirs = client.call("VM.snapshot", vm, "somebody else's, meanwhile")
    (found,) = snapshots.leftovers(client, client.call("VM.get_uuid", vm))
    assert (found.name, found.mark) == ("s of this very point", MARK)
    snapshots.remove_leftover(client, found)
    assert state(lab)["snapshots"] == ["somebody else's, meanwhile"]
    snapshots.remove(client, theirs)
    snapshots.remove(client, snapshots.take(client, vm, "s", MARK))
    assert snapshots.TAKING not in client.call("VM.get_other_config", vm)


@pytest.mark.trap(37)
def test_a_busy_disk_is_tried_again(client, lab):
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK).ref
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VDI.destroy"}, "fault": {"error": ["VDI_IN_USE", "x", "destroy"]}, "times": 2,
    })
    snapshots.remove(client, ref)
    assert state(lab)["snapshot_vdis"] == 0


@pytest.mark.trap(37)
def test_a_disk_that_stays_busy_is_told_and_the_others_go(client, lab, monkeypatch):
    monkeypatch.setattr(snapshots, "BUSY_SECONDS", 0.0)
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK).ref
    lab.control("POST", "/faults", {
        "pool": "lab", "match": {"call": "VDI.destroy"}, "fault": {"error": ["VDI_IN_USE", "x", "destroy"]},
    })
    with pytest.raises(XapiError, match="disk .* of s failed: the disk is attached or busy"):
        snapshots.remove(client, ref)
    (left,) = snapshots.leftovers(client)
    snapshots.remove_leftover(client, left)


def test_a_disk_another_guest_uses_stays(client, lab):
    twin = inventory.find_vm(client, name="twin")
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK).ref
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


@pytest.mark.trap(28)
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


@pytest.mark.parametrize("marked", [True, False])
def test_disks_that_were_not_marked_yet_are_found_when_their_removal_breaks_off(client, lab, monkeypatch, marked):
    """A run dies before it has marked all disks, and the next one before it has removed them."""
    web01 = inventory.find_vm(client, name="web01")
    client.call("VM.add_to_other_config", web01["ref"], snapshots.TAKING, MARK.intention("half marked", web01["uuid"]))
    ref = client.call("VM.snapshot", web01["ref"], "half marked")
    client.call("VM.remove_from_other_config", web01["ref"], snapshots.TAKING)
    if marked:
        vdi = snapshots._disks(client, client.call("VM.get_record", ref))[0]
        text = MARK.text(client.call("VDI.get_uuid", vdi), web01["uuid"])
        client.call("VDI.add_to_other_config", vdi, snapshots.MARK, text)
    destroy = snapshots._destroy

    def die(the_client, kind, *arguments):
        destroy(the_client, kind, *arguments)
        raise KeyboardInterrupt

    (leftover,) = snapshots.leftovers(client, web01["uuid"])
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_destroy", die)
        with pytest.raises(KeyboardInterrupt):
            snapshots.remove_leftover(client, leftover)
    found = snapshots.leftovers(client, web01["uuid"])
    assert [one.kind for one in found] == ["VDI", "VDI"]
    for one in found:
        snapshots.remove_leftover(client, one)
    assert state(lab)["snapshot_vdis"] == 0
