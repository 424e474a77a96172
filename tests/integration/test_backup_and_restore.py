# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's playbooks, from one pool to the other, and the way back without the collection."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

VMS = ("database", "local", "odd", "sparse", "web")


@pytest.fixture(scope="module", name="protect")
def fixture_protect(site):
    """Arguments and environment of the playbook that protects the production pool."""
    pool = site.pool("production")
    inventory = site.folder / "production.xen.yml"
    inventory.write_text(json.dumps({
        "plugin": "guestark.xen.pool", "local": True, "ca_path": pool["ca_path"], "hostname": pool["hostname"]}))
    protection = site.folder / "protection.yml"
    protection.write_text(json.dumps({
        "guestark_repository": str(site.repository), "guestark_recipients": [site.recipient],
        "guestark_signing_key": str(site.signing_key), "guestark_max_age": "4h",
        "guestark_identities": [str(site.data_key)], "guestark_allowed_signers": str(site.signers),
    }))
    environment = {"XENSERVER_PASSWORD": pool["password"], "XENSERVER_CA_PATH": pool["ca_path"]}
    return ["-i", str(inventory), "guestark.xen.backup", "-e", f"@{protection}"], environment


@pytest.fixture(scope="module", name="backed_up")
def fixture_backed_up(site, protect):
    """Output of the playbook that made the first points."""
    command, environment = protect
    return site.playbook(*command, **environment)


def test_the_first_run_protects_every_vm(site, backed_up):
    for vm in VMS:
        (line,) = [line for line in backed_up.splitlines() if line.strip().startswith(vm) and "new point" in line]
        (point,) = site.point_names(vm)
        assert point in line and ("cold" if vm == "odd" else "crash") in line


def test_progress_shows_while_it_runs(backed_up):
    for vm in VMS:
        phases = [line for line in backed_up.splitlines() if line.startswith(f"{vm}: ")]
        assert phases == [f"{vm}: {phase}" for phase in ("snapshot", "export", "commit", "clean up")]


def test_the_second_run_changes_nothing(site, protect, backed_up):
    before = site.contents()
    command, environment = protect
    output = site.playbook(*command, **environment)
    assert "new point" not in output and "NOT SAFE" not in output
    assert output.count("changed=0") == 6 and "changed=1" not in output
    for vm in VMS:
        assert any(site.point_names(vm)[-1] in line and "unchanged" in line for line in output.splitlines())
    assert site.contents() == before


def test_a_run_that_protects_nothing_fails(site, protect):
    command, environment = protect
    output = site.playbook(*command, "-e", "guestark_group=tag_bronze", fails=True, **environment)
    assert "There is no VM in the group tag_bronze: a run that protects nothing is no success." in " ".join(output.split())


@pytest.mark.parametrize("failures", [1, 2])
def test_a_run_in_which_vms_fail_goes_on_and_fails_in_the_end(site, protect, backed_up, failures):
    command, environment = protect
    for vm in ("database", "web")[:failures]:
        site.simulator.control("POST", "/faults", {
            "match": {"call": "VM.snapshot", "vm": site.uuid(vm)},
            "fault": {"error": ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]}})
    before = site.point_names()
    output = site.playbook(*command, "-e", "guestark_group=tag_gold", "-e", "guestark_max_age=0s", fails=True, **environment)
    report = {line.split()[0]: line for line in output.splitlines() if "NOT SAFE" in line or " new point" in line}
    assert "NOT SAFE" in report["database"] and "Could not back up VM 'database'" in report["database"]
    assert ("NOT SAFE" if failures == 2 else "new point") in report["web"]
    assert "Not protected: " + ("database, web" if failures == 2 else "database") in output
    assert len(site.point_names()) == len(before) + 2 - failures


def test_restoring_in_check_mode_touches_nothing(site, backed_up):
    before = site.state("recovery")
    result = site.ad_hoc("xen_vm_restore", check=True, **site.restore_options("database"))
    assert result["changed"] is True and result["sr"] == "Recovery storage"
    assert result["restored_from"] == site.point_names("database")[0] and "vm" not in result
    assert site.state("recovery") == before


