# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever stands in the small files of a repository, which its storage may change: an answer, or one error of ours."""
from __future__ import annotations

import json
from contextlib import suppress

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import is_exact
from ansible_collections.guestark.xen.plugins.module_utils.repository import lease as leases
from ansible_collections.guestark.xen.plugins.module_utils.repository import record as records
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import NotTrusted, RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.layout import lease_name, mark_name, record_name, vm_folder
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.marks import read_marks
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    disk,
    make,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEEP = b"[" * 100_000
MARKED = b'{"points": ["20261124T123721Z-000003-792cf1bcbbac"], "kept": [], "objects": ["idx/x"]}'
DESCRIBED = b'{"format": "guestark", "version": 1, "requires": [], "id": "x", "created": "2026"}'


def changed(original: bytes):
    """Parts of an original cut out, repeated, and mixed with any bytes."""
    def piece(bounds: tuple[int, int]) -> bytes:
        start, end = sorted(bounds)
        return original[start:end]

    places = st.integers(0, len(original))
    return st.lists(st.tuples(places, places).map(piece) | st.binary(max_size=20), min_size=1, max_size=4).map(b"".join)


@pytest.fixture(scope="module", name="point")
def fixture_point(tmp_path_factory):
    repository = make(tmp_path_factory.mktemp("fuzz") / "r")
    return repository, back_up(repository, [disk(0, MIB, {0: 1})])


def put(repository: Repository, name: str, data: bytes) -> None:
    """Write over an object as nobody may."""
    with suppress(FileNotFoundError):
        repository.store.remove(name)
    repository.store.put(name, data)


@MANY
@given(data=st.data())
def test_signatures(point, data):
    repository, record = point
    name = vm_folder(VM) + record_name(record.point)
    text, signature = repository.store.read(name), repository.store.read(name + ".sig")
    tried = data.draw(changed(signature))
    assert is_exact(signature)
    try:
        records.verify(text, tried, SIGNERS)
    except NotTrusted:
        assert tried != signature
    else:
        assert tried == signature or not is_exact(tried)


@MANY
@given(data=st.data())
def test_records(point, data):
    repository, record = point
    text = repository.store.read(vm_folder(VM) + record_name(record.point))
    with suppress(RepositoryError):
        records.parse(data.draw(changed(text)))


@MANY
@example(text=DEEP)
@given(text=st.binary(max_size=60) | changed(MARKED))
def test_marks(point, text):
    repository, _record = point
    name = vm_folder(VM) + mark_name("run")
    put(repository, name, text)
    try:
        read_marks(repository.store, VM)
    except RepositoryError as error:
        assert name in str(error)
    finally:
        repository.store.remove(name)


@MANY
@example(text=DEEP)
@given(text=st.binary(max_size=60) | changed(json.dumps({"pid": 1, "boot_id": "x", "start": "1", "nonce": "x"}).encode()))
def test_leases(point, monkeypatch, text):
    repository, _record = point
    monkeypatch.setattr(leases, "STALE", 0.0)
    put(repository, lease_name(VM), text)
    with Lease(repository.store, VM, wait_timeout=0.0):
        pass
    assert not repository.store.exists(lease_name(VM))


@MANY
@example(text=DEEP)
@given(text=st.binary(max_size=60) | changed(DESCRIBED))
def test_descriptions(point, text):
    repository, _record = point
    right = repository.store.read("repository.json")
    put(repository, "repository.json", text)
    try:
        Repository.open(repository.store).damaged_files()
    except RepositoryError as error:
        assert error.message
    finally:
        put(repository, "repository.json", right)
