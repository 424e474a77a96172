# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changed block tracking: what the bitmaps say, how long logs live, and who is refused what."""

from __future__ import annotations

import base64
import importlib
import itertools
import random
import time
from typing import Any

import pytest
from poolbox import cbt, guest, rpc
from poolbox.attach import attached
from poolbox.cli import IMPLEMENTATIONS
from poolbox.control import Control
from poolbox.database import Database
from poolbox.errors import ApiError
from poolbox.pool import Account, World
from poolbox.sessions import open_session
from poolbox.world import add_driver

MIB, BLOCK = 1 << 20, 1 << 16
CALLS = {"enable_cbt", "disable_cbt", "data_destroy", "list_changed_blocks"}


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


def write(lab: Any, vdi: str, offset: int, data: bytes = b"x") -> None:
    with lab.pool.storage.open(lab.db.field("VDI", vdi, "uuid")) as disk:
        disk.pwrite(offset, data)


def changed(lab: Any, older: str, newer: str) -> set[int]:
    """Numbers of the blocks that a bitmap says have changed."""
    raw = base64.b64decode(call(lab, "VDI.list_changed_blocks", older, newer), validate=True)
    bits = "".join(f"{byte:08b}" for byte in raw)
    return {number for number, bit in enumerate(bits) if bit == "1"}


def tracked(lab: Any, size: int = 4 * MIB, sr: str = "nfs", **fields: Any) -> str:
    """A disk of no VM, with tracking."""
    vdi = lab.disk("tracked", size, sr=sr, **{"type": "user"} | fields)
    call(lab, "VDI.enable_cbt", vdi)
    return vdi


