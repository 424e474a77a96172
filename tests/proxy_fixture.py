# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HTTP proxy in front of an object store, in this process, which does to requests and answers what a test asks for.

    from ansible_collections.guestark.xen.tests.proxy_fixture import Answer, Request, start_proxy
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Request:
    """What a client asks for: ``path`` with the query; names of ``headers`` are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    def is_for(self, method: str, part: str) -> bool:
        """Whether it has this method and this somewhere in its path."""
        return self.method == method and part in self.path

    @property
    def lists(self) -> bool:
        """Whether it asks for a listing."""
        return self.method == "GET" and "list-type=2" in self.path


@dataclass
class Answer:
    """What the store answers. ``sent``: bytes of the body after which the connection ends."""

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    sent: int | None = None


Forward = Callable[[Request], Answer]
Rule = Callable[[Request, Forward], "Answer | None"]


def refusal(status: int, code: str) -> Answer:
    """An error as S3 tells it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No luck</Message></Error>"
    return Answer(status, text.encode(), [("Content-Type", "application/xml")])


def honest(request: Request, forward: Forward) -> Answer:
    """The rule of a proxy that changes nothing."""
    return forward(request)


class Proxy:
    """A running proxy. ``rule`` answers requests, with None by ending the connection; ``seen`` holds what was asked."""

    def __init__(self, target: str) -> None:
        self.rule: Rule = honest
        self.seen: list[Request] = []
        self._target = urlsplit(target)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = "http://127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forward(self, request: Request) -> Answer:
        """Ask the store."""
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in HOP:
                    connection.putheader(name, value)
            connection.putheader("content-length", str(len(request.body)))
            connection.endheaders(request.body or None)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.getheaders())
        finally:
            connection.close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                """Take a request, have the rule answer it, and send that."""
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                proxy.seen.append(Request(self.command, self.path, headers))
                found = proxy.rule(request, proxy.forward)
                if found is None:
                    self.close_connection = True
                    return
                with suppress(OSError):  # the client may be gone
                    self.send(found)

            def send(self, found: Answer) -> None:
                self.send_response_only(found.status)
                length = len(found.body)
                for name, value in found.headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = int(value)
                    elif name.lower() not in HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(found.body if found.sent is None else found.body[:found.sent])
                self.close_connection = self.close_connection or found.sent is not None

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def times(count: int, matches: Callable[[Request], bool], fault: Rule) -> Rule:
    """A rule that applies ``fault`` to the first ``count`` requests that match, and is honest otherwise."""
    lock, left = threading.Lock(), [count]

    def rule(request: Request, forward: Forward) -> Answer | None:
        with lock:
            hit = left[0] > 0 and matches(request)
            left[0] -= hit
        return fault(request, forward) if hit else forward(request)

    return rule


def start_proxy(target: str) -> Proxy:
    """Start a proxy in front of the store whose endpoint is ``target``."""
    return Proxy(target)
