# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental points by changed block tracking and NBD: what is read, what stays on the pool, and every way to lose track."""

from __future__ import annotations

import shutil

import pytest

MIB = 1024 * 1024


@pytest.fixture(name="catalog", scope="module")
def fixture_catalog(site):
    path = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=path, type="catalog")
    return path


@pytest.fixture(autouse=True)
def fixture_short_chain(site):
    """Begin anew before the chain is so long that the next point is a full one."""
    if len(site.point_names()) > 20:
        shutil.rmtree(site.repository)
        with site.api("production") as call:
            for ref, one in call("VDI.get_all_records").items():
                if one["type"] == "cbt_metadata":
                    call("VDI.destroy", ref)


def write(site, vm: str, offset: int, seed: int, length: int = MIB, disk: int = 0) -> None:
    site.simulator.control("POST", f"/vms/production/{vm}/write", {
        "disk": disk, "offset": offset, "random": {"seed": seed, "bytes": length}})


def back_up(site, vm: str, catalog: str, **options):
    return site.export(vm, catalog_identities=[catalog], change_tracking=True, **options)


def logs(site) -> list[dict]:
    """Disks of which only the log is left."""
    with site.api("production") as call:
        return [one for one in call("VDI.get_all_records").values() if one["type"] == "cbt_metadata"]


def same(site, vm: str, point: str) -> bool:
    """Whether a point restores what the VM's disks hold."""
    site.empty("recovery")
    site.restore(vm, name="again", point=point)
    return site.disks("production", vm) == site.disks("recovery", "again")


def test_only_what_changed_is_read(site, catalog):
    first = back_up(site, "web", catalog)
    assert (first["point"]["kind"], first.get("warnings")) == ("full", None)
    assert len(logs(site)) == 1
    write(site, "web", 12 * MIB + 65536, 1, 1000)
    second = back_up(site, "web", catalog)
    point = second["point"]
    assert (point["kind"], point["changes_by"], second.get("warnings")) == ("incremental", "cbt", None)
    assert "changes_reason" not in point
    assert point["read_bytes"] <= 3 * MIB  # the block that changed, and both ends of the disk
    (log,) = logs(site)  # the new one in the place of the old
    assert log["cbt_enabled"] and int(log["physical_utilisation"]) == 0
    assert same(site, "web", point["point"])
    third = back_up(site, "web", catalog)["point"]
    assert third["changes_by"] == "cbt" and third["read_bytes"] <= 2 * MIB
    assert same(site, "web", third["point"])


def test_a_synthetic_point_has_the_log_of_the_one_it_replaced(site, catalog):
    write(site, "web", 2 * MIB, 61)
    replaced = back_up(site, "web", catalog)["point"]["point"]
    keys = {"recipients": [site.recipient], "catalog_identities": [catalog], "identities": [str(site.data_key)],
            "signing_key": str(site.signing_key)}
    where = {"repository": str(site.repository), "allowed_signers": str(site.signers)}
    (made,) = site.one("xen_backup_compact", layers=2, **where, **keys)["points"]
    assert made["replaced"] == replaced
    gone = site.one("xen_backup_prune", keep_last=1, min_age="0s", grace="0s", **where)["removed"]
    assert replaced in gone
    write(site, "web", 9 * MIB, 62)
    following = back_up(site, "web", catalog)["point"]
    assert (following["kind"], following["changes_by"]) == ("incremental", "cbt")
    assert len(logs(site)) == 1
    assert same(site, "web", following["point"])


def test_the_point_is_the_one_that_reading_everything_gives(site, catalog):
    write(site, "web", 3 * MIB, 7, 5 * MIB)
    tracked = back_up(site, "web", catalog)["point"]
    compared = site.export("web", catalog_identities=[catalog])["point"]
    assert (tracked["changes_by"], compared["changes_by"]) == ("cbt", "digest")
    assert compared["read_bytes"] > tracked["read_bytes"]
    assert compared["stored_bytes"] < tracked["stored_bytes"]  # nothing had changed in between
    assert same(site, "web", compared["point"])


