# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of calls: the shapes of errors and of tasks, and what a new coordinator remembers."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from poolbox import ha, rpc
from poolbox.cli import IMPLEMENTATIONS
from poolbox.errors import ApiError
from poolbox.tasks import TaskHandle


@pytest.fixture(name="lab")
def fixture_lab(make_lab):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    return make_lab("8.3")


def call(lab: Any, name: str, *params: Any, host: int = 0) -> Any:
    return rpc.call(lab.pool, lab.pool.hosts[host], name, list(params))


@pytest.mark.trap(6)
def test_a_cancelled_task_was_never_cancelling_and_ends_with_all_its_progress(lab):
    task = call(lab, "task.create", lab.session, "work", "")
    handle = TaskHandle(lab.db, task)
    handle.progress(0.25)
    call(lab, "task.cancel", lab.session, task)
    record = call(lab, "task.get_record", lab.session, task)
    assert (record["status"], record["progress"], handle.cancelled()) == ("pending", 0.25, True)
    handle.fail(ApiError("TASK_CANCELLED", task))
    record = call(lab, "task.get_record", lab.session, task)
    assert (record["status"], record["progress"], record["error_info"]) == ("cancelled", 1.0, ["TASK_CANCELLED", task])


@pytest.mark.trap(31)
def test_a_refused_login_names_the_user_and_a_reason(lab):
    with pytest.raises(ApiError) as caught:
        call(lab, "session.login_with_password", "root", "wrong")
    assert caught.value.description == ["SESSION_AUTHENTICATION_FAILED", "root", "Authentication failure"]


@pytest.mark.trap(31)
def test_licences_are_spelt_the_british_way(lab):
    lab.db.set("pool", lab.pool.ref, restrictions={"restrict_checkpoint": "true"})
    with pytest.raises(ApiError) as caught:
        call(lab, "VM.checkpoint", lab.session, lab.refs["web"], "x")
    assert caught.value.code == "LICENCE_RESTRICTION"


@pytest.mark.trap(29)
def test_what_is_text_in_xml_is_a_number_in_json(lab):
    lab.db.set("VM", lab.refs["web"], memory_static_max=1 << 40)

    def answer(body: dict[str, Any]) -> Any:
        return json.loads(rpc.answer_json(lab.pool, lab.pool.hosts[0], json.dumps(body).encode()))["result"]

    asked = {"jsonrpc": "2.0", "id": 1, "params": [lab.session, lab.refs["web"]], "method": "VM.get_memory_static_max"}
    assert answer(asked) == 1 << 40
    counts = answer(asked | {"method": "event.from", "params": [lab.session, ["pool"], "", 5.0]})["valid_ref_counts"]
    assert counts["pool"] == 1 and isinstance(counts["pool"], int)


@pytest.mark.trap(34)
def test_a_new_coordinator_remembers_objects_but_no_sessions_and_no_tasks(lab):
    task = call(lab, "task.create", lab.session, "an import", "")
    ha.elect(lab.pool, lab.pool.hosts[1])
    with pytest.raises(ApiError) as caught:
        call(lab, "VM.get_all", lab.session, host=1)
    assert caught.value.description == ["SESSION_INVALID", lab.session]
    renewed = call(lab, "session.login_with_password", "root", "secret", host=1)
    assert call(lab, "VM.get_name_label", renewed, lab.refs["web"], host=1) == "web"
    with pytest.raises(ApiError) as caught:
        call(lab, "task.get_status", renewed, task, host=1)
    assert caught.value.description == ["HANDLE_INVALID", "task", task]
