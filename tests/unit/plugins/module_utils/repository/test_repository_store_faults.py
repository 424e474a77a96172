# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object stores that fail, forget and lie, through a proxy before a real S3 server."""
from __future__ import annotations

import itertools
import random
import re

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import layout
from ansible_collections.guestark.xen.plugins.module_utils.repository import prune as pruning
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import (
    ObjectExists,
    ObjectMissing,
    PointDamaged,
    RepositoryError,
    Retained,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.s3_proxy import DENIED, SLOW, Answer, Faults, Lost, S3Proxy
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    SIGNERS,
    VM,
    back_up,
    equal,
    lay,
    restore,
    two_disks,
)

MIB = 1024 * 1024
_numbers = itertools.count()


@pytest.fixture(scope="module")
def proxy(s3):
    """A proxy before the server."""
    found = S3Proxy(s3.endpoint)
    yield found
    found.stop()


@pytest.fixture
def store(s3, proxy):
    """An empty store behind the proxy, which is honest at first."""
    proxy.faults = Faults()
    yield ObjectStore("s3://guestark/faults/%d" % next(_numbers), {**s3.options, "endpoint": proxy.endpoint})
    proxy.faults = Faults()


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_a_busy_store_is_asked_again(store, proxy, method, status):
    left = {}

    def refuse(request):
        key = request.method, request.path
        left.setdefault(key, 2 if request.method == method else 0)
        left[key] -= 1
        return Answer(status, [("Content-Type", "application/xml")], SLOW) if left[key] >= 0 else None

    repository = Repository.create_or_open(store)
    first = back_up(repository, two_disks())
    proxy.faults = Faults(before=refuse)
    second = lay(repository, first, two_disks(3))
    assert equal(restore(repository, second), two_disks(3))
    assert any(count < 0 for count in left.values()) and max(left.values()) < 2


def test_a_write_whose_answer_is_lost_is_our_own(store, proxy):
    lost = []

    def lose(request, answer):
        if request.method == "PUT" and request.path not in lost:
            lost.append(request.path)
            raise Lost
        return answer

    proxy.faults = Faults(after=lose)
    repository = Repository.create_or_open(store)
    record = back_up(repository, two_disks())
    assert len(lost) > 5 and equal(restore(repository, record), two_disks())
    with pytest.raises(ObjectExists):
        store.put("vm/%s/pt/%s.sum" % (VM, record.point), b"a rival's")


def test_a_request_that_never_arrived_is_made_again(store, proxy):
    lost = []

    def drop(request):
        if request.method in ("PUT", "GET") and request.path not in lost:
            lost.append(request.path)
            raise Lost

    proxy.faults = Faults(before=drop)
    repository = Repository.create_or_open(store)
    assert equal(restore(repository, back_up(repository, two_disks())), two_disks())


def always_created(_request, answer):
    """A conditional write always succeeds."""
    return Answer(200, [("ETag", '"0"')], b"") if answer.status == 412 else answer


def unranged(_request, answer):
    """A read of a range is answered with the whole object."""
    if answer.status != 206:
        return answer
    return Answer(200, [one for one in answer.headers if one[0].title() != "Content-Range"], bytes(64))


def changed_body(change):
    """A change to answers of range reads."""
    def lie(request, answer):
        if request.method == "GET" and "Range" in {one.title() for one in request.headers} and answer.status in (200, 206):
            return Answer(answer.status, answer.headers, change(answer.body))
        return answer
    return lie


def hidden(request, answer):
    """Every listing is empty."""
    if request.is_listing:
        return Answer(answer.status, answer.headers, re.sub(rb"<Contents>.*?</Contents>", b"", answer.body, flags=re.DOTALL))
    return answer


@pytest.mark.parametrize(("faults", "said"), [
    (Faults(after=always_created), "lets an object replace another"),
    (Faults(after=unranged), "other bytes|range"),
    (Faults(after=changed_body(lambda body: body[::-1])), "other bytes"),
    (Faults(after=changed_body(lambda body: body[:-1])), "other bytes|read"),
    (Faults(after=hidden), "does not list"),
], ids=["create", "range", "reversed", "short", "listing"])
def test_a_store_that_lies_is_refused_before_its_first_use(store, proxy, faults, said):
    proxy.faults = faults
    with pytest.raises(RepositoryError, match=said) as caught:
        Repository.create_or_open(store)
    assert caught.value.remedy
    proxy.faults = Faults()
    assert not store.exists("repository.json") and not store.list(".tmp/")


def test_bytes_that_go_wrong_later_never_become_a_restore(store, proxy):
    repository = Repository.create_or_open(store)
    record = back_up(repository, two_disks())
    chance = random.Random(5)

    def flip(body):
        at = chance.randrange(len(body))
        return body[:at] + bytes([body[at] ^ 4]) + body[at + 1:]

    for change in (flip, lambda body: body[:-1], lambda body: body + b"x", lambda body: b""):
        proxy.faults = Faults(after=changed_body(change))
        with pytest.raises(Exception) as caught:
            restore(repository, record)
        assert type(caught.value).__module__.startswith("ansible_collections.guestark") or isinstance(
            caught.value, (PointDamaged, RepositoryError))
        proxy.faults = Faults()
    assert equal(restore(repository, record), two_disks())


