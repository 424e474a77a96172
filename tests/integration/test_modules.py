# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each module by itself, when all goes well: files, snapshots, facts, keys and the list of restore points."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.mark.parametrize("ending", ["xva", "xva.zst", "xva.zst.age"])
def test_exported_files_come_and_go(site, ending):
    path = site.folder / f"web.{ending}"
    options = site.pool("production") | {"name": "web", "dest": str(path), "recipients": [site.recipient]}
    export = site.task("xen_vm_export", **options)
    restore = site.task("xen_vm_restore", **site.pool("recovery"), src=str(path), name=f"from {ending}", macs="new",
                        identities=[str(site.data_key)])
    planned, made, found, forced, restored, again = site.run(
        {**export, "check_mode": True}, export, export, site.task("xen_vm_export", **options, force=True), restore, restore)
    changed = [one["changed"] for one in (planned, made, found, forced, restored, again)]
    assert changed == [True, True, False, True, True, False]
    assert made["file"]["path"] == found["file"]["path"] == str(path) and found["file"]["size"] == made["file"]["size"]
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_size == forced["file"]["size"]
    assert restored["restored_from"] == path.name
    assert site.disks("production", "web") == site.disks("recovery", f"from {ending}")


@pytest.mark.parametrize("ending, command", [
    ("xva", 'cat "$1"'), ("xva.zst", 'zstd -dc "$1"'), ("xva.zst.age", 'age -d -i "$2" "$1" | zstd -d')])
def test_stock_tools_open_exported_files(site, ending, command):
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command + " | tar -tf -", "-", site.folder / f"web.{ending}",
                           site.data_key], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("ova.xml\nRef:1001/00000000\n")


