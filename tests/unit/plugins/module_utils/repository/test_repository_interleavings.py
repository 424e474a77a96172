# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every interleaving of one backup and one prune run, on the real code: a point that was reported good restores.

The store stops each of the two before the steps that matter to the other, and a schedule says who goes on. There is no
grace here: what the marks and the writer's two looks cannot prevent has to be reported.
"""
from __future__ import annotations

import random
import shutil
import threading
from itertools import combinations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import point_writer
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.point_writer import PointWriter
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.prune import prune
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    OPEN_KEYS,
    SIGNERS,
    VM,
    back_up,
    disk,
    equal,
    lay,
    make,
    restore,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB

OLD, NEW = [disk(0, 2 * MIB, {0: b"old", 1: b"kept"})], [disk(0, 2 * MIB, {0: b"new", 1: b"kept"})]
THIRD = [disk(0, 2 * MIB, {0: b"third", 1: b"kept"})]

# (operation, part of the name) -> step; an actor waits before the first call of each step
BACKUP = {
    ("list", "/pt/"): "read", ("create", "/seg/"): "upload", ("list", "/trash/"): "marks", ("size", ""): "presence",
    ("put", ".sum\0"): "commit",
}
PRUNE = {
    ("list", "/pt/"): "list", ("put", "/trash/"): "mark", ("remove", ".sum\0"): "records", ("remove", "/seg/"): "data",
    ("remove", "/meta/"): "metadata",
}
BACKUP_STEPS, PRUNE_STEPS = 7, 6


class Actor(PosixStore):
    """A store that hands the turn back before every step of ``steps``, and the thread that uses it."""

    def __init__(self, path: str, steps: dict[tuple[str, str], str], work) -> None:
        super().__init__(path)
        self.outcome = None
        self.passed: list[str] = []
        self._steps, self._work = steps, work
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self.ended = False

    def start(self) -> None:
        """Run up to the first step."""
        self._thread.start()
        self._waits.acquire()

    def step(self) -> None:
        """Do one step, if any is left."""
        if not self.ended:
            self._go.release()
            self._waits.acquire()

    def finish(self) -> None:
        """Do what is left."""
        while not self.ended:
            self.step()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.outcome = self._work(Repository.open(self))
        except RepositoryError as error:
            self.outcome = error
        finally:
            self.ended = True
            self._waits.release()

    def _gate(self, operation: str, name: str) -> None:
        found = (step for (kind, part), step in self._steps.items() if kind == operation and part in name + "\0")
        step = next(found, None)
        if step == "presence" and self.passed[-1:] != ["marks"]:
            return  # sizes are also asked for when the earlier point is opened
        if step and self.passed[-1:] != [step] and threading.current_thread() is self._thread:
            self._waits.release()
            self._go.acquire()
            self.passed.append(step)

    def list(self, folder):
        """See PosixStore."""
        self._gate("list", folder)
        return super().list(folder)

    def create(self, name):
        """See PosixStore."""
        self._gate("create", name)
        return super().create(name)

    def put(self, name, data):
        """See PosixStore."""
        self._gate("put", name)
        super().put(name, data)

    def size(self, name):
        """See PosixStore."""
        self._gate("size", name)
        return super().size(name)

    def remove(self, name):
        """See PosixStore."""
        self._gate("remove", name)
        super().remove(name)


def back_up_over_the_newest(repository):
    points = repository.points(VM, SIGNERS)
    good = [one for one in points if not one.problem]
    return lay(repository, good[-1], NEW, OPEN_KEYS) if good else back_up(repository, NEW, OPEN_KEYS)


def prune_all(repository):
    seen: list = []

    def doomed(records):
        seen.extend(one.point for one in records if not seen or one.point in seen)
        return set(seen)

    return prune(repository, VM, SIGNERS, doomed, 0.0)


def play(path, schedule: set[int]) -> tuple[str, list[str], list[str]]:
    """Run one interleaving; ``schedule``: the turns that are the backup's. Returns (what came of it, steps, steps)."""
    backup, pruning = Actor(str(path), BACKUP, back_up_over_the_newest), Actor(str(path), PRUNE, prune_all)
    backup.start()
    pruning.start()
    for turn in range(BACKUP_STEPS + PRUNE_STEPS):
        (backup if turn in schedule else pruning).step()
    backup.finish()
    pruning.finish()
    repository = Repository.open(PosixStore(str(path)))
    points = {one.point: one for one in repository.points(VM, SIGNERS)}
    if isinstance(backup.outcome, RepositoryError):
        result = "reported"
    else:
        record = points.get(backup.outcome.point)
        # the prune run dooms what it saw when it began, and that may be the new point: then it was meant
        meant = record is None and backup.outcome.point in getattr(pruning.outcome, "removed", [])
        good = meant or (record and not record.problem and equal(restore(repository, record, []), NEW))
        result = "good" if good else "silent loss"
    return result, backup.passed, pruning.passed


def schedules():
    turns = range(BACKUP_STEPS + PRUNE_STEPS)
    return [set(chosen) for chosen in combinations(turns, BACKUP_STEPS)]


@pytest.fixture(name="base")
def _base(fast_path):
    back_up(make(fast_path / "base"), OLD, OPEN_KEYS)
    return fast_path / "base"


def outcomes(base, chosen) -> dict[str, int]:
    found: dict[str, int] = {}
    for schedule in chosen:
        path = base.parent / "copy"
        shutil.copytree(base, path)
        result, _backup, _pruning = play(path, schedule)
        found[result] = found.get(result, 0) + 1
        if result == "reported":  # then the next run needs nobody's help
            repository = Repository.open(PosixStore(str(path)))
            record = back_up(repository, THIRD, OPEN_KEYS)
            assert equal(restore(repository, record, []), THIRD)
        shutil.rmtree(path)
    return found


def test_the_two_alone_pass_all_the_steps(base):
    shutil.copytree(base, base.parent / "copy")
    _result, backup, pruning = play(base.parent / "copy", set(range(PRUNE_STEPS, PRUNE_STEPS + BACKUP_STEPS)))
    assert backup == ["read", "upload", "marks", "presence", "commit", "marks", "presence"]
    assert pruning == ["list", "mark", "list", "records", "data", "metadata"]


def test_no_interleaving_loses_a_point_in_silence(base):
    found = outcomes(base, schedules())
    assert set(found) == {"good", "reported"} and sum(found.values()) == 1716


@pytest.mark.parametrize("looks", ["presence", "none"])
def test_without_the_writers_looks_there_would_be_losses(base, monkeypatch, looks):
    monkeypatch.setattr(point_writer, "marked_objects", lambda _store, _vm: set())
    if looks == "none":
        monkeypatch.setattr(PointWriter, "_check_kept", lambda *_arguments: None)
    chosen = random.Random(1).sample(schedules(), 200)
    assert outcomes(base, chosen).get("silent loss")
