# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports and imports of simulated pools."""

from __future__ import annotations

import io
import tarfile
import time

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import inventory, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    OutcomeUnknown,
    TransferError,
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.transfers import export_vm, import_vm
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import (
    MARK,
    MIB,
    connect,
    fault,
    state,
)


def members_xva(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def read(client, ref, **options):
    with export_vm(client, ref, **options) as export:
        data = export.readall()
        export.finish()
    return data


@pytest.fixture
def snapshot(client):
    ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "exported", MARK).ref
    yield ref
    snapshots.remove(client, ref)


def test_an_export_is_whole(client, snapshot):
    data = read(client, snapshot)
    assert data[-1024:] == bytes(1024)
    names = members_xva(data)
    assert names[0] == "ova.xml" and any(name.endswith("/00000000") for name in names)


def test_an_export_is_imported_again(client, lab, snapshot):
    data = read(client, snapshot)
    sr = inventory.find_sr(client, "shared")[0]
    for length in (None, len(data)):
        refs = import_vm(client, sr, (data[i:i + 3 * MIB] for i in range(0, len(data), 3 * MIB)), length=length)
        assert [client.call("VM.get_name_label", ref) for ref in refs] == ["exported"]
        for ref in refs:
            snapshots.remove(client, ref)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.trap(9)
def test_compressed_both_ways(client, snapshot, compression):
    data = read(client, snapshot, compression=compression)
    assert data[:4] == (b"\x28\xb5\x2f\xfd" if compression == "zstd" else data[:4])
    sr = inventory.find_sr(client, "shared")[0]
    for length in (None, len(data)):
        (ref,) = import_vm(client, sr, [data], length=length)
        snapshots.remove(client, ref)


@pytest.mark.trap(7, 10)
def test_transfers_follow_the_storage_to_another_host(client):
    local01 = inventory.find_vm(client, name="local01")
    data = read(client, local01["ref"])
    (ref,) = import_vm(client, inventory.find_sr(client, "disks of two")[0], [data])
    assert client.call("VM.get_name_label", ref) == "local01"
    snapshots.remove(client, ref)


@pytest.mark.trap(35)
def test_the_least_roles(lab):
    with connect(lab, user="backup") as client:
        ref = snapshots.take(client, inventory.find_vm(client, name="web01")["ref"], "s", MARK).ref
        data = read(client, ref)
        (vm,) = import_vm(client, inventory.find_sr(client)[0], [data])
        snapshots.remove(client, vm)
        snapshots.remove(client, ref)
    with connect(lab, user="operator") as client, pytest.raises(XapiError) as error:
        read(client, inventory.find_vm(client, name="local01")["ref"])
    assert error.value.code == "RBAC_PERMISSION_DENIED"


def test_a_running_vm_is_not_exported(client):
    with pytest.raises(XapiError, match="Export of VM web01 failed: the VM is running"):
        read(client, inventory.find_vm(client, name="web01")["ref"], subject="VM web01")


@pytest.mark.trap(3)
def test_storage_no_host_sees(client, lab):
    lab.control("POST", "/hosts/lab/two/kill")
    with pytest.raises(XapiError) as error:
        read(client, inventory.find_vm(client, name="local01")["ref"])
    assert error.value.code == "NO_HOSTS_AVAILABLE"


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_export(client, lab, snapshot, reset):
    fault(lab, "export", cut_at=2 * MIB + 5, reset=reset)
    with pytest.raises((TransferError, XapiError), match="VM web01"):
        read(client, snapshot, subject="VM web01")


def test_a_late_error(client, lab, snapshot):
    fault(lab, "export", late_error=["VDI_IO_ERROR", "Device I/O errors"], after=2 * MIB)
    with pytest.raises(XapiError, match="reading or writing a disk failed"):
        read(client, snapshot)


@pytest.mark.trap(2)
def test_an_error_after_the_last_byte(client, lab, snapshot):
    fault(lab, "export", late_error=["VDI_IO_ERROR", "Device I/O errors"], after="end", silent=True)
    with pytest.raises(XapiError, match="reading or writing a disk failed"):
        read(client, snapshot)


