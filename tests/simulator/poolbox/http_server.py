# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's HTTPS listener: a thread a connection, RPC answered here, everything else by its handler."""
from __future__ import annotations

import ctypes
import html
import socket
import ssl
import threading
import traceback
import urllib.parse
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import BinaryIO

from . import rpc
from .api import HANDLERS, Context, Request
from .errors import ApiError, Dropped
from .pool import Host, Pool
from .sessions import Refused
from .wire import Cut

LONGEST_BODY = 300 * 1024  # bytes of an RPC call
LONGEST_HEAD = 65536
HEAD_SECONDS = 10.0  # for the first request of a connection to begin and its headers to come
MOST_DROPPED = 1 << 22
READ_SIZE = 1 << 20
NO_CACHE = {"cache-control": "no-cache, no-store"}
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "X-Requested-With"}
# status lines of error pages, and their headings
REASONS = {
    400: ("Bad Request", "bad request"), 401: ("Unauthorised", "unauthorised"), 403: ("Forbidden", "forbidden"),
    404: ("Not Found", "not found"), 408: ("Request Timeout", "request timeout"),
    431: ("Request Header Fields Too Large", "request header fields too large"),
    500: ("Internal Error", "internal server error"), 501: ("Method not implemented", "Method Not Implemented"),
}


class Listener:
    """Accepts connections of one host until it is killed; ``hang`` makes it say nothing more until ``resume``."""

    def __init__(self, pool: Pool, host: Host, certificate: Path) -> None:
        self._pool = pool
        self._host = host
        self._context = server_context(certificate)
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
        with self._lock:  # while it is held, none of them is closed and its number used again
            for connection in self._connections:
                reset(connection)
            self._connections = set()

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
            if self._socket is None:  # killed meanwhile
                connection.close()
                return
            self._connections.add(connection)
        try:
            rfile = connection.makefile("rb", buffering=READ_SIZE)
            connection.settimeout(HEAD_SECONDS)
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
        req = Request("", "", {}, {}, "1.1", rfile, connection)
        try:
            head = read_head(connection, rfile, self)
            if head is None:
                return False
            req = head
            connection.settimeout(None)
            self.wait_running()
            return answer(req, Context(self._pool, self._host))
        except TimeoutError:
            send_page(req, Refused(408))
        except Refused as refused:
            send_page(req, refused)
        except Dropped:
            req.abort(reset=True)
        except (OSError, Cut):
            raise
        except Exception as error:  # a mistake of the simulator: the client must see it, not guess at a lost connection
            traceback.print_exc()
            send_page(req, Refused(500, more=f"INTERNAL_ERROR: [ {error!r} ]"))
        return False


def server_context(certificate: Path) -> ssl.SSLContext:
    """TLS as a host speaks it, with the certificate and key of a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    return context


def reset(connection: socket.socket) -> None:
    """Break a connection by RST while another thread may be using it, which learns of it at once."""
    nowhere = bytes(16)  # an address of no family: connecting to it dissolves a connection
    ctypes.CDLL(None).connect(connection.fileno(), nowhere, len(nowhere))


def answer(req: Request, ctx: Context) -> bool:
    """Answer a request; the return value says whether the connection is kept. Raises Refused."""
    if req.method == "POST":
        return answer_rpc(req, ctx)
    if req.method == "OPTIONS":
        asked = req.headers.get("access-control-request-headers")
        allowed = f"{asked}, X-Requested-With" if asked else "X-Requested-With"
        return send_whole(req, b"", CORS | {"Access-Control-Allow-Headers": allowed, "Access-Control-Allow-Methods": "PUT"})
    handle(req, ctx)
    return False


def send_whole(req: Request, body: bytes, headers: dict[str, str]) -> bool:
    """Send a 200 with all of its body; the return value says whether the connection is kept."""
    old = req.version == "1.0"
    keep = req.headers.get("connection", "close" if old else "keep-alive").lower() != "close"
    first = {"content-length": str(len(body)), "connection": "keep-alive" if keep else "close"}
    req.wait()
    req.send_head("1.0" if old else "1.1", 200, "OK", first | NO_CACHE | headers)
    req.send(body)
    return keep


def read_head(connection: ssl.SSLSocket, rfile: BinaryIO, listener: Listener) -> Request | None:
    """Read a request line and headers; None when the client is done. Raises Refused."""
    line, total = rfile.readline(LONGEST_HEAD), 0
    if not line:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise Refused(500, more="The HTTP headers could not be parsed.")
    headers: dict[str, str] = {}
    while (line := rfile.readline(LONGEST_HEAD)) not in (b"\r\n", b"\n", b""):
        total += len(line)
        if total > LONGEST_HEAD:
            raise Refused(431)
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    parts = urllib.parse.urlsplit(words[1])
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        pass
    found = {name: urllib.parse.unquote(morsel.value) for name, morsel in cookies.items()}
    path, version = urllib.parse.unquote(parts.path), words[2][5:]
    return Request(words[0], path, query, headers, version, rfile, connection, found, wait=listener.wait_running)


def answer_rpc(req: Request, ctx: Context) -> bool:
    """Answer a POST; the return value says whether the connection is kept."""
    length = req.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LONGEST_BODY:
        if length.isdigit():
            req.rfile.read(min(int(length), MOST_DROPPED))  # unread bytes would turn the answer into a reset
        raise Refused(500)
    body = req.rfile.read(int(length))
    is_json = req.path.startswith("/jsonrpc")
    kind, answerer = ("application/json", rpc.answer_json) if is_json else ("text/xml", rpc.answer_xml)
    try:
        text = answerer(ctx.pool, ctx.host, body).encode()
    except rpc.Unreadable as error:
        raise Refused(500) from error
    return send_whole(req, text, {"content-type": kind} | CORS)


def handle(req: Request, ctx: Context) -> None:
    """Give a request to the handler with the longest path that begins it."""
    if req.method not in ("GET", "PUT"):
        raise Refused(501, more=f"<p>{html.escape(req.method)} not supported.<br /></p>")
    if ctx.host.emergency:
        raise Refused(500, more=f"{ctx.host.emergency}: [  ]")
    paths = [path for verb, path in HANDLERS if verb == req.method and req.path.startswith(path)]
    if not paths:
        if req.method == "GET" and req.path == "/":
            req.send_head("1.1", 200, "OK", {"content-type": "text/html", "content-length": "0", "connection": "close"})
            return
        raise Refused(404 if req.method == "GET" else 403)
    try:
        HANDLERS[req.method, max(paths, key=len)](req, ctx)
    except ApiError as error:
        raise Refused(500, more=f"{error.code}: [ {'; '.join(error.params)} ]") from error


def send_page(req: Request, refused: Refused) -> None:
    """Answer with an error page; after an answer has begun it is glued to it, as the real server does."""
    reason, heading = REASONS[refused.status]
    info = refused.more
    if info and refused.status == 500:
        info = f"<h1> Additional information </h1>{html.escape(info, quote=False)}"
    body = f"<html><body><h1>HTTP {refused.status} {heading}</h1>{info}</body></html>".encode()
    headers = {"content-length": str(len(body)), "content-type": "text/html", "connection": "close"}
    version = "1.0" if req.version == "1.0" else "1.1"
    req.send_head(version, refused.status, reason, headers | NO_CACHE | refused.headers)
    req.send(body)
