# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Over which point a new one can lie, under which labels its disks go on, and why a full one is made."""
from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import X25519Identity
from ansible_collections.guestark.xen.plugins.module_utils.engine import chain
from ansible_collections.guestark.xen.plugins.module_utils.xva.ova import OvaDisk
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    KEYS,
    OPEN_KEYS,
    SIGNERS,
    VM,
    back_up,
    lay,
    make,
    two_disks,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB

META = {"vm": {"uuid": VM, "name_label": "web01"}, "method": "normal", "host": {"pool_uuid": "ours"}, "checksums": "sha1"}


@pytest.fixture(name="repository")
def fixture_repository(tmp_path):
    return make(tmp_path / "repository")


def find(repository, keys=KEYS, pool="ours", identities=(CATALOG,)):
    found = chain.find_base(repository, VM, pool, keys, SIGNERS, identities)
    if found.base:
        found.base.close()
    return found


def test_the_newest_good_point_is_built_on(repository):
    assert (find(repository).base, find(repository).reason) == (None, chain.FIRST_POINT)
    first = back_up(repository, two_disks(), meta=META)
    second = back_up(repository, two_disks(1), meta=META)
    found = find(repository)
    assert (found.base.record.point, found.reason, found.problems) == (second.point, "", [])
    store = repository.store
    store.remove("vm/%s/%s" % (VM, second.segments[0]))
    found = find(repository)
    assert found.base.record.point == first.point and second.point in found.problems[0]


@pytest.mark.parametrize("changes, reason", [
    ({"pool": "theirs"}, "another pool"),
    ({"identities": []}, "no catalog identity was given"),
    ({"identities": [X25519Identity.generate()]}, "none of the catalog identities"),
    ({"keys": OPEN_KEYS}, "switched off"),
    ({"keys": dataclasses.replace(KEYS, data_recipients=[X25519Identity.generate().recipient()])}, "recipients were added"),
])
def test_what_cannot_be_built_on_is_told(repository, changes, reason):
    back_up(repository, two_disks(), meta=META)
    found = find(repository, **changes)
    assert found.base is None and reason in found.reason


def test_a_chain_has_an_end(repository, monkeypatch):
    monkeypatch.setattr(chain, "MOST_LAYERS", 2)
    first = back_up(repository, two_disks(), meta=META)
    assert find(repository).base
    lay(repository, first, two_disks(1))
    assert "2 layers" in find(repository).reason


def test_fewer_recipients_are_no_reason(repository):
    both = dataclasses.replace(KEYS, data_recipients=[*KEYS.data_recipients, X25519Identity.generate().recipient()])
    back_up(repository, two_disks(), both, meta=META)
    assert find(repository).base


def ova_disk(label, userdevice="", size=10 * MIB):
    return OvaDisk(label, "", size, "", userdevice, "user", "")


def base_of(*disks, labels=()):
    """Disks of an earlier point as (label, UUID, position, size)."""
    names = ("label", "vdi_uuid", "userdevice", "virtual_size")
    known = {one[0] for one in disks} | set(labels)
    return SimpleNamespace(meta={"disks": [dict(zip(names, one)) for one in disks]}, labels=lambda: known)


def test_disks_keep_their_labels_and_new_ones_get_unused_ones():
    base = base_of(("Ref:1001", "a", "0", 5 * MIB), ("Ref:1003", "b", "1", 5 * MIB), labels=["Ref:1007"])
    disks = [ova_disk("Ref:5", "2"), ova_disk("Ref:6", "1"), ova_disk("Ref:7", "0")]
    # the disk that is now at position 1 was at 0: the one that is there now is another one
    assert chain.chain_labels(disks, {"Ref:5": "new", "Ref:6": "a", "Ref:7": "other"}, base) == {
        "Ref:6": "Ref:1001", "Ref:5": "Ref:1008", "Ref:7": "Ref:1009"}
    # reverted: all disks are other ones, in the places of the old ones
    assert chain.chain_labels(disks[1:], {"Ref:6": "x", "Ref:7": "y"}, base) == {"Ref:6": "Ref:1003", "Ref:7": "Ref:1001"}
    smaller = [ova_disk("Ref:7", "0", MIB)]
    assert chain.chain_labels(smaller, {"Ref:7": "a"}, base) == {"Ref:7": "Ref:1008"}
    full = base_of(("Ref:9999", "a", "0", MIB))
    assert chain.chain_labels(disks[:1], {"Ref:5": "new"}, full) == {}


def test_archives_that_begin_with_a_short_disk_have_no_layers():
    disks = [ova_disk("Ref:1", size=512), ova_disk("Ref:2")]
    assert chain.leaves_nothing_out(disks, {"Ref:1": "Ref:1001", "Ref:2": "Ref:1002"})
    assert not chain.leaves_nothing_out(disks, {"Ref:1": "Ref:1002", "Ref:2": "Ref:1001"})
    assert not chain.leaves_nothing_out([], {})
