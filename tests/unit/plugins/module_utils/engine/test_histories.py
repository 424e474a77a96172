# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random histories of backups, pruning, compaction, crashes and damage: every point reported as a success restores.

GUESTARK_PROOFS has many more of them.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

from ansible_collections.guestark.xen.plugins.module_utils.age.errors import AgeError
from ansible_collections.guestark.xen.plugins.module_utils.engine.compact import CompactOrder, compact
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.engine.prune import PruneOrder, prune_vm
from ansible_collections.guestark.xen.plugins.module_utils.engine.retention import Policy
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.marks import hold, read_holds, release
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.failpoints import killed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    DATA,
    KEYS,
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
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

PROOFS = bool(os.environ.get("GUESTARK_PROOFS"))
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
CRASH = st.one_of(st.none(), st.integers(0, 260))
CONTENTS = st.sampled_from([0, b"", b"some text", b"other text", 5, 6, 7])


class History(RuleBasedStateMachine):
    """A VM of one or two disks, its repository, and what each of its points has to give back."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=MEMORY))
        self.repository = make(self.path)
        self.sizes = {0: 2 * MIB + 512, 1: MIB}
        self.content: dict[int, dict[int, bytes | int]] = {0: {0: b"first"}}
        self.held: dict[str, list] = {}
        self.damaged: set[str] = set()
        self.undo: list = []
        self.proven: set[str] = set()

    def teardown(self) -> None:
        """Remove what there is."""
        shutil.rmtree(self.path)

    # what the guest and its administrator do

    @rule(number=st.integers(0, 1), block=st.integers(0, 3), content=CONTENTS)
    def write(self, number, block, content):
        """Write a block of a disk, if it is there."""
        if number in self.content and block * MIB < self.sizes[number]:
            self.content[number][block] = content if content != 0 else b""

    @rule(number=st.integers(0, 1), by=st.sampled_from([512, MIB, MIB + 1024]))
    def grow(self, number, by):
        """Grow a disk."""
        self.sizes[number] = min(self.sizes[number] + by, 4 * MIB)

    @rule()
    def plug(self):
        """Attach the second disk, or take it away."""
        if self.content.pop(1, None) is None:
            self.content[1] = {0: b"second"}

    def disks(self) -> list:
        """The disks as they are."""
        return [disk(number, self.sizes[number], dict(self.content[number])) for number in sorted(self.content)]

    # runs, each of which may be killed at some call to the operating system

    def run(self, work, crash) -> str:
        """Do some work; an error of ours is as good as success here, what is listed decides."""
        def bear() -> None:
            try:
                work(Repository.open(PosixStore(str(self.path))))
            except (RepositoryError, AgeError):
                pass

        if crash is not None:
            how = "killed" if killed(crash, bear) else "ended"
        else:
            how = "ended"
            bear()
        event(f"{work.__name__} {how}")
        return how

    def good(self) -> list:
        """The points that count."""
        return [one for one in self.repository.points(VM, SIGNERS) if one.trusted and not one.problem]

    def exempt(self, record) -> bool:
        """Whether a point rests on what was damaged on purpose."""
        names = {name for _digest, name in record.objects} | {f"pt/{record.point}.sum", f"pt/{record.point}.sum.sig"}
        return bool(names & self.damaged)

    @rule(crash=CRASH, full=st.booleans())
    def backup(self, crash, full):
        """Make a point over the newest good one, or a full one; without a crash or damage it has to come."""
        disks, before = self.disks(), {str(one.point) for one in self.good()}

        def backup(repository):
            with Lease(repository.store, VM) as lease:
                repository.sweep(lease)
                points = [one for one in repository.points(VM, SIGNERS) if one.trusted and not one.problem]
                if points and not full:
                    lay(repository, points[-1], disks)
                else:
                    back_up(repository, disks)

        how = self.run(backup, crash)
        made = [one for one in self.good() if str(one.point) not in before]
        assert len(made) <= 1 and (made or how == "killed" or self.damaged)
        for one in made:
            event(f"{one.kind} of {len(one.indexes)}")
            self.held[str(one.point)] = disks

    @rule(crash=CRASH)
    def compact(self, crash):
        """Put the newest point's layers together, if it has some."""
        before = {str(one.point) for one in self.good()}

        def compaction(repository):
            compact(repository, VM, KEYS, SIGNERS, CompactOrder(2, [DATA]), Progress("vm"))

        self.run(compaction, crash)
        for one in self.good():
            if str(one.point) not in before:
                assert one.kind == "synthetic"
                event("synthetic")
                self.held[str(one.point)] = self.held[str(one.parent)]

    @rule(keep=st.integers(1, 3), crash=CRASH)
    def prune(self, keep, crash):
        """Prune; what no rule keeps may be gone then, and nothing else."""
        order = PruneOrder(Policy({"last": keep}), timedelta(0), 0.0, identities=[CATALOG])
        try:
            decisions = prune_vm(self.repository, VM, SIGNERS, order, dry_run=True).decisions
        except RepositoryError:
            assert self.damaged
            return
        self.run(lambda repository: prune_vm(repository, VM, SIGNERS, order), crash)
        there = {one.point for one in self.repository.points(VM, SIGNERS)}
        for one in decisions:
            assert one.point in there or not one.reasons
            if one.point not in there:
                self.held.pop(str(one.point), None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data):
        """Hold a point, or let it go."""
        point = data.draw(st.sampled_from(self.good())).point if self.good() else None
        if point and read_holds(self.repository.store, VM).get(point):
            release(self.repository.store, VM, point, "kept")
        elif point:
            hold(self.repository.store, VM, point, "kept")

    @precondition(lambda self: self.held and not self.damaged)
    @rule(data=st.data())
    def damage(self, data):
        """Flip a bit of an object that some point lists."""
        record = data.draw(st.sampled_from(self.good()))
        name = data.draw(st.sampled_from([name for _digest, name in record.objects]))
        path = self.path / "vm" / VM / name
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:])
        self.damaged.add(name)
        self.undo.append(lambda: path.write_bytes(whole) if path.exists() else None)
        found = {one.name for one in verify_sealed(self.repository, self.repository.points(VM, SIGNERS))}
        assert name in found

    @precondition(lambda self: self.damaged)
    @rule()
    def heal(self):
        """Bring the damaged object back from another copy."""
        self.undo.pop()()
        self.damaged.clear()
        self.proven.clear()

    # what always holds

    @invariant()
    def every_reported_point_restores(self):
        """Each point that was reported and not pruned is listed, and gives what the disks held."""
        listed = {str(one.point): one for one in self.repository.points(VM, SIGNERS)}
        assert set(self.held) <= set(listed)
        for name, disks in self.held.items():
            record = listed[name]
            if self.exempt(record):
                continue
            assert record.trusted and not record.problem
            if name not in self.proven or len(self.held) < 3:
                assert equal(restore(self.repository, record), disks)
                self.proven.add(name)
        wrong = {one.point for one in verify_sealed(self.repository, list(listed.values()))}
        assert all(self.exempt(listed[str(point)]) for point in wrong)


TestHistories = History.TestCase
TestHistories.settings = settings(
    max_examples=300 if PROOFS else 15, stateful_step_count=25, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)
