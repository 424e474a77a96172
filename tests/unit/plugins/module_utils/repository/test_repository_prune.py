# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning: what goes and what stays, crashes at every call, lying listings, locked objects."""
from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import layout
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError, Retained
from ansible_collections.guestark.xen.plugins.module_utils.repository.marks import read_marks
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.prune import ABANDONED, prune
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.failpoints import (
    CHANGES,
    Failpoints,
    fail_with,
    kill,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    disk,
    equal,
    files,
    lay,
    make,
    restore,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB

STATES = [[disk(0, 3 * MIB, {0: 1, 1: step, 2: step // 2})] for step in range(10, 16)]
FOLDER = layout.vm_folder(VM)


def chain(path, length: int = 4, full_at: tuple[int, ...] = (0,)):
    """A repository with a chain of points of STATES."""
    repository = make(path)
    records = []
    for step, disks in enumerate(STATES[:length]):
        records.append(back_up(repository, disks) if step in full_at else lay(repository, records[-1], disks))
    return repository, records


def all_but(*kept):
    """A judge that dooms every point but these."""
    names = {one.point for one in kept}
    return lambda records: {one.point for one in records if one.trusted and not one.problem} - names


def is_whole(repository, records, kept: list[int]) -> None:
    """Exactly these points are there, good and restorable."""
    points = repository.points(VM, SIGNERS)
    assert [one.point for one in points] == [records[at].point for at in kept]
    assert not verify_sealed(repository, points) and all(one.trusted and not one.problem for one in points)
    for at, point in zip(kept, points):
        assert equal(restore(repository, point), STATES[at])


def test_points_in_the_middle_go_and_what_younger_ones_need_stays(tmp_path):
    repository, records = chain(tmp_path / "r", 6, full_at=(0, 4))
    done = prune(repository, VM, SIGNERS, all_but(records[2], records[5]), 0.0)
    assert done.removed == done.marked == [records[at].point for at in (0, 1, 3, 4)]
    is_whole(repository, records, [2, 5])
    needed = {FOLDER + name for at in (2, 5) for _digest, name in records[at].objects}
    signed = {FOLDER + layout.record_name(records[at].point) + end for at in (2, 5) for end in ("", ".sig")}
    here = {name for name in files(tmp_path / "r") if name.startswith("vm/")}
    assert here == needed | signed
    assert done.removed_objects > 8 and done.removed_bytes > 0
    again = prune(repository, VM, SIGNERS, all_but(records[2], records[5]), 0.0)
    assert again.marked == again.removed == [] and not again.removed_objects


def test_nothing_goes_before_the_grace_is_over_and_a_better_policy_takes_a_mark_back(tmp_path):
    repository, records = chain(tmp_path / "r")
    before = {name for name in files(tmp_path / "r") if name.startswith("vm/")}
    done = prune(repository, VM, SIGNERS, all_but(records[3]), 3600.0)
    assert done.marked == [one.point for one in records[:3]] and not done.removed
    (mark,) = read_marks(repository.store, VM)
    assert before < {name for name in files(tmp_path / "r") if name.startswith("vm/")}
    assert not prune(repository, VM, SIGNERS, all_but(records[3]), 3600.0).marked  # announced already
    assert len(read_marks(repository.store, VM)) == 1
    age(repository, layout.mark_name(mark.run), 3700)
    done = prune(repository, VM, SIGNERS, all_but(records[3], records[1]), 3600.0)  # one of them is wanted now
    assert done.removed == [records[0].point, records[2].point]
    is_whole(repository, records, [1, 3])
    assert not read_marks(repository.store, VM)


def age(repository, name: str, seconds: float) -> None:
    path = os.path.join(repository.store.path, FOLDER + name)
    os.utime(path, (os.stat(path).st_mtime - seconds,) * 2)


def test_a_mark_alone_condemns_nothing(tmp_path):
    repository, records = chain(tmp_path / "r", 3)
    forged = '{"points": ["%s"], "kept": [], "objects": ["%s"]}' % (records[1].point, records[2].segments[0])
    repository.store.put(FOLDER + layout.mark_name("forged"), forged.encode())
    prune(repository, VM, SIGNERS, all_but(*records), 0.0)
    is_whole(repository, records, [0, 1, 2])


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"points": 3, "objects": 4, "kept": []}',
    '{"points": ["../x"], "objects": [], "kept": []}',
    '{"points": [], "objects": ["../../etc/passwd"], "kept": []}',
    '{"points": [], "objects": ["pt/x.sum"], "kept": []}',
])
def test_a_malformed_mark_stops_pruning_and_is_named(tmp_path, text):
    repository, records = chain(tmp_path / "r", 2)
    repository.store.put(FOLDER + layout.mark_name("odd"), text.encode())
    with pytest.raises(RepositoryError, match="odd.mark is no mark"):
        prune(repository, VM, SIGNERS, all_but(records[1]), 0.0)
    is_whole(repository, records, [0, 1])


def test_a_killed_prune_loses_nothing_and_the_next_one_finishes(fast_path):
    _repository, records = chain(fast_path / "base")
    before = set(files(fast_path / "base"))
    at, seen = 0, set()
    while True:
        path = fast_path / "copy"
        shutil.copytree(fast_path / "base", path)
        pid = os.fork()
        if not pid:
            status = 1
            with suppress(BaseException), Failpoints(kill, at, CHANGES):
                prune(Repository.open(PosixStore(str(path))), VM, SIGNERS, all_but(records[1]), 0.0)
                status = 0
            os._exit(status)
        ended = os.waitpid(pid, 0)[1] == 0
        repository = Repository.open(PosixStore(str(path)))
        left = [one.point for one in repository.points(VM)]
        kept = [place for place, one in enumerate(records) if one.point in left]
        assert 1 in kept
        is_whole(repository, records, kept)
        prune(repository, VM, SIGNERS, all_but(records[1]), 0.0)
        is_whole(repository, records, [1])
        assert {name for name in files(path) if name.startswith("vm/")} <= before
        seen.add(len(kept))
        shutil.rmtree(path)
        if ended:
            break
        at += 1
    assert at > 20 and seen == {1, 2, 3, 4}


def test_an_error_at_any_call_is_told_and_loses_nothing(fast_path):
    _repository, records = chain(fast_path / "base", 3)
    with Failpoints(None) as seen:
        shutil.copytree(fast_path / "base", fast_path / "dry")
        prune(Repository.open(PosixStore(str(fast_path / "dry"))), VM, SIGNERS, all_but(records[2]), 0.0)
    for at in range(0, seen.count, 3):
        path = fast_path / "copy"
        shutil.copytree(fast_path / "base", path)
        repository = Repository.open(PosixStore(str(path)))
        with suppress(RepositoryError), Failpoints(fail_with(errno.EIO), at):
            prune(repository, VM, SIGNERS, all_but(records[2]), 0.0)
        left = [one.point for one in repository.points(VM)]
        is_whole(repository, records, [place for place, one in enumerate(records) if one.point in left])
        assert records[2].point in left
        prune(repository, VM, SIGNERS, all_but(records[2]), 0.0)
        is_whole(repository, records, [2])
        shutil.rmtree(path)


class Lying(PosixStore):
    """A store whose listings leave out names."""

    hidden: tuple[str, ...] = ()

    def list(self, folder: str):
        """See PosixStore."""
        return [name for name in super().list(folder) if not any(part in name for part in self.hidden)]


@pytest.mark.parametrize("hide", [
    lambda records: ("pt/%s" % records[3].point,),  # the record alone: its index gives it away
    lambda records: ("pt/%s" % records[1].point, "idx/%s" % records[1].point, "meta/%s" % records[1].point),  # a parent
    lambda records: ("seg/%s" % records[2].point,),
], ids=["record", "parent", "segment"])
def test_a_listing_that_leaves_something_out_stops_pruning(tmp_path, hide):
    _repository, records = chain(tmp_path / "r")
    store = Lying(str(tmp_path / "r"))
    store.hidden = hide(records)
    before = files(tmp_path / "r")
    with pytest.raises(RepositoryError, match=r"does not list .*Prune again"):
        prune(Repository.open(store), VM, SIGNERS, all_but(records[0]), 0.0)
    assert files(tmp_path / "r") == before


def test_a_point_that_vanishes_from_all_listings_after_the_mark_stops_the_removal(tmp_path):
    repository, records = chain(tmp_path / "r")
    prune(repository, VM, SIGNERS, all_but(records[3]), 3600.0)
    store = Lying(str(tmp_path / "r"))
    store.hidden = (records[3].point,)
    with pytest.raises(RepositoryError, match="does not list point %s" % records[3].point):
        prune(Repository.open(store), VM, SIGNERS, all_but(records[3]), 0.0)
    is_whole(repository, records, [0, 1, 2, 3])


def test_an_unreadable_record_stops_pruning(tmp_path):
    repository, records = chain(tmp_path / "r", 3)
    name = tmp_path / "r" / FOLDER / layout.record_name(records[2].point)
    text = name.read_bytes()
    name.write_bytes(text[:-3])
    with pytest.raises(RepositoryError, match="may need any object"):
        prune(repository, VM, SIGNERS, all_but(), 0.0)
    name.write_bytes(text)
    is_whole(repository, records, [0, 1, 2])


class Locked(PosixStore):
    """A store that lets some objects not go yet, as one with object lock does."""

    locked = ""

    def remove(self, name: str) -> None:
        """See PosixStore."""
        if self.locked and self.locked in name:
            raise Retained("%s is retained." % name)
        super().remove(name)


@pytest.mark.parametrize("locked", ["/seg/", "/pt/", "/idx/"])
def test_what_is_locked_is_reported_and_goes_when_the_lock_is_over(tmp_path, locked):
    repository, records = chain(tmp_path / "r", 3, full_at=(0, 2))
    store = Locked(str(tmp_path / "r"))
    store.locked = locked
    done = prune(Repository.open(store), VM, SIGNERS, all_but(records[2]), 0.0)
    assert done.retained and all(locked in name for name in done.retained)
    left = [one.point for one in repository.points(VM)]
    is_whole(repository, records, [at for at, one in enumerate(records) if one.point in left])
    store.locked = ""
    prune(Repository.open(store), VM, SIGNERS, all_but(records[2]), 0.0)
    is_whole(repository, records, [2])
    assert sum("/seg/" in name for name in files(tmp_path / "r")) == 1


@pytest.mark.parametrize("name", ["seg/%s-000.xva.zst.age.1a2b3c4d.partial", "idx/.%s.idx.age.Q1w2e3", "pt/%s.sum.sig.partial"])
def test_what_copying_tools_did_not_finish_is_no_hindrance_and_goes_after_a_week(tmp_path, name):
    repository, records = chain(tmp_path / "r", 2)
    unfinished = name % layout.new_point_id(records[0].started, 9)
    repository.store.put(FOLDER + unfinished, b"half an object")
    prune(repository, VM, SIGNERS, all_but(*records), 0.0)
    assert FOLDER + unfinished in files(tmp_path / "r")
    age(repository, unfinished, ABANDONED + 60)
    for _run in range(2):
        prune(repository, VM, SIGNERS, all_but(*records), 0.0)
    assert FOLDER + unfinished not in files(tmp_path / "r")
    is_whole(repository, records, [0, 1])


def test_what_dead_runs_left_goes_after_a_week(tmp_path):
    repository, records = chain(tmp_path / "r", 2)
    stray = layout.new_point_id(records[0].started, 9)
    young = layout.new_point_id(records[0].started, 10)
    for point in (stray, young):
        repository.store.put(FOLDER + layout.segment_name(point, 0, True), b"half a segment")
        repository.store.put(FOLDER + layout.record_name(point) + ".sig", b"signature")
    for name in (layout.segment_name(stray, 0, True), layout.record_name(stray) + ".sig"):
        age(repository, name, ABANDONED + 60)
    prune(repository, VM, SIGNERS, all_but(*records), 0.0)
    assert not [name for name in files(tmp_path / "r") if stray in name]
    assert len([name for name in files(tmp_path / "r") if young in name]) == 2
    is_whole(repository, records, [0, 1])
