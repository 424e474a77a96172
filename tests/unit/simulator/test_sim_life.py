# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a VM: who may do what when, and what snapshots, reverting, clones and destroying leave."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from poolbox import rpc
from poolbox.cli import IMPLEMENTATIONS
from poolbox.errors import ApiError

NULL = "OpaqueRef:NULL"
MIB = 1 << 20


@pytest.fixture(name="lab")
def fixture_lab(make_lab):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    return make_lab("8.3")


@pytest.fixture(name="call")
def fixture_call(lab):
    def call(name: str, *params: Any) -> Any:
        return rpc.call(lab.pool, lab.pool.hosts[0], name, [lab.session, *params])
    return call


@pytest.fixture(name="error")
def fixture_error(call):
    def error(name: str, *params: Any) -> list[str]:
        with pytest.raises(ApiError) as caught:
            call(name, *params)
        return caught.value.description
    return error


@pytest.fixture(name="web")
def fixture_web(lab):
    """A VM that has everything a snapshot changes or keeps."""
    web = lab.refs["web"]
    lab.db.set("VM", web, generation_id="1:2", blocked_operations={"destroy": "no"}, order=3, start_delay=5, domid=7,
               ha_restart_priority="restart", suspend_SR=lab.refs["nfs"], power_state="Running",
               resident_on=lab.pool.hosts[0].ref, memory_static_max=64 * MIB, name_description="front",
               other_config={"mac_seed": "seed", "xensource_internal": "x", "default_template": "x", "mine": "yes"})
    return web


def disks(lab, vm: str) -> list[str]:
    return lab.disks_of(vm)


def test_a_snapshot_is_a_halted_template_of_its_own(lab, call, web):
    source = lab.db.get("VM", web)
    taken = call("VM.snapshot", web, "before the upgrade")
    record, now = lab.db.get("VM", taken), lab.db.get("VM", web)
    assert (record["is_a_snapshot"], record["is_a_template"], record["power_state"]) == (True, True, "Halted")
    assert (record["snapshot_of"], record["parent"], now["parent"]) == (web, source["parent"], taken)
    assert record["snapshot_info"] == {"power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent"}
    assert (record["name_label"], record["name_description"], record["tags"]) == ("before the upgrade", "front", ["gold"])
    assert record["other_config"] == {"mac_seed": "seed", "mine": "yes"}
    assert record["NVRAM"] == source["NVRAM"] and record["uuid"] != source["uuid"]
    assert record["generation_id"] not in ("", source["generation_id"])
    reset = ("resident_on", "suspend_VDI", "appliance", "suspend_SR", "blocked_operations", "order", "start_delay",
             "ha_restart_priority")
    assert [record[name] for name in reset] == [NULL, NULL, NULL, NULL, {}, 0, 0, ""]
    assert record["metrics"] not in (NULL, source["metrics"])
    assert taken in now["snapshots"]
    assert [lab.db.field("message", one, "name") for one in lab.db.refs("message")] == ["VM_SNAPSHOTTED"]


def test_a_snapshot_has_devices_of_its_own_with_the_same_addresses(lab, call, web):
    taken = call("VM.snapshot", web, "x")
    for mine, theirs in zip(disks(lab, web), disks(lab, taken), strict=True):
        copy = lab.db.get("VDI", theirs)
        assert theirs != mine and (copy["is_a_snapshot"], copy["snapshot_of"]) == (True, mine)
        assert lab.content(theirs) == lab.content(mine)
        (vbd,) = copy["VBDs"]
        assert "owner" in lab.db.field("VBD", vbd, "other_config") and not lab.db.field("VBD", vbd, "currently_attached")
    macs = [[lab.db.field("VIF", vif, "MAC") for vif in lab.db.field("VM", vm, "VIFs")] for vm in (web, taken)]
    assert macs[0] == macs[1] != []
    cds = [vbd for vbd in lab.db.field("VM", taken, "VBDs") if lab.db.field("VBD", vbd, "type") == "CD"]
    assert len(cds) == 1


def test_disks_that_are_left_out_have_no_device(lab, call, web):
    first, second = disks(lab, web)
    taken = call("VM.snapshot", web, "x", [second])
    (only,) = disks(lab, taken)
    assert lab.db.field("VDI", only, "snapshot_of") == first


