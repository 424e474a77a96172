# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealed verification finds every change of every object without any key."""
from __future__ import annotations

import random
import shutil

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    KEYS,
    OPEN_KEYS,
    SIGNERS,
    VM,
    back_up,
    files,
    make,
    two_disks,
)

CLASSES = ("seg", "idx", "meta", "sum", "sig")


@pytest.fixture(params=[KEYS, OPEN_KEYS], ids=["age", "none"])
def damaged(request, tmp_path):
    """A repository with two points, and how to change one object of the first."""
    repository = make(tmp_path)
    record = back_up(repository, two_disks(), request.param)
    back_up(repository, two_disks(1), request.param)
    committed = "pt/%s.sum" % record.point
    names = dict(zip(CLASSES, (*(name for _digest, name in record.objects), committed, committed + ".sig")))

    def change(kind: str, edit) -> None:
        path = tmp_path / "vm" / VM / names[kind]
        path.write_bytes(edit(path.read_bytes()))

    change.repository, change.record, change.folder = repository, record, tmp_path / "vm" / VM
    change.names = names
    return change


def sealed(damaged, vm=None, signers=None):
    """Sealed verification of the points of a VM, or of all."""
    return verify_sealed(damaged.repository, damaged.repository.points(vm, signers))


def test_an_untouched_repository_has_no_findings(damaged):
    before = files(damaged.folder)
    assert sealed(damaged, None, SIGNERS) == sealed(damaged) == []
    assert sealed(damaged, "00000000-0000-4000-8000-000000000000") == []
    assert files(damaged.folder) == before


@pytest.mark.parametrize("kind", CLASSES)
def test_a_flipped_bit_anywhere_is_found(damaged, kind):
    chance = random.Random(kind)
    size = len((damaged.folder / damaged.names[kind]).read_bytes())
    # the armor of a signature is base64: a bit of its text may be a line break's; take what lies inside
    places = [0, size - 1, *(chance.randrange(size) for _place in range(8))] if kind != "sig" else [60, 100, 250]
    for place in places:
        whole = (damaged.folder / damaged.names[kind]).read_bytes()
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        damaged(kind, lambda data, flipped=flipped: bytes(flipped))
        findings = sealed(damaged, VM, SIGNERS)
        assert findings and {one.point for one in findings} == {damaged.record.point}, place
        if kind in ("seg", "idx", "meta"):
            assert [one.name for one in findings] == [damaged.names[kind]]
            assert sealed(damaged, VM) == findings  # without knowing whom to trust
        damaged(kind, lambda data, whole=whole: whole)
    assert not sealed(damaged, VM, SIGNERS)


@pytest.mark.parametrize("kind", CLASSES)
def test_cuts_and_additions_are_found(damaged, kind):
    whole = (damaged.folder / damaged.names[kind]).read_bytes()
    for edit in (lambda data: data[:-40], lambda data: b"", lambda data: b"x" + data, lambda data: data + data):
        damaged(kind, edit)
        assert sealed(damaged, VM, SIGNERS)
        damaged(kind, lambda data: whole)


@pytest.mark.parametrize("kind", ["seg", "idx", "meta", "sig"])
def test_a_missing_object_is_found(damaged, kind):
    (damaged.folder / damaged.names[kind]).unlink()
    for signers in (None, SIGNERS):
        findings = sealed(damaged, VM, signers)
        assert any("missing" in one.problem for one in findings)


def test_objects_in_each_other_s_place_are_found(damaged):
    first, second = (sorted((damaged.folder / "seg").iterdir())[number] for number in (0, 1))
    shutil.move(first, damaged.folder / "aside")
    shutil.move(second, first)
    shutil.move(damaged.folder / "aside", second)
    assert len(sealed(damaged, VM, SIGNERS)) == 2


def test_a_link_in_the_place_of_an_object_is_found(damaged):
    path = damaged.folder / damaged.names["seg"]
    shutil.move(path, damaged.folder / "aside")
    path.symlink_to(damaged.folder / "aside")
    findings = sealed(damaged, VM, SIGNERS)
    assert any("missing" in one.problem or "cannot be read" in one.problem for one in findings)
