# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy before an S3 server that lies, refuses, cuts and forgets as it is told, on 127.0.0.1."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DENIED = b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
SLOW = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"


@dataclass
class Answer:
    """What the server said. ``sent``: bytes of the body after which the connection ends, where that is not all."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    sent: int | None = None


@dataclass
class Request:
    """What the client asks."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def is_listing(self) -> bool:
        """Whether it asks for names."""
        return "list-type=2" in self.path


class Lost(Exception):
    """Raised by a fault: the connection is closed without an answer."""


@dataclass
class Faults:
    """``before(request)`` may return an Answer in the server's place or raise Lost, ``after(request, answer)`` change one."""

    before: Callable[[Request], Answer | None] = lambda _request: None
    after: Callable[[Request, Answer], Answer] = lambda _request, answer: answer
    seen: list[Request] = field(default_factory=list)


class S3Proxy:
    """Stands before ``endpoint``; ``endpoint`` of its own is where clients go, ``faults`` what it does to them."""

    def __init__(self, endpoint: str) -> None:
        self.target = target = urlsplit(endpoint).netloc
        proxy = self
        self.faults = Faults()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers), body)
                proxy.faults.seen.append(request)
                try:
                    answer = proxy.faults.before(request) or _forward(target, request)
                    answer = proxy.faults.after(request, answer)
                except Lost:
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = dict(answer.headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(answer.body))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(answer.body[:answer.sent])
                self.close_connection = self.close_connection or answer.sent is not None

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_arguments: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = "http://127.0.0.1:%d" % self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def forward(self, request: Request) -> Answer:
        """What the server answers, for a fault that happens to it afterwards."""
        return _forward(self.target, request)

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _forward(target: str, request: Request) -> Answer:
    connection = http.client.HTTPConnection(target, timeout=30)
    try:
        # the signature covers the Host header: it goes on as it came
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders(request.body)
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()
