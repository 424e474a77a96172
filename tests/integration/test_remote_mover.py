# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that run on another machine than the controller, reached by SSH."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import sshd_fixture


@pytest.fixture(scope="module", name="mover")
def fixture_mover(tmp_path_factory):
    mover = sshd_fixture.Sshd(tmp_path_factory.mktemp("mover") / "sshd", "127.0.0.9")
    yield mover.variables
    mover.stop()


@pytest.fixture(name="on_mover")
def fixture_on_mover(site, mover, tmp_path):
    """Run one module on the mover by a playbook; return its result and the playbook's output."""
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"mover": mover}}}))

    def run(module, fails=False, **options):
        result = tmp_path / "result.json"
        play = tmp_path / "play.yml"
        play.write_text(json.dumps([{"hosts": "mover", "gather_facts": False, "tasks": [
            {"name": module, f"guestark.xen.{module}": options, "register": "result", "ignore_errors": True},
            {"name": "Result", "delegate_to": "localhost", "ansible.builtin.copy": {
                "content": "{{ result | to_json }}", "dest": str(result), "mode": "0600"}}]}]))
        output = site.playbook("-i", str(inventory), str(play), ANSIBLE_INVENTORY_ENABLED="ansible.builtin.yaml")
        found = json.loads(result.read_text())
        assert found.get("failed", False) is fails, output
        return found, output

    return run


def leftovers():
    """Files of progress and of asynchronous jobs on this machine."""
    jobs = Path(os.path.expanduser("~/.ansible_async"))
    return {*Path("/tmp").glob("guestark-progress-*"), *(jobs.iterdir() if jobs.is_dir() else ())}


def phases(output, vm):
    return [line for line in output.splitlines() if line.startswith(f"{vm}: ")]


def test_progress_of_a_remote_mover_shows_and_nothing_is_left_there(site, on_mover):
    before = leftovers()
    result, output = on_mover("xen_vm_export", **site.export_options("web"))
    assert result["changed"] and result["point"]["point"] == site.point_names("web")[-1]
    assert "ansible_job_id" not in result
    assert phases(output, "web") == [f"web: {phase}" for phase in ("snapshot", "export", "commit", "clean up")]
    assert leftovers() == before


def test_long_work_shows_how_far_it_got(site, on_mover):
    site.fault("export", stall_at=2_000_000, seconds=14)
    _result, output = on_mover("xen_vm_export", **site.export_options("web"))
    assert any("% of" in line and "MiB" in line for line in phases(output, "web")), output


def test_an_error_of_a_remote_module_comes_back_whole(site, on_mover):
    before = leftovers()
    result, output = on_mover("xen_vm_export", fails=True, **site.export_options("nobody"))
    assert "nobody" in result["msg"] and result["failure"]
    assert phases(output, "nobody") == []
    assert leftovers() == before
