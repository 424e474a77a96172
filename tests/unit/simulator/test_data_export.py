# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /export of the simulator over real TLS: what a client sees, and what becomes of its task."""

from __future__ import annotations

import io
import select
import tarfile
import zlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
import xxhash
import zstandard
from poolbox.xmlvalue import from_element

MIB = 1 << 20
NULL = "OpaqueRef:NULL"


def members(body: bytes) -> dict[str, bytes]:
    tar = tarfile.open(fileobj=io.BytesIO(body))
    return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def document(body: bytes) -> Any:
    found = members(body)
    assert next(iter(found)) == "ova.xml"
    assert found["ova.xml"].startswith(b"<value><struct><member><name>version</name>")
    return from_element(ElementTree.fromstring(found["ova.xml"]))


def objects(body: bytes, cls: str) -> dict[str, Any]:
    return {item["id"]: item["snapshot"] for item in document(body)["objects"] if item["class"] == cls}


def rebuilt(body: bytes) -> dict[str, bytes]:
    """Every disk, put together from its members by their numbers."""
    sizes = {label: int(vdi["virtual_size"]) for label, vdi in objects(body, "VDI").items()}
    disks: dict[str, bytearray] = {}
    for name, data in members(body).items():
        label, _unused, number = name.partition("/")
        if number and "." not in number:
            disk = disks.setdefault(label, bytearray(sizes[label]))
            disk[int(number) * MIB:int(number) * MIB + len(data)] = data
    return {label: bytes(disk) for label, disk in disks.items()}


@pytest.mark.trap(19)
def test_whole_vm(lab: Any) -> None:
    task = lab.task()
    answer = lab.get("/export", ref=lab.refs["web"], task_id=task)
    assert (answer.status, answer.version, answer.clean) == (200, 10, True)
    assert answer.headers == {
        "connection": "close", "cache-control": "no-cache, no-store", "task-id": task, "server": "xapi/24.19",
        "content-type": "application/octet-stream", "content-disposition": 'attachment; filename="export.xva"',
    }
    assert lab.finished(task)["status"] == "success"
    assert lab.finished(task)["result"] == "" and lab.finished(task)["progress"] == 1.0
    disks = rebuilt(answer.body)
    assert sorted(disks.values()) == sorted(lab.content(lab.refs[name]) for name in ("system", "data"))
    assert list(disks) == sorted(disks), "in the order of the ids as text"
    assert answer.body.endswith(bytes(1024)) and len(answer.body) % 512 == 0


def test_the_end_of_the_connection_comes_a_moment_after_the_data(lab: Any) -> None:
    """Clients that hold back what is sent, and cannot bear its end meanwhile, live on that moment."""
    task = lab.task()
    connection = lab.connect()
    connection.request("GET", lab.target("/export", {"ref": lab.refs["web"], "task_id": task}))
    body, chunk = bytearray(), b"-"
    while chunk and (lab.db.field("task", task, "status") == "pending" or select.select([connection.sock], [], [], 0.1)[0]):
        chunk = connection.sock.recv(MIB)
        body += chunk
    assert body.endswith(bytes(1024)) and lab.finished(task)["status"] == "success"
    assert connection.sock.recv(1) == b""
    connection.close()


def test_slash_behind_the_path_and_uuid_do_as_well(lab: Any) -> None:
    answer = lab.get("/export/", uuid=lab.db.field("VM", lab.refs["web"], "uuid"))
    assert answer.status == 200 and len(rebuilt(answer.body)) == 2


@pytest.mark.parametrize("wanted", ["true", "gzip", "zstd", "false", "lzma"])
def test_compression(lab: Any, wanted: str) -> None:
    body = lab.get("/export", ref=lab.refs["web"], use_compression=wanted).body
    if wanted in ("true", "gzip"):
        body = zlib.decompress(body, 31)
    elif wanted == "zstd":
        body = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)).read()
    assert len(rebuilt(body)) == 2


@pytest.mark.trap(13)
def test_release_8_2_writes_its_own_headers(make_lab: Callable[[str], Any]) -> None:
    lab = make_lab("8.2")
    answer = lab.get("/export", ref=lab.refs["web"])
    assert answer.headers["server"] == "xapi/1.249"
    assert answer.body[100:108] == b"0000000\0" and answer.body[136:148] == b"00000000000\0"
    assert document(answer.body)["version"]["xapi_major"] == "1"
    assert [name for name in members(answer.body) if name.endswith(".xxhash")]


