# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""RPC on the wire: encodings, errors, sessions, tasks and events as XAPI has them."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))
from simulator_fixture import Simulator, start_simulator  # noqa: E402

CALL = '<?xml version="1.0"?><methodCall><methodName>{}</methodName><params>{}</params></methodCall>'


class Client:
    """Talks to one member, byte by byte."""

    def __init__(self, simulator: Simulator, member: int = 0, pool: str = "production") -> None:
        described = simulator.ready["pools"][pool]
        address = described["members"][member].removeprefix("https://")
        self._connection = http.client.HTTPSConnection(
            address, context=ssl.create_default_context(cafile=simulator.ready["ca"]), timeout=30
        )
        self.headers: dict[str, str] = {}
        self.status = 0

    def post(self, path: str, body: str | bytes, **headers: str) -> bytes:
        """Send a body and return the answer's."""
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        self.status, self.headers = response.status, {name.lower(): value for name, value in response.getheaders()}
        return response.read()

    def xml(self, name: str, *params: str) -> str:
        """An XML-RPC call with string parameters."""
        values = "".join(f"<param><value>{param}</value></param>" for param in params)
        return self.post("/", CALL.format(name, values)).decode()

    def json(self, name: str, *params: Any, version: str | None = "2.0") -> dict[str, Any]:
        """A JSON-RPC call."""
        request = {"method": name, "params": params, "id": 7} | ({"jsonrpc": version} if version else {})
        return json.loads(self.post("/jsonrpc", json.dumps(request)))

    def value(self, name: str, *params: Any) -> Any:
        """The result of a JSON-RPC call that has to succeed."""
        answer = self.json(name, *params)
        assert "result" in answer, answer
        return answer["result"]

    def error(self, name: str, *params: Any) -> list[str]:
        """The error of a JSON-RPC call that has to fail."""
        answer = self.json(name, *params)
        return [answer["error"]["message"], *answer["error"]["data"]]


@pytest.fixture(scope="module", name="simulator")
def fixture_simulator(tmp_path_factory):
    simulator = start_simulator(TESTS / "simulator" / "examples" / "test.yml", tmp_path_factory.mktemp("rpc"))
    yield simulator
    simulator.stop()


@pytest.fixture(name="client")
def fixture_client(simulator):
    return Client(simulator)


@pytest.fixture(name="session")
def fixture_session(client):
    session = client.value("session.login_with_password", "root", "secret")
    yield session
    client.json("session.logout", session)


@pytest.mark.trap(29)
def test_xml_values_are_untyped_but_for_booleans_doubles_and_dates(client, session):
    vm = client.value("VM.get_by_name_label", session, "web")[0]
    record = client.xml("VM.get_record", session, vm)
    assert record.startswith('<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
                             "<value>Success</value></member><member><name>Value</name><value><struct>")
    assert "<member><name>memory_static_max</name><value>1073741824</value></member>" in record
    assert "<member><name>is_a_template</name><value><boolean>0</boolean></value></member>" in record
    assert "<name>snapshot_time</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>" in record
    assert "<name>HVM_shadow_multiplier</name><value><double>" in record
    assert "<string>" not in record and "<int>" not in record
    assert client.headers["content-type"] == "text/xml"
    assert client.headers["connection"] == "keep-alive"


@pytest.mark.trap(30)
def test_void_and_failures_in_xml(client, session):
    assert "<name>Value</name><value></value>" in client.xml("VM.remove_from_other_config", session, client.value(
        "VM.get_by_name_label", session, "web")[0], "nothing")
    assert client.xml("VM.get_record", "OpaqueRef:none", "x") == (
        '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value>'
        "</member><member><name>ErrorDescription</name><value><array><data><value>SESSION_INVALID</value>"
        "<value>OpaqueRef:none</value></data></array></value></member></struct></value></param></params></methodResponse>"
    )
    assert client.status == 200


@pytest.mark.trap(29, 30)
def test_both_versions_of_json(client, session):
    vm = client.value("VM.get_by_name_label", session, "web")[0]
    assert client.json("VM.get_VCPUs_max", session, vm) == {"jsonrpc": "2.0", "result": 2, "id": 7}
    assert client.headers["content-type"] == "application/json"
    assert client.json("VM.get_VCPUs_max", session, vm, version=None) == {"result": 2, "error": None, "id": 7}
    assert client.json("VM.get_record", session, "x", version=None) == {
        "result": None, "error": ["HANDLE_INVALID", "VM", "x"], "id": 7,
    }
    assert client.json("VM.get_record", session, "x")["error"] == {
        "code": 1, "message": "HANDLE_INVALID", "data": ["VM", "x"],
    }


