# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules all calls obey, sessions and tasks as they age, and the older event calls, without a network."""

from __future__ import annotations

import importlib
import json
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from poolbox import clock, rpc, sessions, tasks
from poolbox.cli import IMPLEMENTATIONS
from poolbox.control import Control
from poolbox.errors import ApiError
from poolbox.pool import Account, World

HOUR = 3600.0


@pytest.fixture(name="lab", params=["8.3"])
def fixture_lab(make_lab, request):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    lab = make_lab(request.param)
    lab.pool.accounts["reader"] = Account("reader", "reader", "read-only")
    lab.pool.accounts["operator"] = Account("operator", "operator", "vm-operator")
    return lab


@pytest.fixture(name="later")
def fixture_later(monkeypatch):
    """Moves the pools' time on until the test ends."""
    monkeypatch.setattr(clock, "_ahead", timedelta())
    return clock.advance


def call(lab, name: str, *params: Any, host: int = 0) -> Any:
    return rpc.call(lab.pool, lab.pool.hosts[host], name, list(params))


def error(lab, name: str, *params: Any, host: int = 0) -> list[str]:
    with pytest.raises(ApiError) as caught:
        call(lab, name, *params, host=host)
    return caught.value.description


def login(lab, user: str, originator: str = "") -> str:
    return call(lab, "session.login_with_password", user, lab.pool.accounts[user].password, "1.0", originator)


def test_parameters_are_counted_before_the_session_is_looked_at(lab):
    assert error(lab, "VM.get_record", "nobody") == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]
    assert error(lab, "VM.get_record") == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "-1"]
    assert error(lab, "VM.get_record", "nobody", "x") == ["SESSION_INVALID", "nobody"]
    assert error(lab, "VM.get_record", "nobody", 7)[0] == "INTERNAL_ERROR"