@pytest.mark.trap(15, 40)
def test_document_is_normalised(lab: Any) -> None:
    vm = lab.refs["web"]
    origin = lab.vm("origin")
    lab.db.set("VM", vm, is_a_snapshot=True, is_a_template=True, snapshot_of=origin, parent=origin,
               snapshot_time="20260101T00:00:00Z", snapshot_info={"power-state-at-snapshot": "Running"},
               appliance="OpaqueRef:elsewhere", blocked_operations={"start": "no"}, suspend_SR=lab.refs["nfs"])
    answer = lab.get("/export", ref=vm)
    version = document(answer.body)["version"]
    assert list(version) == ["hostname", "date", "product_version", "product_brand", "build_number", "xapi_major",
                             "xapi_minor", "export_vsn"]
    assert (version["xapi_major"], version["xapi_minor"], version["export_vsn"]) == ("24", "19", "2")
    (record,) = objects(answer.body, "VM").values()
    assert record["is_a_template"] is True, "left alone"
    assert record["snapshot_info"] == {"power-state-at-snapshot": "Running"}, "left in"
    assert record["is_a_snapshot"] is False and record["snapshots"] == []
    assert record["snapshot_of"] == record["parent"] == record["suspend_VDI"] == NULL
    assert record["snapshot_time"] == "19700101T00:00:00Z"
    assert record["power_state"] == "Halted"
    assert record["current_operations"] == {} and record["allowed_operations"] == []
    assert record["appliance"] == "OpaqueRef:elsewhere" and record["suspend_SR"] == lab.refs["nfs"]
    assert record["NVRAM"] == {"EFI-variables": "AAAA"} and record["tags"] == ["gold"]
    assert set(record) == set(lab.db.get("VM", vm)), "every field of the release"


@pytest.mark.trap(14)
def test_null_references_get_ids_that_dangle(lab: Any) -> None:
    body = lab.get("/export", ref=lab.refs["web"]).body
    (record,) = objects(body, "VM").values()
    assert record["resident_on"] == record["affinity"] == record["guest_metrics"]
    assert record["affinity"].startswith("Ref:")
    assert record["affinity"] not in {item["id"] for item in document(body)["objects"]}
    assert record["metrics"] in objects(body, "VM_metrics")
    assert set(record["VBDs"]) == set(objects(body, "VBD")) and len(record["VBDs"]) == 3
    (network,) = objects(body, "network").values()
    assert network["VIFs"] == record["VIFs"] == list(objects(body, "VIF")) and network["PIFs"] == []
    (sr,) = objects(body, "SR").values()
    assert set(sr["VDIs"]) == set(objects(body, "VDI")) and sr["PBDs"] == []


@pytest.mark.trap(14)
def test_ids_go_on_counting(lab: Any) -> None:
    first, second = ({int(item["id"][4:]) for item in document(lab.get("/export", ref=lab.refs["web"]).body)["objects"]}
                     for _unused in range(2))
    assert max(first) < min(second)


def test_order_of_classes(lab: Any) -> None:
    found = [item["class"] for item in document(lab.get("/export", ref=lab.refs["web"]).body)["objects"]]
    assert list(dict.fromkeys(found)) == ["VM", "VM_metrics", "VBD", "VIF", "network", "VDI", "SR"]


def test_cds_are_records_but_no_content(lab: Any) -> None:
    iso = lab.disk("tools.iso", MIB, (0, b"CD001"), sr="iso")
    cd = next(vbd for vbd in lab.db.field("VM", lab.refs["web"], "VBDs") if lab.db.field("VBD", vbd, "type") == "CD")
    lab.db.set("VBD", cd, VDI=iso, empty=False)
    lab.db.create("VBD", VM=lab.refs["web"], VDI=lab.disk("other.iso", MIB, sr="iso"), type="Disk", userdevice="4")
    body = lab.get("/export", ref=lab.refs["web"]).body
    assert len(objects(body, "VDI")) == 4 and len(rebuilt(body)) == 2
    assert sorted(sr["content_type"] for sr in objects(body, "SR").values()) == ["iso", "user"]


@pytest.mark.parametrize("preserve", ["true", "false"])
@pytest.mark.trap(15)
def test_memory_goes_along_only_when_asked(lab: Any, preserve: str) -> None:
    image = lab.disk("memory", 2 * MIB, (0, b"pages"), type="suspend")
    lab.db.set("VM", lab.refs["web"], power_state="Suspended", suspend_VDI=image)
    for vbd in lab.db.field("VM", lab.refs["web"], "VBDs"):
        lab.db.set("VBD", vbd, currently_attached=True)
    body = lab.get("/export", ref=lab.refs["web"], preserve_power_state=preserve).body
    (record,) = objects(body, "VM").values()
    attached = {vbd["currently_attached"] for vbd in objects(body, "VBD").values()}
    if preserve == "true":
        assert record["power_state"] == "Suspended" and attached == {True}
        assert rebuilt(body)[record["suspend_VDI"]] == lab.content(image)
    else:
        assert record["power_state"] == "Halted" and record["suspend_VDI"] == NULL and attached == {False}
        assert len(rebuilt(body)) == 2


