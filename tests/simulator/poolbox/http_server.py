# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's HTTPS listener: a thread a connection, RPC answered here, everything else by its handler."""
from __future__ import annotations

import socket
import ssl
import threading
import urllib.parse
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import BinaryIO

from . import rpc
from .api import HANDLERS, Context, Request
from .errors import ApiError
from .pool import Host, Pool
from .sessions import Refused
from .wire import Cut

LONGEST_BODY = 300 * 1024  # bytes of an RPC call
LONGEST_HEAD = 65536
MOST_DROPPED = 1 << 22
READ_SIZE = 1 << 20
NO_CACHE = {"cache-control": "no-cache, no-store"}
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "X-Requested-With"}
REASONS = {400: "Bad Request", 401: "Unauthorised", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
           431: "Request Header Fields Too Large", 500: "Internal Error", 501: "Method Not Implemented"}


class Listener:
    """Accepts connections of one host until it is killed; ``hang`` makes it say nothing more until ``resume``."""

    def __init__(self, pool: Pool, host: Host, certificate: Path) -> None:
        self._pool = pool
        self._host = host
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(certificate)
        self._running = threading.Event()
        self._running.set()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen on the host's address and port."""
        listening = socket.create_server((self._host.address, self._host.port), backlog=128)
        self._host.port = listening.getsockname()[1]
        self._socket = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True, name=f"accept-{self._host.name}").start()

    def stop(self) -> None:
        """Close the listener and reset every connection."""
        self._running.set()
        if self._socket:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._socket.close()
            self._socket = None
        with self._lock:
            connections, self._connections = list(self._connections), set()
        for connection in connections:
            try:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def hang(self) -> None:
        """Go on accepting and say nothing."""
        self._running.clear()

    def resume(self) -> None:
        """Answer again."""
        self._running.set()

    def wait_running(self) -> None:
        """Return when the host answers."""
        self._running.wait()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, dummy = listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name=f"serve-{self._host.name}").start()

    def _serve(self, raw: socket.socket) -> None:
        self.wait_running()
        try:
            connection = self._context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=True)
        except (OSError, ValueError):
            raw.close()
            return
        with self._lock:
            self._connections.add(connection)
        try:
            rfile = connection.makefile("rb", buffering=READ_SIZE)
            while self._one(connection, rfile):
                pass
        except (OSError, ValueError, Cut):
            pass  # the client went, or was sent away
        finally:
            with self._lock:
                self._connections.discard(connection)
            try:
                rfile.close()
                connection.close()
            except OSError:
                pass

    def _one(self, connection: ssl.SSLSocket, rfile: BinaryIO) -> bool:
        """Answer one request; False ends the connection."""
        try:
            req = read_head(connection, rfile, self)
        except Refused as refused:
            send_page(Request("", "", {}, {}, "1.1", rfile, connection), refused)
            return False
        if req is None:
            return False
        self.wait_running()
        ctx = Context(self._pool, self._host)
        try:
            if req.method == "POST":
                return answer_rpc(req, ctx)
            if req.method == "OPTIONS":
                req.send_head("1.1", 200, "OK", {"connection": "close", "content-length": "0"} | CORS)
                return False
            handle(req, ctx)
        except Refused as refused:
            send_page(req, refused)
        except rpc.Dropped:
            req.abort(reset=True)
        return False


def read_head(connection: ssl.SSLSocket, rfile: BinaryIO, listener: Listener) -> Request | None:
    """Read a request line and headers; None when the client is done. Raises Refused."""
    line, total = rfile.readline(LONGEST_HEAD), 0
    if not line:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise Refused(500, "Internal Error")
    headers: dict[str, str] = {}
    while (line := rfile.readline(LONGEST_HEAD)) not in (b"\r\n", b"\n", b""):
        total += len(line)
        if total > LONGEST_HEAD:
            raise Refused(431, "Request Header Fields Too Large")
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise Refused(500, "Internal Error")
        headers[name.strip().lower()] = value.strip()
    parts = urllib.parse.urlsplit(words[1])
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        pass
    found = {name: urllib.parse.unquote(morsel.value) for name, morsel in cookies.items()}
    return Request(words[0], parts.path, query, headers, words[2][5:], rfile, connection, found, wait=listener.wait_running)


def answer_rpc(req: Request, ctx: Context) -> bool:
    """Answer a POST; the return value says whether the connection is kept."""
    length = req.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LONGEST_BODY:
        req.rfile.read(min(int(length or 0), MOST_DROPPED))  # unread bytes would turn the answer into a reset
        raise Refused(500, "Internal Error")
    body = req.rfile.read(int(length))
    kind, answer = ("application/json", rpc.answer_json) if req.path == "/jsonrpc" else ("text/xml", rpc.answer_xml)
    try:
        text = answer(ctx.pool, ctx.host, body).encode()
    except rpc.Unreadable as error:
        raise Refused(500, "Internal Error") from error
    keep = req.headers.get("connection", "keep-alive" if req.version != "1.0" else "close").lower() != "close"
    headers = {"content-length": str(len(text)), "content-type": kind, "connection": "keep-alive" if keep else "close"}
    req.wait()
    req.send_head("1.1", 200, "OK", headers | NO_CACHE | CORS)
    req.send(text)
    return keep


def handle(req: Request, ctx: Context) -> None:
    """Give a request to the handler with the longest path that begins it."""
    if req.method not in ("GET", "PUT"):
        raise Refused(501, "Method Not Implemented")
    paths = [path for verb, path in HANDLERS if verb == req.method and req.path.startswith(path)]
    if not paths:
        if req.method == "GET" and req.path == "/":
            req.send_head("1.1", 200, "OK", {"content-type": "text/html", "content-length": "0", "connection": "close"})
            return
        raise Refused(404, "Not Found")
    try:
        HANDLERS[req.method, max(paths, key=len)](req, ctx)
    except ApiError as error:
        send_page(req, Refused(500, "Internal Error"), f"{error.code}: [ {'; '.join(error.params)} ]")


def send_page(req: Request, refused: Refused, more: str = "") -> None:
    """Answer with an error page; after an answer has begun it is glued to it, as the real server does."""
    reason = refused.reason
    info = f"<h1> Additional information </h1>{more}" if more else ""
    body = f"<html><body><h1>HTTP {refused.status} {reason.lower()}</h1>{info}</body></html>"
    headers = {"content-length": str(len(body)), "content-type": "text/html", "connection": "close"}
    req.send_head("1.1", refused.status, reason, headers | NO_CACHE | refused.headers)
    req.send(body.encode())