def test_logging_in_takes_two_to_four_parameters(lab):
    for params in (["root", "secret"], ["root", "secret", "1.0"], ["root", "secret", "1.0", "me"]):
        assert call(lab, "session.login_with_password", *params).startswith("OpaqueRef:")
    assert error(lab, "session.login_with_password", "root")[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"


@pytest.mark.trap(20)
def test_a_removed_method_says_so_to_everyone_who_is_logged_in(lab):
    reader = login(lab, "reader")
    assert error(lab, "VM.snapshot_with_quiesce", reader, "x", "y") == ["MESSAGE_REMOVED"]
    assert error(lab, "Async.VM.snapshot_with_quiesce", reader, "x", "y") == ["MESSAGE_REMOVED"]


@pytest.mark.parametrize("lab", ["8.2"], indirect=True)
@pytest.mark.trap(21)
def test_the_third_parameter_of_a_snapshot_came_after_8_2(lab):
    vm = lab.refs["web"]
    assert error(lab, "VM.snapshot", lab.session, vm, "name", []) == [
        "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3",
    ]
    assert call(lab, "VM.snapshot", lab.session, vm, "name").startswith("OpaqueRef:")


def test_names_with_an_underscore_have_no_asynchronous_form(lab):
    assert call(lab, "VM_get_name_label", lab.session, lab.refs["web"]) == "web"
    assert error(lab, "Async.VM_snapshot", lab.session, lab.refs["web"], "x")[0] == "MESSAGE_METHOD_UNKNOWN"


@pytest.mark.parametrize("name, params", [
    ("Async.VM.get_record", ["x"]), ("Async.VM.set_NVRAM", ["x", {}]), ("Async.task.cancel", ["x"]),
    ("Async.VM.set_name_label", ["x", "y"]), ("Async.VDI.get_nbd_info", ["x"]),
])
def test_what_has_no_asynchronous_form(lab, name, params):
    code, text = error(lab, name, lab.session, *params)
    assert code == "Fault" and text.startswith("No async mode for this operation")


def test_a_custom_getter_may_have_an_asynchronous_form(lab):
    lab.result(call(lab, "Async.VM.get_possible_hosts", lab.session, lab.refs["web"]))


@pytest.mark.trap(35)
def test_a_role_too_weak_fails_the_call_and_the_task_of_an_asynchronous_one(lab):
    reader = login(lab, "reader")
    denied = error(lab, "VM.destroy", reader, lab.refs["web"])
    assert denied[:2] == ["RBAC_PERMISSION_DENIED", "vm.destroy"]
    assert "Roles with this permission: pool-admin, pool-operator, vm-power-admin, vm-admin)" in denied[2]
    task = call(lab, "Async.VM.destroy", reader, lab.refs["web"])
    assert lab.error(task)[:2] == ["RBAC_PERMISSION_DENIED", "vm.destroy"]


def test_unknown_methods_might_be_extensions_which_only_few_may_call(lab):
    assert error(lab, "VM.nonsense", login(lab, "reader"))[:2] == ["RBAC_PERMISSION_DENIED", "host.call_extension"]
    assert error(lab, "VM.nonsense", lab.session) == ["MESSAGE_METHOD_UNKNOWN", "VM.nonsense"]
    assert error(lab, "VM.nonsense") == ["MESSAGE_METHOD_UNKNOWN", "VM.nonsense"]


@pytest.mark.trap(10, 34)
def test_a_supporter_knows_the_sessions_of_its_coordinator(lab):
    address = lab.pool.hosts[0].address
    assert error(lab, "VM.get_all", lab.session, host=1) == ["HOST_IS_SLAVE", address]
    assert error(lab, "VM.get_all", "nobody", host=1) == ["SESSION_INVALID", "nobody"]
    assert error(lab, "session.login_with_password", "root", "secret", host=1) == ["HOST_IS_SLAVE", address]


def test_a_fault_is_found_by_the_object_and_ends_in_the_task(lab):
    uuid = lab.db.field("VDI", lab.refs["data"], "uuid")
    lab.pool.faults.add({"vdi": uuid}, {"error": ["SR_BACKEND_FAILURE_46", "", "busy", ""]}, times=2)
    assert call(lab, "VDI.get_name_label", lab.session, lab.refs["system"]) == "system"
    assert error(lab, "VDI.get_name_label", lab.session, lab.refs["data"])[0] == "SR_BACKEND_FAILURE_46"
    task = call(lab, "Async.VDI.snapshot", lab.session, lab.refs["data"])
    assert lab.error(task) == ["SR_BACKEND_FAILURE_46", "", "busy", ""]


def test_a_fault_that_expires_sessions_meets_the_very_call(lab):
    lab.pool.faults.add({"call": "VM.get_all"}, {"expire_session": True})
    assert error(lab, "VM.get_all", lab.session) == ["SESSION_INVALID", lab.session]
    assert not lab.db.refs("session")


def test_what_is_no_utf_8_is_refused_in_the_shape_of_early_refusals(lab):
    host = lab.pool.hosts[0]
    request = json.dumps({"method": "VM.get_by_name_label", "params": [lab.session, "a@b"], "id": 3}).encode()
    assert json.loads(rpc.answer_json(lab.pool, host, request.replace(b"@", b"\xff"))) == {
        "jsonrpc": "2.0", "error": ["INVALID_VALUE", "Invalid UTF-8 string in parameter", "a\ufffdb"], "id": 0,
    }
    body = b"<methodCall><methodName>VM.get_by_name_label</methodName><params><param><value>%s</value></param>" \
           b"<param><value>a\xffb</value></param></params></methodCall>" % lab.session.encode()
    assert "<value>INVALID_VALUE</value><value>Invalid UTF-8" in rpc.answer_xml(lab.pool, host, body)


@pytest.mark.trap(30, 34)
def test_in_an_emergency_everything_is_refused(lab):
    host = lab.pool.hosts[1]
    host.emergency = "HOST_STILL_BOOTING"
    body = b"<methodCall><methodName>session.login_with_password</methodName><params/></methodCall>"
    answer = rpc.answer_xml(lab.pool, host, body)
    assert "<array><data><value>HOST_STILL_BOOTING</value></data></array>" in answer


@pytest.mark.trap(36)
def test_the_least_recently_used_of_500_sessions_of_an_originator_goes(lab, later):
    first, second = login(lab, "root", "tool"), login(lab, "root", "tool")
    others = [login(lab, "root", "tool") for _number in range(498)]
    assert all(lab.db.exists("session", session) for session in (first, second, *others))
    later(700)  # more than last_active may be behind
    call(lab, "VM.get_all", first)
    login(lab, "root", "tool")
    assert lab.db.exists("session", first) and not lab.db.exists("session", second)
    assert lab.db.exists("session", lab.session)  # of another originator


@pytest.mark.trap(36)
def test_users_but_root_have_500_sessions_whatever_their_originators(lab):
    first = login(lab, "reader", "0")
    for number in range(500):
        login(lab, "reader", str(number + 1))
    assert not lab.db.exists("session", first)
    assert len(lab.db.find("session", auth_user_name="reader")) == 500


def test_a_session_ends_after_a_day_without_use(lab, later):
    later(23 * HOUR)
    call(lab, "VM.get_all", lab.session)
    later(23 * HOUR)
    call(lab, "VM.get_all", lab.session)
    later(24 * HOUR + 1)
    assert error(lab, "VM.get_all", lab.session) == ["SESSION_INVALID", lab.session]


def test_a_session_with_work_under_way_stays(lab, later):
    task = call(lab, "task.create", lab.session, "long", "")
    later(30 * HOUR)
    assert call(lab, "task.get_status", lab.session, task) == "pending"


def test_tasks_are_kept_for_a_while(lab, later):
    done, pending = (call(lab, "task.create", lab.session, name, "") for name in ("done", "pending"))
    tasks.TaskHandle(lab.db, done).succeed()
    later(64 * 60)
    tasks.collect(lab.db)
    assert lab.db.exists("task", done)
    later(2 * 60)
    tasks.collect(lab.db)
    assert not lab.db.exists("task", done) and lab.db.exists("task", pending)
    later(24 * HOUR)
    tasks.collect(lab.db)
    assert not lab.db.exists("task", pending)


def test_of_completed_tasks_the_oldest_go_first(lab):
    refs = [call(lab, "task.create", lab.session, "many", "") for _number in range(210)]
    for ref in refs:
        tasks.TaskHandle(lab.db, ref).succeed()
    assert [ref for ref in refs if lab.db.exists("task", ref)] == refs[10:]


@pytest.mark.trap(6)
def test_a_completed_task_is_frozen_and_an_unwanted_one_goes(lab):
    first, second = (call(lab, "task.create", lab.session, name, "") for name in "ab")
    handle = tasks.TaskHandle(lab.db, first)
    handle.fail(ApiError("VDI_IN_USE", "x", "destroy"))
    handle.succeed()
    record = call(lab, "task.get_record", lab.session, first)
    assert (record["status"], record["progress"], record["error_info"]) == ("failure", 1.0, ["VDI_IN_USE", "x", "destroy"])
    call(lab, "task.destroy", lab.session, second)
    assert call(lab, "task.get_status", lab.session, second) == "pending"
    assert list(call(lab, "task.get_current_operations", lab.session, second).values()) == ["destroy"]
    assert not tasks.TaskHandle(lab.db, second).cancelled()
    tasks.TaskHandle(lab.db, second).succeed()
    assert not lab.db.exists("task", second)


def test_only_operators_touch_the_tasks_of_others(lab):
    theirs = call(lab, "task.create", lab.session, "of root", "")
    operator = login(lab, "operator")
    own = call(lab, "task.create", operator, "of operator", "")
    assert error(lab, "task.cancel", operator, theirs)[:2] == ["RBAC_PERMISSION_DENIED", "task.destroy/any"]
    call(lab, "task.set_progress", login(lab, "operator"), own, 0.5)
    assert call(lab, "task.get_progress", lab.session, own) == 0.5
    call(lab, "task.destroy", lab.session, own)


def test_the_older_event_calls(lab):
    assert error(lab, "event.next", lab.session) == ["SESSION_NOT_REGISTERED", lab.session]
    call(lab, "event.register", lab.session, ["vm"])
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.extend(call(lab, "event.next", lab.session)))
    thread.start()
    call(lab, "network.set_name_label", lab.session, lab.refs["network"], "not asked for")
    call(lab, "VM.set_name_label", lab.session, lab.refs["web"], "renamed")
    thread.join(20)
    assert [(event["class"], event["operation"], event["ref"]) for event in heard] == [("vm", "mod", lab.refs["web"])]
    call(lab, "event.unregister", lab.session, ["vm"])