def await_let_go(lab: Any, vdi: str) -> None:
    """Wait until no control domain holds a disk any more."""
    dom0s = set(lab.db.find("VM", is_control_domain=True))
    deadline = time.monotonic() + 10
    while any(lab.db.field("VBD", vbd, "VM") in dom0s for vbd in lab.db.field("VDI", vdi, "VBDs")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.trap(25)
def test_a_bitmap_has_a_bit_for_64_kib_the_most_significant_first(lab):
    live = tracked(lab, 5 * MIB + 512)  # 81 blocks
    before = call(lab, "VDI.snapshot", live)
    for offset, length in ((0, 1), (9 * BLOCK - 1, 2), (5 * MIB, 512), (40 * BLOCK, 17 * BLOCK)):
        write(lab, live, offset, b"x" * length)
    after = call(lab, "VDI.snapshot", live)
    text = call(lab, "VDI.list_changed_blocks", before, after)
    assert text == base64.b64encode(bytes([0x80, 0xC0, 0, 0, 0, 0xFF, 0xFF, 0x80, 0, 0, 0x80])).decode()
    assert call(lab, "VDI.list_changed_blocks", before, live) == text
    write(lab, live, 79 * BLOCK)
    assert call(lab, "VDI.list_changed_blocks", before, after) == text
    assert changed(lab, after, live) == {79}


@pytest.mark.parametrize("seed", range(4))
def test_logs_equal_a_model_whatever_becomes_of_the_snapshots(lab, seed):
    """Snapshots are destroyed and their data destroyed in any order; what is left tells all differences."""
    chance, live, count = random.Random(seed), tracked(lab), 4 * MIB // BLOCK
    chain: list[tuple[str, set[int]]] = []  # snapshots that are there, with what was written before each
    written: set[int] = set()
    for _unused in range(60):
        action = chance.random()
        if action < 0.5:
            block, blocks = chance.randrange(count), chance.randrange(1, 4)
            data = b"y" * min(blocks * BLOCK, (count - block) * BLOCK)
            write(lab, live, block * BLOCK, data)
            written |= set(range(block, block + len(data) // BLOCK))
        elif action < 0.75:
            chain.append((call(lab, "VDI.snapshot", live), written))
            written = set()
        elif chain:
            place = chance.randrange(len(chain))
            snapshot, before = chain[place]
            if action < 0.87:
                call(lab, "VDI.data_destroy", snapshot)
                continue
            call(lab, "VDI.destroy", snapshot)
            del chain[place]
            if place < len(chain):
                chain[place] = (chain[place][0], chain[place][1] | before)
            else:
                written |= before
    chain.append((live, written))
    assert len(chain) > 4
    for first, last in itertools.combinations(range(len(chain)), 2):
        expected = set().union(*(blocks for _unused, blocks in chain[first + 1:last + 1]))
        assert changed(lab, chain[first][0], chain[last][0]) == expected


@pytest.mark.trap(25)
def test_what_is_no_earlier_state_is_an_error(lab):
    live, other = tracked(lab), tracked(lab)
    first, second = call(lab, "VDI.snapshot", live), call(lab, "VDI.snapshot", live)
    text = "Failed to calculate changed blocks for given VDIs. [opterr=Source and target VDI are {}]"
    same, unrelated = (["SR_BACKEND_FAILURE_460", "", text.format(how), ""] for how in ("same", "unrelated"))
    assert error(lab, "VDI.list_changed_blocks", first, first) == same
    untracked = call(lab, "VDI.clone", first)
    for older, newer in ((second, first), (live, first), (first, other), (other, live), (first, untracked), (untracked, live)):
        assert error(lab, "VDI.list_changed_blocks", older, newer) == unrelated
    call(lab, "VDI.disable_cbt", live)
    assert error(lab, "VDI.list_changed_blocks", first, live) == unrelated
    call(lab, "VDI.enable_cbt", live)
    assert error(lab, "VDI.list_changed_blocks", first, live) == unrelated
    assert changed(lab, first, second) == set()
    call(lab, "VDI.destroy", first)
    assert error(lab, "VDI.list_changed_blocks", first, second)[0] == "HANDLE_INVALID"


def test_tracking_is_switched_on_and_off(lab):
    live = lab.disk("plain", MIB, type="user")
    untracked = call(lab, "VDI.snapshot", live)
    call(lab, "VM.start", lab.refs["web"], False, False)
    system = lab.refs["system"]
    for vdi in (live, system):  # one of them in use
        call(lab, "VDI.enable_cbt", vdi)
        assert lab.db.field("VDI", vdi, "cbt_enabled") is True
    snapshot = call(lab, "VDI.snapshot", live)
    assert [lab.db.field("VDI", vdi, "cbt_enabled") for vdi in (untracked, snapshot)] == [False, True]
    write(lab, live, 0)
    call(lab, "VDI.enable_cbt", live)
    assert changed(lab, snapshot, live) == {0}
    for _unused in range(2):
        call(lab, "VDI.disable_cbt", live)
        assert lab.db.field("VDI", live, "cbt_enabled") is False
    assert lab.db.field("VDI", snapshot, "cbt_enabled") is True
    lab.result(call(lab, "Async.VDI.enable_cbt", live))
    assert lab.db.field("VDI", live, "cbt_enabled") is True
    lab.result(call(lab, "Async.VDI.disable_cbt", live))
    lab.result(call(lab, "Async.VDI.data_destroy", snapshot))
    assert lab.db.field("VDI", snapshot, "type") == "cbt_metadata"


@pytest.mark.parametrize("name", ["VDI.enable_cbt", "VDI.disable_cbt"])
def test_what_cannot_be_tracked(lab, name):
    live = tracked(lab)
    snapshot = call(lab, "VDI.snapshot", live)
    assert error(lab, name, snapshot) == ["OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {snapshot}"]
    call(lab, "VDI.data_destroy", snapshot)
    assert error(lab, name, snapshot) == ["VDI_INCOMPATIBLE_TYPE", snapshot, "CBT metadata"]
    for kind, pretty in (("suspend", "Suspend"), ("ha_statefile", "HA statefile"), ("redo_log", "Redo log")):
        vdi = lab.disk("odd", MIB, type=kind)
        assert error(lab, name, vdi) == ["VDI_INCOMPATIBLE_TYPE", vdi, pretty]
    volatile = lab.disk("volatile", MIB, type="user", on_boot="reset")
    assert error(lab, name, volatile) == ["VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"]
    image = lab.disk("image", MIB, sr="iso", type="user")
    assert error(lab, name, image) == ["SR_OPERATION_NOT_SUPPORTED", lab.refs["iso"]]
    raw = lab.disk("raw", MIB, sr="thick", type="user", sm_config={"type": "raw"})
    code, *rest = error(lab, name, raw)
    assert code == "SR_BACKEND_FAILURE_66" and len(rest) == 3
    system = lab.disk("bootable", MIB, type="system")
    call(lab, name, system)


def test_the_licence_must_allow_it(lab):
    live = tracked(lab)
    first, second = call(lab, "VDI.snapshot", live), call(lab, "VDI.snapshot", live)
    lab.db.set("pool", lab.pool.ref, restrictions={"restrict_cbt": "true"})
    assert error(lab, "VDI.enable_cbt", live) == ["LICENCE_RESTRICTION", "CBT"]
    assert changed(lab, first, second) == set()
    call(lab, "VDI.disable_cbt", live)


@pytest.mark.trap(23)
def test_drivers_say_that_they_track_and_allowed_operations_do_not(lab):
    live = tracked(lab)
    call(lab, "VDI.data_destroy", call(lab, "VDI.snapshot", live))
    for vdi in lab.db.refs("VDI"):
        assert not CALLS & set(lab.db.field("VDI", vdi, "allowed_operations"))
    db = Database("8.3")
    for kinds, tracks in (
        ("ext file nfs smb lvm lvmoiscsi lvmohba lvmofcoe xfs zfs largeblock", True),
        ("iso udev shm dummy hba iscsi linstor cephfs glusterfs moosefs", False),
    ):
        for kind in kinds.split():
            add_driver(db, kind)
            (driver,) = db.find("SM", type=kind)
            assert ("VDI_CONFIG_CBT" in db.field("SM", driver, "features")) is tracks, kind


@pytest.mark.trap(22)
def test_the_newer_disk_must_not_be_attached(lab):
    web, system = lab.refs["web"], lab.refs["system"]
    lab.db.set("VM", web, suspend_SR=lab.refs["nfs"], memory_static_max=64 * MIB)
    call(lab, "VM.start", web, False, False)
    call(lab, "VDI.enable_cbt", system)
    older = call(lab, "VDI.snapshot", system)
    assert error(lab, "VDI.list_changed_blocks", older, system) == ["VDI_IN_USE", system, "list_changed_blocks"]
    checkpoint = lab.disks_of(call(lab, "VM.checkpoint", web, "with memory"))[0]
    (vbd,) = lab.db.field("VDI", checkpoint, "VBDs")
    assert lab.db.field("VBD", vbd, "currently_attached") is True
    assert changed(lab, older, checkpoint) == set()
    call(lab, "VM.hard_shutdown", web)
    assert changed(lab, older, system) == set()


@pytest.mark.trap(24, 28)
def test_data_destroy_wants_every_vbd_gone(lab, monkeypatch):
    monkeypatch.setattr(cbt, "UNPLUG_SECONDS", 0.2)
    system = lab.refs["system"]
    call(lab, "VDI.enable_cbt", system)
    taken = call(lab, "VM.snapshot", lab.refs["web"], "x")
    snapshot, plain = lab.disks_of(taken)
    began = time.monotonic()
    assert error(lab, "VDI.data_destroy", snapshot) == ["VDI_IN_USE", snapshot, "data_destroy"]
    assert 0.2 <= time.monotonic() - began < 5
    assert lab.content(snapshot) == lab.content(system)
    call(lab, "VM.destroy", taken)
    assert error(lab, "VDI.data_destroy", system) == ["OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {system}"]
    assert error(lab, "VDI.data_destroy", plain) == ["VDI_NO_CBT_METADATA", plain]
    call(lab, "VDI.data_destroy", snapshot)
    assert lab.db.field("VDI", snapshot, "type") == "cbt_metadata"


@pytest.mark.trap(24)
def test_data_destroy_waits_for_the_control_domain(lab):
    assert cbt.UNPLUG_SECONDS == 4
    snapshot = call(lab, "VDI.snapshot", tracked(lab))
    with attached(lab.pool, lab.pool.hosts[0], snapshot, "RO"):
        pass
    assert lab.db.field("VDI", snapshot, "VBDs")
    call(lab, "VDI.data_destroy", snapshot)
    assert lab.db.field("VDI", snapshot, "VBDs") == []


def test_the_wait_of_data_destroy_can_be_cancelled(lab, monkeypatch):
    monkeypatch.setattr(cbt, "UNPLUG_SECONDS", 3600)
    snapshot = call(lab, "VDI.snapshot", tracked(lab))
    with attached(lab.pool, lab.pool.hosts[0], snapshot, "RO"):
        task = call(lab, "Async.VDI.data_destroy", snapshot)
        call(lab, "task.cancel", task)
        assert lab.finished(task)["status"] == "cancelled"
    assert lab.db.field("VDI", snapshot, "type") == "user"


def used(lab, sr):
    """The bytes the SR says are in use."""
    return lab.db.field("SR", lab.refs[sr], "physical_utilisation")


def test_data_destroy_keeps_the_record_and_the_log_and_frees_the_space(lab):
    live = tracked(lab, sr="thick")
    write(lab, live, 0, b"first" * 100_000)
    base = call(lab, "VDI.snapshot", live)
    write(lab, live, 2 * MIB, b"second" * 100_000)
    newer = call(lab, "VDI.snapshot", live)
    before, record = lab.content(newer), lab.db.get("VDI", base)
    blocks, files = changed(lab, base, newer), lab.pool.storage.used([record["uuid"]])
    call(lab, "SR.scan", lab.refs["thick"])
    full = used(lab, "thick")
    for _unused in range(2):
        call(lab, "VDI.data_destroy", base)
    now = lab.db.get("VDI", base)
    different = {name for name in record if now[name] != record[name]}
    assert different <= {"type", "physical_utilisation", "allowed_operations"} and now["type"] == "cbt_metadata"
    assert used(lab, "thick") == full - 4 * MIB and files > 0 == lab.pool.storage.used([record["uuid"]])
    assert changed(lab, base, newer) == blocks == set(range(32, 42))
    assert lab.content(newer) == before

    refused = ["VDI_INCOMPATIBLE_TYPE", base, "CBT metadata"]
    for name, *params in (("VDI.clone",), ("VDI.copy", lab.refs["nfs"]), ("VDI.snapshot",), ("VDI.resize", str(8 * MIB)),
                          ("VDI.set_on_boot", "persist"), ("VDI.get_nbd_info",)):
        assert error(lab, name, base, *params) == refused, name
    place = {"VM": lab.refs["web"], "VDI": base, "userdevice": "7", "bootable": False, "mode": "RO", "type": "Disk",
             "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
    assert error(lab, "VBD.create", place) == refused
    task = lab.task()
    lab.get("/export_raw_vdi", vdi=base, task_id=task)
    assert lab.error(task) == refused
    call(lab, "VDI.destroy", base)
    assert not lab.db.exists("VDI", base) and record["uuid"] not in lab.pool.storage


def test_copies_begin_without_a_log(lab):
    web, system = lab.refs["web"], lab.refs["system"]
    call(lab, "VDI.enable_cbt", system)
    taken = call(lab, "VM.snapshot", web, "x")
    snapshot = lab.disks_of(taken)[0]
    exported = lab.get("/export", ref=taken).body
    task = lab.task()
    lab.put("/import", exported, task_id=task, sr_id=lab.refs["nfs"])
    (imported,) = lab.result(task)
    copies = [call(lab, "VDI.clone", snapshot), call(lab, "VDI.copy", snapshot, lab.refs["nfs"])]
    copies += [lab.disks_of(vm)[0] for vm in (imported, call(lab, "VM.clone", web, "y"))]
    call(lab, "VM.revert", taken)
    copies.append(lab.disks_of(web)[0])
    for vdi in copies:
        await_let_go(lab, vdi)
        assert lab.db.field("VDI", vdi, "cbt_enabled") is False
        assert error(lab, "VDI.list_changed_blocks", snapshot, vdi)[0] == "SR_BACKEND_FAILURE_460"
    assert lab.db.field("VDI", snapshot, "cbt_enabled") is True


def test_what_a_disk_gained_counts_as_changed(lab):
    live = tracked(lab, MIB + 512)
    base = call(lab, "VDI.snapshot", live)
    call(lab, "VDI.resize", live, str(2 * MIB + 512))
    after = call(lab, "VDI.snapshot", live)
    raw = base64.b64decode(call(lab, "VDI.list_changed_blocks", base, after))
    assert len(raw) == 5 and changed(lab, base, after) == set(range(16, 33))
    assert error(lab, "VDI.set_on_boot", live, "reset") == ["VDI_CBT_ENABLED", live]


def test_every_way_to_write_is_seen(lab, tmp_path):
    uuid = lab.db.field("VDI", system := lab.refs["system"], "uuid")
    call(lab, "VDI.enable_cbt", system)
    base = call(lab, "VDI.snapshot", system)
    guest.write(lab.pool, lab.db.field("VM", lab.refs["web"], "uuid"), 0, 3 * BLOCK, b"guest")
    with lab.pool.storage.edit(uuid) as image, open(image, "r+b") as file:
        file.seek(40 * BLOCK)
        file.write(b"edited")
    mirrored = tmp_path / "image"
    mirrored.write_bytes(lab.content(system)[:50 * BLOCK])
    lab.pool.storage.mirror(uuid, mirrored)
    with mirrored.open("r+b") as file:
        file.seek(45 * BLOCK)
        file.write(b"outside")
    assert changed(lab, base, system) == {3, 40, 45}
    other = tracked(lab, 8 * MIB)
    empty = call(lab, "VDI.snapshot", other)
    task = lab.task()
    lab.put("/import_raw_vdi", b"z" * BLOCK, vdi=other, task_id=task)
    lab.result(task)
    await_let_go(lab, other)
    assert changed(lab, empty, other) == {0}
    call(lab, "VDI.copy", base, "OpaqueRef:NULL", "OpaqueRef:NULL", other)
    assert changed(lab, empty, other) == {*range(32), 80}


def test_a_crash_ends_the_log(lab):
    control = Control(World({"lab": lab.pool}, lab.pool.state_dir), lambda: None)
    live = tracked(lab)
    first, second = call(lab, "VDI.snapshot", live), call(lab, "VDI.snapshot", live)
    uuid = lab.db.field("VDI", live, "uuid")
    assert control.post(["disks", "lab", uuid, "lose_log"], {}) == {"cbt_enabled": False}
    assert lab.db.field("VDI", live, "cbt_enabled") is False
    (message,) = lab.db.find("message", name="VDI_CBT_METADATA_INCONSISTENT")
    assert (lab.db.field("message", message, "cls"), lab.db.field("message", message, "obj_uuid")) == ("VDI", uuid)
    assert error(lab, "VDI.list_changed_blocks", second, live)[0] == "SR_BACKEND_FAILURE_460"
    assert changed(lab, first, second) == set()
    for vdi in (live, first):
        with pytest.raises(ValueError):
            control.post(["disks", "lab", lab.db.field("VDI", vdi, "uuid"), "lose_log"], {})


@pytest.mark.trap(35)
def test_reading_a_log_takes_a_lesser_role_than_keeping_one(lab):
    account = lab.pool.accounts["operator"] = Account("operator", "operator", "vm-operator")
    session = open_session(lab.pool, lab.pool.hosts[0], account, "tests")
    live = tracked(lab)
    base = call(lab, "VDI.snapshot", live)
    assert call(lab, "VDI.list_changed_blocks", base, live, session=session) == "AAAAAAAAAAA="
    for name in ("VDI.enable_cbt", "VDI.data_destroy", "VDI.get_nbd_info"):
        assert error(lab, name, base, session=session)[:2] == ["RBAC_PERMISSION_DENIED", name.lower()]
