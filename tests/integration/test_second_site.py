# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts of docs/second-site.md, run as they stand there, interrupted and beside backups and prune runs.

Every point that the copy lists at any moment is whole and restores; in the end the copy has all that the first site has.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.layout import record_name
from ansible_collections.guestark.xen.plugins.module_utils.repository.prune import prune
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store
from ansible_collections.guestark.xen.tests.s3_fixture import KEY, SECRET, start_s3
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    equal,
    lay,
    restore,
    two_disks,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "second-site.md"
BANDWIDTH = "8M"
_numbers = itertools.count()
KILLS = 60 if os.environ.get("GUESTARK_PROOFS") else 12


@pytest.fixture(scope="module", name="s3")
def fixture_s3(tmp_path_factory):
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="module", name="scripts")
def fixture_scripts(tmp_path_factory):
    """The document's scripts by their names."""
    folder = tmp_path_factory.mktemp("scripts")
    for text in re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        name = re.search(r"^# (copy-\w+\.sh) FROM TO", text, re.MULTILINE)[1]
        (folder / name).write_text(text)
    assert sorted(path.name for path in folder.iterdir()) == ["copy-directory.sh", "copy-objects.sh"]
    # slow enough to be interrupted anywhere
    slow = folder / "bin" / "rsync"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\nexec %s --bwlimit=%s "$@"\n' % (shutil.which("rsync"), BANDWIDTH))
    slow.chmod(0o755)
    return folder


class Site:
    """A repository at one of the sites: as this collection names it, and as the scripts do."""

    def __init__(self, address: str, s3) -> None:
        self.address = address
        self.named = address.replace("s3://", "store:")
        self.options = s3.options

    def open(self) -> Repository:
        return Repository.open(open_store(self.address, self.options))

    def points(self):
        return self.open().points(VM, SIGNERS)

    def has(self, name: str) -> bool:
        return open_store(self.address, self.options).exists(f"vm/{VM}/{name}")


