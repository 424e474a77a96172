# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PUT /import of the simulator over real TLS: mapping rules, refusals, and that failure leaves nothing."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import time
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from poolbox.tpm import get_contents, set_contents
from poolbox.v7tar import header
from poolbox.xmlvalue import to_xml

MIB = 1 << 20
NULL = "OpaqueRef:NULL"
CLASSES = ("VM", "VM_metrics", "VM_guest_metrics", "VBD", "VIF", "VDI", "network")


@pytest.fixture
def xva(lab: Any) -> bytes:
    """The archive of the laboratory's VM."""
    return bytes(lab.get("/export", ref=lab.refs["web"]).body)


def edited(archive: bytes, pattern: str, replacement: str) -> bytes:
    """An archive with ova.xml changed, its header made anew."""
    size = int(archive[124:135], 8)
    text = re.sub(pattern, replacement, archive[512:512 + size].decode(), flags=re.DOTALL)
    document = text.encode()
    head = bytearray(archive[:512])
    head[124:136] = b"%011o\0" % len(document)
    head[148:156] = b" " * 8
    head[148:156] = b"%07o\0" % sum(head)
    rest = archive[512 + size + (-size % 512):]
    return bytes(head) + document + bytes(-len(document) % 512) + rest


def census(lab: Any) -> dict[str, int]:
    """How many objects there are, dom0's disks aside."""
    counts = {cls: lab.db.count(cls) for cls in CLASSES if cls != "VBD"}
    return counts | {"VBD": sum(lab.db.field("VBD", vbd, "userdevice") != "autodetect" for vbd in lab.db.refs("VBD"))}


def imported(lab: Any, archive: bytes, **query: Any) -> str:
    task = lab.task()
    answer = lab.put("/import", archive, task_id=task, **query)
    assert answer.status == 200
    (vm,) = lab.result(task)
    return str(vm)


def failed(lab: Any, archive: bytes, **query: Any) -> list[str]:
    """The error of an import that has to fail, and to leave nothing."""
    before, files = census(lab), sorted(lab.pool.storage._volumes)
    task = lab.task()
    assert lab.put("/import", archive, task_id=task, **query).status == 200
    error = lab.error(task)
    assert census(lab) == before
    assert sorted(lab.pool.storage._volumes) == files
    return list(error)


def test_disks_come_back_equal(lab: Any, xva: bytes) -> None:
    vm = imported(lab, xva, sr_id=lab.refs["local"])
    originals = [lab.content(disk) for disk in lab.disks_of(lab.refs["web"])]
    assert [lab.content(disk) for disk in lab.disks_of(vm)] == originals
    assert {lab.db.field("VDI", disk, "SR") for disk in lab.disks_of(vm)} == {lab.refs["local"]}


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compression_is_detected(lab: Any, xva: bytes, pack: Callable[[bytes], bytes]) -> None:
    vm = imported(lab, pack(xva), use_compression="ignored")
    assert len(lab.disks_of(vm)) == 2


@pytest.mark.trap(1)
def test_answer_comes_before_the_body_is_read(lab: Any, xva: bytes) -> None:
    task = lab.task()
    connection = lab.connect()
    connection.putrequest("PUT", lab.target("/import", {"task_id": task}))
    connection.endheaders()
    head = connection.sock.recv(65536).decode()
    assert head.startswith("HTTP/1.1 200 OK\r\n") and f"task-id: {task}" in head and "Content-Length" not in head
    connection.sock.sendall(xva[:1_500_000])
    wait_until(lambda: lab.db.field("task", task, "other_config").get("object_creation") == "complete")
    (vm,) = lab.db.find("VM", current_operations={task: "import"})
    assert lab.db.field("VM", vm, "other_config")["import_task"] == task
    assert lab.db.field("task", task, "status") == "pending"
    connection.sock.sendall(xva[1_500_000:])
    assert lab.result(task) == [vm]
    assert lab.db.field("VM", vm, "current_operations") == {}
    connection.close()


def wait_until(true: Callable[[], bool]) -> None:
    for _unused in range(400):
        if true():
            return
        time.sleep(0.025)
    raise AssertionError("it never came true")


