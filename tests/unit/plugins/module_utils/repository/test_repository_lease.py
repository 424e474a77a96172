# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease: one run at a time where it can be had, and never a run that waits for the dead."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import lease as leases
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import LeaseHeld, Retained
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import VM

NAME = "lease/" + VM


class Clock:
    """Stands for the time module: sleeping lets time pass, and ``each_sleep`` happen."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.each_sleep = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each_sleep()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path):
    return PosixStore(str(tmp_path))


def state(store, **changes) -> dict:
    """A lease as this process would have it, with changes."""
    return {**json.loads(Lease(store, VM)._state()), **changes}


def plant(store, content) -> None:
    store.replace(NAME, content if isinstance(content, bytes) else json.dumps(content).encode())


def test_it_is_there_while_it_is_held(store):
    with Lease(store, VM) as lease:
        held = json.loads(store.read(NAME))
        assert (held["pid"], held["owner"], lease.certain, lease.lost) == (os.getpid(), "guestark", True, False)
    assert not store.exists(NAME) and not store.list(".tmp/")


def test_it_is_released_when_the_run_fails(store):
    with pytest.raises(RuntimeError), Lease(store, VM):
        raise RuntimeError
    assert not store.exists(NAME)


def test_where_nothing_may_be_removed_it_is_released_all_the_same(store, clock, monkeypatch):
    def remove(name):
        raise Retained("%s stays." % name)

    monkeypatch.setattr(store, "remove", remove)
    with Lease(store, VM):
        assert "released" not in json.loads(store.read(NAME))
    left = json.loads(store.read(NAME))
    assert left["released"]
    plant(store, {**left, "boot_id": "that of another machine"})
    with Lease(store, VM, wait_timeout=0) as lease:
        assert not lease.certain and not lease.lost


def test_who_waits_gets_it_when_it_is_released(store, clock):
    first = Lease(store, VM)
    first.__enter__()
    clock.each_sleep = lambda: first.__exit__(None, None, None)
    with Lease(store, VM) as second:
        assert second.certain and json.loads(store.read(NAME))["nonce"] == second._nonce


def test_who_waits_too_long_is_told_for_whom(store, clock):
    count = iter(range(1, 10_000))
    plant(store, state(store, host="mover2", boot_id="elsewhere", pid=77, n=0))
    clock.each_sleep = lambda: plant(store, state(store, host="mover2", boot_id="elsewhere", pid=77, n=next(count)))
    with pytest.raises(LeaseHeld, match="process 77 on mover2"):
        Lease(store, VM, wait_timeout=500).__enter__()
    assert clock.now - 1000 >= 500 and json.loads(store.read(NAME))["pid"] == 77


def test_a_process_that_died_here_is_not_waited_for(store, clock):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    plant(store, {**state(store), **leases._process(child.pid)})
    assert not leases._is_dead(json.loads(store.read(NAME)))
    child.communicate(b"\n")
    with Lease(store, VM) as lease:
        assert lease.certain and clock.now == 1000


def test_a_number_that_another_process_has_now_is_no_life_sign(store, clock):
    plant(store, state(store, start="1"))
    with Lease(store, VM) as lease:
        assert lease.certain and clock.now == 1000


@pytest.mark.parametrize("content", [
    {"boot_id": "another boot"}, {"pid_namespace": "pid:[1]"}, {"boot_id": ""}, {"pid": "7"}, b"no JSON", b"[]", b"",
], ids=str)
def test_what_cannot_be_known_dead_is_watched_until_it_is_stale(store, clock, content):
    plant(store, content if isinstance(content, bytes) else state(store, start="1", **content))
    with Lease(store, VM) as lease:
        assert not lease.certain and leases.STALE <= clock.now - 1000 <= leases.STALE + leases.POLL
    assert not store.exists(NAME)


def test_a_holder_that_lost_it_notices_and_removes_nothing(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    with Lease(store, VM) as lease:
        other = state(store, nonce="another")
        plant(store, other)
        lease._thread.join(timeout=30)
        assert lease.lost
    assert json.loads(store.read(NAME)) == other


def test_it_is_renewed(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    with Lease(store, VM) as lease:
        for _attempt in range(3000):
            if json.loads(store.read(NAME))["n"] >= 3:
                break
            lease._stop.wait(0.01)
        else:
            pytest.fail("it was not renewed")
    assert not store.exists(NAME)


def test_leases_of_different_vms_have_nothing_to_do_with_each_other(store):
    with Lease(store, VM), Lease(store, "00000000-0000-4000-8000-000000000000", wait_timeout=0):
        assert len(store.list("lease/")) == 2
