# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object stores that lose answers, cut, corrupt, deny and lie, beyond what the unit tests of the repository do to them."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import layout
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import (
    ObjectExists,
    ObjectMissing,
    RepositoryError,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.prune import prune
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.tests.s3_fixture import start_s3
from ansible_collections.guestark.xen.tests.s3_proxy import Answer, Faults, Lost, S3Proxy
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
OPTIONS = {"region": "us-east-1", "access_key_id": "tester", "secret_access_key": "tester-secret", "allow_http": True}


@pytest.fixture(scope="module", name="s3")
def fixture_s3(tmp_path_factory):
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


class Proxy(S3Proxy):
    """A proxy with one rule, which answers a request in the server's place or by asking it, or loses the answer (None)."""

    rule: Callable

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.rule = honest
        self.faults = Faults(before=self.answer)

    def answer(self, request):
        found = self.rule(request, self.forward)
        if found is None:
            raise Lost
        return found

    def was_asked(self, method: str, part: str) -> int:
        return sum(asks(one, method, part) for one in self.faults.seen)


def asks(request, method: str, part: str) -> bool:
    return request.method == method and part in request.path


def honest(request, forward):
    return forward(request)


def refusal(status: int, code: str) -> Answer:
    """An error as S3 tells it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No luck</Message></Error>"
    return Answer(status, [("Content-Type", "application/xml")], text.encode())


def first(count: int, matches, fault):
    """A rule that does ``fault`` to the first requests that match, and is honest otherwise."""
    lock, left = threading.Lock(), [count]

    def rule(request, forward):
        with lock:
            hit = left[0] > 0 and matches(request)
            left[0] -= hit
        return fault(request, forward) if hit else forward(request)

    return rule


@pytest.fixture(name="proxy")
def fixture_proxy(s3):
    proxy = Proxy(s3.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture(name="store")
def fixture_store(s3, proxy):
    """An empty store that is reached through the proxy."""
    return ObjectStore("s3://guestark/faults/%d" % next(_numbers), {**s3.options, "endpoint": proxy.endpoint})


def unsigned(proxy):
    """An empty store whose requests the proxy may change: they carry no signature."""
    options = {"endpoint": proxy.endpoint, "region": "us-east-1", "allow_http": True, "skip_signature": True}
    return ObjectStore("s3://guestark/lies/%d" % next(_numbers), options)


def lost(request, forward):
    """The store does as it was told, and the answer gets lost."""
    forward(request)


def chain(store):
    """A full point and a layer over it, and what each holds."""
    first, second = two_disks(), two_disks(seed=50)
    full = back_up(Repository.create_or_open(store), first)
    layer = lay(Repository.create_or_open(store), full, second)
    return [(full, first), (layer, second)]


def is_whole(store, points):
    repository = Repository.open(store)
    records = repository.points(VM, SIGNERS)
    assert [one.point for one in records] == [record.point for record, _disks in points]
    assert all(one.trusted and not one.problem for one in records) and verify_sealed(repository, records) == []
    assert all(equal(restore(repository, one), disks) for one, (_record, disks) in zip(records, points, strict=True))


def write(store, name, data):
    """Write an object in pieces, as segments are."""
    writer = store.create(name)
    try:
        for start in range(0, len(data), MIB):
            writer.write(memoryview(data)[start:start + MIB])
        writer.commit()
    finally:
        writer.abort()


# answers that get lost, failures that pass


def test_a_create_whose_answer_is_lost_is_no_rivals(proxy, store):
    def creates(request):
        return request.method == "PUT" and "if-none-match" in request.headers

    for name, fault in (("a/lost", lost), ("a/done", lambda request, forward: forward(request) and refusal(500, "Oops"))):
        proxy.rule = first(1, creates, fault)
        store.put(name, b"mine")
        proxy.rule = first(1, creates, fault)
        with pytest.raises(ObjectExists):
            store.put(name, b"another's")
        assert store.read(name) == b"mine"


@pytest.mark.parametrize("step", ["?uploads", "partNumber=1&", "partNumber=2&", "?uploadId="])
def test_an_upload_survives_any_lost_answer(proxy, store, step):
    data = random.Random(step).randbytes(20 * MIB)
    method = "PUT" if "part" in step else "POST"
    proxy.rule = first(1, lambda request: asks(request, method, step), lost)
    write(store, "a/x", data)
    assert proxy.was_asked(method, step) == 2
    with store.open("a/x") as file:
        assert file.read(len(data) + 1) == data


def test_a_body_that_is_cut_is_read_again_or_refused(proxy, store):
    data = random.Random(1).randbytes(3 * MIB)
    store.put("a/x", data)

    def cut(request, forward):
        found = forward(request)
        return Answer(found.status, found.headers, found.body, sent=len(found.body) // 2)

    def gets(request):
        return asks(request, "GET", "/a/x")

    for read in (lambda: store.read("a/x"), lambda: store.open("a/x").read(len(data))):
        proxy.rule = first(1, gets, cut)
        assert read() == data
    short = Answer(206, [("Content-Range", "bytes 0-4/%d" % len(data))], b"short")
    for fault in (lambda request, forward: short, lambda request, forward: refusal(416, "InvalidRange")):
        proxy.rule = first(10_000, gets, fault)
        with store.open("a/x") as file, pytest.raises(RepositoryError):
            file.read(len(data))


@pytest.mark.parametrize("size", [100, 20 * MIB])
def test_what_is_corrupted_on_its_way_is_not_stored(proxy, store, size):
    def flip(request, forward):
        body = bytearray(request.body)
        body[len(body) // 2] ^= 1
        request.body = bytes(body)
        return forward(request)

    proxy.rule = first(100, lambda request: request.method == "PUT" and len(request.body) > 50, flip)
    with pytest.raises(RepositoryError):
        write(store, "a/x", random.Random(2).randbytes(size))
    proxy.rule = honest
    with pytest.raises(ObjectMissing):
        store.size("a/x")


WRITER = """
import json, os, sys
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
writer = ObjectStore(sys.argv[1], json.load(sys.stdin)).create("vm/a/seg/x")
while True:
    writer.write(os.urandom(1 << 20))
"""


def child(script, *arguments, options):
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env={"PYTHONPATH": ":".join(path for path in sys.path if path)}, text=True)
    process.stdin.write(json.dumps(options))
    process.stdin.close()
    return process


def test_of_a_writer_that_is_killed_nothing_is_seen(s3, proxy, store, wait_until):
    options = {**s3.options, "endpoint": proxy.endpoint}
    process = child(WRITER, store.path, options=options)
    try:
        wait_until(lambda: proxy.was_asked("PUT", "partNumber=3"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not store.exists("vm/a/seg/x") and not store.list("vm/a/seg/")
    write(store, "vm/a/seg/x", bytes(5 * MIB))
    assert store.size("vm/a/seg/x") == 5 * MIB


# what may not be removed


def deny_removal(request, forward):
    """What Amazon S3 answers to credentials that may not remove anything."""
    if asks(request, "POST", "?delete"):
        (key,) = re.findall(rb"<Key>([^<]*)</Key>", request.body)
        error = b"<Error><Key>%s</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" % key
        return Answer(200, [("Content-Type", "application/xml")], b"<DeleteResult>%s</DeleteResult>" % error)
    return refusal(403, "AccessDenied") if request.method == "DELETE" else forward(request)


def test_without_the_right_to_remove_backups_work_and_pruning_says_what_stays(site, proxy, s3):
    proxy.rule = deny_removal
    where = {"repository": "s3://guestark/kept", "storage_options": {**s3.options, "endpoint": proxy.endpoint}}
    points = [site.export("web", **where)["point"]["point"] for _run in range(2)]
    believed = {**where, "allowed_signers": str(site.signers)}
    pruned = site.one("xen_backup_prune", keep_last=1, min_age="0s", grace="0s", **believed)
    assert pruned["removed"] == [] and any(points[0] in name for name in pruned["retained"])
    assert [one["point"] for one in site.one("xen_backup_info", **believed)["points"]] == points
    proxy.rule = honest
    assert site.one("xen_backup_prune", keep_last=1, min_age="0s", grace="0s", **believed)["removed"] == points[:1]


def test_under_object_lock_what_is_pruned_stays_as_a_version(s3):
    bucket = s3.make_bucket("locked", "x-amz-bucket-object-lock-enabled: true")
    rule = ("<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
            "<Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>")
    assert s3.request("PUT", f"{bucket}?object-lock=", data=rule)[0] == 200
    store = ObjectStore(f"s3://{bucket}", s3.options)
    repository = Repository.create_or_open(store)
    old, new = (back_up(repository, two_disks(seed)) for seed in (0, 9))
    done = prune(repository, VM, SIGNERS, lambda records: {old.point}, 0.0)
    assert done.removed == [old.point] and [one.point for one in repository.points(VM, SIGNERS)] == [new.point]
    status, versions = s3.request("GET", f"{bucket}?versions=")
    segment = layout.vm_folder(VM) + layout.segment_name(old.point, 0, True)
    kept = re.findall(rf"<Version><Key>{segment}</Key><VersionId>(\w+)</VersionId>", versions)
    assert status == 200 and kept
    assert s3.request("DELETE", f"{bucket}/{segment}?versionId={kept[0]}")[0] == 403


# stores that lie


def unconditional(request, forward):
    request.headers.pop("if-none-match", None)
    return forward(request)


def whole_instead_of_range(request, forward):
    request.headers.pop("range", None)
    return forward(request)


def wrong_bytes(request, forward):
    found = forward(request)
    if request.method == "GET" and not request.is_listing:
        found.body = bytes(len(found.body))
    return found


def folded_names(request, forward):
    path, question, query = request.path.partition("?")
    request.path = path.lower() + question + query
    return forward(request)


def absent_at_first(request, forward):
    """A store whose readers see an object some time after it was written."""
    return refusal(404, "NoSuchKey") if request.method in ("GET", "HEAD") and not request.is_listing else forward(request)


@pytest.mark.parametrize(("lie", "told"), [
    (unconditional, "If-None-Match"),
    (whole_instead_of_range, "range reads"),
    (wrong_bytes, "does not return what was written"),
    (folded_names, "as it was named"),
    (absent_at_first, "read .*probe"),
], ids=lambda value: value.__name__ if callable(value) else "")
def test_a_store_that_lies_is_refused_with_the_reason(proxy, lie, told):
    store = unsigned(proxy)
    store.probe()  # the proxy as such is no liar
    proxy.rule = lie
    with pytest.raises(RepositoryError, match=told):
        store.probe()
    with pytest.raises(RepositoryError):
        Repository.create_or_open(store)
    proxy.rule = honest
    assert not store.exists(layout.REPOSITORY_JSON)


@pytest.mark.parametrize("part", ["seg/", "idx/", "meta/", "pt/"])
def test_nothing_is_pruned_when_a_listing_leaves_something_out(proxy, store, part):
    points = chain(store)
    keep = points[1][0]

    def partial(request, forward):
        found = forward(request)
        if request.is_listing:
            missing = rb"<Contents>(?:(?!</Contents>).)*?/%s%s.*?</Contents>" % (part.encode(), keep.point.encode())
            found.body = re.sub(missing, b"", found.body, flags=re.DOTALL)
        return found

    proxy.rule = partial
    repository = Repository.open(store)
    with pytest.raises(RepositoryError, match="does not list"):
        prune(repository, VM, SIGNERS, lambda records: {one.point for one in records} - {keep.point}, 0.0)
    proxy.rule = honest
    is_whole(store, points)


def rclone_that_serves() -> str:
    """A rclone that can serve S3, or nothing: Debian 12's is too old for it."""
    for path in (str(Path(sys.executable).parent / "rclone"), shutil.which("rclone")):
        command = [str(path), "serve", "s3", "--help"]
        if path and Path(path).exists() and not subprocess.run(command, capture_output=True, check=False).returncode:
            return path
    return ""


@pytest.mark.skipif(not rclone_that_serves(), reason="there is no rclone here that knows `serve s3`")
def test_rclone_serve_s3_is_refused(tmp_path):
    (tmp_path / "guestark").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:%d" % server.getsockname()[1]
    login = OPTIONS["access_key_id"] + "," + OPTIONS["secret_access_key"]
    process = subprocess.Popen([rclone_that_serves(), "serve", "s3", str(tmp_path), "--addr", address, "--auth-key", login],
                               stderr=subprocess.DEVNULL)
    try:
        host, port = address.split(":")
        for _attempt in range(200):
            with socket.socket() as one:
                if not one.connect_ex((host, int(port))):
                    break
            time.sleep(0.05)
        store = ObjectStore("s3://guestark/x", {**OPTIONS, "endpoint": f"http://{address}"})
        with pytest.raises(RepositoryError, match="lets an object replace another unasked"):
            Repository.create_or_open(store)
        assert not (tmp_path / "guestark" / "x" / layout.REPOSITORY_JSON).exists()
    finally:
        process.terminate()
        process.wait()