def test_a_snapshot_that_fails_leaves_nothing(lab, error, web):
    lab.db.set("VDI", disks(lab, web)[1], sharable=True)
    before = lab.db.refs("VM"), lab.db.refs("VDI"), lab.db.refs("VBD")
    assert error("VM.snapshot", web, "x") == ["VDI_IS_SHARABLE", disks(lab, web)[1]]
    assert (lab.db.refs("VM"), lab.db.refs("VDI"), lab.db.refs("VBD")) == before


@pytest.mark.trap(22)
def test_a_checkpoint_is_suspended_and_the_vm_runs_on(lab, call, web):
    taken = call("VM.checkpoint", web, "with memory")
    record = lab.db.get("VM", taken)
    assert record["power_state"] == "Suspended" and lab.db.field("VDI", record["suspend_VDI"], "type") == "suspend"
    assert lab.db.field("VM", web, "power_state") == "Running" and lab.db.field("VM", web, "suspend_VDI") == NULL
    call("VM.hard_shutdown", taken)
    assert lab.db.field("VM", taken, "power_state") == "Halted" and not lab.db.exists("VDI", record["suspend_VDI"])


def test_a_checkpoint_without_a_place_for_the_memory(lab, error, web):
    lab.db.set("VM", web, suspend_SR=NULL)
    assert error("VM.checkpoint", web, "x") == ["VM_NO_SUSPEND_SR", web]
    lab.db.set("VM", web, suspend_SR=lab.refs["nfs"], memory_static_max=1 << 50)
    assert error("VM.checkpoint", web, "x") == ["SR_SUSPEND_SPACE_INSUFFICIENT", lab.refs["nfs"]]
    assert lab.db.field("VM", web, "power_state") == "Running"


@pytest.mark.trap(26)
def test_reverting_gives_the_vm_new_disks(lab, call, web):
    """So the changed blocks of the old ones tell nothing any more."""
    old = disks(lab, web)
    lab.db.set("VDI", old[0], cbt_enabled=True)
    taken = call("VM.snapshot", web, "good")
    wanted = [lab.content(vdi) for vdi in old]
    with lab.pool.storage.open(lab.db.field("VDI", old[0], "uuid")) as disk:
        disk.pwrite(0, b"ruined")
    lab.db.set("VM", web, name_description="ruined", other_config={"mac_seed": "seed"})
    call("VM.revert", taken)
    new = disks(lab, web)
    assert not set(new) & set(old) and not any(lab.db.exists("VDI", vdi) for vdi in old)
    assert [lab.content(vdi) for vdi in new] == wanted
    assert [lab.db.field("VDI", vdi, "cbt_enabled") for vdi in new] == [False, False]
    assert [lab.db.field("VDI", vdi, "snapshot_of") for vdi in disks(lab, taken)] == new
    record = lab.db.get("VM", web)
    assert (record["power_state"], record["name_description"], record["other_config"]["mine"]) == ("Halted", "front", "yes")


def test_reverting_to_a_checkpoint_leaves_the_vm_suspended(lab, call, web):
    taken = call("VM.checkpoint", web, "with memory")
    call("VM.revert", taken)
    memory = lab.db.field("VM", web, "suspend_VDI")
    assert lab.db.field("VM", web, "power_state") == "Suspended" and memory != lab.db.field("VM", taken, "suspend_VDI")
    call("VM.resume", web, False, False)
    assert lab.db.field("VM", web, "power_state") == "Running" and not lab.db.exists("VDI", memory)
    assert lab.db.exists("VDI", lab.db.field("VM", taken, "suspend_VDI"))


@pytest.mark.trap(28)
def test_destroying_a_vm_frees_no_disk_and_removes_no_snapshot(lab, call, error, web):
    taken = call("VM.snapshot", web, "x")
    assert error("VM.destroy", web) == ["OPERATION_BLOCKED", web, "no"]
    lab.db.set("VM", web, blocked_operations={})
    assert error("VM.destroy", web)[:2] == ["VM_BAD_POWER_STATE", web]
    call("VM.hard_shutdown", web)
    mine = disks(lab, web)
    call("VM.destroy", web)
    assert not lab.db.exists("VM", web) and all(lab.db.exists("VDI", vdi) for vdi in mine)
    assert lab.db.field("VM", taken, "snapshot_of") == web  # dangling
    theirs = disks(lab, taken)
    call("VM.destroy", taken)
    assert all(lab.db.exists("VDI", vdi) for vdi in theirs)


