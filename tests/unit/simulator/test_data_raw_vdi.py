# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""/export_raw_vdi and /import_raw_vdi of the simulator over real TLS."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
IO_ERROR = ["VDI_IO_ERROR", "Device I/O errors"]


@pytest.fixture
def noise() -> bytes:
    """Content of a disk of 5 MiB: noise, and a hole in it."""
    chance = random.Random(7)
    return chance.randbytes(2 * MIB) + bytes(2 * MIB) + chance.randbytes(MIB)


@pytest.fixture
def disk(lab: Any, noise: bytes) -> str:
    """A disk of 6 MiB that holds the noise."""
    return str(lab.disk("raw", 6 * MIB, (0, noise[:2 * MIB]), (4 * MIB, noise[4 * MIB:])))


def uuid(lab: Any, vdi: str) -> str:
    return str(lab.db.field("VDI", vdi, "uuid"))


def exported(lab: Any, vdi: str, **query: Any) -> bytes:
    task = lab.task()
    answer = lab.get("/export_raw_vdi", vdi=vdi, task_id=task, **query)
    assert answer.status == 200 and lab.result(task) is None
    return bytes(answer.body)


def put(lab: Any, body: bytes, **query: Any) -> str:
    """Upload; the task."""
    task = lab.task()
    assert lab.put("/import_raw_vdi", body, task_id=task, **query).status == 200
    return str(task)


@pytest.mark.parametrize(("form", "kind", "ending"), [
    (None, "octet-stream", "raw"), ("raw", "octet-stream", "raw"), ("VHD", "vhd", "vhd"), ("tar", "x-tar", "tar"),
])
def test_headers(lab: Any, disk: str, form: str | None, kind: str, ending: str) -> None:
    task = lab.task()
    answer = lab.get("/export_raw_vdi", vdi=uuid(lab, disk), format=form, task_id=task)
    assert (answer.status, answer.version) == (200, 11)
    assert answer.headers == {
        "connection": "close", "cache-control": "no-cache, no-store", "task-id": task,
        "content-type": f"application/{kind}",
        "content-disposition": f'attachment; filename="{uuid(lab, disk)}.{ending}"',
    }


def test_raw_is_the_whole_disk(lab: Any, disk: str) -> None:
    assert exported(lab, disk) == lab.content(disk)


def test_vhd_is_what_qemu_reads(lab: Any, disk: str, tmp_path: Path) -> None:
    image = tmp_path / "image.vhd"
    image.write_bytes(exported(lab, disk, format="vhd"))
    source = f"driver=vpc,force_size_calc=current_size,file.filename={image}"
    subprocess.run(["qemu-img", "convert", "--image-opts", source, "-O", "raw", str(tmp_path / "raw")], check=True)
    assert (tmp_path / "raw").read_bytes() == lab.content(disk)


def test_tar_members(lab: Any, disk: str) -> None:
    body = exported(lab, disk, format="tar")
    names = tarfile.open(fileobj=io.BytesIO(body)).getnames()
    assert names == [f"vdi/{n:08}{end}" for n in (0, 1, 4, 5) for end in ("", ".xxhash")]
    target = lab.disk("target", 6 * MIB)
    lab.result(put(lab, body, vdi=target, format="tar"))
    assert lab.content(target) == lab.content(disk)


def test_delta_since_a_snapshot(lab: Any, disk: str) -> None:
    snapshot = lab.disk("unused", 6 * MIB, is_a_snapshot=True)
    lab.pool.storage.destroy(uuid(lab, snapshot))
    lab.pool.storage.snapshot(uuid(lab, disk), uuid(lab, snapshot))
    before = lab.content(disk)
    with lab.pool.storage.open(uuid(lab, disk)) as handle:
        handle.pwrite(3 * MIB, b"newer")
    delta = exported(lab, disk, format="vhd", base=snapshot)
    assert int.from_bytes(delta[60:64]) == 4 and len(delta) < 3 * MIB
    target = lab.disk("target", 6 * MIB, (0, before))
    assert lab.result(put(lab, delta, vdi=target, format="vhd")) == target
    assert lab.content(target) == lab.content(disk)
    raw = exported(lab, disk, base=snapshot)
    assert raw.strip(b"\0") == b"newer", "a raw delta cannot say what is unchanged"


