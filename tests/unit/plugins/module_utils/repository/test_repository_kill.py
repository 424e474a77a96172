# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at every call to the operating system: what is listed restores, and the next run cleans up and succeeds."""
from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import sweep as sweeping
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import PointDamaged
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.failpoints import kill, killed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    KEYS,
    SIGNERS,
    VM,
    disk,
    equal,
    files,
    lay,
    make,
    restore,
    two_disks,
    write,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, ova

OLD, NEW = [disk(0, MIB, {0: 1})], [disk(0, 2 * MIB, {0: 2, 1: b"text"})]
GROWN = [disk(0, 3 * MIB, {0: 1, 1: 4})]


def run(path, disks=tuple(NEW), layered=False):
    """What the engine does around a point; ``layered``: one over the newest there is."""
    repository = Repository.create_or_open(PosixStore(str(path)))
    with Lease(repository.store, VM) as lease:
        swept = repository.sweep(lease)
        if layered:
            return swept, lay(repository, repository.points(VM)[-1], list(disks))
        with repository.new_point(VM, KEYS) as point:
            return swept, write(point, list(disks))


def is_whole(repository: Repository, expected: list) -> None:
    """Every point that is listed is trusted, complete and restores."""
    points = repository.points(VM, SIGNERS)
    assert len(points) == len(expected)
    for record, disks in zip(points, expected):
        assert record.trusted and not record.problem
        assert equal(restore(repository, record), disks)


def nothing_but(repository: Repository, path) -> None:
    """The repository holds the listed points and its own three files, and nothing else."""
    listed = {"RESTORE.md", "repository.json", "restore-xva.sh"}
    for record in repository.points(VM, SIGNERS):
        folder = "vm/%s/" % VM
        listed |= {folder + name for _digest, name in record.objects}
        listed |= {folder + "pt/%s%s" % (record.point, end) for end in (".sum", ".sum.sig")}
    assert set(files(path)) == listed


@pytest.mark.parametrize("layered", [False, True], ids=["full", "incremental"])
def test_a_run_killed_anywhere_leaves_the_old_state_or_the_new_point(fast_path, layered):
    base = fast_path / "base"
    run(base, OLD)
    at, outcomes = 0, []
    while True:
        path = fast_path / ("killed%d" % at)
        shutil.copytree(base, path)
        if not killed(at, lambda path=path: run(path, layered=layered)):
            break
        repository = Repository.open(PosixStore(str(path)))
        count = len(repository.points(VM))
        is_whole(repository, [OLD, NEW][:count])
        assert not verify_sealed(repository, repository.points(VM, SIGNERS))
        outcomes.append(count)

        left = set(files(path))
        swept, record = run(path, GROWN, layered)
        is_whole(repository, [OLD, NEW][:count] + [GROWN])
        assert record.kind == ("incremental" if layered else "full")
        unowned = {name for name in files(path) if name.startswith(".tmp/") and name in left}
        assert all(name.startswith((".tmp/probe", ".tmp/.tmp,", ".tmp/now", ".tmp/scratch")) for name in unowned)
        assert set(swept) <= left and len(unowned) <= 2  # a probe, and its temporary file
        for name in unowned:
            (path / name).unlink()
        nothing_but(repository, path)
        shutil.rmtree(path)
        at += 1
    assert at > 150 and outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


def test_a_run_killed_while_it_takes_its_point_back_lists_nothing_that_is_gone(fast_path):
    base = fast_path / "base"
    run(base, OLD)

    def refuse_after_commit(path) -> None:
        repository = Repository.open(PosixStore(str(path)))
        with suppress(PointDamaged), repository.new_point(VM, KEYS) as point:
            checks = iter((None, PointDamaged("an object vanished")))

            def check(*_arguments) -> None:
                error = next(checks)
                if error:
                    raise error

            point._check_kept = check
            write(point, NEW)

    at, outcomes = 0, []
    while True:
        path = fast_path / ("killed%d" % at)
        shutil.copytree(base, path)
        ended = not killed(at, lambda path=path: refuse_after_commit(path))
        repository = Repository.open(PosixStore(str(path)))
        outcomes.append(len(repository.points(VM)))
        is_whole(repository, [OLD, NEW][:outcomes[-1]])
        if ended:
            break
        shutil.rmtree(path)
        at += 1
    assert outcomes[-1] == 1 and 2 in outcomes
    with Lease(repository.store, VM) as lease:  # the record alone was taken back: another point may need the rest
        assert repository.sweep(lease)
    nothing_but(repository, path)


