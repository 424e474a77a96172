# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store in a directory: whole and durable or not there; nothing replaced; no link followed; full and read-only."""
from __future__ import annotations

import errno
import os
import subprocess

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import posix
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import (
    NoSpace,
    ObjectExists,
    ObjectMissing,
    RepositoryError,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.failpoints import (
    Failpoints,
    fail_with,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import files

PLACES = {"vm/a/seg/x": "vm/a/seg", "vm/a/pt/x": "vm/a", "lease/x": "lease"}


@pytest.fixture
def store(tmp_path) -> PosixStore:
    store = PosixStore(str(tmp_path / "store"))
    store.make_root()
    return store


def test_an_object_is_not_there_before_it_is_whole(store, tmp_path):
    writer = store.create("vm/a/seg/x")
    writer.write(b"some")
    assert not store.exists("vm/a/seg/x") and not store.list("vm/a/seg/")
    writer.write(b"thing")
    writer.commit()
    writer.abort()  # too late
    assert store.read("vm/a/seg/x") == b"something" and store.size("vm/a/seg/x") == writer.size == 9
    assert set(files(tmp_path / "store")) == {"vm/a/seg/x"}
    assert (tmp_path / "store/vm/a/seg/x").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "store/vm").stat().st_mode & 0o777 == 0o700
    with store.open("vm/a/seg/x") as file:
        assert file.seek(4) == 4 and file.read() == b"thing"


def test_an_abandoned_object_leaves_nothing(store, tmp_path):
    writer = store.create("vm/a/seg/x")
    writer.write(b"some")
    writer.abort()
    assert not files(tmp_path / "store")


def test_the_content_is_on_the_disk_before_the_name_is_there(store):
    with Failpoints(None) as seen:
        store.put("vm/a/seg/x", b"data")
    order = [name for name in seen.calls if name in ("write", "fsync", "link", "unlink", "mkdir")]
    made = ["mkdir", "fsync"]  # each new folder in its parent
    assert order == [*made, "write", "fsync", *made * 3, "link", "fsync", "unlink"]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_links_in_the_way_are_not_followed(store, tmp_path, place):
    name = next(one for one in PLACES if PLACES[one] == place)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"precious")
    planted = tmp_path / "store" / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside)
    for method in (lambda: store.put(name, b"new"), lambda: store.replace(name, b"new"), lambda: store.read(name),
                   lambda: store.remove(name), lambda: store.size(name), lambda: store.list(name[:-1])):
        with pytest.raises(RepositoryError, match="Cannot"):
            method()
    assert (outside / "x").read_bytes() == b"precious"
    assert [path.name for path in outside.iterdir()] == ["x"]