@pytest.mark.trap(2)
def test_attached_disk_fails_behind_the_200(lab: Any, disk: str) -> None:
    lab.vm("busy", disk, power_state="Running")
    lab.db.set("VBD", lab.db.field("VDI", disk, "VBDs")[0], currently_attached=True)
    for verb in ("export", "import"):
        task = lab.task()
        path = f"/{verb}_raw_vdi"
        answer = (lab.get(path, vdi=disk, task_id=task) if verb == "export"
                  else lab.put(path, b"", vdi=disk, task_id=task, finish=False))
        assert answer.status == 200
        assert answer.body.startswith(b"HTTP/1.1 500 Internal Error\r\n")
        assert b"<h1> Additional information </h1>VDI_IN_USE: [ " in answer.body
        assert lab.error(task)[:2] == ["VDI_IN_USE", disk]


def test_unknown_format(lab: Any, disk: str) -> None:
    for verb in ("export", "import"):
        task = lab.task()
        query = {"vdi": disk, "format": "qcow3", "task_id": task}
        path = f"/{verb}_raw_vdi"
        answer = lab.get(path, **query) if verb == "export" else lab.put(path, b"", finish=False, **query)
        assert (answer.status, answer.version) == (404, 10)
        assert lab.error(task) == ["INTERNAL_ERROR", "Unknown format qcow3"]


@pytest.mark.trap(3)
def test_unknown_disk_leaves_the_task_alone(lab: Any) -> None:
    for query in ({"vdi": "gone"}, {}):
        task = lab.task()
        assert lab.get("/export_raw_vdi", task_id=task, **query).status == 500
        assert lab.db.field("task", task, "status") == "pending"


@pytest.mark.trap(3)
def test_storage_nobody_sees(lab: Any) -> None:
    lost = lab.disk("there", MIB, sr="lost")
    task = lab.task()
    assert lab.get("/export_raw_vdi", vdi=lost, task_id=task).status == 500
    assert lab.db.field("task", task, "status") == "pending"
    answer = lab.put("/import_raw_vdi", b"", vdi=lost, task_id=task, finish=False)
    assert answer.status == 400 and answer.body.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert lab.error(task) == ["NO_HOSTS_AVAILABLE"]


@pytest.mark.trap(7)
def test_redirects(lab: Any) -> None:
    here = lab.disk("here", MIB, sr="local")
    for answer in (lab.get("/export_raw_vdi", host=1, vdi=here, format="vhd"),
                   lab.put("/import_raw_vdi", b"", host=1, vdi=here, format="vhd", finish=False)):
        assert answer.status == 302
        assert answer.headers["location"].startswith(lab.pool.hosts[0].url + "/")
        assert answer.headers["location"].endswith(f"_raw_vdi?session_id={lab.session}&vdi={here}&format=vhd")


def test_too_large_for_vhd(lab: Any) -> None:
    huge = lab.disk("huge", (2040 << 30) + 512)
    task = lab.task()
    lab.get("/export_raw_vdi", vdi=huge, format="vhd", task_id=task)
    assert lab.error(task) == ["VDI_TOO_LARGE", huge, str(2040 << 30)]


def test_raw_upload(lab: Any, noise: bytes) -> None:
    target = lab.disk("target", 6 * MIB, (5 * MIB, b"stays"), (2 * MIB, b"goes"))
    assert lab.result(put(lab, noise, vdi=target)) == target
    assert lab.content(target) == noise + b"stays" + bytes(MIB - 5)


def test_raw_upload_makes_a_disk(lab: Any, noise: bytes) -> None:
    made = lab.result(put(lab, noise, sr_id=lab.refs["local"]))
    record = lab.db.get("VDI", made)
    assert (record["name_label"], record["SR"]) == ("Imported VDI", lab.refs["local"])
    assert record["virtual_size"] == len(noise)
    assert lab.content(made) == noise


@pytest.mark.trap(8)
def test_private_chunks(lab: Any) -> None:
    target = lab.disk("target", 6 * MIB, (0, b"old"))
    records = [(4 * MIB, b"four" * 1000), (100, b"x" * (2 * MIB + 3)), (0, b"new")]
    body = b"".join(struct.pack("<QI", offset, len(data)) + data for offset, data in records) + bytes(12)
    expected = bytearray(6 * MIB)
    for offset, data in records:
        expected[offset:offset + len(data)] = data
    lab.result(put(lab, body, vdi=target, chunked="true", length=False))
    assert lab.content(target) == expected
    assert lab.error(put(lab, body[:-1], vdi=target, chunked="", length=False)) == IO_ERROR


