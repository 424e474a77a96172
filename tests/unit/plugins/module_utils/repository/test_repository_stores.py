# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every store, on each kind: a directory, and a bucket of a real S3 server."""
from __future__ import annotations

import io
import random
import threading

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import (
    ObjectExists,
    ObjectMissing,
    RepositoryError,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    OPEN_KEYS,
    SIGNERS,
    VM,
    back_up,
    equal,
    lay,
    restore,
    two_disks,
)

MIB = 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 9, 4 * MIB, 4 * MIB + 1, 41 * MIB])
def test_an_object_is_not_there_before_it_is_whole(any_store, size):
    data = noise(size)
    writer = any_store.create("vm/a/seg/x")
    for start in range(0, size, MIB):
        assert writer.write(memoryview(data)[start:start + MIB]) == len(data[start:start + MIB])
    assert not any_store.exists("vm/a/seg/x") and not any_store.list("vm/a/seg/")
    writer.commit()
    writer.abort()  # too late
    assert any_store.size("vm/a/seg/x") == writer.size == size
    with any_store.open("vm/a/seg/x") as file:
        assert b"".join(iter(lambda: file.read(3 * MIB), b"")) == data
    assert any_store.list("vm/a/seg/") == ["vm/a/seg/x"]


@pytest.mark.parametrize("size", [9, 41 * MIB])
def test_an_abandoned_object_leaves_nothing(any_store, size):
    writer = any_store.create("vm/a/seg/x")
    for _piece in range(0, size, MIB):
        writer.write(bytes(min(size, MIB)))
    writer.abort()
    writer.abort()
    assert not any_store.exists("vm/a/seg/x") and not any_store.list("vm/a/seg/") and not any_store.list(".tmp/")


def test_nothing_is_ever_replaced(any_store):
    any_store.put("a/x", b"first")
    with pytest.raises(ObjectExists):
        any_store.put("a/x", b"second")
    for size in (9, 5 * MIB):
        writer = any_store.create("a/x")
        writer.write(bytes(size))
        with pytest.raises(ObjectExists):
            writer.commit()
        writer.abort()
    assert any_store.read("a/x") == b"first" and not any_store.list(".tmp/")


def test_of_many_writers_one_wins(any_store):
    barrier, winners = threading.Barrier(8), []

    def race(number: int) -> None:
        barrier.wait()
        try:
            any_store.put("a/x", b"%d" % number)
        except ObjectExists:
            return
        winners.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1 and any_store.read("a/x") == b"%d" % winners[0]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "..", "a//b", "./a", "a/", "a\0b"])
def test_names_lead_nowhere_else(any_store, name):
    for method in (any_store.create, any_store.open, any_store.remove, any_store.exists):
        with pytest.raises(ValueError):
            method(name)


def test_leases_are_replaced(any_store):
    for state in (b"one", b"two"):
        any_store.replace("lease/x", state)
        assert any_store.read("lease/x") == state
    any_store.remove("lease/x")
    any_store.remove("lease/x")
    assert not any_store.exists("lease/x")


def test_listings_hold_what_is_directly_there(any_store):
    for name in ("a/y", "a/x", "a/b/y", "ab/z"):
        any_store.put(name, b"")
    assert any_store.list("a/") == ["a/x", "a/y"] and any_store.folders("a/") == ["b"]
    assert any_store.list("none/") == [] and any_store.folders("none/") == []


def test_what_is_missing_is_told(any_store):
    for method in (any_store.open, any_store.read, any_store.size, any_store.modified):
        with pytest.raises(ObjectMissing, match="is right"):
            method("a/x")
    assert not any_store.exists("a/x")
    with pytest.raises(RepositoryError, match="There is no repository in %s" % any_store.path):
        Repository.open(any_store)


def test_the_store_has_a_clock_of_its_own(any_store):
    any_store.put("a/x", b"")
    assert 0 <= any_store.now() - any_store.modified("a/x") < 3600 and not any_store.list(".tmp/")


def test_scratch_files_have_no_name(any_store):
    scratch = any_store.scratch()
    scratch.write(b"spooled")
    assert scratch.reading().read() == b"spooled" and not any_store.list(".tmp/")
    scratch.close()
    scratch.close()
    assert any_store.free_space() > 0


def test_a_probe_leaves_nothing(any_store):
    any_store.probe()
    assert not any_store.list(".tmp/")


def test_ranges_are_read_in_any_order(any_store):
    data = noise(9 * MIB + 77)
    any_store.put("a/x", data)
    chance = random.Random(7)
    with any_store.open("a/x") as file:
        assert file.seek(0, io.SEEK_END) == len(data) and file.read(1) == b""
        assert file.seek(-5, io.SEEK_CUR) == len(data) - 5 and file.read(100) == data[-5:]
        at = file.seek(0)
        for _read in range(200):
            length = chance.choice([0, 1, 512, 65552, 300_000, 3 * MIB])
            if chance.random() < 0.4:
                at = file.seek(chance.randrange(len(data) + 10))
            assert file.read(length) == data[at:at + length]
            assert file.tell() == min(at + length, max(len(data), at))
            at = file.tell()
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)


@pytest.mark.parametrize("options", [{}, {"keys": OPEN_KEYS}], ids=["age", "none"])
def test_a_chain_of_points_is_written_listed_verified_and_read(any_store, options):
    first, second = two_disks(), two_disks(seed=50)
    full = back_up(Repository.create_or_open(any_store), first, **options)
    repository = Repository.create_or_open(any_store)
    layer = lay(repository, full, second, **options)
    records = repository.points(VM, SIGNERS)
    assert [one.point for one in records] == [full.point, layer.point]
    assert all(one.trusted and not one.problem for one in records)
    assert [equal(restore(repository, one), disks) for one, disks in zip(records, (first, second))] == [True, True]
    assert verify_sealed(repository, records) == []
    assert repository.meta(records[1], [CATALOG])["kind"] == "incremental" and repository.vm_uuids() == [VM]
    assert not any_store.list(".tmp/")


def test_an_address_chooses_the_store(tmp_path):
    assert isinstance(open_store(str(tmp_path)), PosixStore)
    for address in ("s3://bucket", "s3://bucket/", "s3://bucket/some/prefix/", "gs://bucket/x"):
        store = open_store(address, {"skip_signature": True})
        assert isinstance(store, ObjectStore) and store.path == address.rstrip("/")
    assert isinstance(open_store("az://container/x", {"account_name": "account"}), ObjectStore)
    for address in ("ftp://host/x", "S3://bucket", "s3://", "s3:///x", "s3://b/a/../c", "s3://b//c", "s3://bu cket/x"):
        with pytest.raises(RepositoryError):
            open_store(address, {})