def test_the_playbook_restores_into_another_pool(site, protect, backed_up):
    where = {"restore_vm": "database", "restore_pool_members": site.pool("recovery")["hostname"],
             "restore_networks": {"Storage": "Recovery LAN"}, "restore_start": True}
    arguments = ["guestark.xen.restore", *protect[0][3:], "-e", json.dumps(where)]
    first = site.playbook(*arguments, **protect[1])
    assert "changed=1" in first and "database: restore" in first and "database: start" in first
    assert site.disks("production", "database") == site.disks("recovery", "database")
    again = site.playbook(*arguments, **protect[1])
    assert "changed=0" in again and "changed=1" not in again

    infos = [site.task("xen_vm_info", name="database", **site.pool(pool)) for pool in ("production", "recovery")]
    source, copy = (result["vms"][0] for result in site.run(*infos))
    assert copy["power_state"] == "Running" and copy["uuid"] != source["uuid"]
    assert [one["network"] for one in source["interfaces"]] == ["LAN", "Storage"]
    assert [one["network"] for one in copy["interfaces"]] == ["LAN", "Recovery LAN"]
    for name in ("tags", "memory", "vcpus", "description"):
        assert source[name] == copy[name]
    for name in ("device", "mac"):
        assert [one[name] for one in source["interfaces"]] == [one[name] for one in copy["interfaces"]]
    for name in ("device", "size"):
        assert [disk[name] for disk in source["disks"]] == [disk[name] for disk in copy["disks"]]
    assert {disk["sr"] for disk in copy["disks"]} == {"Recovery storage"}


def test_every_kind_of_disk_comes_back(site, backed_up):
    """A size that is no whole block, a local disk of one host, and 64 GiB of nothing under UEFI."""
    results = site.run(*(site.task("xen_vm_restore", **site.restore_options(vm)) for vm in ("odd", "local", "sparse")))
    assert all(result["changed"] for result in results)
    assert site.disks("production", "odd") == site.disks("recovery", "odd")
    assert site.disks("production", "local") == site.disks("recovery", "local")
    with site.api("recovery") as call:
        (sparse,) = call("VM.get_by_name_label", "sparse")
        assert call("VM.get_HVM_boot_params", sparse)["firmware"] == "uefi"
        vbds = [call("VBD.get_record", vbd) for vbd in call("VM.get_VBDs", sparse)]
        assert [call("VDI.get_virtual_size", vbd["VDI"]) for vbd in vbds if vbd["type"] == "Disk"] == [str(64 << 30)]


def test_a_copy_beside_the_first_gets_new_addresses(site, backed_up):
    refused = site.restore("odd", fails=True, name="twin")
    assert "VM 'twin'" in refused["msg"] and "MAC address" in refused["msg"] and "macs: new" in refused["failure"]["remedy"]
    result = site.restore("odd", name="twin", macs="new")
    assert result["vm"]["name"] == "twin" and site.disks("recovery", "twin") == site.disks("production", "odd")


def test_stock_tools_open_a_segment(site, backed_up):
    (segment,) = site.repository.glob(f"vm/{site.uuid('odd')}/seg/*.xva.zst.age")
    pipe = 'age -d -i "$1" "$2" | zstd -d | tar -tf -'
    listing = subprocess.run(["bash", "-o", "pipefail", "-c", pipe, "-", site.data_key, segment], capture_output=True, text=True,
                             check=True, timeout=60).stdout
    assert listing.startswith("ova.xml\nRef:1001/00000000\nRef:1001/00000000.xxhash\n")


def test_the_stock_recipe_rebuilds_what_a_pool_imports(site, backed_up, wait_until):
    assert all(shutil.which(name) for name in ("age", "zstd", "ssh-keygen", "curl"))
    site.empty("recovery")
    (point,) = site.repository.glob(f"vm/{site.uuid('database')}/pt/*.sum")
    target = site.folder / "database.xva"
    recipe = ["sh", site.repository / "restore-xva.sh", site.data_key, site.signers, point, target]
    subprocess.run(recipe, check=True, capture_output=True, timeout=60)
    described = site.simulator.ready["pools"]["recovery"]
    with site.api("recovery") as call:
        sr = call("SR.get_uuid", call("SR.get_by_name_label", "Recovery storage")[0])
    command = ["curl", "--silent", "--show-error", "--fail", "--cacert", site.simulator.ready["ca"], "--user", "root:secret",
               "--header", "Expect:", "--upload-file", target, f"{described['members'][0]}/import?sr_uuid={sr}",
               "--output", "/dev/null"]
    subprocess.run(command, timeout=60, check=True)
    wait_until(lambda: "database" in site.state("recovery")["vms"] and not site.state("recovery")["tasks"])
    assert site.disks("production", "database") == site.disks("recovery", "database")


def test_the_recipe_stops_at_the_first_doubt(site, backed_up):
    copy = site.folder / "copy"
    shutil.copytree(site.repository, copy)
    (point,) = copy.glob(f"vm/{site.uuid('odd')}/pt/*.sum")
    (segment,) = copy.glob(f"vm/{site.uuid('odd')}/seg/*.age")
    spoilt = bytearray(segment.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(spoilt)
    target = site.folder / "never.xva"
    recipe = ["sh", site.repository / "restore-xva.sh", site.data_key, site.signers, point, target]
    done = subprocess.run(recipe, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "objects are missing or damaged" in done.stderr and not target.exists()
