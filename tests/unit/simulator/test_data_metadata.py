# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""/export_metadata and /import_metadata of the simulator over real TLS."""

from __future__ import annotations

import io
import tarfile
from typing import Any
from xml.etree import ElementTree

import pytest
from poolbox.xmlvalue import from_element

NULL = "OpaqueRef:NULL"


def objects(body: bytes) -> list[dict[str, Any]]:
    tar = tarfile.open(fileobj=io.BytesIO(body))
    assert tar.getnames() == ["ova.xml"]
    document = tar.extractfile("ova.xml").read()  # type: ignore[union-attr]
    return list(from_element(ElementTree.fromstring(document))["objects"])


def of_class(body: bytes, cls: str) -> list[dict[str, Any]]:
    return [item["snapshot"] for item in objects(body) if item["class"] == cls]


def test_running_vm_keeps_its_state_and_its_snapshots(lab: Any) -> None:
    vm = lab.refs["web"]
    lab.db.set("VM", vm, power_state="Running", resident_on=lab.pool.hosts[0].ref)
    snapshot = lab.vm("before", is_a_snapshot=True, snapshot_of=vm)
    lab.db.set("VM", vm, parent=snapshot)
    answer = lab.get("/export_metadata", ref=vm)
    assert (answer.status, answer.version) == (200, 10)
    assert int(answer.headers["content-length"]) == len(answer.body) and answer.body.endswith(bytes(1024))
    records = {record["name_label"]: record for record in of_class(answer.body, "VM")}
    assert sorted(records) == ["before", "web"]
    assert records["web"]["power_state"] == "Running" and records["web"]["parent"].startswith("Ref:")
    assert records["before"]["is_a_snapshot"] and records["before"]["snapshot_of"].startswith("Ref:")
    (host,) = of_class(answer.body, "host")
    assert host["PBDs"] == [] and host["software_version"] == {} and host["metrics"] == NULL
    alone = lab.get("/export_metadata", ref=vm, export_snapshots="false").body
    assert [record["name_label"] for record in of_class(alone, "VM")] == ["web"]


def test_all_but_default_templates(lab: Any) -> None:
    lab.vm("template", is_a_template=True, is_default_template=True)
    for dom0s, count in (("true", 3), ("false", 1)):
        body = lab.get("/export_metadata", all="true", include_dom0=dom0s).body
        assert len(of_class(body, "VM")) == count


def test_devices_may_be_left_out(lab: Any) -> None:
    body = lab.get("/export_metadata", ref=lab.refs["web"], excluded_device_types="VIF,vbd").body
    assert not of_class(body, "VIF") and not of_class(body, "VBD") and not of_class(body, "VDI")
    assert of_class(body, "VM")[0]["VBDs"] == []


def test_failure_is_a_short_page(lab: Any) -> None:
    task = lab.task()
    answer = lab.get("/export_metadata", uuid="gone", task_id=task)
    assert answer.status == 500 and answer.headers == {"content-length": "0"}
    assert lab.error(task) == ["UUID_INVALID", "VM", "gone"]


def imported(lab: Any, body: bytes, **query: Any) -> list[str]:
    task = lab.task()
    assert lab.put("/import_metadata", body, task_id=task, **query).status == 200
    return list(lab.result(task))


def test_vm_over_disks_that_are_there(lab: Any) -> None:
    body = lab.get("/export_metadata", ref=lab.refs["web"]).body
    (vm,) = imported(lab, body)
    assert lab.disks_of(vm) == lab.disks_of(lab.refs["web"])
    assert lab.db.field("VM", vm, "name_label") == "web" and vm != lab.refs["web"]


def test_dry_run_makes_nothing(lab: Any) -> None:
    body = lab.get("/export_metadata", ref=lab.refs["web"]).body
    before = {cls: lab.db.count(cls) for cls in ("VM", "VBD", "VIF", "VM_metrics")}
    (vm,) = imported(lab, body, dry_run="true")
    assert vm.startswith("OpaqueRef:") and not lab.db.exists("VM", vm)
    assert {cls: lab.db.count(cls) for cls in before} == before


@pytest.mark.parametrize("known", [True, False])
def test_missing_disk(lab: Any, known: bool) -> None:
    body = lab.get("/export_metadata", ref=lab.refs["web"]).body
    old = lab.refs["data"]
    location = lab.db.field("VDI", old, "location")
    lab.db.set("VDI", old, location="elsewhere")
    if not known:
        lab.db.set("SR", lab.refs["nfs"], uuid="another")
    expected = ["VDI_LOCATION_MISSING", lab.refs["nfs"], location] if known else ["VDI_CONTENT_ID_MISSING"]
    task = lab.task()
    lab.put("/import_metadata", body, task_id=task)
    assert lab.error(task)[:1] == expected[:1]
    if known:
        assert lab.error(task) == expected
        (vm,) = imported(lab, body, force="true")
        assert lab.disks_of(vm) == [lab.refs["system"]]
        (vm,) = imported(lab, body, **{f"vdi:{lab.db.field('VDI', old, 'uuid')}": old})
        assert lab.disks_of(vm) == [lab.refs["system"], old]
