# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The four methods by real playbooks: what is claimed, what is restored, and what bad luck leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time

import pytest


@pytest.fixture(name="behave")
def fixture_behave(site):
    changed = []

    def behave(name, **how):
        changed.append(name)
        site.simulator.control("POST", f"/vms/production/{name}/guest", how)

    yield behave
    for name in changed:
        site.simulator.control("POST", f"/vms/production/{name}/guest", {})


def power_state(site, vm, pool="production"):
    return site.state(pool)["vms"][vm]


def memory(site, pool, vm, snapshot=False):
    """SHA-256 of a VM's saved memory, or of that of its only snapshot."""
    with site.api(pool) as call:
        (ref,) = call("VM.get_by_name_label", vm)
        (ref,) = call("VM.get_snapshots", ref) if snapshot else (ref,)
        uuid = call("VDI.get_uuid", call("VM.get_suspend_VDI", ref))
    return hashlib.sha256(site.simulator.control("GET", f"/disks/{pool}/{uuid}")).hexdigest()


@pytest.mark.parametrize(("method", "consistency"), [("offline", "cold"), ("live_memory", "memory")])
def test_a_point_says_how_it_was_had(site, method, consistency):
    point = site.export("web", method=method)["point"]
    assert (point["method"], point["consistency"]) == (method, consistency)
    assert point["down_seconds" if method == "offline" else "frozen_seconds"] > 0
    (listed,) = [one for one in site.info(catalog_identities=[str(site.data_key)])["points"] if one["point"] == point["point"]]
    assert (listed["method"], listed["consistency"]) == (method, consistency)
    assert power_state(site, "web") == "Running"


def test_a_guest_runs_again_before_its_disks_are_read(site, wait_until):
    """However long that takes, it is down for the snapshot only."""
    site.fault("export", stall_at=1_000_000, seconds=3)
    command = site.command("xen_vm_export", **site.export_options("web", method="offline"))
    with subprocess.Popen(command, env=os.environ | site.settings, stdout=subprocess.PIPE, text=True) as run:
        wait_until(lambda: site.state()["attached"])
        assert power_state(site, "web") == "Running"
        output, _errors = run.communicate(timeout=60)
    point = json.JSONDecoder().raw_decode(output[output.index("> {") + 2:])[0]["point"]
    assert point["consistency"] == "cold" and point["down_seconds"] < point["seconds"]


def test_a_guest_that_stays_down_for_the_whole_backup(site):
    point = site.export("web", method="offline", downtime="backup")["point"]
    assert point["consistency"] == "cold" and point["down_seconds"] > 0 and power_state(site, "web") == "Running"
    site.restore("web", name="cold-web", macs="new")
    assert site.disks("recovery", "cold-web") == site.disks("production", "web")
    site.empty("recovery")


def test_a_guest_goes_on_from_its_memory_in_another_pool(site):
    snapshot = site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="moment", method="live_memory")
    assert snapshot["snapshot"]["consistency"] == "memory"
    before = memory(site, "production", "web", snapshot=True)
    site.export("web", snapshot=snapshot["snapshot"]["uuid"])
    restored = site.restore("web")
    assert restored["vm"]["power_state"] == "Suspended" and memory(site, "recovery", "web") == before
    with site.api("recovery") as call, site.api("production") as source:
        (ref,), (origin,) = call("VM.get_by_name_label", "web"), source("VM.get_by_name_label", "web")
        macs = [{each("VIF.get_MAC", vif) for vif in each("VM.get_VIFs", vm)} for each, vm in ((call, ref), (source, origin))]
        assert macs[0] == macs[1]
        assert not [key for key in call("VM.get_other_config", ref) if "guestark:moment" in key or "guestark:held" in key]
        call("VM.resume", ref, False, False)
    assert power_state(site, "web", "recovery") == "Running"
    site.empty("recovery")
    cold = site.restore("web", memory="discard", start=True)
    assert cold["vm"]["power_state"] == "Running" and site.disks("recovery", "web") == site.disks("production", "web")
    site.empty("recovery")
    refused = site.restore("web", fails=True, macs="new")
    assert "new MAC addresses" in refused["msg"] and site.state("recovery")["vms"] == {}
    site.one("xen_vm_snapshot", **site.pool("production"), name="web", snapshot_name="moment", state="absent")


def test_what_cannot_be_reached_is_refused_and_nothing_is_touched(site):
    before = site.point_names()
    refused = site.export("web", fails=True, consistency="application")
    assert "only crash" in refused["msg"] and "'web'" in refused["msg"] and refused["failure"]["remedy"]
    assert site.point_names() == before and power_state(site, "web") == "Running"
    asked = site.export_options("web", consistency="cold")
    (checked,) = site.run(site.task("xen_vm_export", check_mode=True, **asked), fails=True)
    assert "only crash" in checked["msg"]


def test_a_point_that_is_less_says_so(site):
    result = site.export("web", method="quiesced", fallback=True)
    assert result["point"]["consistency"] == "crash" and "8.1" in result["point"]["degraded"]
    assert any("Degraded" in warning for warning in result["warnings"])