@pytest.mark.trap(38)
def test_a_blocked_operation_is_refused_before_anything_else(lab, error, web):
    lab.db.set("VM", web, blocked_operations={"start": "being restored", "snapshot": "no"})
    assert error("VM.start", web, False, False) == ["OPERATION_BLOCKED", web, "being restored"]  # though it runs
    lab.db.set("VM", web, current_operations={"OpaqueRef:x": "export"})
    assert error("VM.snapshot", web, "x") == ["OPERATION_BLOCKED", web, "no"]


@pytest.mark.parametrize("current, wanted, allowed", [
    ("snapshot", "snapshot", True), ("checkpoint", "snapshot", True), ("export", "clone", True),
    ("export", "snapshot", False), ("clean_shutdown", "hard_shutdown", True), ("clean_shutdown", "snapshot", False),
])
@pytest.mark.trap(32)
def test_only_some_operations_go_together(lab, web, current, wanted, allowed):
    from poolbox.lifecycle import check
    lab.db.set("VM", web, power_state="Halted" if "clone" in (current, wanted) else "Running", blocked_operations={},
               current_operations={"OpaqueRef:x": current})
    if allowed:
        check(lab.db, web, wanted)
        return
    with pytest.raises(ApiError) as caught:
        check(lab.db, web, wanted)
    assert caught.value.description == ["OTHER_OPERATION_IN_PROGRESS", f"VM.{current}", web]


@pytest.mark.parametrize("name, params, state", [
    ("VM.start", (False, False), "Running"), ("VM.clean_shutdown", (), "Halted"), ("VM.pause", (), "Halted"),
    ("VM.unpause", (), "Running"), ("VM.resume", (False, False), "Running"), ("VM.suspend", (), "Halted"),
    ("VM.clone", ("x",), "Running"),
])
def test_the_wrong_power_state(lab, error, web, name, params, state):
    lab.db.set("VM", web, power_state=state)
    found = error(name, web, *params)
    assert found[:2] == ["VM_BAD_POWER_STATE", web] and found[3] == state.lower() and state.lower() not in found[2].split(", ")


@pytest.mark.trap(23)
def test_what_is_allowed_is_shown_and_changed_blocks_never_are(lab, call, web):
    call("VM.clean_shutdown", web)
    allowed = set(lab.db.field("VM", web, "allowed_operations"))
    assert {"start", "snapshot", "export", "clone"} <= allowed and not {"clean_shutdown", "destroy"} & allowed
    taken = call("VM.snapshot", web, "x")
    assert {"revert", "export", "destroy"} <= set(lab.db.field("VM", taken, "allowed_operations"))
    assert "start" not in lab.db.field("VM", taken, "allowed_operations")
    for vdi in lab.db.refs("VDI"):
        assert not {"enable_cbt", "disable_cbt", "data_destroy", "list_changed_blocks"} & set(
            lab.db.field("VDI", vdi, "allowed_operations"))


def test_clones_and_copies_are_vms_with_disks_and_addresses_of_their_own(lab, call, web):
    call("VM.clean_shutdown", web)
    for twin in (call("VM.clone", web, "twin"), call("VM.copy", web, "twin", lab.refs["thick"])):
        record = lab.db.get("VM", twin)
        assert (record["power_state"], record["is_a_template"], record["is_a_snapshot"]) == ("Halted", False, False)
        assert not set(disks(lab, twin)) & set(disks(lab, web))
        assert [lab.content(vdi) for vdi in disks(lab, twin)] == [lab.content(vdi) for vdi in disks(lab, web)]
        macs = [lab.db.field("VIF", lab.db.field("VM", vm, "VIFs")[0], "MAC") for vm in (web, twin)]
        assert macs[0] != macs[1]
    assert {lab.db.field("VDI", vdi, "SR") for vdi in disks(lab, twin)} == {lab.refs["thick"]}
