# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import tasks as tasks_module
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import OutcomeUnknown, TaskTimeout, XapiError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import call_async, wait
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings

SUCCESS = {"status": "success", "progress": 1.0, "result": "<value>OpaqueRef:copy</value>"}
FAILURE = {"status": "failure", "progress": 1.0, "error_info": ["SR_FULL", "1", "2"]}


@pytest.fixture
def client(host, authority, monkeypatch):
    monkeypatch.setattr(tasks_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tasks_module, "ENDING_SECONDS", 0.1)
    with PoolClient([host.address], "root", "pw", TlsSettings(ca_path=str(authority.path)), patience=2.0) as client:
        yield client


@pytest.fixture
def running(host, tasks):
    """A task that goes through states, one each time it is looked at."""
    def run(*states):
        host.calls["Async.VM.clone"] = lambda *_: tasks.create("", "clone", "")
        left = list(states)

        def look(_session, ref):
            if left:
                tasks.row(ref).update(left.pop(0))
            return tasks.row(ref)

        host.calls["task.get_record"] = look
        return tasks

    return run


def at(progress):
    return {"status": "pending", "progress": progress}


def test_the_result_is_read_and_the_task_destroyed(client, running):
    tasks = running(at(0.0), SUCCESS)
    assert call_async(client, "VM.clone", "ref", "copy") == "OpaqueRef:copy"
    assert tasks.calls == ["destroy"]


def test_progress_is_told_once_each(client, running):
    running(at(0.0), at(0.25), at(0.25), at(0.5), SUCCESS)
    seen = []
    call_async(client, "VM.clone", "ref", "copy", on_progress=seen.append)
    assert seen == [0.0, 0.25, 0.5]


@pytest.mark.trap(6)
def test_a_failure_names_the_call_and_its_subject(client, running):
    tasks = running(at(0.0), FAILURE)
    with pytest.raises(XapiError, match="VM.clone of VM web01 failed: the storage repository is full"):
        call_async(client, "VM.clone", "ref", "copy", subject="VM web01")
    assert tasks.calls == ["destroy"]


@pytest.mark.trap(6)
@pytest.mark.parametrize("status, error", [("failure", ["SR_FULL", "1", "2"]), ("cancelled", ["TASK_CANCELLED", "ref"])])
def test_all_progress_is_no_success(client, running, status, error):
    running(at(1.0), {"status": status, "progress": 1.0, "result": "", "error_info": error})
    with pytest.raises(XapiError) as caught:
        call_async(client, "VM.clone", "ref", "copy")
    assert caught.value.code == error[0]


def clock(step):
    now = iter(range(0, 100000, step))
    return lambda: float(next(now))


def test_the_longest_wait(client, running, tasks):
    running(at(0.1), at(0.2), at(0.42))
    with pytest.raises(TaskTimeout, match="VM.clone of VM a did not end within 30 s; it was at 42 %"):
        ref = client.call("Async.VM.clone", "ref", "copy")
        wait(client, ref, wait_timeout=30, clock=clock(10), operation="VM.clone", subject="VM a")


def test_no_progress_is_borne_only_so_long_but_progress_is_forever(client, running, tasks):
    running(*(at(step / 100) for step in range(50)))
    with pytest.raises(TaskTimeout, match="made no progress for 30 s; it is at 49 %"):
        wait(client, client.call("Async.VM.clone", "ref", "copy"), stall_timeout=30, clock=clock(10))


def test_a_task_that_is_given_up_is_cancelled(client, running):
    tasks = running(at(0.0))
    with pytest.raises(TaskTimeout):
        call_async(client, "VM.clone", "ref", "copy", wait_timeout=0.0)
    assert tasks.calls == ["cancel", "destroy"]


@pytest.mark.trap(34)
def test_a_vanished_task_leaves_the_outcome_open(client, running, host, refuse):
    running()

    def gone(*_):
        raise refuse("HANDLE_INVALID", "task", "ref")

    host.calls["task.get_record"] = gone
    with pytest.raises(OutcomeUnknown, match="VM.clone of VM a began, but its task has vanished"):
        call_async(client, "VM.clone", "ref", "copy", subject="VM a")


def test_plain_text_as_a_result_is_kept(client, running):
    running({**SUCCESS, "result": "plain <text"})
    assert call_async(client, "VM.clone", "ref", "copy") == "plain <text"


@pytest.mark.trap(33)
def test_events_save_the_looking(client, running, host):
    running(at(0.0))
    batches = [
        {"token": "1", "events": [{"class": "task", "snapshot": {**at(0.0), "result": ""}}]},
        {"token": "2", "events": []},
        {"token": "3", "events": [{"class": "task", "snapshot": SUCCESS}]},
    ]
    tokens = []

    def events(_session, classes, token, timeout):
        assert classes == ["task/OpaqueRef:task-0"] and isinstance(timeout, float)
        tokens.append(token)
        return batches.pop(0)

    host.calls["event.from"] = events
    assert call_async(client, "VM.clone", "ref", "copy") == "OpaqueRef:copy"
    assert tokens == ["", "1", "2"]
    # the task is looked at only after the batch without news
    assert host.asked[2:6] == ["event.from", "event.from", "task.get_record", "event.from"]
