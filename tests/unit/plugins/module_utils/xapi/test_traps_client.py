# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of archives and snapshots that whoever backs up and restores must not fall into, in simulated pools."""

from __future__ import annotations

import io

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.engine import restore as engine
from ansible_collections.guestark.xen.plugins.module_utils.engine.archive import FileArchive
from ansible_collections.guestark.xen.plugins.module_utils.engine.description import canonical_labels, description_of
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import EngineError
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.xapi import inventory, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import XapiError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.transfers import export_vm, import_vm
from ansible_collections.guestark.xen.plugins.module_utils.xva.ova import Ova
from ansible_collections.guestark.xen.plugins.module_utils.xva.reader import XvaReader
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import MARK, connect


def exported(client, ref):
    with export_vm(client, ref) as export:
        data = export.readall()
        export.finish()
    return data


@pytest.fixture
def restored(client):
    """Restore an archive as the engine does; what was made goes with the test."""
    made = []

    def restore(data, name, to=client, **order):
        archive = FileArchive("test.xva", io.BytesIO(data), len(data))
        wanted = engine.RestoreOrder(name=name, macs="new", **order)
        ref = engine.restore(to, archive, wanted, engine.plan(to, archive, wanted), Progress(name))
        made.append((to, ref))
        return to.call("VM.get_record", ref)

    yield restore
    for where, ref in made:
        snapshots.remove(where, ref)


@pytest.mark.trap(15, 16)
def test_a_snapshot_is_restored_as_a_vm_as_often_as_one_likes(client, restored):
    web01 = inventory.find_vm(client, name="web01")
    snapshot = snapshots.take(client, web01, "taken", MARK).ref
    data = exported(client, snapshot)
    assert XvaReader(io.BytesIO(data)).ova.vm["is_a_template"] is True
    snapshots.remove(client, snapshot)
    for name in ("first", "second"):
        record = restored(data, name)
        assert (record["name_label"], record["is_a_template"], record["power_state"]) == (name, False, "Halted")


@pytest.mark.trap(15, 38)
def test_what_a_snapshot_lacks_is_taken_from_its_vm(client):
    web01 = inventory.find_vm(client, name="web01")
    client.call("VM.set_blocked_operations", web01["ref"], {"destroy": "in production"})
    snapshot = snapshots.take(client, web01, "taken", MARK).ref
    vm = client.call("VM.get_record", web01["ref"])
    client.call("VM.set_blocked_operations", web01["ref"], {})
    found = XvaReader(io.BytesIO(exported(client, snapshot))).ova
    snapshots.remove(client, snapshot)
    assert found.vm["blocked_operations"] == {}
    written = Ova.parse(description_of(found, canonical_labels(found), vm)).vm
    assert written["blocked_operations"] == {"destroy": "in production"}
    assert (written["is_a_template"], written["name_label"], written["uuid"]) == (False, "web01", vm["uuid"])


@pytest.mark.trap(18, 38)
def test_a_restored_vm_keeps_its_blocked_operations(client, restored):
    local01 = inventory.find_vm(client, name="local01")["ref"]
    client.call("VM.set_blocked_operations", local01, {"start": "not before the audit"})
    data = exported(client, local01)
    client.call("VM.set_blocked_operations", local01, {})
    assert restored(data, "again", sr="shared")["blocked_operations"] == {"start": "not before the audit"}


@pytest.mark.trap(18)
def test_no_network_is_made_up(client, restored):
    before = set(client.call("network.get_all"))
    snapshot = snapshots.take(client, inventory.find_vm(client, name="web01"), "taken", MARK).ref
    data = exported(client, snapshot)
    snapshots.remove(client, snapshot)
    with pytest.raises(EngineError, match="the pool has no network 'nowhere'"):
        restored(data, "again", networks={"dmz": "nowhere"})
    vm = restored(data, "again", networks={"dmz": "lan"})
    names = [client.call("network.get_name_label", client.call("VIF.get_network", vif)) for vif in vm["VIFs"]]
    assert names == ["lan", "lan"] and set(client.call("network.get_all")) == before


@pytest.fixture
def old(lab):
    with connect(lab, "old") as client:
        yield client


@pytest.mark.trap(17)
def test_an_older_release_takes_what_a_newer_one_exported(client, old, restored):
    data = exported(client, inventory.find_vm(client, name="local01")["ref"])
    with pytest.raises(XapiError) as refused:
        import_vm(old, inventory.find_sr(old, "local")[0], [data])
    assert refused.value.code == "IMPORT_INCOMPATIBLE_VERSION"
    assert restored(data, "from the newer pool", to=old, sr="local")["power_state"] == "Halted"


@pytest.mark.trap(22)
def test_a_checkpoint_goes_with_its_disks_and_its_memory(client):
    before = set(client.call("VDI.get_all"))
    taken = client.call("VM.checkpoint", inventory.find_vm(client, name="web01")["ref"], "with memory")
    assert client.call("VM.get_power_state", taken) == "Suspended"
    assert len(set(client.call("VDI.get_all")) - before) == 3
    assert exported(client, taken).endswith(bytes(1024))
    snapshots.remove(client, taken)
    assert set(client.call("VDI.get_all")) == before