class Copying:
    """Copies by one of the document's scripts."""

    def __init__(self, script: Path, first: Site, second: Site, s3) -> None:
        self.command = ["sh", str(script), first.named, second.named]
        self.first, self.second = first, second
        remote = {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "ENDPOINT": s3.endpoint,
                  "REGION": "us-east-1"}
        self.environment = os.environ | {f"RCLONE_CONFIG_STORE_{name}": value for name, value in remote.items()}
        path = f"{script.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment |= {"RCLONE_CONFIG": "/dev/null", "RCLONE_BWLIMIT": BANDWIDTH, "PATH": path}

    def run(self, seconds: float | None = None) -> int | None:
        """Run the script, or kill it and all that it started after some seconds; return its status, None when killed."""
        with subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              start_new_session=True) as process:
            try:
                output, _none = process.communicate(timeout=seconds or 120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                assert seconds, "it does not end"
                return None
        assert seconds or process.returncode == 0, output
        return process.returncode

    def check(self, held: dict, restored: set) -> None:
        """See that what the copy lists is whole, and restores; ``held``: what each point was made of."""
        try:
            copy = self.second.open()
        except RepositoryError:
            return  # nothing arrived yet
        records = copy.points(VM, SIGNERS)
        assert [one.problem for one in records if one.problem or not one.trusted] == []
        assert verify_sealed(copy, records) == []
        for one in records:
            if one.point not in restored:
                assert equal(restore(copy, one), held[one.point])
                restored.add(one.point)


def work(first: Site, held: dict, stop: threading.Event, problems: list, pruning: bool) -> None:
    """Back up, layer over layer and at times in full, and prune at times, until told to stop."""
    try:
        repository = Repository.create_or_open(open_store(first.address, first.options))
        record = None
        for number in range(10_000):
            if stop.is_set():
                return
            disks = two_disks(seed=10 * number)
            record = lay(repository, record, disks) if record and number % 4 else back_up(repository, disks)
            held[record.point] = disks
            if pruning and number % 3 == 2:
                prune(repository, VM, SIGNERS, lambda records: {one.point for one in records[:-3]}, 0.0)
            stop.wait(0.2)
    except Exception as error:
        problems.append(error)
        raise


@pytest.fixture(params=["rsync", "rclone", "rclone to s3", "rclone from s3"], name="copying")
def fixture_copying(request, scripts, tmp_path, s3):
    script = scripts / ("copy-directory.sh" if request.param == "rsync" else "copy-objects.sh")
    places = [Site(str(tmp_path / name), s3) for name in ("first", "second")]
    bucket = "s3://guestark/%d" % next(_numbers)
    if request.param.endswith("s3"):
        places["to" in request.param] = Site(bucket, s3)
    return Copying(script, *places, s3)


def test_the_copy_is_whole_whenever_the_script_is_killed(copying):
    chance, held, restored, problems, stop = random.Random(6), {}, set(), [], threading.Event()
    worker = threading.Thread(target=work, args=(copying.first, held, stop, problems, True))
    worker.start()
    ends, span = [], 1.0  # what a run takes, more or less
    try:
        while len(held) < 3 and worker.is_alive():
            stop.wait(0.1)
        while ends.count(None) < KILLS and len(ends) < 10 * KILLS:
            began = time.monotonic()
            ends.append(copying.run(chance.uniform(0.01, span)))
            span = 1.05 * span if ends[-1] is None else time.monotonic() - began
            copying.check(held, restored)
    finally:
        stop.set()
        worker.join()
    assert not problems and ends.count(None) == KILLS, ends
    copying.run()  # nobody interferes now: it succeeds
    copying.check(held, restored)
    missing = {one.point for one in copying.first.points()} - {one.point for one in copying.second.points()}
    assert not missing
    print("%d of %d runs killed; %d points restored from the copy" % (ends.count(None), len(ends), len(restored)))


def test_damage_does_not_spread_and_is_healed(copying):
    repository = Repository.create_or_open(open_store(copying.first.address, copying.first.options))
    disks = two_disks()
    record = back_up(repository, disks)
    name = f"vm/{VM}/{record.objects[0][1]}"
    copying.run()
    first, second = repository.store, copying.second.open().store
    good = first.read(name)
    for damaged, other, way in ((first, second, copying), (second, first, copying)):
        damaged.replace(name, good[:-1] + bytes([good[-1] ^ 1]))
        way.run()
        assert other.read(name) == good  # it did not spread
        (finding,) = verify_sealed(Repository.open(damaged), Repository.open(damaged).points(VM, SIGNERS))
        assert finding.name == record.objects[0][1]
        damaged.remove(name)
        command = list(way.command)
        if damaged is first:
            way.command[2:] = reversed(way.command[2:])
        way.run()
        way.command = command
        assert damaged.read(name) == good
    copying.check({record.point: disks}, set())


def test_what_the_first_site_prunes_stays_at_the_second(copying):
    repository = Repository.create_or_open(open_store(copying.first.address, copying.first.options))
    held, record = {}, None
    for number, below in enumerate([False, True, False]):
        disks = two_disks(seed=number)
        record = lay(repository, record, disks) if below else back_up(repository, disks)
        held[record.point] = disks
        if below:
            copying.run()
            prune(repository, VM, SIGNERS, lambda records: {records[0].point}, 0.0)
    copying.run()
    assert [one.point for one in copying.second.points()] == list(held)
    assert len(copying.first.points()) == 2
    copying.check(held, set())


def test_what_concerns_one_site_is_not_copied(copying):
    repository = Repository.create_or_open(open_store(copying.first.address, copying.first.options))
    record = back_up(repository, two_disks())
    for name in (f"vm/{VM}/trash/run.mark", f"vm/{VM}/hold/{record.point}.legal", f"lease/{VM}", ".tmp/half"):
        repository.store.put(name, b"")
    copying.run()
    second = copying.second.open().store
    assert second.list(f"vm/{VM}/trash/") == second.list(f"vm/{VM}/hold/") == second.list("lease/") == second.list(".tmp/") == []
    assert [one.point for one in copying.second.points()] == [record.point]


def test_the_modules_use_the_copy_as_a_repository(site, scripts, s3):
    copying = Copying(scripts / "copy-directory.sh", Site(str(site.repository), s3), Site(str(site.folder / "copy"), s3), s3)
    site.export("web")
    copying.run()
    shutil.rmtree(site.repository)
    there = {"repository": copying.second.address, "allowed_signers": str(site.signers)}
    assert len(site.one("xen_backup_verify", **there)["verified"]) == 1
    site.restore("web", repository=copying.second.address)
    assert site.disks("recovery", "web") == site.disks("production", "web")
    site.empty("recovery")
    again = site.export("web", repository=copying.second.address, max_age="4h")  # the second site may become the first
    assert not again["changed"]


def test_a_bucket_with_versions_comes_back_as_it_was(scripts, tmp_path, s3):
    bucket = s3.make_bucket("versions", "x-amz-bucket-object-lock-enabled: true")
    first, second = Site(f"s3://{bucket}/vms", s3), Site(str(tmp_path / "before"), s3)
    repository = Repository.create_or_open(open_store(first.address, first.options))
    disks = [two_disks(seed=1), two_disks(seed=2)]
    full = back_up(repository, disks[0])
    layer = lay(repository, full, disks[1])
    time.sleep(1.1)  # S3 tells when a version came to the second
    moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    time.sleep(1.1)

    # somebody with the mover's rights, and the one to delete
    for number, (_digest, name) in enumerate(full.objects):
        repository.store.remove(f"vm/{VM}/{name}")
        if number % 2:
            repository.store.put(f"vm/{VM}/{name}", b"forged")
    repository.store.replace(f"vm/{VM}/{record_name(full.point)}", b"forged")
    repository.store.remove(f"vm/{VM}/{record_name(layer.point)}")
    (left,) = first.points()
    assert left.problem and not left.trusted and verify_sealed(repository, [left])

    copying = Copying(scripts / "copy-objects.sh", first, second, s3)
    copying.environment["RCLONE_CONFIG_STORE_VERSION_AT"] = moment
    copying.run()
    restored: set = set()
    copying.check({full.point: disks[0], layer.point: disks[1]}, restored)
    assert restored == {full.point, layer.point}
