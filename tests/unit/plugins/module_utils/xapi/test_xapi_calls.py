# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the client does when answers fail to come, are refusals, or come from the wrong host."""

from __future__ import annotations

import select
import threading

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient, is_read_only
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    ConnectionFailed,
    OutcomeUnknown,
    PoolError,
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings

PASSWORD = "s3cret-Päss"


@pytest.fixture
def client(host, authority):
    with PoolClient([host.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path)), patience=5.0) as client:
        host.asked.clear()
        yield client


def answers(*outcomes):
    """A method that gives one outcome after the other: raises it or returns it."""
    left = list(outcomes)

    def method(*_params):
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return method


@pytest.mark.trap(29)
def test_integers_travel_as_text_and_the_rest_as_it_is(client, host):
    seen = []
    host.calls["VDI.create"] = lambda _session, *args: seen.extend(args) or "ref"
    record = {"virtual_size": 1 << 50, "sharable": False, "sm_config": {"a": 1}, "tags": [1, "b"]}
    assert client.call("VDI.create", record, 1.5) == "ref"
    assert seen == [
        {"virtual_size": str(1 << 50), "sharable": False, "sm_config": {"a": "1"}, "tags": ["1", "b"]}, 1.5
    ]


def test_a_lost_answer_to_a_read_is_asked_again(client, host, drop):
    host.calls["VM.get_record"] = answers(drop(), drop(), {"uuid": "u"})
    assert client.call("VM.get_record", "ref") == {"uuid": "u"}
    assert host.asked == ["VM.get_record"] * 3


def test_a_lost_answer_to_a_change_is_told_and_nothing_repeated(client, host, drop):
    host.calls["VM.clone"] = answers(drop(), "copy")
    with pytest.raises(OutcomeUnknown, match="VM.clone of VM web01 was sent"):
        client.call("VM.clone", "ref", "copy", subject="VM web01")
    assert host.asked == ["VM.clone"]


def test_a_change_declared_safe_is_repeated(client, host, drop):
    host.calls["VDI.destroy"] = answers(drop(), "")
    assert client.call("VDI.destroy", "ref", safe=True) == ""
    assert host.asked == ["VDI.destroy"] * 2


def test_a_kept_connection_that_was_closed_costs_no_call(client, host):
    host.calls["VM.clone"] = lambda *_: "done"
    host.hang_up = True
    assert client.call("VM.clone", "a") == "done"
    client._patience = 0.0  # not even one repetition
    assert select.select([client._rpc(client.endpoint)._connection.sock], [], [], 10)[0]  # the end has arrived
    assert client.call("VM.clone", "b") == "done"
    assert host.asked == ["VM.clone"] * 2


def test_a_host_that_never_comes_back_ends_the_patience(client, host, drop):
    client._patience = 1.5
    host.calls["VM.get_all"] = answers(*[drop()] * 50)
    with pytest.raises(ConnectionFailed, match="No answer came from 127.0.0.1"):
        client.call("VM.get_all")
    assert 1 < len(host.asked) < 10


def test_a_lost_session_is_renewed_once(client, host, refuse):
    host.calls["session.login_with_password"] = lambda *_: "OpaqueRef:second"
    host.calls["VM.clone"] = lambda session, *_: session
    host.calls["VM.start"] = answers(refuse("SESSION_INVALID", "OpaqueRef:first"), "")
    assert client.call("VM.start", "ref", False, False) == ""
    assert host.asked == ["VM.start", "session.login_with_password", "VM.start"]
    assert client.call("VM.clone") == "OpaqueRef:second"

    host.calls["VM.start"] = answers(*[refuse("SESSION_INVALID", "OpaqueRef:second")] * 3)
    with pytest.raises(XapiError) as error:
        client.call("VM.start", "ref", False, False)
    assert error.value.code == "SESSION_INVALID"


def test_too_many_tasks_are_waited_for(client, host, refuse):
    host.calls["VM.start"] = answers(refuse("TOO_MANY_PENDING_TASKS"), "")
    assert client.call("VM.start", "ref", False, False) == ""


@pytest.mark.trap(30)
def test_other_refusals_are_not_repeated(client, host, refuse):
    host.calls["VM.start"] = answers(refuse("VM_BAD_POWER_STATE", "ref", "halted", "running"), "")
    with pytest.raises(XapiError, match="VM.start of VM web01 failed: the VM is running"):
        client.call("VM.start", "ref", False, False, subject="VM web01")
    assert host.asked == ["VM.start"]


@pytest.mark.trap(34)
def test_a_starting_toolstack_is_waited_for(host, authority, refuse):
    host.calls["session.login_with_password"] = answers(refuse("HOST_STILL_BOOTING"), "OpaqueRef:s")
    with PoolClient([host.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path)), patience=5.0) as client:
        assert client.session == "OpaqueRef:s"