def test_new_vm_by_default(lab: Any, xva: bytes) -> None:
    source = lab.db.get("VM", lab.refs["web"])
    vm = imported(lab, xva)
    record = lab.db.get("VM", vm)
    assert record["uuid"] != source["uuid"] and record["version"] == 0
    assert record["name_label"] == "web" and record["tags"] == ["gold"] and record["NVRAM"] == source["NVRAM"]
    assert record["other_config"]["mac_seed"] != source["other_config"]["mac_seed"]
    assert record["power_state"] == "Halted" and record["blocked_operations"] == {} and record["appliance"] == NULL
    (vif,) = (lab.db.get("VIF", ref) for ref in record["VIFs"])
    assert vif["MAC"] != "02:00:00:00:00:01" and vif["network"] == lab.refs["network"] and vif["device"] == "0"
    vbds = sorted((lab.db.get("VBD", ref) for ref in record["VBDs"]), key=lambda vbd: vbd["userdevice"])
    assert [(vbd["userdevice"], vbd["type"], vbd["empty"]) for vbd in vbds] == [
        ("0", "Disk", False), ("1", "Disk", False), ("3", "CD", True)]
    assert vbds[0]["bootable"] and vbds[2]["VDI"] == NULL
    assert lab.db.exists("VM_metrics", record["metrics"]) and record["metrics"] != source["metrics"]
    for vbd, original in zip(vbds, source["VBDs"], strict=True):
        assert vbd["uuid"] != lab.db.field("VBD", original, "uuid")


@pytest.mark.trap(16)
def test_restore_keeps_identity_but_not_disks(lab: Any, xva: bytes) -> None:
    source = lab.db.get("VM", lab.refs["web"])
    vif = lab.db.get("VIF", source["VIFs"][0])
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
        for ref in source[field]:
            lab.db.destroy(cls, ref)
    lab.db.destroy("VM", lab.refs["web"])
    record = lab.db.get("VM", imported(lab, xva, restore="true"))
    assert record["uuid"] == source["uuid"] and record["version"] == source["version"] + 1
    assert record["other_config"]["mac_seed"] == source["other_config"]["mac_seed"]
    restored = lab.db.get("VIF", record["VIFs"][0])
    assert (restored["MAC"], restored["uuid"]) == (vif["MAC"], vif["uuid"])
    old = {lab.db.field("VDI", lab.refs[name], "uuid") for name in ("system", "data")}
    new = {lab.db.field("VDI", disk, "uuid") for disk in lab.disks_of(lab.db.find("VM", uuid=source["uuid"])[0])}
    assert len(new) == 2 and not new & old


@pytest.mark.trap(16)
def test_restore_over_the_same_version_is_refused(lab: Any, xva: bytes) -> None:
    vm = lab.refs["web"]
    assert failed(lab, xva, restore="true") == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", vm, "0", "0"]
    lab.db.set("VM", vm, power_state="Running")
    assert failed(lab, xva, restore="true") == ["VM_BAD_POWER_STATE", vm, "Halted", "Running"]


@pytest.mark.trap(16)
def test_forced_restore_replaces_and_leaks_the_old_disks(lab: Any, xva: bytes) -> None:
    old = lab.disks_of(lab.refs["web"])
    uuid = lab.db.field("VM", lab.refs["web"], "uuid")
    vm = imported(lab, xva, restore="true", force="true")
    assert vm != lab.refs["web"] and lab.db.find("VM", uuid=uuid) == [vm]
    assert all(lab.db.exists("VDI", disk) for disk in old)


@pytest.mark.trap(16)
def test_restore_of_a_snapshot_beside_its_vm(lab: Any, xva: bytes) -> None:
    lab.db.set("VM", lab.refs["web"], uuid="00000000-0000-0000-0000-000000000001")
    assert failed(lab, xva, restore="true") == ["DUPLICATE_MAC_SEED", "seed of web"]


@pytest.mark.trap(15)
def test_archive_of_a_snapshot_becomes_a_template(lab: Any) -> None:
    lab.db.set("VM", lab.refs["web"], is_a_template=True, is_a_snapshot=True, generation_id="1:2")
    record = lab.db.get("VM", imported(lab, lab.get("/export", ref=lab.refs["web"]).body))
    assert record["is_a_template"] and not record["is_a_snapshot"] and record["generation_id"] == "1:2"


def test_generation_id_is_renewed(lab: Any) -> None:
    for given, same in (("1:2", False), ("", True)):
        lab.db.set("VM", lab.refs["web"], generation_id=given)
        vm = imported(lab, lab.get("/export", ref=lab.refs["web"]).body)
        assert (lab.db.field("VM", vm, "generation_id") == given) == same