@pytest.mark.parametrize("damage", ["cut", "spoilt"])
def test_a_damaged_file_restores_nothing(site, damage):
    path = site.folder / f"{damage}.xva.zst"
    data = bytearray((site.folder / "web.xva.zst").read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3:]
    else:
        data[len(data) * 2 // 3] ^= 255
    path.write_bytes(data)
    before = site.state("recovery")
    result = site.one("xen_vm_restore", fails=True, **site.pool("recovery"), src=str(path), name=damage, macs="new")
    assert f"VM '{damage}'" in result["msg"] and result["failure"]["remedy"]
    after = site.state("recovery")
    assert (after["vms"], after["vdis"]) == (before["vms"], before["vdis"])


def test_a_snapshot_is_kept_gone_back_to_and_removed(site):
    options = site.pool("production") | {"name": "web", "snapshot_name": "before"}
    planned, made, found = site.run(
        site.task("xen_vm_snapshot", check_mode=True, **options), site.task("xen_vm_snapshot", **options),
        site.task("xen_vm_snapshot", **options))
    assert [planned["changed"], made["changed"], found["changed"]] == [True, True, False]
    assert made["snapshot"] == found["snapshot"] and "snapshot" not in planned
    before = site.disks("production", "web")
    site.simulator.control("POST", "/vms/production/web/write", {"offset": 4096, "hex": "ff" * 512})
    changed = site.disks("production", "web")
    assert changed != before

    # a snapshot made before is exported as it is, and neither it nor a stranger's is removed
    site.empty("recovery")
    exported, restored = site.run(
        site.task("xen_vm_export", **site.export_options("web", snapshot=made["snapshot"]["uuid"])),
        site.task("xen_vm_restore", **site.restore_options(site.uuid("web"))))
    assert exported["changed"] and restored["changed"]
    assert site.disks("recovery", "web") == before
    site.export("web")
    assert site.state()["snapshots"] == ["before"]

    planned, back = site.run(
        site.task("xen_vm_snapshot", check_mode=True, state="reverted", **options),
        site.task("xen_vm_snapshot", state="reverted", **options))
    assert planned["changed"] and back["changed"] and site.disks("production", "web") == before
    gone, nothing = site.run(*[site.task("xen_vm_snapshot", state="absent", **options)] * 2)
    assert [gone["changed"], nothing["changed"]] == [True, False]
    assert site.one("xen_vm_snapshot", fails=True, state="reverted", **options)["msg"].startswith(
        "VM web has no snapshot named before.")


def test_facts_about_vms(site):
    everything, gold, one = site.run(
        site.task("xen_vm_info", **site.pool("production")),
        site.task("xen_vm_info", **site.pool("production"), query="[?contains(tags, 'gold')].name"),
        site.task("xen_vm_info", **site.pool("production"), uuid=site.uuid("database")))
    assert [vm["name"] for vm in everything["vms"]] == ["database", "local", "odd", "sparse", "web"]
    assert gold["result"] == ["database", "web"]
    (database,) = one["vms"]
    assert [disk["size"] for disk in database["disks"]] == [12 << 20, 24 << 20]
    assert (database["name"], database["tags"]) == ("database", ["gold"])


def test_a_key_is_made_once_and_readable_by_its_owner_alone(site):
    for kind in ("data", "catalog", "signing"):
        path = site.folder / f"once-{kind}.key"
        make = site.task("xen_backup_key", path=str(path), type=kind)
        planned, made, found = site.run({**make, "check_mode": True}, make, make)
        assert [planned["changed"], made["changed"], found["changed"]] == [True, True, False]
        assert path.stat().st_mode & 0o777 == 0o600
        public = made["allowed_signer" if kind == "signing" else "recipient"]
        assert public == found["allowed_signer" if kind == "signing" else "recipient"]
        assert path.with_name(path.name + ".pub").read_text().strip() in public
        secret = path.read_text()
        tool = ["ssh-keygen", "-y", "-f", path] if kind == "signing" else ["age-keygen", "-y", path]
        judged = subprocess.run(tool, capture_output=True, text=True, check=True).stdout.strip()
        assert judged in public or judged.split()[1] in public
        assert site.one("xen_backup_key", path=str(path), type=kind)["changed"] is False and path.read_text() == secret


def test_points_are_listed_with_and_without_identities(site):
    catalog = site.folder / "once-catalog.key"
    site.export("database", catalog_identities=[str(catalog)])
    (point,) = site.point_names("database")
    blind, = site.info(vm=site.uuid("database"))["points"]
    assert (blind["point"], blind["trusted"], blind["signer"], blind["problem"]) == (point, True, "mover", None)
    assert "vm_name" not in blind
    for identity in (catalog, site.data_key):
        seen, = site.info(vm="database", catalog_identities=[str(identity)])["points"]
        assert seen.items() >= blind.items() and seen["vm_name"] == "database"
        assert (seen["virtual_bytes"], seen["method"], seen["consistency"]) == (36 << 20, "normal", "crash")
    refused = site.restore(site.uuid("database"), fails=True, identities=[str(catalog)])  # not one block of a guest
    assert refused["failure"]["remedy"]


def test_a_name_without_an_identity_is_explained(site):
    assert "give an identity" in site.info(vm="database", fails=True)["msg"]


def test_points_nobody_vouches_for_count_as_none(site):
    strangers = site.folder / "strangers"
    strangers.write_text("")
    points = site.one("xen_backup_info", repository=str(site.repository), allowed_signers=str(strangers))["points"]
    assert points and not any(point["trusted"] for point in points)
    result = site.restore(site.uuid("database"), fails=True, allowed_signers=str(strangers))
    assert "no usable restore point" in result["msg"] and "not among the allowed signers" in result["msg"]


def test_sealed_verification_needs_no_key_and_finds_what_changed(site):
    assert site.info(seal=True)["findings"] == []
    copy = site.folder / "copy"
    shutil.copytree(site.repository, copy)
    (segment,) = copy.glob(f"vm/{site.uuid('database')}/seg/*")
    os.chmod(segment, 0o600)
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    result = site.one("xen_backup_info", repository=str(copy), allowed_signers=str(site.signers), seal=True)
    assert len(result["findings"]) == 1 and segment.name in str(result["findings"])
    before = site.state("recovery")
    refused = site.restore("database", fails=True, repository=str(copy))
    assert "VM 'database'" in refused["msg"] and refused["failure"]["remedy"]
    after = site.state("recovery")
    assert (after["vms"], after["vdis"]) == (before["vms"], before["vdis"])
    assert site.restore("database", repository=str(site.repository))["changed"]


def test_a_young_point_that_was_cut_short_is_not_enough(site):
    copy, keys = site.folder / "short", {"catalog_identities": [str(site.folder / "once-catalog.key")]}
    shutil.copytree(site.repository, copy)
    (segment,) = copy.glob(f"vm/{site.uuid('database')}/seg/*")
    os.truncate(segment, segment.stat().st_size - 1)
    refused = site.restore("database", fails=True, repository=str(copy), name="short")
    assert "VM 'short'" in refused["msg"] and "bytes instead of" in refused["msg"]
    export = site.export_options("database", repository=str(copy), max_age="1h", **keys)
    planned, made, found = site.run(site.task("xen_vm_export", check_mode=True, **export),
                                    *2 * [site.task("xen_vm_export", **export)])
    assert [planned["changed"], made["changed"], found["changed"]] == [True, True, False]
    listed = site.one("xen_backup_info", repository=str(copy), allowed_signers=str(site.signers), vm="database", **keys)
    short, whole = listed["points"]
    assert "bytes instead of" in short["problem"] and (whole["problem"], whole["point"]) == (None, made["point"]["point"])


def test_points_without_encryption(site):
    open_repository = site.folder / "open"
    made, = site.run(site.task("xen_vm_export", **site.export_options(
        "odd", repository=str(open_repository), recipients=[], encryption="none")))
    assert made["changed"] and not list(open_repository.rglob("*.age"))
    result = site.restore("odd", repository=str(open_repository), identities=[], name="open odd")
    assert result["changed"] and site.disks("recovery", "open odd") == site.disks("production", "odd")


def test_max_age_and_check_mode(site):
    before = site.contents()
    export = site.export_options("web", max_age="1d12h")
    young, planned, none = site.run(
        site.task("xen_vm_export", **export), site.task("xen_vm_export", check_mode=True, **export),
        site.task("xen_vm_export", check_mode=True, **site.export_options("web")))
    assert [young["changed"], planned["changed"], none["changed"]] == [False, False, True]
    assert young["point"]["point"] == planned["point"]["point"] == site.point_names("web")[-1] and "point" not in none
    assert site.contents() == before


def test_the_password_shows_nowhere(site):
    done = subprocess.run(
        [str(part) for part in (*site.command("xen_vm_info", **site.pool("production")), "-vvv")], capture_output=True, text=True,
        check=True, timeout=60, env=os.environ | site.settings)
    assert '"password": "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"' in done.stdout
    assert '"secret"' not in done.stdout
