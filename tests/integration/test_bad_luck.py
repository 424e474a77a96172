# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to a pool, a transfer or the process: no new point, nothing left behind, the earlier points whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

IO_ERROR = ["VDI_IO_ERROR", "Device I/O errors"]
FULL = ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]


@pytest.fixture(scope="module", autouse=True, name="first_point")
def fixture_first_point(site):
    return site.export("database")["point"]["point"]


@pytest.fixture(name="unchanged")
def fixture_unchanged(site):
    """See to it that the repository is as it was before the test."""
    before = site.contents()
    yield
    assert site.contents() == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind, fault, said", [
    ("export", {"cut_at": 3_000_000}, ["broke off", "cut", "ended", "truncated"]),
    ("export", {"cut_at": 3_000_000, "reset": True}, ["broke off"]),
    ("export", {"cut_at": 0}, ["broke off", "ended", "no archive", "cut"]),
    ("export", {"corrupt_chunk": 3}, ["checksum"]),
    ("export", {"error": IO_ERROR}, ["VDI_IO_ERROR"]),
    ("export", {"late_error": IO_ERROR, "after": 2_000_000}, ["VDI_IO_ERROR"]),
    ("export", {"late_error": IO_ERROR, "after": "end"}, ["VDI_IO_ERROR"]),
    ("export", {"late_error": IO_ERROR, "after": "end", "silent": True}, ["VDI_IO_ERROR"]),
    ("export", {"stall_at": 1_000_000}, ["no byte for 2 s"]),
    ("VM.snapshot", {"error": FULL}, ["SR_BACKEND_FAILURE_44"]),
], ids=["cut", "reset", "cut at once", "corrupt", "refused", "late", "at the end", "silent", "stalled", "snapshot"])
def test_a_failed_backup_leaves_nothing(site, kind, fault, said):
    site.fault(kind, **fault)
    result = site.export("database", fails=True, stall_timeout=2)
    assert result["msg"].startswith("Could not back up VM 'database': ")
    assert any(words in result["msg"] for words in said), result["msg"]
    assert result["failure"]["remedy"] and "\n" not in result["msg"]
    assert site.left_behind() == {}


def test_a_failed_export_to_a_file_leaves_no_file(site):
    folder = site.folder / "exports"
    folder.mkdir()
    site.fault("export", cut_at=3_000_000)
    result = site.one("xen_vm_export", fails=True, **site.pool("production"), name="web", dest=str(folder / "web.xva"))
    assert "VM 'web'" in result["msg"] and list(folder.iterdir()) == []


def test_a_good_run_after_all_that(site, first_point):
    assert site.export("database")["changed"]
    assert site.info(seal=True)["findings"] == []
    assert site.restore("database", point=first_point, name="first")["restored_from"] == first_point
    assert site.disks("recovery", "first") == site.disks("production", "database")
    site.empty("recovery")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("fault, said", [
    ({"sr_full": 3 << 20}, ["VDI_IO_ERROR"]),
    ({"sr_full": True}, ["SR_BACKEND_FAILURE_44"]),
    ({"cut_at": 3_000_000, "reset": True}, ["broke off", "IMPORT_ERROR_PREMATURE_EOF"]),
    ({"late_error": IO_ERROR, "after": "end"}, ["VDI_IO_ERROR"]),
    ({"stall_at": 1_000_000}, ["no byte for 2 s"]),
], ids=["full half way", "full", "reset", "at the end", "stalled"])
def test_a_failed_restore_leaves_nothing(site, fault, said):
    site.fault("import", **fault)
    result = site.restore("database", fails=True, stall_timeout=2)
    assert result["msg"].startswith("Could not restore VM 'database': ")
    assert any(words in result["msg"] for words in said), result["msg"]
    assert result["failure"]["remedy"]
    assert site.left_behind("recovery") == {}
    state = site.state("recovery")
    assert (state["vms"], state["vdis"]) == ({}, 0)


def test_a_restored_vm_that_cannot_start_is_taken_back(site):
    site.fault("VM.start", error=["HOST_NOT_ENOUGH_FREE_MEMORY", "1", "0"])
    result = site.restore("database", fails=True, start=True)
    assert "'database'" in result["msg"] and "HOST_NOT_ENOUGH_FREE_MEMORY" in result["msg"]
    assert (site.state("recovery")["vms"], site.state("recovery")["vdis"]) == ({}, 0)
    assert site.restore("database")["changed"]
    assert site.disks("production", "database") == site.disks("recovery", "database")


@pytest.fixture(name="under_way")
def fixture_under_way(site, wait_until):
    """Start a backup and return it when its export stands still; it goes on after some seconds."""
    started = []

    def start(seconds):
        site.fault("export", stall_at=2_000_000, seconds=seconds)
        process = subprocess.Popen(site.command("xen_vm_export", **site.export_options("database")), text=True,
                                   env=os.environ | site.settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        wait_until(lambda: site.state()["attached"])
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill_holder(site)
            process.communicate(timeout=60)


def kill_holder(site):
    """Kill the module that works on the VM: the lease tells its process."""
    lease = site.repository / "lease" / site.uuid("database")
    os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)


def result_of(process):
    output, _errors = process.communicate(timeout=60)
    return json.JSONDecoder().raw_decode(output[output.index("> {") + 2:])[0]


def test_a_session_that_expires_in_the_middle_is_renewed(site, under_way):
    before = site.point_names("database")
    process = under_way(seconds=2)
    site.simulator.control("POST", "/sessions/expire")
    result = result_of(process)
    assert result["changed"] and process.returncode == 0
    assert site.point_names("database") == [*before, result["point"]["point"]]


def test_a_module_that_is_killed_is_cleaned_up_by_the_next_run(site, under_way):
    before, files = site.point_names("database"), site.contents()
    process = under_way(seconds=60)
    kill_holder(site)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(site.state()["snapshots"]) == 1 and site.point_names("database") == before
    site.simulator.control("DELETE", "/faults")
    assert site.export("database")["changed"]
    assert len(site.point_names("database")) == len(before) + 1
    assert (site.state()["snapshots"], site.state()["snapshot_vdis"]) == ([], 0)
    left = {name for name in site.contents() if name not in files and site.point_names("database")[-1] not in name}
    assert left == set()
    assert site.info(seal=True)["findings"] == []
    # a pool keeps task and session of a client that died for a day, whatever the next run does
    with site.api("production") as call:
        for task in call("task.get_all"):
            call("task.destroy", task)
    site.simulator.control("POST", "/sessions/expire")


def test_a_coordinator_that_dies_in_the_middle(site, under_way):
    """The run fails and cleans up at the new coordinator; the next one succeeds there."""
    before = site.contents()
    assert site.state()["coordinator"] == "alpha"
    process = under_way(seconds=60)
    site.simulator.control("POST", "/hosts/production/alpha/kill")
    site.simulator.control("POST", "/pools/production/elect", {"host": "beta"})
    result = result_of(process)
    assert process.returncode != 0 and "VM 'database'" in result["msg"] and result["failure"]["remedy"]
    assert site.left_behind() == {} and site.contents() == before
    assert site.state()["coordinator"] == "beta"
    assert site.export("database")["changed"]
    site.simulator.control("POST", "/hosts/production/alpha/start")