def test_a_stalled_export(client, lab, snapshot):
    fault(lab, "export", stall_at=2 * MIB)
    with pytest.raises(TransferError, match="stalled: no byte for 2 s, after %d bytes" % (2 * MIB)) as error:
        read(client, snapshot, stall_timeout=2.0)
    assert error.value.transferred == 2 * MIB


def test_a_host_that_dies_in_an_export(client, lab):
    local01 = inventory.find_vm(client, name="local01")["ref"]
    fault(lab, "export", stall_at=2 * MIB)
    with pytest.raises((TransferError, XapiError, OutcomeUnknown)):
        with export_vm(client, local01, stall_timeout=30.0) as export:
            buffer = bytearray(MIB)
            export.readinto(buffer)
            lab.control("POST", "/hosts/lab/two/kill")
            while export.readinto(buffer):
                pass
            export.finish()


def test_an_export_that_is_given_up_frees_the_vm(client, snapshot):
    with export_vm(client, snapshot) as export:
        export.readinto(bytearray(MIB))
    deadline = time.monotonic() + 30
    while client.call("VM.get_current_operations", snapshot) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert read(client, snapshot)[-1024:] == bytes(1024)


def test_a_cancelled_export(client, lab, snapshot):
    fault(lab, "export", stall_at=2 * MIB, seconds=10.5)  # hosts look every ten seconds whether they are to stop
    with pytest.raises(XapiError) as error, export_vm(client, snapshot) as export:
        (task,) = list(state(lab)["tasks"])
        client.call("task.cancel", task)
        export.readall()
        export.finish()
    assert error.value.code == "TASK_CANCELLED"


@pytest.fixture
def archive(client, snapshot):
    return read(client, snapshot)


def imports(client, chunks, **options):
    before = set(client.call("VM.get_all"))
    try:
        return import_vm(client, inventory.find_sr(client, "shared")[0], chunks, **options)
    finally:
        # the pool removes what it had made when it notices, which may be a little later
        deadline = time.monotonic() + 10
        while (left := set(client.call("VM.get_all")) - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, "VMs stayed"


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.trap(1)
def test_a_truncated_archive(client, archive, known):
    with pytest.raises(XapiError) as error:
        imports(client, [archive[:5 * MIB]], length=len(archive) if known else None)
    assert error.value.code == "IMPORT_ERROR_PREMATURE_EOF"


def test_a_damaged_archive(client, archive):
    damaged = bytearray(archive)
    damaged[len(archive) // 2] ^= 1
    with pytest.raises(XapiError) as error:
        imports(client, [bytes(damaged)])
    assert error.value.code == "IMPORT_ERROR"


def test_what_is_no_archive(client):
    with pytest.raises(XapiError):
        imports(client, [b"x" * 100000])


def test_a_full_storage(client, lab, archive):
    fault(lab, "import", sr_full=MIB)
    with pytest.raises(XapiError, match="space"):
        imports(client, [archive])


def test_a_cut_import(client, lab, archive):
    fault(lab, "import", cut_at=2 * MIB, reset=True)
    with pytest.raises((TransferError, XapiError)):
        imports(client, [archive] * 20)


def test_a_stalled_import(client, lab, archive):
    fault(lab, "import", stall_at=2 * MIB)
    with pytest.raises(TransferError, match="stalled"):
        imports(client, [archive] * 20, stall_timeout=2.0)


@pytest.mark.trap(3)
def test_storage_that_is_gone(client):
    with pytest.raises((XapiError, TransferError)):
        import_vm(client, "OpaqueRef:00000000-0000-0000-0000-000000000000", [b"x"])


def test_the_source_fails(client, archive):
    def source():
        yield archive[:2 * MIB]
        raise ValueError("the source")

    with pytest.raises(ValueError, match="the source"):
        imports(client, source())
