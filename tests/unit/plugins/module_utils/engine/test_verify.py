# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verification finds in points that are stored as they were written, and are wrong all the same."""
from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import NoMatchError
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.engine.verify import LEVELS, verify
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import encode_block
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    DATA,
    KEYS,
    SIGNERS,
    VM,
    back_up,
    blocks_of,
    disk,
    lay,
    make,
    two_disks,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, ova

META = {"vm": {"uuid": VM, "name_label": "web01"}, "method": "normal"}


def found(repository, level, identities=(DATA,)):
    return list(verify(repository, repository.points(VM, SIGNERS), level, identities, Progress("repository")))


def test_a_chain_that_is_whole_has_no_findings(tmp_path):
    repository = make(tmp_path / "repository")
    lay(repository, back_up(repository, two_disks()), two_disks(4))
    assert [found(repository, level) for level in LEVELS] == [[], [], []]
    assert found(repository, "structure", [CATALOG]) == []
    for level, identities in (("structure", []), ("content", [CATALOG])):
        with pytest.raises(NoMatchError):
            found(repository, level, identities)


def test_a_block_that_was_said_to_be_unchanged_and_is_not(tmp_path):
    repository = make(tmp_path / "repository")
    first = back_up(repository, two_disks())
    with repository.layers(first, [CATALOG]) as base, repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(two_disks()), base)
        for one in two_disks():
            last = -(-len(one.image) // MIB) - 1
            for label, number, data in blocks_of([one]):
                unit = encode_block(label, number, data)
                if number in (0, last):
                    point.put_block(label, number, unit)
                else:
                    point.keep_block(label, number, bytes(32) if number == 2 else unit.digest)
        second = point.commit(META)
    assert found(repository, "sealed") == []  # it is what was written
    for level in ("structure", "content"):
        (one,) = found(repository, level)
        assert (one.point, one.disk[-10:]) == (second.point, "(Ref:1001)") and "do not give" in one.problem


def test_a_block_that_holds_something_else_than_its_digest_says(tmp_path):
    repository = make(tmp_path / "repository")
    disks = [disk(0, 4 * MIB + 512, {number: number + 1 for number in range(5)})]
    with repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(disks))
        for label, number, data in blocks_of(disks):
            other = encode_block(label, number, bytes([7]) * len(data))
            unit = encode_block(label, number, data)
            wrong = number in (1, 2, 4)
            point.put_block(label, number, type(unit)(other.frame if wrong else unit.frame, unit.digest, False, unit.short,
                                                      unit.plain_len))
        point.commit(META)
    assert found(repository, "sealed") == found(repository, "structure") == []
    (one,) = found(repository, "content")
    assert one.ranges == ((MIB, 2 * MIB), (4 * MIB, 512)) and "not what was backed up" in one.problem