@pytest.mark.parametrize("name, params, error", [
    ("VM.nonsense", [], ["MESSAGE_METHOD_UNKNOWN", "VM.nonsense"]),
    ("VM.get_by_uuid", ["none"], ["UUID_INVALID", "VM", "none"]),
    ("VM.get_by_uuid", [], ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_by_uuid", "1", "0"]),
    ("VM.snapshot_with_quiesce", ["x", "y"], ["MESSAGE_REMOVED"]),
    ("VM.get_by_uuid", [7], None),
    ("event.from", [["*"], "nonsense", 0.1], ["EVENT_FROM_TOKEN_PARSE_FAILURE", "nonsense"]),
    ("event.inject", ["vm", "x"], ["HANDLE_INVALID", "vm", "x"]),
])
def test_errors(client, session, name, params, error):
    found = client.error(name, session, *params)
    assert found == error if error else found[0] == "INTERNAL_ERROR"


@pytest.mark.trap(20)
def test_the_session_is_checked_before_the_method(client):
    assert client.error("VM.nonsense", "OpaqueRef:none")[0] == "SESSION_INVALID"
    assert client.error("VM.snapshot_with_quiesce", "OpaqueRef:none", "x", "y")[0] == "SESSION_INVALID"


def test_map_keys_are_not_replaced_and_removing_is_silent(client, session):
    vm = client.value("VM.get_by_name_label", session, "web")[0]
    client.value("VM.add_to_other_config", session, vm, "key", "one")
    assert client.error("VM.add_to_other_config", session, vm, "key", "two") == [
        "MAP_DUPLICATE_KEY", "VM", "other_config", vm, "key",
    ]
    client.value("VM.remove_from_other_config", session, vm, "key")
    client.value("VM.remove_from_other_config", session, vm, "key")
    assert "key" not in client.value("VM_get_other_config", session, vm)


@pytest.mark.trap(35)
def test_passwords_members_and_roles(simulator, client):
    assert client.error("session.login_with_password", "root", "wrong")[:2] == ["SESSION_AUTHENTICATION_FAILED", "root"]
    assert Client(simulator, 1).error("session.login_with_password", "root", "secret") == ["HOST_IS_SLAVE", "127.0.0.11"]
    reader = client.value("session.login_with_password", "reader", "reader")
    vm = client.value("VM.get_by_name_label", reader, "web")[0]
    assert client.error("VM.snapshot", reader, vm, "x")[:2] == ["RBAC_PERMISSION_DENIED", "vm.snapshot"]
    client.value("session.logout", reader)
    assert client.error("VM.get_all", reader) == ["SESSION_INVALID", reader]


@pytest.mark.trap(21)
def test_surplus_arguments_are_borne_where_some_may_be_left_out(client, session):
    vm = client.value("VM.get_by_name_label", session, "odd")[0]
    snapshot = client.value("VM.snapshot", session, vm, "surplus", [], "and more")
    client.value("VM.destroy", session, snapshot)
    assert client.error("VM.clone", session, vm, "one", "too many")[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"


def test_large_and_malformed_calls_get_a_page(client):
    client.post("/", "x" * (300 * 1024 + 1))
    assert (client.status, client.headers["content-type"]) == (500, "text/html")
    client.post("/jsonrpc", json.dumps({"method": "x", "params": [], "id": None}))
    assert client.status == 500


@pytest.mark.trap(20)
def test_list_of_methods_has_removed_ones_and_no_envelope(client):
    text = client.xml("system.listMethods")
    assert "<params><param><value><array><data><value>" in text and "Status" not in text
    assert "VM.snapshot_with_quiesce" in text


@pytest.mark.trap(5)
def test_an_asynchronous_call_ends_in_an_xml_value(client, session):
    vm = client.value("VM.get_by_name_label", session, "odd")[0]
    task = client.value("Async.VM.clone", session, vm, "copy")
    for _wait in range(100):
        record = client.value("task.get_record", session, task)
        if record["status"] != "pending":
            break
        time.sleep(0.02)
    assert (record["status"], record["progress"], record["type"]) == ("success", 1.0, "<none/>")
    assert record["result"].startswith("<value>OpaqueRef:")
    copy = record["result"].removeprefix("<value>").removesuffix("</value>")
    client.value("task.destroy", session, task)
    assert client.error("task.get_status", session, task) == ["HANDLE_INVALID", "task", task]
    client.value("VM.destroy", session, copy)


@pytest.mark.trap(6)
def test_a_cancelled_task_stays_pending_until_its_worker_sees_it(client, session):
    task = client.value("task.create", session, "work", "")
    client.value("task.cancel", session, task)
    assert client.value("task.get_status", session, task) == "pending"
    assert list(client.value("task.get_current_operations", session, task).values()) == ["cancel"]
    client.value("task.destroy", session, task)
    assert client.value("task.get_status", session, task) == "pending"


@pytest.mark.trap(33)
def test_events_from_a_token(simulator, client, session):
    vm = client.value("VM.get_by_name_label", session, "web")[0]
    token = client.value("event.inject", session, "VM", vm)
    nothing = client.value("event.from", session, ["vm"], token, 0.2)
    assert nothing["events"] == [] and nothing["token"] >= token
    client.value("VM.set_name_description", session, vm, "one")
    client.value("VM.set_name_description", session, vm, "two")
    batch = client.value("event.from", session, ["VM"], nothing["token"], 20.0)
    (event,) = batch["events"]
    assert (event["class"], event["operation"], event["ref"], event["timestamp"]) == ("vm", "mod", vm, "0.0")
    assert event["snapshot"]["name_description"] == "two"
    counts = batch["valid_ref_counts"]  # of all tables, whatever was asked for
    assert (counts["vm"], counts["host"]) == (len(client.value("VM.get_all", session)), 3)
    assert "message" not in counts and "event" not in counts


def test_a_waiting_client_hears_of_a_change(simulator, client, session):
    vm = client.value("VM.get_by_name_label", session, "web")[0]
    token = client.value("event.inject", session, "VM", vm)
    heard: list[dict[str, Any]] = []
    waiter = Client(simulator)
    thread = threading.Thread(target=lambda: heard.append(waiter.value("event.from", session, [f"vm/{vm}"], token, 20.0)))
    thread.start()
    client.value("VM.set_name_description", session, vm, "three")
    thread.join(25)
    assert heard[0]["events"][0]["snapshot"]["name_description"] == "three"


@pytest.mark.trap(29, 33)
def test_event_filters_and_counts_in_xml(client, session):
    task = client.value("task.create", session, "watched", "")
    batch = client.value("event.from", session, [f"task/{task}", "nonsense"], "", 5.0)
    assert [(event["operation"], event["ref"]) for event in batch["events"]] == [("add", task)]
    body = CALL.format("event.from", "".join(f"<param><value>{value}</value></param>" for value in (
        session, "<array><data><value>pool</value></data></array>", "", "<double>5.0</double>")))
    assert "<name>pool</name><value><i4>1</i4></value>" in client.post("/", body).decode()
    client.value("task.destroy", session, task)


@pytest.mark.trap(30, 34)
def test_a_killed_coordinator_and_its_successor(tmp_path):
    simulator = start_simulator(TESTS / "simulator" / "examples" / "test.yml", tmp_path)
    try:
        session = Client(simulator).value("session.login_with_password", "root", "secret")
        vm = Client(simulator).value("VM.get_by_name_label", session, "web")[0]
        simulator.control("POST", "/hosts/production/alpha/kill")
        with pytest.raises(OSError):
            Client(simulator).json("VM.get_all", session)
        assert Client(simulator, 1).json("session.login_with_password", "root", "secret") == {
            "jsonrpc": "2.0", "error": ["HOST_STILL_BOOTING"], "id": 0,
        }
        simulator.control("POST", "/pools/production/elect", {"host": "beta"})
        assert Client(simulator, 1).error("VM.get_all", session)[0] == "SESSION_INVALID"
        assert Client(simulator, 2).error("VM.get_all", session) == ["SESSION_INVALID", session]
        assert Client(simulator, 2).error("session.login_with_password", "root", "x") == ["HOST_IS_SLAVE", "127.0.0.12"]
        renewed = Client(simulator, 1).value("session.login_with_password", "root", "secret")
        assert Client(simulator, 2).error("VM.get_all", renewed) == ["HOST_IS_SLAVE", "127.0.0.12"]
        assert Client(simulator, 1).value("VM.get_name_label", renewed, vm) == "web"
    finally:
        simulator.stop()