def test_a_snapshot_that_was_lent_is_tracked_too(site, catalog):
    for number in range(3):
        write(site, "web", (4 + number) * MIB, 40 + number)
        lent = site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="frozen", expires="1d")
        uuid = lent["snapshot"]["uuid"]
        result = back_up(site, "web", catalog, snapshot=uuid, freeze={"consistency": "filesystem", "frozen_seconds": 0.1})
        point = result["point"]
        assert point["consistency"] == "filesystem" and same(site, "web", point["point"])
        assert site.state("production")["snapshots"] == []
        absent = site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="frozen", state="absent")
        assert not absent["changed"]
    assert point["changes_by"] == "cbt" and len(logs(site)) == 1  # the log begins after the first snapshot
    assert back_up(site, "web", catalog)["point"]["changes_by"] == "cbt"  # and its log is the base of any method's next point


def test_a_snapshot_that_somebody_keeps_stays(site, catalog):
    kept = site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="mine")
    result = back_up(site, "web", catalog, snapshot=kept["snapshot"]["uuid"])
    assert "What changes is not tracked" in str(result["warnings"]) or "the snapshot is to stay" in str(result["warnings"])
    removed = site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="mine", state="absent")
    assert removed["changed"]


def lose_log(site, catalog):
    with site.api("production") as call:
        (ref,) = call("VM.get_by_name_label", "web")
        vbds = [call("VBD.get_record", vbd) for vbd in call("VM.get_VBDs", ref)]
        uuid = next(call("VDI.get_uuid", vbd["VDI"]) for vbd in vbds if vbd["type"] == "Disk")
    site.simulator.control("POST", f"/disks/production/{uuid}/lose_log")


def switch_off(site, catalog):
    with site.api("production") as call:
        for ref, one in call("VDI.get_all_records").items():
            if one["cbt_enabled"] and not one["is_a_snapshot"]:
                call("VDI.disable_cbt", ref)


def remove_logs(site, catalog):
    with site.api("production") as call:
        for ref, one in call("VDI.get_all_records").items():
            if one["type"] == "cbt_metadata":
                call("VDI.destroy", ref)


def another_run_without(site, catalog):
    site.export("web", catalog_identities=[catalog])


@pytest.mark.parametrize(("loss", "told"), [
    (lose_log, "unrelated"), (switch_off, "unrelated"), (remove_logs, "UUID_INVALID"), (another_run_without, "UUID_INVALID"),
], ids=lambda one: getattr(one, "__name__", None))
def test_every_loss_of_the_log_is_noticed_and_healed(site, catalog, loss, told):
    back_up(site, "web", catalog)
    loss(site, catalog)
    write(site, "web", 8 * MIB, 11, 2 * MIB)
    result = back_up(site, "web", catalog)
    point = result["point"]
    assert (point["kind"], point["changes_by"]) == ("incremental", "digest")
    assert told in point["changes_reason"]
    assert any("Everything was read and compared: " in one and told in one for one in result["warnings"])
    assert same(site, "web", point["point"])
    write(site, "web", 9 * MIB, 12)
    healed = back_up(site, "web", catalog)
    assert healed["point"]["changes_by"] == "cbt" and not healed.get("warnings")
    assert same(site, "web", healed["point"]["point"])
    site.one("xen_quiesce", hostname=site.pool("production")["hostname"], **{
        key: value for key, value in site.pool("production").items() if key != "hostname"
    }, state="released", leftovers=True, min_age="0s")
    assert len(logs(site)) == 1  # nobody takes the base of the next backup away


def purposes(site, *values: str) -> None:
    with site.api("production") as call:
        for ref, one in call("network.get_all_records").items():
            if one["name_label"] == "Storage":
                for old in one["purpose"]:
                    call("network.remove_purpose", ref, old)
                for new in values:
                    call("network.add_purpose", ref, new)


@pytest.mark.parametrize(("values", "told"), [((), "No network of the pool is for NBD"), (("insecure_nbd",), "refuses TLS")])
def test_without_a_network_for_it_everything_is_read(site, catalog, values, told):
    back_up(site, "web", catalog)
    purposes(site, *values)
    try:
        write(site, "web", 5 * MIB, 21)
        result = back_up(site, "web", catalog)
    finally:
        purposes(site, "nbd")
    assert result["point"]["changes_by"] == "digest" and told in result["point"]["changes_reason"]
    assert same(site, "web", result["point"]["point"])


