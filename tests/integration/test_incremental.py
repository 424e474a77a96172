# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every backup after the first costs what changed, and every point of a chain restores as it was."""

from __future__ import annotations

import pytest

MIB = 1024 * 1024


@pytest.fixture(scope="module", name="catalog")
def fixture_catalog(site):
    """Options of a mover that can read what it wrote about, and no block of it."""
    key = site.one("xen_backup_key", path=str(site.folder / "catalog.key"), type="catalog")
    return {"catalog_recipients": [key["recipient"]], "catalog_identities": [str(site.folder / "catalog.key")]}


def write(site, vm, **what):
    """Write as the guest does."""
    site.simulator.control("POST", f"/vms/production/{vm}/write", what)


def restored(site, vm, point):
    """SHA-256 of the disks of a point, restored to the recovery pool."""
    site.restore(vm, point=point, macs="new")
    found = site.disks("recovery", vm)
    site.empty("recovery")
    return found


def test_a_chain_costs_what_changed_and_every_point_of_it_restores(site, catalog):
    made = []
    for step in range(4):
        if step in (1, 2):
            write(site, "database", disk=1, offset=(5 + step) * MIB + 1000, random={"seed": step, "bytes": 4096})
        if step == 2:
            write(site, "database", disk=0, file="/srv-note", content_base64="aGVsbG8K")
        result = site.export("database", **catalog)
        made.append((result["point"], site.disks("production", "database")))
        assert "warnings" not in result
    points = [point for point, _disks in made]
    assert [one["kind"] for one in points] == ["full", "incremental", "incremental", "incremental"]
    assert points[0]["reason"] == "it is the VM's first restore point"
    assert not any("reason" in one for one in points[1:])
    full, one_block, _two, nothing = (one["stored_bytes"] for one in points)
    assert nothing < one_block < full / 3
    assert points[3]["read_bytes"] >= points[0]["read_bytes"]  # all is read, to know what changed
    for point, disks in made:
        assert restored(site, "database", point["point"]) == disks
    listed = site.info(vm="database", catalog_identities=catalog["catalog_identities"])["points"]
    assert [one["kind"] for one in listed] == [one["kind"] for one in points]
    assert [one.get("reason") for one in listed][:2] == ["it is the VM's first restore point", None]


def test_disks_that_come_go_grow_and_are_reverted(site, catalog):
    def backed_up(kind="incremental"):
        point = site.export("odd", **catalog)["point"]
        assert point["kind"] == kind
        made.append((point["point"], site.disks("production", "odd")))
        return point

    made = []
    backed_up("full")
    with site.api("production") as call:
        (vm,) = call("VM.get_by_name_label", "odd")

        def system() -> str:
            return next(one for one in call("VM.get_VBDs", vm) if call("VBD.get_userdevice", one) == "0")

        vbd = system()
        disk = call("VBD.get_VDI", vbd)
        kept = call("VM.snapshot", vm, "before")
        call("VDI.resize", disk, str(11 * MIB + 512))
        write(site, "odd", disk=0, offset=10 * MIB, random={"seed": 1, "bytes": 5000})
        backed_up()
        record = {**call("VDI.get_record", disk), "name_label": "more", "virtual_size": str(4 * MIB)}
        added = call("VDI.create", record)
        place = {**call("VBD.get_record", vbd), "userdevice": "5", "VDI": added, "VM": vm, "bootable": False}
        call("VBD.create", place)
        write(site, "odd", disk=1, offset=MIB, random={"seed": 2, "bytes": 2 * MIB})
        assert backed_up()["stored_bytes"] > 2 * MIB  # and less than 9 MiB of the first disk
        call("VM.revert", kept)
        call("VM.destroy", kept)
        assert call("VBD.get_VDI", system()) != disk
        backed_up()
    for point, disks in made:
        assert restored(site, "odd", point) == disks
    with site.api("production") as call:
        for ref, vdi in call("VDI.get_all_records").items():
            if not vdi["VBDs"]:
                call("VDI.destroy", ref)


def test_a_damaged_layer_is_reported_and_the_next_run_does_not_build_on_it(site, catalog):
    site.export("web", **catalog)
    write(site, "web", disk=0, offset=12 * MIB, random={"seed": 3, "bytes": 100})
    middle = site.export("web", **catalog)["point"]
    assert middle["kind"] == "incremental"
    (segment,) = site.repository.glob(f"vm/*/seg/{middle['point']}-000*")
    segment.write_bytes(segment.read_bytes()[:-1])
    write(site, "web", disk=0, offset=13 * MIB, random={"seed": 4, "bytes": 100})
    healed = site.export("web", **catalog)
    assert healed["point"]["kind"] == "incremental" and healed["changed"]
    (warning,) = healed["warnings"]
    assert middle["point"] in warning and "bytes instead of" in warning
    assert restored(site, "web", healed["point"]["point"]) == site.disks("production", "web")
    first = site.point_names("web")[0]
    for path in site.repository.glob(f"vm/*/seg/{first}-000*"):
        path.unlink()
    again = site.export("web", **catalog)
    assert again["point"]["kind"] == "full" and again["point"]["reason"] == "no earlier restore point is usable"
    assert any("Everything was read and stored again" in one for one in again["warnings"])
    assert restored(site, "web", "latest") == site.disks("production", "web")


def test_a_full_backup_is_never_silent(site, catalog):
    site.export("local", **catalog)
    other = site.one("xen_backup_key", path=str(site.folder / "other.key"), type="data")["recipient"]
    for options, reason in (
        ({"recipients": [site.recipient, other], **catalog}, "data recipients were added"),
        ({"catalog_recipients": catalog["catalog_recipients"]}, "no catalog identity was given"),
        ({**catalog, "catalog_identities": [str(site.folder / "other.key")]}, "none of the catalog identities opens"),
        ({"encryption": "none", "recipients": None}, "encryption was switched off"),
    ):
        result = site.export("local", **options)
        assert result["point"]["kind"] == "full" and result["point"]["reason"].startswith(reason), result
        assert any(reason in one for one in result["warnings"])
    # without encryption no identity is needed to go on
    assert site.export("local", encryption="none", recipients=None)["point"]["kind"] == "incremental"


def test_a_point_with_memory_is_a_layer_too(site, catalog):
    for _run in range(2):
        point = site.export("web", method="live_memory", **catalog)["point"]
    assert point["kind"] == "incremental" and point["consistency"] == "memory"
    site.restore("web", point=point["point"])
    with site.api("recovery") as call:
        (vm,) = call("VM.get_by_name_label", "web")
        assert call("VM.get_power_state", vm) == "Suspended"
    assert site.disks("recovery", "web") == site.disks("production", "web")
    site.empty("recovery")
