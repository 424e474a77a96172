# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of snapshots: what only looks attached, what is busy for a while, how long a chain may be, and who may."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
from poolbox import rpc
from poolbox.cli import IMPLEMENTATIONS
from poolbox.errors import ApiError
from poolbox.pool import Account
from poolbox.sessions import open_session

MIB = 1 << 20


@pytest.fixture(name="lab")
def fixture_lab(make_lab):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    return make_lab("8.3")


def call(lab: Any, name: str, *params: Any, session: str = "") -> Any:
    return rpc.call(lab.pool, lab.pool.hosts[0], name, [session or lab.session, *params])


def error(lab: Any, name: str, *params: Any, session: str = "") -> list[str]:
    with pytest.raises(ApiError) as caught:
        call(lab, name, *params, session=session)
    return caught.value.description


@pytest.mark.trap(22)
def test_the_disks_of_a_checkpoint_look_attached_though_nothing_is(lab):
    web = lab.refs["web"]
    lab.db.set("VM", web, suspend_SR=lab.refs["nfs"], memory_static_max=64 * MIB)
    call(lab, "VM.start", web, False, False)
    taken = call(lab, "VM.checkpoint", web, "with memory")
    vbds = [lab.db.get("VBD", ref) for ref in lab.db.field("VM", taken, "VBDs")]
    assert [vbd["currently_attached"] for vbd in vbds if vbd["type"] == "Disk"] == [True, True]
    disks = lab.disks_of(taken)
    task = lab.task()
    assert lab.get("/export", ref=taken, task_id=task).status == 200
    assert lab.finished(task)["status"] == "success"
    call(lab, "VM.destroy", taken)
    for vdi in disks:
        patiently(lab, "VDI.destroy", vdi)
    assert not any(lab.db.exists("VDI", vdi) for vdi in disks)


def patiently(lab: Any, name: str, vdi: str) -> list[list[str]]:
    """Repeat a call while the disk is in use; what it was refused with meanwhile."""
    refused = []
    for _unused in range(400):
        try:
            call(lab, name, vdi)
            return refused
        except ApiError as busy:
            assert busy.code == "VDI_IN_USE"
            refused.append(busy.description)
            time.sleep(0.025)
    raise AssertionError("the disk is in use still")


@pytest.mark.trap(37)
def test_a_disk_is_in_use_for_a_moment_after_its_export(lab):
    taken = call(lab, "VM.snapshot", lab.refs["web"], "x")
    disks = lab.disks_of(taken)
    assert lab.get("/export_raw_vdi", vdi=disks[0]).status == 200
    call(lab, "VM.destroy", taken)
    refused = patiently(lab, "VDI.destroy", disks[0])
    assert refused and refused[0] == ["VDI_IN_USE", disks[0], "destroy"]
    assert not lab.db.exists("VDI", disks[0])


@pytest.mark.trap(28)
def test_a_chain_of_snapshots_has_an_end_until_some_are_destroyed(lab):
    """As when coalescing has not kept up."""
    system = lab.refs["system"]
    taken = []

    def change_and_snapshot() -> None:
        with lab.pool.storage.open(lab.db.field("VDI", system, "uuid")) as disk:
            disk.pwrite(0, bytes([len(taken)]) * 512)
        taken.append(call(lab, "VDI.snapshot", system))

    with pytest.raises(ApiError) as caught:
        for _unused in range(100):
            change_and_snapshot()
    assert caught.value.code == "SR_BACKEND_FAILURE_109" and len(caught.value.params) == 3
    assert len(taken) == 29
    assert error(lab, "VM.snapshot", lab.refs["web"], "x")[0] == "SR_BACKEND_FAILURE_109"
    for vdi in taken[:10]:
        call(lab, "VDI.destroy", vdi)
    assert call(lab, "VM.snapshot", lab.refs["web"], "x").startswith("OpaqueRef:")


@pytest.mark.trap(28)
def test_destroying_a_vm_sets_no_space_free(lab):
    call(lab, "SR.scan", lab.refs["nfs"])
    used = lab.db.field("SR", lab.refs["nfs"], "physical_utilisation")
    disks = lab.disks_of(lab.refs["web"])
    call(lab, "VM.destroy", lab.refs["web"])
    call(lab, "SR.scan", lab.refs["nfs"])
    assert lab.db.field("SR", lab.refs["nfs"], "physical_utilisation") == used > 0
    for vdi in disks:
        call(lab, "VDI.destroy", vdi)
    assert lab.db.field("SR", lab.refs["nfs"], "physical_utilisation") < used


@pytest.mark.trap(35)
def test_what_a_backup_does_takes_several_roles(lab):
    web = lab.refs["web"]
    lab.db.set("VM", web, suspend_SR=lab.refs["nfs"], memory_static_max=64 * MIB)
    call(lab, "VM.start", web, False, False)

    def session(role: str) -> str:
        account = lab.pool.accounts[role] = Account(role, role, role)
        return open_session(lab.pool, lab.pool.hosts[0], account, "tests")

    operator, admin, power = (session(role) for role in ("vm-operator", "vm-admin", "vm-power-admin"))
    pool_operator, pool_admin = session("pool-operator"), session("pool-admin")
    for name in ("VM.snapshot", "VM.checkpoint"):
        assert error(lab, name, web, "x", session=admin)[:2] == ["RBAC_PERMISSION_DENIED", name.lower()]
    taken = call(lab, "VM.snapshot", web, "x", session=power)
    assert error(lab, "VM.revert", taken, session=admin)[:2] == ["RBAC_PERMISSION_DENIED", "vm.revert"]
    for who, status in ((operator, 403), (admin, 200)):
        assert lab.get("/export", ref=taken, session_id=who).status == status
    for name, params in (("VM.set_suspend_VDI", (web, lab.refs["data"])), ("VM.set_order", (web, 3))):
        assert error(lab, name, *params, session=power)[:2] == ["RBAC_PERMISSION_DENIED", name.lower()]
        call(lab, name, *params, session=pool_operator)
    network = lab.refs["network"]
    assert error(lab, "network.add_purpose", network, "nbd", session=pool_operator)[0] == "RBAC_PERMISSION_DENIED"
    call(lab, "network.add_purpose", network, "nbd", session=pool_admin)