def test_logging_out_wakes_who_waits_for_events(lab):
    caught: list[list[str]] = []
    token = call(lab, "event.inject", lab.session, "VM", lab.refs["web"])
    thread = threading.Thread(target=lambda: caught.append(error(lab, "event.from", lab.session, ["vm"], token, 60.0)))
    thread.start()
    while thread.is_alive() and lab.db.exists("session", lab.session):
        call(lab, "session.logout", lab.session)
    thread.join(20)
    assert caught == [["SESSION_INVALID", lab.session]]


def test_the_control_interface_moves_the_time_on(lab, later, tmp_path):
    control = Control(World({"lab": lab.pool}, tmp_path), lambda: None)
    task = call(lab, "task.create", lab.session, "done", "")
    tasks.TaskHandle(lab.db, task).succeed()
    before = clock.now()
    answer = control.post(["clock", "advance"], {"seconds": 25 * HOUR})
    assert answer["now"] > before.strftime(clock.FORMAT)
    assert not lab.db.exists("task", task)
    assert error(lab, "VM.get_all", lab.session) == ["SESSION_INVALID", lab.session]


@pytest.mark.trap(33)
def test_what_came_and_went_between_two_calls_is_not_told(lab):
    token = call(lab, "event.inject", lab.session, "VM", lab.refs["web"])
    brief = call(lab, "task.create", lab.session, "brief", "")
    tasks.TaskHandle(lab.db, brief).succeed()
    call(lab, "task.destroy", lab.session, brief)
    batch = call(lab, "event.from", lab.session, ["*"], token, 0.0)
    assert brief not in [event["ref"] for event in batch["events"]]
    stays = call(lab, "task.create", lab.session, "stays", "")
    batch = call(lab, "event.from", lab.session, ["task"], batch["token"], 5.0)
    assert [(event["operation"], event["ref"]) for event in batch["events"]] == [("add", stays)]
    tasks.TaskHandle(lab.db, stays).succeed()
    call(lab, "task.destroy", lab.session, stays)
    batch = call(lab, "event.from", lab.session, ["task"], batch["token"], 5.0)
    assert [(event["operation"], "snapshot" in event) for event in batch["events"]] == [("del", False)]


