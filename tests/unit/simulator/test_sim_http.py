# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP below the calls: connections, headers, error pages, and hosts that die, hang and come back."""

from __future__ import annotations

import importlib
import json
import re
import socket
import ssl
import threading
import time

import pytest
from poolbox import http_server

importlib.import_module("poolbox.sessions")  # registers logging in

LOGIN = json.dumps({"method": "session.login_with_password", "params": ["root", "secret"], "id": 1, "jsonrpc": "2.0"})


class Wire:
    """A TLS connection to a host, used byte by byte."""

    def __init__(self, lab, host: int = 0) -> None:
        where = lab.pool.hosts[host]
        raw = socket.create_connection((where.address, where.port), timeout=20)
        self.socket = lab.tls.wrap_socket(raw, server_hostname=where.address)
        self.file = self.socket.makefile("rb")

    def ask(self, head: str, body: str = "") -> tuple[str, dict[str, str], bytes]:
        """Send a request, with Content-Length if it has a body, and return status line, headers and body."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.socket.sendall(f"{head}\r\n{length}\r\n{body}".encode())
        return self.answer()

    def answer(self) -> tuple[str, dict[str, str], bytes]:
        """The next answer."""
        status, headers = self.file.readline().decode().strip(), {}
        while line := self.file.readline().decode().strip():
            name, _colon, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))

    def ended(self) -> bool:
        """Whether the host has closed the connection."""
        try:
            return self.file.read(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True


@pytest.fixture(name="wire")
def fixture_wire(lab):
    wire = Wire(lab)
    yield wire
    wire.socket.close()


def test_a_connection_is_kept_for_many_calls(wire):
    for path, kind in (("/jsonrpc", "application/json"), ("/jsonrpc", "application/json")):
        status, headers, body = wire.ask(f"POST {path} HTTP/1.1", LOGIN)
        assert (status, headers["content-type"], headers["connection"]) == ("HTTP/1.1 200 OK", kind, "keep-alive")
        assert headers["cache-control"] == "no-cache, no-store"
        assert headers["access-control-allow-origin"] == "*"
        assert json.loads(body)["result"].startswith("OpaqueRef:")


@pytest.mark.parametrize("version, header, kept", [
    ("1.1", "", True), ("1.1", "\r\nConnection: close", False), ("1.0", "", False), ("1.0", "\r\nConnection: Keep-Alive", True),
])
def test_who_closes(wire, version, header, kept):
    status, headers, _body = wire.ask(f"POST /jsonrpc HTTP/{version}{header}", LOGIN)
    assert status == f"HTTP/{version} 200 OK"
    assert headers["connection"] == ("keep-alive" if kept else "close")
    assert kept or wire.ended()


@pytest.mark.parametrize("path", ["/", "/RPC2", "/xmlrpc", "/json%2e"])
def test_all_other_paths_speak_xml(wire, path):
    body = "<?xml version='1.0'?><methodCall><methodName>system.listMethods</methodName></methodCall>"
    _status, headers, answer = wire.ask(f"POST {path} HTTP/1.1", body)
    assert headers["content-type"] == "text/xml" and answer.startswith(b'<?xml version="1.0"?><methodResponse>')


def test_header_lines_without_a_colon_are_overlooked(wire):
    assert wire.ask("POST /jsonrpc HTTP/1.1\r\nnonsense", LOGIN)[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("head, body, status, page", [
    ("POST / HTTP/1.1", "", "500 Internal Error", "<h1>HTTP 500 internal server error</h1>"),
    ("POST / HTTP/1.1\r\nContent-Length: many", "", "500 Internal Error", "<h1>HTTP 500 internal server error</h1>"),
    ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked", "", "500 Internal Error", "<h1>HTTP 500 internal server error</h1>"),
    ("POST /jsonrpc HTTP/1.1", "{", "500 Internal Error", "<h1>HTTP 500 internal server error</h1>"),
    ("POST / HTTP/1.1", "x" * (300 * 1024 + 1), "500 Internal Error", "<h1>HTTP 500 internal server error</h1>"),
    ("nonsense", "", "500 Internal Error", "<h1> Additional information </h1>The HTTP headers could not be parsed."),
    ("DELETE / HTTP/1.1", "", "501 Method not implemented", "<h1>HTTP 501 Method Not Implemented</h1>"),
    ("PUT /nothing HTTP/1.1", "", "403 Forbidden", "<h1>HTTP 403 forbidden</h1>"),
    ("GET /nothing HTTP/1.1", "", "404 Not Found", "<h1>HTTP 404 not found</h1>"),
    ("GET /export?uuid=x HTTP/1.1", "", "401 Unauthorised", "<h1>HTTP 401 unauthorised</h1>"),
    (f"GET / HTTP/1.1\r\nX: {'x' * 70000}", "", "431 Request Header Fields Too Large", "<h1>HTTP 431"),
])
def test_error_pages_end_the_connection(wire, head, body, status, page):
    line, headers, answer = wire.ask(head, body)
    assert line == f"HTTP/1.1 {status}"
    assert (headers["content-type"], headers["connection"]) == ("text/html", "close")
    assert answer.startswith(b"<html><body><h1>HTTP ") and page.encode() in answer
    assert wire.ended()


def test_a_mistake_of_a_handler_is_told_and_not_hidden_behind_a_lost_connection(wire, monkeypatch):
    def mistaken(req, ctx):
        raise KeyError("nobody thought of this")

    monkeypatch.setitem(http_server.HANDLERS, ("GET", "/mistaken"), mistaken)
    status, _headers, page = wire.ask("GET /mistaken HTTP/1.1\r\nHost: pool")
    assert status == "HTTP/1.1 500 Internal Error" and b"INTERNAL_ERROR" in page and b"nobody thought of this" in page
    assert wire.ended()


def test_a_body_of_300_kib_is_still_read(wire):
    call = LOGIN + " " * (300 * 1024 - len(LOGIN))
    assert wire.ask("POST /jsonrpc HTTP/1.1", call)[0] == "HTTP/1.1 200 OK"


def test_where_a_browser_may_send_to(wire):
    status, headers, body = wire.ask("OPTIONS / HTTP/1.1\r\nAccess-Control-Request-Headers: X-Own")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert headers["access-control-allow-headers"] == "X-Own, X-Requested-With"
    assert headers["access-control-allow-methods"] == "PUT"


def test_who_says_nothing_is_sent_away(make_lab, monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    wire = Wire(make_lab("8.3"))
    assert wire.answer()[0] == "HTTP/1.1 408 Request Timeout"
    assert wire.ended()


def test_between_calls_a_client_may_take_its_time(make_lab, monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    wire = Wire(make_lab("8.3"))
    assert wire.ask("POST /jsonrpc HTTP/1.1", LOGIN)[0] == "HTTP/1.1 200 OK"
    time.sleep(0.5)
    assert wire.ask("POST /jsonrpc HTTP/1.1", LOGIN)[0] == "HTTP/1.1 200 OK"


def test_every_host_has_a_certificate_of_its_own(lab):
    seen = {Wire(lab, host).socket.getpeercert(binary_form=True) for host in (0, 1)}
    assert len(seen) == 2


def test_a_host_that_is_killed_breaks_its_connections_and_comes_back_at_its_address(lab, wire):
    listener = lab.pool.hosts[0].listener
    assert wire.ask("POST /jsonrpc HTTP/1.1", LOGIN)[0] == "HTTP/1.1 200 OK"
    listener.stop()
    with socket.socket(fileno=wire.socket.detach()) as raw, pytest.raises(ConnectionResetError):
        raw.recv(1 << 16)  # without TLS, which would make an end of it
    with pytest.raises(OSError):
        Wire(lab)
    listener.start()
    assert Wire(lab).ask("POST /jsonrpc HTTP/1.1", LOGIN)[0] == "HTTP/1.1 200 OK"


def test_a_host_that_hangs_answers_when_it_is_resumed(lab, wire):
    listener = lab.pool.hosts[0].listener
    answers: list[str] = []
    listener.hang()
    thread = threading.Thread(target=lambda: answers.append(wire.ask("POST /jsonrpc HTTP/1.1", LOGIN)[0]))
    thread.start()
    thread.join(0.5)
    assert not answers
    assert Wire(lab, 1).ask("POST /jsonrpc HTTP/1.1", LOGIN)[0] == "HTTP/1.1 200 OK"  # the other host answers
    listener.resume()
    thread.join(20)
    assert answers == ["HTTP/1.1 200 OK"]


def test_a_supporter_names_the_address_but_no_port(lab):
    _status, _headers, body = Wire(lab, 1).ask("POST /jsonrpc HTTP/1.1", LOGIN)
    error = json.loads(body)["error"]
    assert error["message"] == "HOST_IS_SLAVE" and re.fullmatch(r"127\.0\.0\.\d+", error["data"][0])


@pytest.mark.trap(10)
def test_a_supporter_takes_the_coordinators_session_for_transfers(lab):
    assert lab.get("/export", host=1, uuid=lab.db.field("VM", lab.refs["web"], "uuid")).status == 200
