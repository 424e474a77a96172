# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A power cut after any call: what was reported is there, what is listed restores, and the next run succeeds."""
from __future__ import annotations

import random
import shutil

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import lease as leases
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.prune import prune
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    disk,
    equal,
    lay,
    make,
    restore,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.power import Recorder, lay_out
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB

STATES = [[disk(0, MIB + 1536, {0: b"text", 1: step})] for step in range(10, 15)]
CUTS = 4  # of which two are the extremes: everything that was not synced is gone, or only contents are


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The lease of the run that was cut is stale at once."""
    monkeypatch.setattr(leases, "STALE", 0.0)


def history(path, recorder) -> list[tuple[int, list[str], list[str]]]:
    """Two points in a repository, then a third and a fourth while calls are recorded, and the first and third pruned.

    Gives after how many calls which points had to be there, and which may no longer be missing.
    """
    repository = Repository.open(PosixStore(str(path)))
    first, second = (one.point for one in repository.points(VM))
    told = [(0, [first, second])]
    with recorder:
        for step in (2, 3):
            with Lease(repository.store, VM) as lease:
                repository.sweep(lease)
                before = repository.points(VM)[-1]
                made = lay(repository, before, STATES[step]) if step == 2 else back_up(repository, STATES[step])
                told.append((len(recorder), [*told[-1][1], made.point]))
        third, fourth = told[-1][1][2:]
        pruning = len(recorder)
        prune(repository, VM, SIGNERS, lambda _records: {first, third}, 0.0)
        told += [(pruning, [second, fourth])]
    return told


def survivors(path, names: dict[str, int]) -> list[str]:
    """The points of a repository after a cut: every one of them is good and restores."""
    repository = Repository.open(PosixStore(str(path)))
    points = repository.points(VM, SIGNERS)
    assert all(one.trusted and not one.problem for one in points), [one.problem for one in points]
    assert not verify_sealed(repository, points)
    for place, one in enumerate(points):
        assert equal(restore(repository, one), STATES[names.get(one.point, place)])
    return [one.point for one in points]


def cut_everywhere(folder, deaf_to: str = "", seed: int = 1) -> int:
    """Replay every cut of the history; AssertionError where something is lost. Gives how many disks were looked at."""
    path, copy = folder / "r", folder / "copy"
    repository = make(path)
    base = back_up(repository, STATES[0])
    lay(repository, base, STATES[1])
    recorder = Recorder(path, deaf_to)
    told = history(path, recorder)
    names = {point: place for place, point in enumerate(told[2][1])}
    chance = random.Random(seed)
    ways = [(lambda: False, lambda _rest: 0), (lambda: True, lambda _rest: 0)]
    ways += [(lambda: chance.random() < 0.5, lambda rest: chance.randint(0, rest))] * (CUTS - 2)
    seen = set()
    for count, state in enumerate(recorder.disks()):
        needed = [points for after, points in told if after <= count][-1]
        for way in ways:
            found = state.after_cut(*way)
            known = hash(tuple(sorted((name, data or b"") for name, data in found.items())))
            if (known, tuple(needed)) in seen:
                continue
            seen.add((known, tuple(needed)))
            lay_out(copy, found)
            left = survivors(copy, names)
            assert set(needed) <= set(left) and left == sorted(left), (count, needed, left)
            if len(seen) % 5 == 0:  # the next run
                repository = Repository.create_or_open(PosixStore(str(copy)))
                with Lease(repository.store, VM) as lease:
                    repository.sweep(lease)
                    again = lay(repository, repository.points(VM)[-1], STATES[4])
                assert survivors(copy, names | {again.point: 4}) == [*left, again.point]
            shutil.rmtree(copy)
    return len(seen)


def test_a_power_cut_anywhere_loses_nothing_that_was_reported(fast_path):
    assert cut_everywhere(fast_path) > 200


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_a_store_that_forgot_to_sync_would_be_found_out(fast_path, forgotten):
    with pytest.raises(AssertionError):
        cut_everywhere(fast_path, deaf_to=forgotten)