@pytest.mark.trap(33)
def test_messages_come_first_and_deletions_last(lab):
    gone = lab.db.create("VM", name_label="gone")
    token = call(lab, "event.inject", lab.session, "VM", lab.refs["web"])
    lab.db.destroy("VM", gone)
    call(lab, "VM.set_name_label", lab.session, lab.refs["web"], "changed")
    made = lab.db.create("VM", name_label="new")
    message = lab.db.create("message", name="HELLO")
    events = call(lab, "event.from", lab.session, ["vm", "message"], token, 5.0)["events"]
    assert [(event["operation"], event["ref"]) for event in events] == [
        ("add", message), ("add", made), ("mod", lab.refs["web"]), ("del", gone),
    ]


def test_sessions_made_by_basic_authentication_do_not_add_up(lab):
    before = len(lab.db.refs("session"))
    header = {"authorization": "Basic cm9vdDpzZWNyZXQ="}
    uuid = lab.db.field("VM", lab.refs["web"], "uuid")
    assert lab.get("/export_metadata", headers=header, session_id=None, uuid=uuid).status == 200
    deadline = time.monotonic() + 10
    while len(lab.db.refs("session")) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(lab.db.refs("session")) == before
    assert sessions.expire(lab.pool) == before


def test_a_guest_that_boots_tells_of_its_tools_again(lab):
    vm = lab.refs["web"]

    def tools() -> Any:
        return lab.db.field("VM", vm, "guest_metrics")

    call(lab, "VM.start", lab.session, vm, False, False)
    assert lab.db.field("VM_guest_metrics", tools(), "PV_drivers_detected") is True
    call(lab, "VM.clean_shutdown", lab.session, vm)
    assert tools() == "OpaqueRef:NULL"
    call(lab, "VM.start", lab.session, vm, True, False)
    assert tools() == "OpaqueRef:NULL"  # paused: nothing has booted yet
    call(lab, "VM.unpause", lab.session, vm)
    assert lab.db.field("VM_guest_metrics", tools(), "live") is True
