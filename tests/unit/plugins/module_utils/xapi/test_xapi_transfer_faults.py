# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transfers against hosts that break off, lie, or send us elsewhere."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import tasks as tasks_module
from ansible_collections.guestark.xen.plugins.module_utils.xapi import transfers
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    CertificateUntrusted,
    OutcomeUnknown,
    TransferError,
    XapiError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings
from ansible_collections.guestark.xen.plugins.module_utils.xapi.transfers import export_vm, import_vm

MIB = 1048576
IMPORTED = "<value><array><data><value>OpaqueRef:vm</value></data></array></value>"


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Nothing that is waited for here takes long, or ever comes."""
    monkeypatch.setattr(tasks_module, "ENDING_SECONDS", 1.0)
    monkeypatch.setattr(transfers, "ENDING_SECONDS", 1.0)
    monkeypatch.setattr(transfers, "EXPLAINING_SECONDS", 0.5)


@pytest.fixture
def client(host, authority):
    with PoolClient([host.address], "root", "pw", TlsSettings(ca_path=str(authority.path)), patience=2.0) as client:
        yield client


def page(*parts, head=b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", then=None):
    """Answer with these bytes, then do what else there is to do."""
    def answer(request):
        request.connection.sendall(head)
        for part in parts:
            request.connection.sendall(part)
        if then:
            then(request)
        goodbye(request)
    return answer


def goodbye(request):
    """End the TLS stream as one ought to, without waiting for the other side."""
    with suppress(OSError):
        request.connection.settimeout(0)
        request.connection.unwrap()


def reset(request):
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.rfile.close()  # the last one that keeps the socket open
    request.connection.close()


def read_all(client, stall_timeout=5.0):
    with export_vm(client, "OpaqueRef:vm", subject="VM web01", stall_timeout=stall_timeout) as export:
        data = export.readall()
        export.finish()
    return data


@pytest.mark.trap(4)
def test_an_export_arrives_whole_and_its_task_goes(client, host, tasks):
    content = bytes(range(256)) * 8192
    host.pages["/export"] = page(content, then=lambda _: tasks.end("success"))
    assert read_all(client) == content
    assert tasks.rows == {} and tasks.calls == ["destroy"]
    assert tasks.label == "Export of VM web01"


def test_a_success_that_comes_late_is_waited_for(client, host, tasks):
    def finish_late(request):
        goodbye(request)
        time.sleep(1.5)
        tasks.end("success")

    host.pages["/export"] = page(b"data", then=finish_late)
    assert read_all(client) == b"data"


def test_the_session_is_a_cookie_and_never_in_a_url(client, host, tasks):
    seen = []
    answer = page(then=lambda _: tasks.end("success"))
    host.pages["/export"] = lambda request: (seen.append(request.path), answer(request))
    read_all(client)
    assert client.session not in seen[0] and "task_id=OpaqueRef%3Atask-0" in seen[0]
    assert host.secrets == ["session_id=" + client.session]


def test_marks_are_in_the_tasks_description(client, host, tasks):
    host.pages["/export"] = page(then=lambda _: tasks.end("success"))
    with export_vm(client, "OpaqueRef:vm", marks={"run": "r1", "point": "p1"}) as export:
        export.finish()
    assert tasks.description == "guestark run=r1 point=p1"


@pytest.mark.trap(2)
def test_failure_of_the_task_after_all_bytes(client, host, tasks):
    host.pages["/export"] = page(b"x" * MIB, then=lambda _: tasks.end("failure", error=["VDI_IO_ERROR", "bad"]))
    with pytest.raises(XapiError, match="Export of VM web01 failed: reading or writing a disk failed: bad"):
        read_all(client)
    assert tasks.rows == {}


@pytest.mark.trap(2)
def test_an_error_page_glued_to_the_stream_is_explained_by_the_task(client, host, tasks):
    def fail(_request):
        tasks.end("failure", error=["SR_BACKEND_FAILURE_46", "", "gone", ""])

    host.pages["/export"] = page(b"x" * 4096, b"HTTP/1.1 500 Internal Error\r\n\r\n<html>", then=fail)
    with pytest.raises(XapiError) as error, export_vm(client, "OpaqueRef:vm", subject="VM web01") as export:
        if b"HTTP/1.1 500" in export.readall():
            raise ValueError("this is no archive")
    assert error.value.code == "SR_BACKEND_FAILURE_46"
    assert isinstance(error.value.__cause__, ValueError)


def test_a_reset_says_how_far_it_got(client, host, tasks):
    host.pages["/export"] = page(b"x" * 3 * MIB, then=lambda r: (time.sleep(0.5), reset(r)))
    with pytest.raises(TransferError, match="of VM web01 broke off after [0-9]+ bytes") as error:
        with export_vm(client, "OpaqueRef:vm", subject="VM web01") as export:
            buffer = bytearray(MIB)
            while export.readinto(buffer):
                pass
            export.finish()
    assert error.value.transferred <= 3 * MIB
    assert tasks.calls == ["cancel", "destroy"]


def test_a_host_that_hangs_up_without_goodbye_is_believed_when_its_task_is(client, host, tasks):
    def hang_up(request):
        tasks.end("success")
        request.connection.shutdown(socket.SHUT_WR)

    host.pages["/export"] = page(b"x" * (MIB + 5), then=hang_up)
    assert read_all(client) == b"x" * (MIB + 5)


def test_that_we_hung_up_is_no_explanation(client, host, tasks):
    host.pages["/export"] = page(b"x", then=lambda _: tasks.end("failure", error=["CLIENT_ERROR", "EPIPE"]))
    with pytest.raises(ValueError), export_vm(client, "OpaqueRef:vm") as export:
        export.readall()
        raise ValueError("this is no archive")


def test_a_stall_ends_with_how_far_it_got(client, host, tasks):
    host.pages["/export"] = page(b"x" * MIB, then=lambda _: time.sleep(4))
    with pytest.raises(TransferError, match="stalled: no byte for 1 s, after %d bytes" % MIB):
        with export_vm(client, "OpaqueRef:vm", subject="VM web01", stall_timeout=1.0) as export:
            buffer = bytearray(MIB)
            while export.readinto(buffer):
                pass
    assert "destroy" in tasks.calls


@pytest.mark.trap(34)
def test_an_export_whose_task_vanished_proves_nothing(client, host, tasks):
    host.pages["/export"] = page(b"x" * 10, then=lambda _: tasks.rows.clear())
    with pytest.raises(TransferError, match="vanished after 10 bytes"):
        read_all(client)


@pytest.mark.trap(6)
def test_a_cancelled_task(client, host, tasks):
    ended = ["TASK_CANCELLED", "OpaqueRef:task-0"]
    host.pages["/export"] = page(b"x", then=lambda _: tasks.end("cancelled", error=ended))
    with pytest.raises(XapiError, match="somebody cancelled"):
        read_all(client)


@pytest.mark.trap(3)
def test_no_answer_at_all_is_explained_by_the_task(client, host, tasks):
    host.pages["/export"] = lambda _request: tasks.end("failure", error=["NO_HOSTS_AVAILABLE"])
    with pytest.raises(XapiError, match="no host fits") as error:
        read_all(client)
    assert "sees every disk" in error.value.remedy


@pytest.mark.trap(3)
def test_an_unadopted_task_is_ended_by_us(client, host, tasks):
    body = (b"<html><body><h1>HTTP 500 internal server error</h1><h1> Additional information </h1>"
            b"DEFAULT_SR_NOT_FOUND: [ OpaqueRef:NULL ]</body></html>")
    host.pages["/import"] = page(body, head=b"HTTP/1.1 500 Internal Error\r\nConnection: close\r\n\r\n")
    with pytest.raises(XapiError, match="no default storage repository"):
        import_vm(client, "", [b"x"], subject="VM web01")
    assert tasks.calls == ["cancel", "set", "destroy"] and tasks.rows == {}


@pytest.mark.parametrize("status, kind", [("401 Unauthorised", XapiError), ("403 Forbidden", TransferError)])
@pytest.mark.trap(3)
def test_refusals_without_a_code(client, host, tasks, status, kind):
    head = "HTTP/1.1 %s\r\nConnection: close\r\n\r\n<html/>" % status
    host.pages["/export"] = page(head=head.encode())
    with pytest.raises(kind):
        read_all(client)


def redirect(to):
    head = "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: %s\r\n\r\n" % to
    return page(head=head.encode())


@pytest.mark.trap(7)
def test_a_redirect_is_followed_to_a_verified_host(client, host, tasks, authority, scripted):
    other = scripted(authority.issue("127.0.0.1")[0])
    host.pages["/export"] = redirect("https://%s/export?ref=x" % other.address)
    other.pages["/export"] = page(b"there", then=lambda _: tasks.end("success"))
    assert read_all(client) == b"there"
    assert other.secrets == ["session_id=" + client.session]


def test_a_redirect_to_a_stranger_gets_nothing(client, host, tasks, stranger, scripted):
    other = scripted(stranger.issue("127.0.0.1")[0])
    host.pages["/export"] = redirect("https://%s/export" % other.address)
    with pytest.raises(CertificateUntrusted, match=other.address):
        read_all(client)
    assert other.asked == [] and tasks.rows == {}


def test_a_redirect_out_of_tls_is_refused(client, host, tasks):
    host.pages["/export"] = redirect("http://%s/export?session_id=%s" % (host.address, client.session))
    with pytest.raises(Exception, match="not the address of a host") as error:
        read_all(client)
    assert client.session not in str(error.value)
    assert host.asked.count("/export") == 1


def test_redirects_in_circles_end(client, host, tasks):
    host.pages["/export"] = redirect("https://%s/export" % host.address)
    with pytest.raises(TransferError, match="in circles"):
        read_all(client)


def receive(seen, tasks, limit=None, then=None):
    """Take an import: answer first, then read up to the end of the body (or ``limit`` bytes)."""
    def answer(request):
        seen["version"], seen["length"] = request.request_version, request.headers.get("Content-Length")
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        wanted = int(seen["length"]) if seen["length"] else limit
        body = bytearray()
        while wanted is None or len(body) < wanted:
            data = request.rfile.read1(MIB)
            if not data:
                seen["ended"] = True
                break
            body += data
        seen["body"] = bytes(body)
        (then or (lambda _: tasks.end("success", IMPORTED)))(request)
    return answer


@pytest.mark.trap(8, 9)
def test_an_import_without_length_ends_by_tls_and_keeps_the_connection(client, host, tasks):
    seen = {}
    host.pages["/import"] = receive(seen, tasks)
    content = bytes(range(256)) * 20000
    assert import_vm(client, "OpaqueRef:sr", [content[:1], content[1:]]) == ["OpaqueRef:vm"]
    assert seen == {"version": "HTTP/1.0", "length": None, "body": content, "ended": True}
    assert tasks.rows == {} and tasks.calls == ["destroy"]


@pytest.mark.trap(4, 5)
def test_an_import_of_known_length(client, host, tasks):
    seen = {}
    host.pages["/import"] = receive(seen, tasks)
    assert import_vm(client, "OpaqueRef:sr", [b"a" * 10, b"b" * 10], length=20) == ["OpaqueRef:vm"]
    assert seen == {"version": "HTTP/1.1", "length": "20", "body": b"a" * 10 + b"b" * 10}


@pytest.mark.trap(7)
def test_a_redirected_import_is_sent_once_and_to_the_right_host(client, host, tasks, authority, scripted):
    other, seen = scripted(authority.issue("127.0.0.1")[0]), {}
    host.pages["/import"] = redirect("https://%s/import?sr_id=x" % other.address)
    other.pages["/import"] = receive(seen, tasks)
    given = iter([b"a" * 10, b"b" * 10])  # can be had only once
    assert import_vm(client, "OpaqueRef:sr", given) == ["OpaqueRef:vm"]
    assert seen["body"] == b"a" * 10 + b"b" * 10
    assert host.secrets == other.secrets == ["session_id=" + client.session]


@pytest.mark.trap(8, 16)
@pytest.mark.parametrize("length", [None, 10])
def test_nothing_is_asked_that_no_host_grants(client, host, tasks, length):
    """No chunked encoding, no 100-continue; and restoring only when it is wanted."""
    asked = []
    take = receive({}, tasks)
    host.pages["/import"] = lambda request: (asked.append((request.path, request.headers)), take(request))
    import_vm(client, "OpaqueRef:sr", [b"a" * 10], length=length)
    ((path, headers),) = asked
    assert "Transfer-Encoding" not in headers and "Expect" not in headers
    assert "restore" not in path and "force" not in path


def test_a_host_that_has_enough_may_close(client, host, tasks):
    def enough(request):
        tasks.end("success", IMPORTED)
        reset(request)

    host.pages["/import"] = receive({}, tasks, limit=MIB, then=enough)
    assert import_vm(client, "OpaqueRef:sr", (b"x" * MIB for _unused in range(64))) == ["OpaqueRef:vm"]


@pytest.mark.trap(1)
def test_a_host_that_rejects_the_archive_half_way(client, host, tasks):
    def fail(request):
        tasks.end("failure", error=["IMPORT_ERROR", "Invalid_checksum(x)"])
        reset(request)

    host.pages["/import"] = receive({}, tasks, limit=MIB, then=fail)
    with pytest.raises(XapiError, match="Import of VM web01 failed: the import failed: Invalid_checksum"):
        import_vm(client, "OpaqueRef:sr", (b"x" * MIB for _unused in range(64)), subject="VM web01")
    assert tasks.rows == {}


def test_a_host_that_dies_while_it_receives(client, host, tasks):
    host.pages["/import"] = receive({}, tasks, limit=MIB, then=reset)
    with pytest.raises(TransferError, match="broke off after [0-9]+ bytes"):
        import_vm(client, "OpaqueRef:sr", (b"x" * MIB for _unused in range(64)))
    assert "destroy" in tasks.calls


def test_an_error_of_the_source_stays_itself_and_ends_the_import(client, host, tasks):
    def source():
        yield b"x" * 10
        raise KeyError("the source")

    host.pages["/import"] = receive({}, tasks, then=lambda _: tasks.end("failure", error=["CLIENT_ERROR"]))
    with pytest.raises(KeyError):
        import_vm(client, "OpaqueRef:sr", source())
    assert tasks.rows == {} and "destroy" in tasks.calls


@pytest.mark.trap(34)
def test_an_import_whose_task_vanished_names_what_is_left(client, host, tasks):
    host.calls["VM.get_all_records"] = lambda *_: {
        "OpaqueRef:a": {"uuid": "uuid-a", "other_config": {"import_task": "OpaqueRef:task-0"}},
        "OpaqueRef:b": {"uuid": "uuid-b", "other_config": {}},
    }
    host.pages["/import"] = receive({}, tasks, then=lambda _: tasks.rows.clear())
    with pytest.raises(OutcomeUnknown) as error:
        import_vm(client, "OpaqueRef:sr", [b"x"])
    assert "uuid-a" in error.value.remedy and "uuid-b" not in error.value.remedy


def test_restore_and_force_are_asked_for(client, host, tasks):
    paths = []
    take = receive({}, tasks)
    host.pages["/import"] = lambda request: (paths.append(request.path), take(request))
    import_vm(client, "OpaqueRef:sr", [b"x"], restore=True, force=True)
    assert "restore=true" in paths[0] and "force=true" in paths[0] and "sr_id=OpaqueRef%3Asr" in paths[0]
