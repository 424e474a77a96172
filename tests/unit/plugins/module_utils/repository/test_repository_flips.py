# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealed verification finds every flipped bit of every object, without any key that opens something.

Every bit of what is plain, and one bit of every byte of the rest; every bit of everything with GUESTARK_PROOFS set.
"""
from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import Part, verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    KEYS,
    OPEN_KEYS,
    SIGNERS,
    VM,
    back_up,
    disk,
    files,
    lay,
    make,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB

EVERY_BIT = bool(os.environ.get("GUESTARK_PROOFS"))
PLAIN = (".sum", ".sig", "repository.json")


def small_disk(word: bytes):
    """A disk whose blocks compress to little."""
    return [disk(0, 2 * MIB + 512, {0: word, 1: b"the same in both"})]


@pytest.fixture(params=[KEYS, OPEN_KEYS], ids=["age", "none"])
def chain(request, fast_path):
    """The folder of a repository with a full point and a layer over it."""
    repository = make(fast_path)
    record = back_up(repository, small_disk(b"first"), request.param)
    if request.param is KEYS:
        lay(repository, record, small_disk(b"second"))
    return fast_path


def findings(path: Path):
    """What sealed verification says, or the error with which it ends."""
    try:
        repository = Repository.open(PosixStore(str(path)))
        return verify_sealed(repository, repository.points(None, SIGNERS))
    except RepositoryError as error:
        return [error]


def test_every_flipped_bit_is_found(chain):
    assert findings(chain) == []
    chance, flips = random.Random(3), 0
    for name in sorted(name for name in files(chain) if not name.startswith((".tmp/", "lease/"))):
        path = chain / name
        whole = path.read_bytes()
        path.chmod(0o600)
        for at in range(len(whole)):
            bits = range(8) if EVERY_BIT or name.endswith(PLAIN) else [chance.randrange(8)]
            for bit in bits:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([whole[at] ^ 1 << bit]))
                assert findings(chain), f"bit {bit} of byte {at} of {name}"
                flips += 1
        path.write_bytes(whole)
    assert findings(chain) == [] and flips > 10000
    print(f"{flips} flipped bits were found")


def test_a_finding_names_the_object_and_the_points_that_need_it(chain):
    first, *later = Repository.open(PosixStore(str(chain))).points(VM, SIGNERS)
    path = chain / "vm" / VM / first.segments[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    found = findings(chain)
    assert {(one.point, one.name) for one in found} == {(one.point, first.segments[0]) for one in [first, *later]}


def test_parts_together_are_everything(chain):
    repository = Repository.open(PosixStore(str(chain)))
    records = repository.points(VM, SIGNERS)
    names = {f"vm/{VM}/{name}" for record in records for name in record.segments}
    for total in (1, 3, 28):
        parts = [{name for name in names if Part(number, total).holds(name)} for number in range(1, total + 1)]
        assert sum(map(len, parts)) == len(names) == len(set.union(*parts))
    for name in names:
        path = chain / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"\0")
        found = [bool(verify_sealed(repository, records, Part(number, 5))) for number in range(1, 6)]
        assert found.count(True) == 1
        path.write_bytes(whole)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/4", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ValueError, match="no part"):
        Part.parse(text)
