# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository that fills up in the middle, or cannot be written: an error that says so, and nothing lost or left."""

from __future__ import annotations

import os
import subprocess

import pytest


def mount(*arguments: object) -> str:
    """Mount, or return why it cannot be."""
    if os.geteuid():
        return "only root can mount"
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@pytest.fixture(scope="module", name="small")
def fixture_small(site):
    """A file system with room for one point of `local`, not for one of `database`."""
    folder = site.folder / "small"
    folder.mkdir()
    problem = mount("-t", "tmpfs", "-o", "size=6m", "tmpfs", folder)
    if problem:
        pytest.skip(f"this machine cannot mount a small file system: {problem}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(name="there")
def fixture_there(small):
    return {"repository": str(small / "repository")}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_that_fills_up_in_the_middle(site, small, there):
    kept = site.export("local", **there)["point"]["point"]
    before = files(small)
    result = site.export("database", fails=True, **there)
    assert result["msg"].startswith("Could not back up VM 'database': ") and "No space left" in result["msg"]
    assert "Make room" in result["failure"]["remedy"]
    assert site.left_behind() == {} and files(small) == before
    listed = site.one("xen_backup_info", allowed_signers=str(site.signers), seal=True, **there)
    assert [point["point"] for point in listed["points"]] == [kept] and listed["findings"] == []
    restored = site.restore(site.uuid("local"), name="from the full one", **there)
    assert restored["changed"] and site.disks("recovery", "from the full one") == site.disks("production", "local")


def test_a_full_disk_under_an_exported_file(site, small):
    before = files(small)
    result = site.one("xen_vm_export", fails=True, **site.pool("production"), name="database", dest=str(small / "database.xva"))
    assert "VM 'database'" in result["msg"] and "No space left" in result["msg"]
    assert site.left_behind() == {} and files(small) == before


def test_a_repository_that_can_only_be_read(site, small, there):
    assert not mount("-o", "remount,ro", small)
    try:
        result = site.export("local", fails=True, **there)
        assert "VM 'local'" in result["msg"] and "Read-only file system" in result["msg"]
        assert "mount options" in result["failure"]["remedy"] and site.left_behind() == {}
        restored = site.restore(site.uuid("local"), name="from one that can only be read", macs="new", **there)
        assert restored["changed"]  # reading needs no writing
    finally:
        assert not mount("-o", "remount,rw", small)
    assert site.export("local", max_age="1h", **there)["changed"] is False
