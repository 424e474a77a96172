# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that obey or do not, checkpoints as they go, quiesced snapshots of old releases, and disks that live outside."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
from poolbox import lifecycle, rpc
from poolbox.cli import IMPLEMENTATIONS
from poolbox.errors import ApiError
from poolbox.pool import Pool
from poolbox.world import guest_of, load_world

CONFIG = {"pools": {"lab": {
    "hosts": ["host1"], "networks": {"LAN": {}}, "srs": {"Storage": {"size": "20GiB"}, "Tiny": {"size": "64MiB"}},
    "vms": {
        "web": {"memory": "256MiB", "disks": [{"size": "4MiB"}]},
        "odd": {"devices": ["vgpu"], "disks": [{"size": "4MiB"}]},
        "usb": {"devices": ["vusb"]}, "card": {"devices": ["pci"]}, "tpm": {"devices": ["vtpm"]},
        "small": {"suspend_sr": "Tiny"},
        "stubborn": {"tools": {"data-cant-suspend-reason": "busy"}},
    },
}}}


class Caller:
    """Calls a pool that was made of a description."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.session = rpc.call(pool, pool.hosts[0], "session.login_with_password", ["root", "secret"])

    def call(self, name: str, *params: Any) -> Any:
        """The value of a call."""
        return rpc.call(self.pool, self.pool.hosts[0], name, [self.session, *params])

    def fails(self, name: str, *params: Any) -> list[str]:
        """The error of a call that must fail."""
        with pytest.raises(ApiError) as caught:
            self.call(name, *params)
        return caught.value.description

    def vm(self, name: str) -> str:
        """A VM's ref."""
        return str(self.call("VM.get_by_name_label", name)[0])

    def behave(self, name: str, **how: Any) -> None:
        """Have a guest behave differently."""
        self.pool.guests[self.call("VM.get_uuid", self.vm(name))] = guest_of(how)

    def disk(self, vm: str) -> Any:
        """A VM's only disk, open."""
        vbds = [self.call("VBD.get_record", vbd) for vbd in self.call("VM.get_VBDs", vm)]
        (vdi,) = [vbd["VDI"] for vbd in vbds if vbd["type"] == "Disk"]
        return self.pool.storage.open(self.call("VDI.get_uuid", vdi))


@pytest.fixture(name="make_pool")
def fixture_make_pool(tmp_path_factory):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")

    def make(config: dict[str, Any]) -> Caller:
        folder = tmp_path_factory.mktemp("world")
        return Caller(load_world(config, folder, folder).pools["lab"])

    return make


@pytest.fixture(name="pool")
def fixture_pool(make_pool):
    return make_pool(CONFIG)


def until(happened):
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert happened()


def test_a_guest_takes_its_time_to_shut_down(pool):
    vm = pool.vm("web")
    pool.behave("web", shutdown=0.5)
    task = pool.call("Async.VM.clean_shutdown", vm)
    assert pool.call("VM.get_power_state", vm) == "Running"
    assert list(pool.call("VM.get_current_operations", vm).values()) == ["clean_shutdown"]
    until(lambda: pool.call("task.get_status", task) == "success")
    assert pool.call("VM.get_power_state", vm) == "Halted"


def test_who_was_asked_obeys_although_nobody_waits_any_more(pool):
    vm = pool.vm("web")
    pool.behave("web", shutdown=1)
    task = pool.call("Async.VM.clean_shutdown", vm)
    pool.call("task.cancel", task)
    until(lambda: pool.call("task.get_status", task) == "cancelled")
    assert pool.call("VM.get_power_state", vm) == "Running"
    until(lambda: pool.call("VM.get_power_state", vm) == "Halted")


def test_a_guest_that_never_obeys(pool, monkeypatch):
    monkeypatch.setattr(lifecycle, "LONGEST_SHUTDOWN", 0.2)
    vm = pool.vm("web")
    pool.behave("web", shutdown="never")
    assert pool.fails("VM.clean_shutdown", vm) == ["VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", vm]
    assert pool.call("VM.get_power_state", vm) == "Running"


def test_a_guest_is_suspended_while_its_memory_is_written(pool):
    vm = pool.vm("web")
    pool.behave("web", saving=0.5)
    task = pool.call("Async.VM.checkpoint", vm, "moment")
    until(lambda: pool.call("VM.get_power_state", vm) == "Suspended")
    until(lambda: pool.call("task.get_status", task) == "success")
    (snapshot,) = pool.call("VM.get_snapshots", vm)
    assert (pool.call("VM.get_power_state", vm), pool.call("VM.get_power_state", snapshot)) == ("Running", "Suspended")
    assert pool.call("VM.get_suspend_VDI", vm) == "OpaqueRef:NULL" != pool.call("VM.get_suspend_VDI", snapshot)