def test_running_vm_is_refused(lab: Any) -> None:
    lab.db.set("VM", lab.refs["web"], power_state="Running")
    task = lab.task()
    answer = lab.get("/export", ref=lab.refs["web"], task_id=task)
    assert answer.status == 500 and b"VM_BAD_POWER_STATE" in answer.body
    assert lab.error(task)[0] == "VM_BAD_POWER_STATE"


def test_operation_and_dom0_show_while_it_runs(lab: Any) -> None:
    lab.pool.faults.add({"kind": "export"}, {"stall_at": 100_000})
    task = lab.task()
    connection = lab.connect()
    connection.request("GET", lab.target("/export", {"ref": lab.refs["web"], "task_id": task}))
    connection.getresponse().read(50_000)
    assert lab.db.field("VM", lab.refs["web"], "current_operations") == {task: "export"}
    dom0 = lab.db.field("host", lab.pool.hosts[0].ref, "control_domain")
    (vbd,) = lab.db.field("VM", dom0, "VBDs")
    assert lab.db.get("VBD", vbd)["currently_attached"] and lab.db.get("VBD", vbd)["mode"] == "RO"
    connection.close()
    assert lab.error(task)[0] == "CLIENT_ERROR"
    assert lab.db.field("VM", lab.refs["web"], "current_operations") == {}


@pytest.mark.trap(37)
def test_dom0_lets_go_a_moment_later(lab: Any) -> None:
    lab.get("/export", ref=lab.refs["web"])
    dom0 = lab.db.field("host", lab.pool.hosts[0].ref, "control_domain")
    assert len(lab.db.field("VM", dom0, "VBDs")) >= 1
    wait_until(lambda: lab.db.field("VM", dom0, "VBDs") == [])


def wait_until(true: Callable[[], bool]) -> None:
    import time
    for _unused in range(400):
        if true():
            return
        time.sleep(0.025)
    raise AssertionError("it never came true")


@pytest.mark.trap(3, 7)
def test_redirect_carries_path_and_query_only(lab: Any) -> None:
    vm = lab.vm("bound", lab.disk("here", MIB, sr="local"))
    task = lab.task()
    headers = {"Cookie": f"session_id={lab.session}; task_id={task}"}
    answer = lab.get("/export/", host=1, session_id=None, ref=vm, use_compression="zstd", headers=headers)
    assert answer.status == 302 and answer.body == b""
    assert set(answer.headers) == {"connection", "cache-control", "location"}
    first = lab.pool.hosts[0]
    assert answer.headers["location"] == f"https://{first.address}:{first.port}/export/?ref={vm}&use_compression=zstd"
    assert lab.db.field("task", task, "status") == "pending", "the second host completes it"
    assert lab.get("/export/", host=0, ref=vm).status == 200


@pytest.mark.trap(3)
def test_no_host_sees_the_storage(lab: Any) -> None:
    vm = lab.vm("adrift", lab.disk("there", MIB, sr="lost"))
    task = lab.task()
    answer = lab.get("/export", ref=vm, task_id=task)
    assert (answer.status, answer.body) == (0, b""), "not a byte"
    assert lab.error(task) == ["NO_HOSTS_AVAILABLE"]


@pytest.mark.parametrize("session", ["OpaqueRef:expired", None])
@pytest.mark.trap(3)
def test_bad_session_leaves_the_task_alone(lab: Any, session: str | None) -> None:
    task = lab.task()
    answer = lab.get("/export", ref=lab.refs["web"], task_id=task, session_id=session)
    assert answer.status == 401 and answer.headers["www-authenticate"] == 'Basic realm="VM.export"'
    assert lab.db.field("task", task, "status") == "pending"


def test_cookies_and_basic_do_as_well(lab: Any) -> None:
    before = lab.db.count("session")
    for headers in ({"Cookie": f"session_id={lab.session}"}, {"Authorization": "Basic cm9vdDpzZWNyZXQ="}):
        assert lab.get("/export", ref=lab.refs["web"], session_id=None, headers=headers).status == 200
    assert lab.db.count("session") == before


@pytest.mark.trap(4)
def test_without_a_task_none_stays(lab: Any) -> None:
    before = lab.db.count("task")
    assert lab.get("/export", ref=lab.refs["web"]).status == 200
    wait_until(lambda: lab.db.count("task") == before)