def test_making_a_repository_can_be_repeated_after_a_kill(fast_path):
    at = 0
    while True:
        path = fast_path / ("killed%d" % at)
        if not killed(at, lambda path=path: make(path)):
            break
        run(path)
        is_whole(Repository.open(PosixStore(str(path))), [NEW])
        shutil.rmtree(path)
        at += 1
    assert at > 50


def abandoned(tmp_path) -> tuple[Repository, set[str]]:
    """A repository in which a run was killed after its first segment, and what that run left."""
    run(tmp_path, OLD)
    before = set(files(tmp_path))

    def work() -> None:
        repository = make(tmp_path)
        with Lease(repository.store, VM), repository.new_point(VM, KEYS) as point:
            write(_Killing(point), two_disks())

    assert killed(-1, work)
    return make(tmp_path), set(files(tmp_path)) - before


class _Killing:
    """A point that kills its process when all segments and the index are there, but no record."""

    def __init__(self, point) -> None:
        self.put_ova, self.put_block, self._point = point.put_ova, point.put_block, point

    def commit(self, meta):
        self._point._write_meta = lambda: kill("meta")
        return self._point.commit(meta)


@pytest.fixture
def hour_old(monkeypatch):
    """Makes what is on the disk look older to the sweeper by the hours it is called with."""
    def age(path, hours: float) -> None:
        for name in files(path):
            moment = time.time() - hours * 3600
            os.utime(path / name, (moment, moment))

    return age


def test_what_a_dead_run_left_goes_at_once(tmp_path):
    repository, left = abandoned(tmp_path)
    assert {name.split("/")[2] for name in left if name.startswith("vm/")} == {"seg", "idx"}
    with Lease(repository.store, VM) as lease:
        assert lease.certain
        assert set(repository.sweep(lease)) == {name for name in left if not name.startswith("lease/")}
    nothing_but(repository, tmp_path)


def test_what_a_silent_run_left_goes_after_a_day(tmp_path, hour_old):
    repository, left = abandoned(tmp_path)
    left = {name for name in left if not name.startswith("lease/")}
    with Lease(repository.store, VM) as lease:
        lease.certain = False  # as when the lease of another machine grew stale
        hour_old(tmp_path, 23)
        assert repository.sweep(lease) == []
        hour_old(tmp_path, 25)
        assert set(repository.sweep(lease)) == left
    nothing_but(repository, tmp_path)


def test_committed_points_and_other_vms_are_never_swept(tmp_path, hour_old):
    repository = make(tmp_path)
    run(tmp_path, OLD)
    other = "00000000-0000-4000-8000-00000000000b"
    point = repository.new_point(other, KEYS)
    point.put_ova(ova(OLD))
    strangers = tmp_path / "vm" / VM / "seg/notes.txt"
    strangers.write_text("a file of the operator")
    before = files(tmp_path)
    hour_old(tmp_path, 1000)
    with Lease(repository.store, VM) as lease:
        assert repository.sweep(lease) == []
        assert {name: digest for name, digest in files(tmp_path).items() if not name.startswith("lease/")} == before
    point.abort()


def test_temporary_files_of_nobody_go_after_a_day(tmp_path, hour_old):
    repository = make(tmp_path)
    repository.store.put(".tmp/probe.0123", b"")
    with Lease(repository.store, VM) as lease:
        assert repository.sweep(lease) == []
        hour_old(tmp_path, sweeping.ABANDONED / 3600 + 1)
        assert repository.sweep(lease) == [".tmp/probe.0123"]


def test_a_run_whose_objects_were_swept_makes_no_point(tmp_path):
    repository = make(tmp_path)
    for step in ("_write_meta", "_put"):
        with pytest.raises(Exception, match="Cannot look at"), repository.new_point(VM, KEYS) as point:
            original = getattr(point, step)

            def swept_meanwhile(*arguments, original=original):
                with Lease(repository.store, VM) as lease:
                    assert repository.sweep(lease)
                return original(*arguments)

            setattr(point, step, swept_meanwhile)
            write(point, NEW)
        assert not repository.points(VM)
    nothing_but(repository, tmp_path)