@pytest.mark.trap(18)
def test_networks_by_name_then_bridge_then_new(lab: Any, xva: bytes) -> None:
    def network_of(vm: str) -> str:
        return str(lab.db.field("VIF", lab.db.field("VM", vm, "VIFs")[0], "network"))
    other = lab.db.create("network", name_label="office", bridge="xapi7")
    lab.db.set("network", lab.refs["network"], name_label="renamed")
    assert network_of(imported(lab, xva)) == other
    lab.db.set("network", other, name_label="renamed too")
    assert network_of(imported(lab, xva)) == lab.refs["network"]
    lab.db.set("network", lab.refs["network"], bridge="xenbr9")
    made = lab.db.get("network", network_of(imported(lab, xva)))
    assert made["name_label"] == "office" and made["PIFs"] == []


def test_cd_is_found_by_location_or_left_empty(lab: Any) -> None:
    iso = lab.disk("tools.iso", MIB, sr="iso")
    lab.db.set("VDI", iso, location="tools.iso")
    (cd,) = (vbd for vbd in lab.db.field("VM", lab.refs["web"], "VBDs") if lab.db.field("VBD", vbd, "type") == "CD")
    lab.db.set("VBD", cd, VDI=iso, empty=False)
    archive = lab.get("/export", ref=lab.refs["web"]).body

    def drive(vm: str) -> tuple[str, bool]:
        vbds = (lab.db.get("VBD", ref) for ref in lab.db.field("VM", vm, "VBDs"))
        return next((vbd["VDI"], vbd["empty"]) for vbd in vbds if vbd["type"] == "CD")
    assert drive(imported(lab, archive)) == (iso, False)
    lab.db.set("VDI", iso, location="gone.iso")
    assert drive(imported(lab, archive)) == (NULL, True)


@pytest.mark.trap(15)
def test_memory_comes_back(lab: Any) -> None:
    image = lab.disk("memory", 2 * MIB, (0, b"pages"), type="suspend")
    lab.db.set("VM", lab.refs["web"], power_state="Suspended", suspend_VDI=image)
    archive = lab.get("/export", ref=lab.refs["web"], preserve_power_state="true").body
    record = lab.db.get("VM", imported(lab, archive))
    assert record["power_state"] == "Suspended" and lab.content(record["suspend_VDI"])[:5] == b"pages"
    assert lab.db.field("VDI", record["suspend_VDI"], "type") == "suspend"


def test_snapshot_alone_of_a_real_vm(lab: Any, xva: bytes) -> None:
    archive = edited(xva, r"<name>xapi_major</name><value>24</value>", "<name>xapi_major</name><value>1</value>")
    assert imported(lab, archive)


@pytest.mark.parametrize(("release", "major", "minor", "taken"), [
    ("8.3", 24, 19, True), ("8.3", 24, 20, False), ("8.3", 26, 1, False), ("8.3", 1, 20, True),
    ("8.2", 1, 249, True), ("8.2", 1, 20, True), ("8.2", 24, 19, False),
])
@pytest.mark.trap(17)
def test_version_rules(make_lab: Callable[[str], Any], release: str, major: int, minor: int, taken: bool) -> None:
    lab = make_lab(release)
    archive = lab.get("/export", ref=lab.refs["web"]).body
    for name, number in (("xapi_major", major), ("xapi_minor", minor)):
        archive = edited(archive, f"(<name>{name}</name><value>)[0-9]+", rf"\g<1>{number}")
    if taken:
        assert imported(lab, archive)
    else:
        assert failed(lab, archive) == ["IMPORT_INCOMPATIBLE_VERSION"]


@pytest.mark.trap(17)
def test_8_3_takes_archives_of_8_2(make_lab: Callable[[str], Any]) -> None:
    older, newer = make_lab("8.2"), make_lab("8.3")
    archive = older.get("/export", ref=older.refs["web"]).body
    vm = imported(newer, archive)
    assert [newer.content(disk) for disk in newer.disks_of(vm)] == [
        older.content(disk) for disk in older.disks_of(older.refs["web"])]