@pytest.mark.trap(2)
def test_late_error_is_glued_behind_the_200(lab: Any) -> None:
    for after, beginning in ((0, b""), (3000, None)):
        lab.pool.faults.add({"path": "/export", "vm": lab.db.field("VM", lab.refs["web"], "uuid")},
                            {"late_error": ["VDI_IO_ERROR", "Device I/O errors"], "after": after})
        task = lab.task()
        answer = lab.get("/export", ref=lab.refs["web"], task_id=task)
        assert answer.status == 200 and answer.clean
        glued = answer.body[after:]
        assert glued.startswith(b"HTTP/1.1 500 Internal Error\r\n")
        assert b"VDI_IO_ERROR: [ Device I/O errors ]" in glued
        assert beginning is None or answer.body[:after] == beginning
        assert lab.error(task) == ["VDI_IO_ERROR", "Device I/O errors"]


@pytest.mark.parametrize("silent", [True, False])
def test_task_may_fail_after_the_last_byte(lab: Any, silent: bool) -> None:
    fault = {"late_error": ["INTERNAL_ERROR", "late"], "after": "end", "silent": silent}
    lab.pool.faults.add({"kind": "export"}, fault)
    task = lab.task()
    body = lab.get("/export", ref=lab.refs["web"], task_id=task).body
    whole, _unused, page = body.partition(b"HTTP/1.1 500")
    assert len(rebuilt(whole)) == 2 and whole.endswith(bytes(1024)) and bool(page) != silent
    assert lab.error(task) == ["INTERNAL_ERROR", "late"]


def test_error_before_the_answer(lab: Any) -> None:
    lab.pool.faults.add({"kind": "export"}, {"error": ["OTHER_OPERATION_IN_PROGRESS", "VM.export", "x"]})
    task = lab.task()
    assert lab.get("/export", ref=lab.refs["web"], task_id=task).status == 500
    assert lab.error(task)[0] == "OTHER_OPERATION_IN_PROGRESS"


@pytest.mark.parametrize("reset", [True, False])
def test_cut(lab: Any, reset: bool) -> None:
    lab.pool.faults.add({"kind": "export"}, {"cut_at": 1_000_000, "reset": reset})
    task = lab.task()
    answer = lab.get("/export", ref=lab.refs["web"], task_id=task)
    assert answer.status == 200
    assert len(answer.body) <= 1_000_000 if reset else len(answer.body) == 1_000_000
    assert lab.error(task)[0] == "CLIENT_ERROR"
    assert lab.get("/export", ref=lab.refs["web"]).body.endswith(bytes(1024)), "once only"


def test_short_stall_harms_nothing(lab: Any) -> None:
    lab.pool.faults.add({"kind": "export"}, {"stall_at": 500_000, "seconds": 0.2})
    assert len(rebuilt(lab.get("/export", ref=lab.refs["web"]).body)) == 2


def test_corrupted_member(lab: Any) -> None:
    lab.pool.faults.add({"kind": "export"}, {"corrupt_chunk": 1})
    found = members(lab.get("/export", ref=lab.refs["web"]).body)
    sums = {name: data.decode() for name, data in found.items() if name.endswith(".xxhash")}
    wrong = [name for name, text in sums.items() if f"{xxhash.xxh64_intdigest(found[name[:-7]]):016X}" != text]
    assert wrong == [list(sums)[1]]


def test_sha1_and_keep_alives_on_request(lab: Any) -> None:
    vm = lab.vm("sparse", lab.disk("big", 64 * MIB, (40 * MIB, b"x")))
    lab.pool.faults.add({"kind": "export"}, {"checksum": "sha1", "keep_alive": 10})
    found = members(lab.get("/export", ref=vm).body)
    assert [name for name, data in found.items() if not data]
    assert [name for name, data in found.items() if name.endswith(".checksum") and len(data) == 40]


@pytest.mark.trap(6)
def test_cancelled_export_breaks_off(lab: Any) -> None:
    task = lab.task()
    lab.db.set("task", task, current_operations={task: "cancel"})
    lab.get("/export", ref=lab.refs["web"], task_id=task)
    assert lab.finished(task)["status"] == "cancelled"
    assert lab.finished(task)["error_info"] == ["TASK_CANCELLED", task]


def test_64_tib_disk(lab: Any) -> None:
    vm = lab.vm("huge", lab.disk("huge disk", 64 << 40, (5 << 40, b"x")))
    body = lab.get("/export", ref=vm).body
    assert len(body) < 8 * MIB and body.endswith(bytes(1024))