def test_a_part_that_is_changed_on_its_way_is_found(store, proxy):
    data = random.Random(7).randbytes(41 * MIB)
    changed = []

    def change(request):
        if request.method == "PUT" and "partNumber=2" in request.path and not changed:
            changed.append(request.path)
            request.body = request.body[:99] + bytes([request.body[99] ^ 1]) + request.body[100:]

    proxy.faults = Faults(before=change)
    writer = store.create("vm/a/seg/x")
    try:
        for start in range(0, len(data), MIB):
            writer.write(data[start:start + MIB])
        writer.commit()
    except RepositoryError:
        pass  # the store noticed
    else:  # the library sent the part again
        with store.open("vm/a/seg/x") as file:
            assert b"".join(iter(lambda: file.read(4 * MIB), b"")) == data
    finally:
        writer.abort()
    assert changed


def test_what_may_not_be_removed_is_retained_and_no_error(store, proxy):
    def keep(request):
        denied = request.method == "DELETE" or (request.method == "POST" and "delete" in request.path)
        return Answer(403, [("Content-Type", "application/xml")], DENIED) if denied else None

    proxy.faults = Faults(before=keep)
    repository = Repository.create_or_open(store)  # the probe leaves its object, and that is all
    first = back_up(repository, two_disks())
    second = back_up(repository, two_disks(2))
    with pytest.raises(Retained):
        store.remove("repository.json")
    done = pruning.prune(repository, VM, SIGNERS, lambda _records: {first.point}, 0.0)
    assert done.removed == [] and done.removed_objects == 0 and done.retained
    assert equal(restore(repository, first), two_disks()) and equal(restore(repository, second), two_disks(2))
    proxy.faults = Faults()
    done = pruning.prune(repository, VM, SIGNERS, lambda _records: {first.point}, 0.0)
    assert done.removed == [first.point] and not done.retained
    assert [one.point for one in repository.points(VM, SIGNERS)] == [second.point]


def unlisted(part):
    """Listings leave out the names that have this part."""
    def hide(request, answer):
        if request.is_listing:
            pieces = re.split(rb"(?=<Contents>)", answer.body)
            kept = [one for one in pieces if part not in one]
            if len(kept) < len(pieces):
                tail = pieces[-1].partition(b"</Contents>")[2] if pieces[-1] not in kept else b""
                return Answer(answer.status, answer.headers, b"".join(kept) + tail)
        return answer
    return hide


def test_what_is_listed_late_is_no_damage(store, proxy):
    repository = Repository.create_or_open(store)
    first = back_up(repository, two_disks())
    second = lay(repository, first, two_disks(2))
    for late in (b"/seg/", b"/idx/", b"/meta/", b".sum.sig<"):
        proxy.faults = Faults(after=unlisted(late))
        points = repository.points(VM, SIGNERS)
        assert [one.point for one in points] == [first.point, second.point]
        assert all(one.trusted and not one.problem for one in points) and not verify_sealed(repository, points)
        assert equal(restore(repository, points[-1]), two_disks(2))


def test_what_is_listed_after_it_went_is_no_point(store, proxy):
    repository = Repository.create_or_open(store)
    gone, kept = back_up(repository, two_disks()), back_up(repository, two_disks(2))
    stale = {}

    def remember(request, answer):
        return stale.setdefault(request.path, answer) if request.is_listing else answer

    proxy.faults = Faults(after=remember)
    assert len(repository.points(VM, SIGNERS)) == 2
    for _digest, name in gone.objects:
        store.remove(layout.vm_folder(VM) + name)
    for end in ("", ".sig"):
        store.remove(layout.vm_folder(VM) + layout.record_name(gone.point) + end)
    assert [one.point for one in repository.points(VM, SIGNERS)] == [kept.point]
    proxy.faults = Faults()
    assert not verify_sealed(repository, repository.points(VM, SIGNERS))


def test_a_listing_that_leaves_a_point_out_is_not_pruned_by(store, proxy):
    repository = Repository.create_or_open(store)
    first = back_up(repository, two_disks())
    second = lay(repository, first, two_disks(2))
    proxy.faults = Faults(after=unlisted(b"pt/%s.sum<" % second.point.encode()))
    assert [one.point for one in repository.points(VM, SIGNERS)] == [first.point]
    with pytest.raises(RepositoryError, match="does not list"):
        pruning.prune(repository, VM, SIGNERS, lambda records: {one.point for one in records}, 0.0)
    proxy.faults = Faults()
    assert not verify_sealed(repository, repository.points(VM, SIGNERS))
    assert equal(restore(repository, second), two_disks(2))


def test_a_store_that_dies_in_the_middle_of_a_run_leaves_no_point(store, proxy):
    repository = Repository.create_or_open(store)
    record = back_up(repository, two_disks())

    def denied(request):
        return Answer(403, [("Content-Type", "application/xml")], DENIED) if "/meta/" in request.path else None

    proxy.faults = Faults(before=denied)
    with pytest.raises(RepositoryError, match="AccessDenied"):
        back_up(repository, two_disks(2))
    proxy.faults = Faults()
    assert [one.point for one in repository.points(VM, SIGNERS)] == [record.point]
    with Lease(store, VM) as lease:
        repository.sweep(lease)
    left = [name for part in ("seg/", "idx/", "meta/") for name in store.list("vm/%s/%s" % (VM, part))]
    assert all(str(record.point) in name for name in left)
    with pytest.raises(ObjectMissing):
        store.read("vm/%s/pt/none.sum" % VM)