def test_a_guest_may_stay_suspended(pool):
    vm = pool.vm("web")
    pool.behave("web", fails="resume")
    assert pool.fails("VM.checkpoint", vm, "moment") == ["VM_CHECKPOINT_RESUME_FAILED", vm]
    assert pool.call("VM.get_power_state", vm) == "Suspended"
    pool.call("VM.resume", vm, False, False)
    assert pool.call("VM.get_power_state", vm) == "Running"


def test_a_guest_may_refuse_to_be_suspended(pool):
    vm = pool.vm("web")
    pool.behave("web", fails="suspend")
    assert pool.fails("VM.checkpoint", vm, "moment") == ["VM_CHECKPOINT_SUSPEND_FAILED", vm]
    assert (pool.call("VM.get_power_state", vm), pool.call("VM.get_snapshots", vm)) == ("Running", [])


@pytest.mark.parametrize(("name", "code"), [
    ("odd", "VM_HAS_VGPU"), ("usb", "VM_HAS_VUSBS"), ("card", "VM_HAS_PCI_ATTACHED"), ("stubborn", "VM_NON_SUSPENDABLE"),
    ("small", "SR_SUSPEND_SPACE_INSUFFICIENT"),
])
def test_what_stands_against_a_checkpoint(pool, name, code):
    vm = pool.vm(name)
    assert pool.fails("VM.checkpoint", vm, "moment")[0] == code
    assert pool.call("VM.get_power_state", vm) == "Running"


def test_a_tpm_is_there(pool):
    assert len(pool.call("VM.get_VTPMs", pool.vm("tpm"))) == 1


def test_a_pool_may_lack_a_licence_and_a_place_for_memory(make_pool):
    lab = {**CONFIG["pools"]["lab"], "restrictions": ["checkpoint"], "suspend_sr": None}
    pool = make_pool({"pools": {"lab": lab}})
    vm = pool.vm("web")
    assert pool.fails("VM.checkpoint", vm, "moment") == ["LICENCE_RESTRICTION", "Checkpoint"]
    assert pool.fails("VM.suspend", vm) == ["VM_NO_SUSPEND_SR", vm]


def test_only_old_releases_quiesce(make_pool, pool):
    vm = pool.vm("web")
    assert pool.fails("VM.snapshot_with_quiesce", vm, "moment") == ["MESSAGE_REMOVED"]
    told = {"web": {"tools": {"feature-quiesce": "1"}}, "plain": {}}
    old = make_pool({"pools": {"lab": {**CONFIG["pools"]["lab"], "release": "8.0", "vms": told}}})
    vm, plain = old.vm("web"), old.vm("plain")
    assert "snapshot_with_quiesce" in old.call("VM.get_allowed_operations", vm)
    snapshot = old.call("VM.snapshot_with_quiesce", vm, "moment")
    assert old.call("VM.get_snapshot_info", snapshot)["disk-snapshot-type"] == "quiesced"
    assert "snapshot_with_quiesce" not in old.call("VM.get_allowed_operations", plain)
    assert old.fails("VM.snapshot_with_quiesce", plain, "moment")[:2] == ["VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", plain]


def test_a_disk_may_live_outside(make_pool, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(b"first".ljust(1 << 20, b"\0"))
    vms = {"web": {"disks": [{"size": "2MiB", "image": str(image), "mirror": str(image)}]}}
    pool = make_pool({"pools": {"lab": {**CONFIG["pools"]["lab"], "vms": vms}}})
    before = pool.disk(pool.call("VM.snapshot", pool.vm("web"), "before"))
    with image.open("r+b") as file:
        file.write(b"later")
        file.seek(700_000)
        file.write(b"more")
    after = pool.disk(pool.call("VM.snapshot", pool.vm("web"), "after"))
    assert before.pread(0, 5) == b"first" and after.pread(0, 5) == b"later"
    assert after.pread(700_000, 4) == b"more" and before.pread(700_000, 4) == bytes(4)


def test_what_is_no_behaviour():
    for described in ({"shutdown": "soon"}, {"fails": "start"}, {"speed": 1}):
        with pytest.raises(ValueError, match="behaviour|could not convert"):
            guest_of(described)
