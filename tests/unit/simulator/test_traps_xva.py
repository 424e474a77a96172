# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of archives: what an import drops, what it cannot notice, and what an export leaves as it was."""

from __future__ import annotations

import io
import tarfile
from typing import Any
from xml.etree import ElementTree

import pytest
from poolbox.v7tar import header
from poolbox.xmlvalue import from_element

MIB = 1 << 20
NULL = "OpaqueRef:NULL"


def exported(lab: Any) -> bytes:
    return bytes(lab.get("/export", ref=lab.refs["web"]).body)


def put(lab: Any, archive: bytes, **query: Any) -> str:
    """Import; the task."""
    task = str(lab.task())
    assert lab.put("/import", archive, task_id=task, **query).status == 200
    return task


def members(archive: bytes) -> dict[str, bytes]:
    tar = tarfile.open(fileobj=io.BytesIO(archive))
    return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def packed(found: dict[str, bytes]) -> bytes:
    parts = [part for name, data in found.items() for part in (header(name, len(data), 0o400, 0), data, bytes(-len(data) % 512))]
    return b"".join(parts) + bytes(1024)


@pytest.mark.trap(18)
def test_blocked_operations_the_appliance_and_the_storage_of_each_disk_are_lost(lab: Any) -> None:
    appliance = lab.db.create("VM_appliance", name_label="shop")
    lab.db.set("VM", lab.refs["web"], blocked_operations={"start": "being restored"}, appliance=appliance)
    lab.db.set("VDI", lab.refs["data"], SR=lab.refs["local"])
    (vm,) = lab.result(put(lab, exported(lab), sr_id=lab.refs["thick"]))
    record = lab.db.get("VM", vm)
    assert (record["blocked_operations"], record["appliance"]) == ({}, NULL)
    assert lab.db.exists("VM_appliance", appliance)
    assert {lab.db.field("VDI", disk, "SR") for disk in lab.disks_of(vm)} == {lab.refs["thick"]}


@pytest.mark.trap(19)
def test_nothing_vouches_for_the_description(lab: Any) -> None:
    found = members(exported(lab))
    assert not [name for name in found if name.startswith("ova.xml.")] and "checksum.xml" not in found
    found["ova.xml"] = found["ova.xml"].replace(b"<value>gold</value>", b"<value>lead</value>")
    (vm,) = lab.result(put(lab, packed(found)))
    assert lab.db.field("VM", vm, "tags") == ["lead"]


@pytest.mark.trap(19)
def test_a_chunk_that_is_missing_is_noticed_only_at_the_end_of_a_disk(lab: Any) -> None:
    web = lab.content(lab.refs["system"])
    assert web[MIB:2 * MIB] != bytes(MIB)
    found = members(exported(lab))
    (first,) = {name.partition("/")[0] for name in found if name.endswith("/00000005")}  # the larger disk

    def without(number: int) -> dict[str, bytes]:
        return {name: data for name, data in found.items() if not name.startswith(f"{first}/{number:08}")}

    (vm,) = lab.result(put(lab, packed(without(1))))
    assert lab.content(lab.disks_of(vm)[0]) == web[:MIB] + bytes(MIB) + web[2 * MIB:]
    assert lab.error(put(lab, packed(without(5))))[0].startswith("IMPORT_ERROR")


@pytest.mark.trap(40)
def test_what_is_not_exported_keeps_its_reference_into_the_source_pool(lab: Any) -> None:
    web = lab.refs["web"]
    child = lab.vm("child", parent=web)
    lab.db.set("VM", web, attached_PCIs=["OpaqueRef:pci"], snapshot_metadata="('object' ('class' 'VM'))")
    archive = exported(lab)
    (record,) = [item["snapshot"] for item in from_element(ElementTree.fromstring(members(archive)["ova.xml"]))["objects"]
                 if item["class"] == "VM"]
    assert record["children"] == [child] and record["attached_PCIs"] == ["OpaqueRef:pci"]
    assert record["snapshot_metadata"] == "('object' ('class' 'VM'))"
    (vm,) = lab.result(put(lab, archive))
    assert lab.db.field("VM", vm, "children") == []