@pytest.mark.trap(31, 36)
def test_wrong_credentials_are_tried_once(host, authority, refuse):
    host.calls["session.login_with_password"] = answers(refuse("SESSION_AUTHENTICATION_FAILED", "root", PASSWORD))
    with pytest.raises(XapiError) as error:
        PoolClient([host.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path))).__enter__()
    assert host.asked == ["session.login_with_password"]
    assert PASSWORD not in str(error.value) and PASSWORD not in str(error.value.params)


def test_the_session_is_in_no_error(client, host, refuse):
    host.calls["VM.start"] = lambda session, *rest: (item for item in rest[:0]).throw(refuse("INTERNAL_ERROR", "no " + session))
    with pytest.raises(XapiError) as error:
        client.call("VM.start", "ref")
    assert client.session not in str(error.value) and error.value.params == ["no (hidden)"]


@pytest.mark.parametrize("port", [True, False])
def test_a_supporter_sends_us_to_the_coordinator(authority, scripted, refuse, port):
    certificate, _fingerprint = authority.issue("127.0.0.1")
    coordinator, supporter = scripted(certificate), scripted(certificate)
    named = coordinator.address if port else "127.0.0.1"  # without a port: the one we came by, so the same host
    supporter.calls["session.login_with_password"] = answers(refuse("HOST_IS_SLAVE", named))
    pool = PoolClient([supporter.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path)))
    if port:
        with pool as client:
            assert client.coordinator == "https://" + coordinator.address
    else:
        with pytest.raises(XapiError, match="not the pool's coordinator"):
            pool.__enter__()
        assert supporter.asked == ["session.login_with_password"]


@pytest.mark.trap(34)
def test_a_coordinator_that_became_a_supporter_is_left_for_the_new_one(client, host, authority, scripted, refuse):
    successor = scripted(authority.issue("127.0.0.1")[0])
    successor.calls["VM.start"] = lambda *_: "started there"
    host.calls["VM.start"] = answers(refuse("HOST_IS_SLAVE", successor.address))
    assert client.call("VM.start", "ref", False, False) == "started there"
    assert client.coordinator == "https://" + successor.address


def test_the_first_member_that_answers_is_enough(host, authority):
    with PoolClient(
        ["127.0.0.1:1", host.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path))
    ) as client:
        assert client.coordinator == "https://" + host.address


def test_nobody_answers():
    with pytest.raises(ConnectionFailed, match="127.0.0.1:1: connection refused"):
        PoolClient(["127.0.0.1:1"], "root", PASSWORD).__enter__()


def test_leaving_logs_out(host, authority):
    host.calls["session.logout"] = lambda *_: ""
    with PoolClient([host.address], "root", PASSWORD, TlsSettings(ca_path=str(authority.path))) as client:
        pass
    assert host.asked == ["session.login_with_password", "session.logout"]
    with pytest.raises(PoolError, match="not connected"):
        client.call("VM.get_all")


def test_threads_share_the_session_but_no_connection(client, host):
    barrier = threading.Barrier(4)
    host.calls["event.from"] = lambda session, *_: barrier.wait(10) and session or session
    sessions = []
    threads = [threading.Thread(target=lambda: sessions.append(client.call("event.from"))) for _unused in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sessions == [client.session] * 4
    assert host.asked == ["event.from"] * 4


@pytest.mark.trap(36)
def test_threads_renew_a_lost_session_together(client, host, refuse):
    valid = {"OpaqueRef:new"}
    barrier = threading.Barrier(4)
    host.calls["session.login_with_password"] = lambda *_: "OpaqueRef:new"

    def get(session, *_):
        if session not in valid:
            barrier.wait(10)
            raise refuse("SESSION_INVALID", session)
        return session

    host.calls["VM.get_all"] = get
    results = []
    threads = [threading.Thread(target=lambda: results.append(client.call("VM.get_all"))) for _unused in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["OpaqueRef:new"] * 4
    assert host.asked.count("session.login_with_password") == 1


@pytest.mark.parametrize("method", ["VM.get_record", "VDI.is_x", "VM.assert_can_boot_here", "event.from"])
def test_reads(method):
    assert is_read_only(method)


@pytest.mark.parametrize("method", ["VM.start", "Async.VM.get_record", "session.logout", "task.create", "VM.set_tags"])
def test_changes(method):
    assert not is_read_only(method)


def test_an_http_error_page_is_no_answer(client, host):
    host.answer = lambda request: (request.send_error(500), setattr(request, "close_connection", True))
    client._patience = 1.0
    with pytest.raises(OutcomeUnknown, match="HTTP 500"):
        client.call("VM.start", "ref")
    with pytest.raises(ConnectionFailed, match="HTTP 500"):
        client.call("VM.get_all")


def test_nothing_of_a_client_shows_its_password(client):
    assert PASSWORD not in repr(client)