def test_a_server_that_cannot_be_reached_at_first_is_no_failure(site, catalog):
    back_up(site, "web", catalog)
    site.simulator.control("POST", "/faults", {"match": {"kind": "nbd_connect"}, "fault": {"refuse": True}, "times": 100})
    result = back_up(site, "web", catalog)
    site.simulator.control("DELETE", "/faults")
    assert result["point"]["changes_by"] == "digest" and "NBD" in result["point"]["changes_reason"]


def test_a_connection_that_breaks_is_made_again(site, catalog):
    back_up(site, "web", catalog)
    write(site, "web", 4 * MIB, 31, 6 * MIB)
    site.fault("nbd", cut_at=300000)
    result = back_up(site, "web", catalog)
    assert result["point"]["changes_by"] == "cbt"
    assert same(site, "web", result["point"]["point"])


def test_a_server_that_dies_under_way_fails_the_run_and_the_next_one_is_well(site, catalog):
    back_up(site, "web", catalog)
    write(site, "web", 4 * MIB, 41, 6 * MIB)
    site.simulator.control("POST", "/faults", {"match": {"kind": "nbd"}, "fault": {"cut_at": 300000}, "times": 100})
    failed = back_up(site, "web", catalog, fails=True)
    site.simulator.control("DELETE", "/faults")
    assert "web" in failed["msg"] and "NBD" in failed["msg"]
    assert len(logs(site)) == 1
    result = back_up(site, "web", catalog)
    assert result["point"]["changes_by"] == "cbt"
    assert same(site, "web", result["point"]["point"])


def live_disks(call, vm: str) -> list[str]:
    (ref,) = call("VM.get_by_name_label", vm)
    vbds = [call("VBD.get_record", vbd) for vbd in call("VM.get_VBDs", ref)]
    return [vbd["VDI"] for vbd in sorted(vbds, key=lambda vbd: int(vbd["userdevice"])) if vbd["type"] == "Disk"]


def grow(site):
    with site.api("production") as call:
        call("VDI.resize", live_disks(call, "odd")[0], str(12 * MIB + 512))


def add_disk(site):
    with site.api("production") as call:
        (vm,) = call("VM.get_by_name_label", "odd")
        sr = call("VDI.get_SR", live_disks(call, "odd")[0])
        common = {"other_config": {}, "xenstore_data": {}, "sm_config": {}, "tags": []}
        vdi = call("VDI.create", {
            "name_label": "more", "name_description": "", "SR": sr, "virtual_size": str(5 * MIB), "type": "user",
            "sharable": False, "read_only": False, **common})
        call("VBD.create", {
            "VM": vm, "VDI": vdi, "userdevice": "5", "bootable": False, "mode": "RW", "type": "Disk", "unpluggable": True,
            "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}})
    write(site, "odd", MIB, 99, MIB, disk=1)


def revert(site):
    with site.api("production") as call:
        (vm,) = call("VM.get_by_name_label", "odd")
        snapshot = call("VM.snapshot", vm, "before")
    write(site, "odd", 2 * MIB, 77, 2 * MIB)
    with site.api("production") as call:
        call("VM.revert", snapshot)
        disks = [call("VBD.get_VDI", vbd) for vbd in call("VM.get_VBDs", snapshot)]
        call("VM.destroy", snapshot)
        for disk in disks:
            if disk != "OpaqueRef:NULL":
                call("VDI.destroy", disk)


@pytest.mark.parametrize(("change", "by"), [(grow, "cbt"), (add_disk, "digest"), (revert, "digest")],
                         ids=lambda one: getattr(one, "__name__", None))
def test_disks_that_grow_come_and_are_reverted_end_in_a_right_point(site, catalog, change, by):
    back_up(site, "odd", catalog)
    change(site)
    result = back_up(site, "odd", catalog)
    assert (result["point"]["kind"], result["point"]["changes_by"]) == ("incremental", by)
    assert same(site, "odd", result["point"]["point"])
    write(site, "odd", 3 * MIB + 7, 78, 100)
    after = back_up(site, "odd", catalog)
    assert after["point"]["changes_by"] == "cbt" and not after.get("warnings")
    assert same(site, "odd", after["point"]["point"])


def test_a_user_of_the_documented_role_can_do_it(site, catalog):
    login = {"username": "backup", "password": "backup"}
    made = back_up(site, "local", catalog, **login)
    assert made["point"]["kind"] == "full" and not made.get("warnings")
    assert back_up(site, "local", catalog, **login)["point"]["changes_by"] == "cbt"