@pytest.mark.parametrize(("query", "headers", "status", "text"), [
    ({"format": "vhd", "chunked": ""}, {}, 404, "Cannot handle chunked VHD"),
    ({}, {"Transfer-Encoding": "chunked"}, 404, "Cannot handle encoding: chunked"),
    ({"vdi": None, "sr_id": "nfs", "format": "vhd"}, {}, 400, "Importing a VHD directly into an SR not yet supported"),
    ({"vdi": None, "sr_id": "nfs"}, {}, 400, "Not enough info supplied to import"),
])
@pytest.mark.trap(8)
def test_uploads_refused_before_the_body(
    lab: Any, disk: str, query: dict[str, Any], headers: dict[str, str], status: int, text: str
) -> None:
    task = lab.task()
    given = {"vdi": disk} | query
    if "sr_id" in given:
        given["sr_id"] = lab.refs[given["sr_id"]]
    answer = lab.put("/import_raw_vdi", b"", length=False, finish=False, headers=headers, task_id=task, **given)
    assert (answer.status, answer.version) == (status, 10)
    assert lab.error(task) == ["INTERNAL_ERROR", text]


def test_upload_to_nowhere(lab: Any) -> None:
    task = lab.task()
    assert lab.put("/import_raw_vdi", b"", task_id=task, finish=False).status == 400
    assert lab.error(task) == ["VDI_MISSING"]


@pytest.mark.parametrize("form", ["raw", "vhd"])
def test_bad_uploads_are_device_errors(lab: Any, disk: str, noise: bytes, form: str) -> None:
    body = exported(lab, disk, format=form)
    small = lab.disk("small", 3 * MIB)
    assert lab.error(put(lab, body, vdi=small, format=form)) == IO_ERROR
    target = lab.disk("target", 6 * MIB)
    assert lab.error(put(lab, body[:-9000], vdi=target, format=form, length=len(body))) == IO_ERROR
    assert lab.error(put(lab, b"no image" * 1000, vdi=target, format="vhd")) == IO_ERROR


def test_snapshots_are_read_only(lab: Any) -> None:
    frozen = lab.disk("frozen", MIB, is_a_snapshot=True)
    task = lab.task()
    lab.put("/import_raw_vdi", b"", vdi=frozen, task_id=task)
    assert lab.error(task) == ["VDI_READONLY", frozen]


@pytest.mark.trap(41)
def test_volumes_that_are_not_zeroed_take_raw_only(lab: Any, disk: str) -> None:
    volume = lab.disk("volume", 6 * MIB, sr="thick")
    for form in ("vhd", "tar"):
        assert lab.error(put(lab, exported(lab, disk, format=form), vdi=volume, format=form)) == IO_ERROR
    lab.result(put(lab, exported(lab, disk), vdi=volume))
    assert lab.content(volume) == lab.content(disk)
    lab.db.set("SR", lab.refs["thick"], sm_config={"use_vhd": "true"})
    volume = lab.disk("second", 6 * MIB, sr="thick")
    lab.result(put(lab, exported(lab, disk, format="vhd"), vdi=volume, format="vhd"))
    assert lab.content(volume) == lab.content(disk)


@pytest.mark.parametrize(("fault", "code"), [
    ({"sr_full": True}, "VDI_IO_ERROR"), ({"sr_full": MIB}, "VDI_IO_ERROR"), ({"cut_at": 2 * MIB}, "VDI_IO_ERROR"),
    ({"late_error": ["SR_BACKEND_FAILURE_46", "", "gone", ""], "after": "end"}, "SR_BACKEND_FAILURE_46"),
])
def test_upload_faults(lab: Any, noise: bytes, fault: dict[str, Any], code: str) -> None:
    target = lab.disk("target", 6 * MIB)
    lab.pool.faults.add({"kind": "import_raw_vdi", "vdi": uuid(lab, target)}, fault)
    assert lab.error(put(lab, noise, vdi=target))[0] == code
    lab.result(put(lab, noise, vdi=target))


@pytest.mark.trap(37)
def test_dom0_holds_the_disk_and_lets_go_later(lab: Any, disk: str) -> None:
    exported(lab, disk)
    (vbd,) = lab.db.field("VDI", disk, "VBDs")
    assert lab.db.get("VBD", vbd)["currently_attached"]
    for _unused in range(200):
        if not lab.db.field("VDI", disk, "VBDs"):
            return
        time.sleep(0.025)
    raise AssertionError("dom0 never let go")
