# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of docs/second-site.md, interrupted at random while backups go on: what the copy lists restores."""
from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import prune as pruning
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    equal,
    lay,
    make,
    restore,
    two_disks,
)

GUIDE = Path(__file__).resolve().parents[5] / "docs/second-site.md"
INTERRUPTIONS = 20


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Name -> file of the scripts in the guide."""
    folder = tmp_path_factory.mktemp("scripts")
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        (folder / block.split()[1]).write_text(block)
    return {path.name.split(".")[0].rpartition("-")[2]: path for path in folder.iterdir()}


@pytest.fixture(params=["rsync", "rclone"])
def site(request, scripts, tmp_path):
    """What copies the repository in ``source``; ``site.store`` is the copy."""
    tool = request.param
    if not shutil.which(tool):
        pytest.skip("needs " + tool)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    if tool == "rsync":
        store, destination = PosixStore(str(tmp_path / "copy")), str(tmp_path / "copy")
    else:
        s3 = request.getfixturevalue("s3")
        prefix = "copies/%s" % tmp_path.name
        store, destination = ObjectStore("s3://guestark/" + prefix, s3.options), "site:guestark/" + prefix
        environment.update(
            RCLONE_CONFIG_SITE_TYPE="s3", RCLONE_CONFIG_SITE_PROVIDER="Other", RCLONE_CONFIG_SITE_ENDPOINT=s3.endpoint,
            RCLONE_CONFIG_SITE_ACCESS_KEY_ID=s3.options["access_key_id"], RCLONE_CONFIG=str(tmp_path / "none.conf"),
            RCLONE_CONFIG_SITE_SECRET_ACCESS_KEY=s3.options["secret_access_key"],
        )

    # slow enough to be interrupted in the middle of a file
    slow = tmp_path / "bin" / tool
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\nexec %s --bwlimit=%s "$@"\n' % (shutil.which(tool), "8M" if tool == "rsync" else "40M"))
    slow.chmod(0o700)
    environment["PATH"] = "%s:%s" % (slow.parent, environment["PATH"])

    def copy(seconds: float | None = None) -> int:
        command = ["sh", str(scripts[tool]), str(tmp_path / "source"), destination]
        with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE) as process:
            try:
                _output, errors = process.communicate(timeout=seconds or 120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return process.returncode
        assert process.returncode == 0 or seconds, errors.decode()
        return process.returncode

    copy.store, copy.source, copy.tool = store, make(tmp_path / "source"), tool
    return copy


def listed(site) -> dict:
    """The copy's points, all of which are whole."""
    try:
        repository = Repository.open(site.store)
    except RepositoryError:
        return {}  # not even the repository's description has come
    records = repository.points(VM, SIGNERS)
    # the repository's own files may not have come yet
    assert not [one for one in verify_sealed(repository, records) if one.point]
    assert all(one.trusted and not one.problem for one in records)
    return {one.point: one for one in records}


def test_the_copy_restores_after_every_interruption_while_backups_go_on(site):
    chance, held, stop = random.Random(11), {}, threading.Event()

    def backups() -> None:
        record = None
        for seed in range(60):
            if stop.is_set():
                return
            disks = two_disks(seed)
            record = lay(site.source, record, disks) if record and seed % 6 else back_up(site.source, disks)
            held[record.point] = disks
            stop.wait(0.1)

    thread = threading.Thread(target=backups)
    thread.start()
    ends, arrived, counts = [], set(), []
    try:
        for _turn in range(INTERRUPTIONS):
            ends.append(site(chance.uniform(0.05, 1.0 if site.tool == "rsync" else 3.0)))
            there = listed(site)
            assert arrived <= set(there)
            arrived = set(there)
            counts.append(len(there))
    finally:
        stop.set()
        thread.join()
    print("ends of the copies: %s, points there: %s" % (ends, counts))
    site()
    there = listed(site)
    assert set(there) == set(held) and -signal.SIGKILL in ends
    copied = Repository.open(site.store)
    for point, record in there.items():
        assert equal(restore(copied, record), held[point])
    assert not site.store.list("lease/") and not site.store.list(".tmp/")


def test_a_damaged_object_of_the_copy_is_named_and_brought_again(site):
    record = back_up(site.source, two_disks())
    site()
    name = "vm/%s/%s" % (VM, record.segments[0])
    site.store.replace(name, site.store.read(name)[:-1] + b"\0")
    copied = Repository.open(site.store)
    (finding,) = verify_sealed(copied, copied.points(VM, SIGNERS))
    assert finding.name == record.segments[0]
    site.store.remove(name)
    site()
    assert set(listed(site)) == {record.point}


def test_what_the_first_site_prunes_stays_at_the_second(site):
    first = back_up(site.source, two_disks())
    second = lay(site.source, first, two_disks(1))
    site()
    pruning.prune(site.source, VM, SIGNERS, lambda _records: {first.point}, 0.0)
    third = back_up(site.source, two_disks(2))
    site()
    assert set(listed(site)) == {first.point, second.point, third.point}
    assert equal(restore(Repository.open(site.store), first), two_disks())
    assert not site.store.list("vm/%s/trash/" % VM)