@pytest.mark.trap(19)
def test_every_cut_is_noticed_and_cleaned_up(lab: Any, xva: bytes) -> None:
    for cut in (100, 3000, len(xva) // 3, len(xva) - 2000):
        assert failed(lab, xva[:cut], length=False) == ["IMPORT_ERROR_PREMATURE_EOF"]


def test_damaged_block(lab: Any, xva: bytes) -> None:
    spoilt = bytearray(xva)
    spoilt[len(xva) // 2] ^= 1
    error = failed(lab, bytes(spoilt))
    assert error[0] == "IMPORT_ERROR" and "Invalid_checksum" in error[1]
    assert imported(lab, bytes(spoilt), force="true")


def test_missing_object(lab: Any, xva: bytes) -> None:
    archive = edited(xva, "<value>SR</value>", "<value>secret</value>")
    error = failed(lab, archive)
    assert error[0] == "IMPORT_ERROR_FAILED_TO_FIND_OBJECT" and error[1].startswith("Ref:")


@pytest.mark.parametrize("spoil", ["<value>", "<name>version</name>", "<name>virtual_size<"])
def test_document_that_makes_no_sense(lab: Any, xva: bytes, spoil: str) -> None:
    assert failed(lab, edited(xva, spoil, "<x>"))[0] == "IMPORT_ERROR"


def test_attached_disk_without_content(lab: Any, xva: bytes) -> None:
    one = r"(<value>VBD</value>.{0,200}?<name>id</name>.*?<name>currently_attached</name><value><boolean>)0"
    archive = edited(edited(xva, one, r"\g<1>1"), "<name>content_type</name><value>user</value>",
                     "<name>content_type</name><value>iso</value>")
    assert failed(lab, archive) == ["IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND"]


def test_thick_sr_without_room(lab: Any, xva: bytes) -> None:
    lab.db.set("SR", lab.refs["thick"], physical_size=4 * MIB)
    error = failed(lab, xva, sr_id=lab.refs["thick"])
    assert error == ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]


def test_thin_sr_fills_up_on_the_way(lab: Any, xva: bytes) -> None:
    lab.db.set("SR", lab.refs["local"], physical_size=2 * MIB)
    assert failed(lab, xva, sr_id=lab.refs["local"]) == ["VDI_IO_ERROR", "Device I/O errors"]


def test_sr_usage_is_told(lab: Any, xva: bytes) -> None:
    imported(lab, xva, sr_id=lab.refs["local"])
    sr = lab.db.get("SR", lab.refs["local"])
    assert sr["virtual_allocation"] == 8 * MIB + 512
    assert 2 * MIB < sr["physical_utilisation"] < 5 * MIB


@pytest.mark.parametrize(("fault", "code"), [
    ({"sr_full": True}, "SR_BACKEND_FAILURE_44"), ({"sr_full": MIB}, "VDI_IO_ERROR"),
    ({"cut_at": 1_000_000}, "IMPORT_ERROR_PREMATURE_EOF"),
    ({"late_error": ["SR_FULL", "1", "2"], "after": 1_000_000}, "SR_FULL"),
    ({"late_error": ["INTERNAL_ERROR", "late"], "after": "end"}, "INTERNAL_ERROR"),
])
def test_faults(lab: Any, xva: bytes, fault: dict[str, Any], code: str) -> None:
    lab.pool.faults.add({"kind": "import"}, fault)
    assert failed(lab, xva)[0] == code


def test_error_before_the_answer(lab: Any, xva: bytes) -> None:
    lab.pool.faults.add({"path": "/import"}, {"error": ["SR_FULL", "1", "2"]})
    task = lab.task()
    assert lab.put("/import", xva, task_id=task).status == 500
    assert lab.error(task) == ["SR_FULL", "1", "2"]


@pytest.mark.trap(1)
def test_failure_is_glued_behind_the_200(lab: Any) -> None:
    answer = lab.put("/import", b"no archive at all".ljust(600), finish=False)
    assert answer.status == 200 and answer.body.startswith(b"HTTP/1.1 500 Internal Error\r\n")


@pytest.mark.trap(13)
def test_first_member(lab: Any, xva: bytes) -> None:
    wrong = bytearray(xva)
    wrong[0:7] = b"ova.xmk"
    wrong[148:155] = b"%07o" % (int(xva[148:155], 8) - 1)
    assert failed(lab, bytes(wrong)) == ["IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", "ova.xmk"]


@pytest.mark.trap(3)
def test_default_sr_and_none(lab: Any, xva: bytes) -> None:
    vm = imported(lab, xva)
    assert lab.db.field("VDI", lab.disks_of(vm)[0], "SR") == lab.refs["nfs"]
    lab.db.set("pool", lab.pool.ref, default_SR=NULL)
    task = lab.task()
    answer = lab.put("/import", b"", task_id=task, finish=False)
    assert answer.status == 500 and b"DEFAULT_SR_NOT_FOUND" in answer.body
    assert lab.db.field("task", task, "status") == "pending"


@pytest.mark.trap(3)
def test_invalid_sr_leaves_the_task_alone(lab: Any) -> None:
    task = lab.task()
    assert lab.put("/import", b"", task_id=task, finish=False, sr_id="OpaqueRef:gone").status == 500
    assert lab.put("/import", b"", task_id=task, finish=False, sr_uuid="gone").status == 500
    assert lab.db.field("task", task, "status") == "pending"


@pytest.mark.trap(7)
def test_redirect_and_probe_without_a_body(lab: Any) -> None:
    answer = lab.put("/import", b"", host=1, finish=False, sr_id=lab.refs["local"])
    first = lab.pool.hosts[0]
    assert answer.status == 302 and answer.body == b""
    assert answer.headers["location"].startswith(f"https://{first.address}:{first.port}/import?session_id=OpaqueRef:")
    assert answer.headers["location"].endswith(f"&sr_id={lab.refs['local']}")


@pytest.mark.parametrize(("change", "headers", "status", "code"), [
    ({"sr": "iso"}, {}, 400, "SR_OPERATION_NOT_SUPPORTED"),
    ({"upgrade": True}, {}, 400, "NOT_SUPPORTED_DURING_UPGRADE"),
    ({}, {"Transfer-Encoding": "chunked"}, 403, "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"),
])
@pytest.mark.trap(8)
def test_refused_before_reading(
    lab: Any, change: dict[str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    if "upgrade" in change:
        lab.db.set("pool", lab.pool.ref, other_config={"rolling_upgrade_in_progress": "true"})
    task = lab.task()
    answer = lab.put("/import", b"", length=False, finish=False, headers=headers, task_id=task,
                     sr_id=lab.refs[change.get("sr", "nfs")])
    assert answer.status == status
    assert lab.error(task) == [code]


@pytest.mark.trap(9)
def test_compressed_without_length_waits_for_the_client(lab: Any, xva: bytes) -> None:
    task = lab.task()
    connection = lab.connect()
    connection.putrequest("PUT", lab.target("/import", {"task_id": task}))
    connection.putheader("Content-Length", str(1 << 50))
    connection.endheaders()
    connection.send(gzip.compress(xva))
    wait_until(lambda: any(lab.db.find("VM", current_operations={})) and lab.db.count("VDI") >= 4)
    time.sleep(0.3)
    assert lab.db.field("task", task, "status") == "pending"
    connection.close()
    assert len(lab.result(task)) == 1


def test_tpm_travels(lab: Any) -> None:
    tpm = lab.db.create("VTPM", VM=lab.refs["web"], is_protected=True)
    set_contents(tpm, "c3RhdGU=")
    archive = lab.get("/export", ref=lab.refs["web"]).body
    vm = imported(lab, archive)
    (made,) = lab.db.field("VM", vm, "VTPMs")
    assert lab.db.get("VTPM", made)["is_protected"] and made != tpm and get_contents(made) == "c3RhdGU="
    lab.db.set("pool", lab.pool.ref, restrictions={"restrict_vtpm": "true"})
    assert failed(lab, archive) == ["FEATURE_RESTRICTED"]


@pytest.mark.trap(31)
def test_vendor_device_needs_a_licence(lab: Any) -> None:
    lab.db.set("VM", lab.refs["web"], has_vendor_device=True)
    archive = lab.get("/export", ref=lab.refs["web"]).body
    assert imported(lab, archive)
    lab.db.set("pool", lab.pool.ref, restrictions={"restrict_pci_device_for_auto_update": "true"})
    assert failed(lab, archive) == ["LICENCE_RESTRICTION", "PCI_device_for_auto_update"]


@pytest.mark.parametrize("right", [True, False])
def test_table_at_the_end_of_old_archives(lab: Any, xva: bytes, right: bool) -> None:
    archive = edited(xva, "(<name>export_vsn</name><value>)2", r"\g<1>1")
    tar = tarfile.open(fileobj=io.BytesIO(archive))
    sums = {name.removesuffix(".xxhash"): tar.extractfile(name).read().decode() if right else "0"  # type: ignore[union-attr]
            for name in tar.getnames() if name.endswith(".xxhash")}
    table = to_xml(sums).encode()
    old = archive[:-1024] + header("checksum.xml", len(table), 0) + table + bytes(-len(table) % 512 + 1024)
    if right:
        assert imported(lab, old)
    else:
        assert failed(lab, old) == ["IMPORT_ERROR_SOME_CHECKSUMS_FAILED"]
        assert imported(lab, old, force="true")