def test_a_link_in_the_place_of_the_temporary_folder_is_refused(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store/.tmp").symlink_to(outside)
    for method in (lambda: store.put("a/x", b""), store.scratch, store.probe, store.now):
        with pytest.raises(RepositoryError, match="not followed"):
            method()
    assert not list(outside.iterdir())


def test_a_link_in_the_place_of_an_object_is_neither_followed_nor_replaced(store, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "store/a").mkdir()
    for target in (victim, tmp_path / "nowhere"):
        (tmp_path / "store/a/x").symlink_to(target)
        with pytest.raises(ObjectExists):
            store.put("a/x", b"new")
        with pytest.raises(RepositoryError):
            store.read("a/x")
        with pytest.raises(RepositoryError):
            store.size("a/x")
        store.remove("a/x")  # the link itself
    assert victim.read_bytes() == b"precious" and not (tmp_path / "nowhere").exists()


def test_a_pipe_in_the_place_of_an_object_does_not_block(store, tmp_path):
    (tmp_path / "store/a").mkdir()
    os.mkfifo(tmp_path / "store/a/x")
    with pytest.raises(RepositoryError, match="not a regular file"):
        store.read("a/x")


def test_a_lost_reply_to_link_is_no_failure(store, monkeypatch):
    def link(*args, **kwargs):
        real(*args, **kwargs)
        raise OSError(errno.EIO, "the reply was lost")

    real = os.link
    monkeypatch.setattr(posix.os, "link", link)
    store.put("a/x", b"data")
    assert store.read("a/x") == b"data" and not store.list(".tmp/")


def test_an_answer_that_it_exists_to_a_repeated_request_is_no_failure(store, monkeypatch):
    def link(*args, **kwargs):
        real(*args, **kwargs)
        real(*args, **kwargs)  # what an NFS client does when the first reply is lost

    real = os.link
    monkeypatch.setattr(posix.os, "link", link)
    store.put("a/x", b"data")
    assert store.read("a/x") == b"data"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_nothing_is_replaced_either(store, monkeypatch, number):
    def link(*_args, **_kwargs):
        raise OSError(number, "no links here")

    monkeypatch.setattr(posix.os, "link", link)
    store.probe()
    store.put("a/x", b"first")
    with pytest.raises(ObjectExists):
        store.put("a/x", b"second")
    assert store.read("a/x") == b"first" and not store.list(".tmp/")


def test_a_store_that_replaces_is_found_out(store, monkeypatch):
    def link(source, target, src_dir_fd, dst_dir_fd, **_kwargs):
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(posix.os, "link", link)
    with pytest.raises(RepositoryError, match="replace"):
        store.probe()
    assert not store.list(".tmp/")


def test_a_failed_fsync_is_the_end_of_the_object(store, tmp_path):
    writer = store.create("a/x")
    writer.write(b"data")
    with Failpoints(fail_with(errno.EIO), at=0), pytest.raises(RepositoryError, match="Check the repository's storage"):
        writer.commit()
    writer.abort()
    assert not files(tmp_path / "store")


@pytest.mark.parametrize("number, kind, remedy", [
    (errno.ENOSPC, NoSpace, "Make room"), (errno.EDQUOT, NoSpace, "Make room"), (errno.EIO, RepositoryError, "storage"),
    (errno.EACCES, RepositoryError, "permissions"), (errno.EROFS, RepositoryError, "mount options"),
    (errno.ESTALE, RepositoryError, "storage"),
])
def test_an_error_says_what_to_do(store, number, kind, remedy):
    with Failpoints(fail_with(number), at=0), pytest.raises(kind, match="Cannot write a/x") as caught:
        store.put("a/x", b"data")
    assert remedy in caught.value.remedy and isinstance(caught.value.__cause__, OSError)


def test_a_full_file_system_is_told_and_loses_only_the_new_object(small_filesystem):
    store = PosixStore(str(small_filesystem))
    store.put("a/x", b"old" * 1000)
    before = files(small_filesystem)
    assert 0 < store.free_space() <= 4 << 20
    writer = store.create("a/y")
    with pytest.raises(NoSpace, match="No space left"):
        for _piece in range(8):
            writer.write(bytes(1 << 20))
    writer.abort()
    assert files(small_filesystem) == before
    store.put("a/y", b"fits")


def test_a_read_only_file_system_is_told(small_filesystem):
    store = PosixStore(str(small_filesystem))
    store.put("a/x", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_filesystem)], check=True)
    for method in (store.probe, store.scratch, lambda: store.put("a/y", b""), lambda: store.remove("a/x")):
        with pytest.raises(RepositoryError, match="Read-only file system") as caught:
            method()
        assert "mount options" in caught.value.remedy
    assert store.read("a/x") == b"old"


def test_listings_hold_objects_only(store, tmp_path):
    for name in ("a/x", "a/b/y", "a/.nfs0001"):
        store.put(name, b"")
    assert store.list("a/") == ["a/x"] and store.folders("a/") == ["b"]
    assert store.list("none/") == [] and store.folders("none/") == []


def test_what_is_missing_is_told(store, tmp_path):
    for method in (store.open, store.read, store.size, store.modified):
        with pytest.raises(ObjectMissing):
            method("a/x")
    store.remove("a/x")
    with pytest.raises(ObjectMissing, match="mounted"):
        PosixStore(str(tmp_path / "none")).put("x", b"")
    with pytest.raises(RepositoryError):
        PosixStore(str(tmp_path / "none/below")).make_root()


@pytest.mark.parametrize("kind, options, refused", [
    ("nfs4", "rw,vers=4.2,soft,proto=tcp", True), ("nfs", "rw,vers=3,softerr", True),
    ("nfs4", "rw,vers=4.2,hard", False), ("ext4", "rw,soft", False),
])
def test_soft_nfs_mounts_are_refused(tmp_path, kind, options, refused):
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / /other rw shared:1 - ext4 /dev/sda1 rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / {tmp_path} rw,relatime shared:2 - {kind} server:/x {options}\n"
    )
    if refused:
        with pytest.raises(RepositoryError, match="soft"):
            posix._refuse_soft_mount(str(tmp_path), str(mounts))
    else:
        posix._refuse_soft_mount(str(tmp_path), str(mounts))