def test_a_young_point_that_is_worth_less_is_not_enough(site):
    catalog = {"catalog_identities": [str(site.data_key)], "max_age": "1h"}
    site.export("local")
    same, cold, again, unknown, less = site.run(*(
        site.task("xen_vm_export", **site.export_options("local", **options)) for options in (
            {**catalog}, {**catalog, "method": "offline"}, {**catalog, "method": "offline", "consistency": "cold"},
            {"max_age": "1h", "method": "offline", "consistency": "cold"},
            {**catalog, "method": "quiesced", "fallback": True})))
    assert [one["changed"] for one in (same, cold, again, unknown, less)] == [False, True, False, True, False]
    assert cold["point"]["consistency"] == "cold" and again["point"]["point"] == cold["point"]["point"]


def test_a_guest_that_shuts_down_late_runs_again_and_the_run_fails(site, behave):
    behave("web", shutdown=3)
    before = site.point_names()
    failed = site.export("web", fails=True, method="offline", shutdown_timeout=1)
    assert "did not shut down within 1 s" in failed["msg"]
    assert power_state(site, "web") == "Running" and site.point_names() == before


def test_a_start_that_fails_is_an_error_and_the_next_run_mends_it(site):
    site.simulator.control("POST", "/faults", {
        "match": {"call": "VM.start"}, "fault": {"error": ["VM_REQUIRES_SR", "a", "b"]}, "times": 0})
    before = site.point_names()
    failed = site.export("web", fails=True, method="offline")
    assert "could not be brought back" in failed["msg"] and "xen_quiesce" in failed["failure"]["remedy"]
    assert power_state(site, "web") == "Halted" and site.point_names() == before
    site.simulator.control("DELETE", "/faults")
    healed = site.export("web")
    assert power_state(site, "web") == "Running" and healed["point"]["consistency"] == "crash"
    assert any("brought back" in warning for warning in healed["warnings"])


def test_a_guest_is_quiesced_and_released(site):
    where = site.pool("production") | {"name": "web"}
    checked, down, again, checked_up, up, over = site.run(
        site.task("xen_quiesce", check_mode=True, **where, method="offline"),
        site.task("xen_quiesce", **where, method="offline"),
        site.task("xen_quiesce", **where, method="offline"),
        site.task("xen_quiesce", check_mode=True, **where, state="released"),
        site.task("xen_quiesce", **where, state="released"),
        site.task("xen_quiesce", **where, state="released"))
    assert [one["changed"] for one in (checked, down, again, checked_up, up, over)] == [True, True, False, True, True, False]
    assert [one["vm"]["power_state"] for one in (checked, down, again, up)] == ["Running", "Halted", "Halted", "Running"]
    assert down["consistency"] == "cold"
    assert checked_up["found"][0]["remedy"] == "brought back from Halted to Running"
    reach = site.one("xen_quiesce", **where, method="quiesced", consistency="crash")
    assert (reach["changed"], reach["consistency"]) == (False, "crash") and "8.1" in reach["reason"]


def test_a_run_that_is_told_to_end_gives_the_guest_back(site, behave, wait_until):
    behave("web", shutdown=2)
    before = site.point_names()
    command = site.command("xen_vm_export", **site.export_options("web", method="offline"))
    with subprocess.Popen(command, env=os.environ | site.settings, stdout=subprocess.DEVNULL) as run:
        with site.api("production") as call:
            (ref,) = call("VM.get_by_name_label", "web")
            wait_until(lambda: "clean_shutdown" in call("VM.get_current_operations", ref).values())
        lease = site.repository / "lease" / site.uuid("web")
        os.kill(json.loads(lease.read_text())["pid"], signal.SIGTERM)
        assert run.wait(60) != 0
    assert power_state(site, "web") == "Running" and site.point_names() == before
    time.sleep(2)  # the guest had been asked to shut down and may do so now: it is brought back when somebody looks
    site.one("xen_quiesce", **site.pool("production"), name="web", state="released")
    assert power_state(site, "web") == "Running"


def test_two_runs_on_one_vm_at_once(site, behave):
    """The lease lets one after the other; one may fail and says so; what is claimed is true, and the guest runs."""
    behave("web", shutdown=1)
    before = site.point_names("web")
    command = site.command("xen_vm_export", **site.export_options("web", method="offline"))
    runs = [subprocess.Popen(command, env=os.environ | site.settings, stdout=subprocess.PIPE, text=True) for _number in range(2)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    results = [json.JSONDecoder().raw_decode(output[output.index("> {") + 2:])[0] for output in outputs]
    made = [result["point"] for result in results if "point" in result]
    assert made and all(point["consistency"] == "cold" for point in made)
    assert all(result["failed"] and "'web'" in result["msg"] for result in results if "point" not in result), results
    assert len(site.point_names("web")) == len(before) + len(made) and power_state(site, "web") == "Running"


def test_the_janitor_by_its_role(site, tmp_path):
    play = tmp_path / "janitor.yml"
    pool = site.pool("production")
    play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "roles": [
        {"role": "guestark.xen.janitor", "vars": {"janitor_pool_members": pool["hostname"], "janitor_min_age": "0s"}}]}]))
    environment = {"XENSERVER_PASSWORD": pool["password"], "XENSERVER_CA_PATH": pool["ca_path"]}
    assert "changed=0" in site.playbook(str(play), **environment)
    site.one("xen_quiesce", **pool, name="web", method="offline")
    site.one("xen_vm_snapshot", **pool, name="database", snapshot_name="left", expires="1h")
    seen = site.playbook(str(play), "--check", **environment)
    assert "guest web" in seen and "snapshot left" in seen and power_state(site, "web") == "Halted"
    site.playbook(str(play), **environment)
    assert power_state(site, "web") == "Running" and site.left_behind("production") == {}
