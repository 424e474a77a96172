# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's NBD server: disks for reading, a thread a connection. Source: xapi-nbd's main.ml and nbd's server.ml.

A fault rule for a connection that is made matches on `kind` nbd_connect, `pool` and `host`; its fault is

    refuse: true          close the connection without a word; with reset: true by RST, otherwise by FIN

One for a disk that is opened matches on `kind` nbd, `pool`, `host` and `vdi`. Its fault may say cut_at, reset,
stall_at and seconds as for transfers, counted in bytes of the replies to requests, and

    errno: N              answer the first request after `after` bytes (0 when not given) with this error, then close
"""
from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from . import sessions
from .api import break_off
from .attach import attached, sees
from .errors import ApiError
from .http_server import reset, server_context
from .pool import Host, Pool
from .storage import Disk
from .wire import Cut, Wire

MOST_CONNECTIONS = 16
LONGEST_READ = 32 << 20
LONGEST_OPTION = 4096
CLOSING_SECONDS = 1.0  # for the client to take the last reply
STEP = 1 << 20
SECTOR = 512
EINVAL = 22

FIXED_NEWSTYLE = 1
HAS_FLAGS, READ_ONLY = 1, 2
ZEROES = bytes(124)
IHAVEOPT, OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
EXPORT_NAME, ABORT, LIST, STARTTLS = 1, 2, 3, 5
ACK, ERR_UNSUP, ERR_POLICY, ERR_TLS_REQD = 1, (1 << 31) + 1, (1 << 31) + 2, (1 << 31) + 5
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, DISC = 0, 2
OPTION = struct.Struct(">QII")
ANSWER = struct.Struct(">QIII")
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")


class NbdServer:
    """Accepts connections of one host until it is killed."""

    def __init__(self, pool: Pool, host: Host, certificate: Path) -> None:
        self.certificate = certificate
        self.port = 0  # a real host's is 10809
        self._pool = pool
        self._host = host
        self._tls = server_context(certificate)
        self._clients: set[Client] = set()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen on the host's address, on the port it had before or a free one."""
        listening = socket.create_server((self._host.address, self.port), backlog=128)
        self.port = listening.getsockname()[1]
        self._socket = listening
        self._begin(self._accept, listening)

    def stop(self) -> None:
        """Close the listener and reset every connection."""
        with self._lock:  # while it is held, none of them is closed and its number used again
            if self._socket:
                self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
                self._socket = None
            for client in self._clients:
                reset(client.connection)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, dummy = listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fault = self._pool.faults.take(kind="nbd_connect", pool=self._pool.name, host=self._host.name) or {}
            purposes = kinds(self._pool)
            client = Client(self._pool, self._host, connection, self._tls if purposes == {"nbd"} else None)
            with self._lock:
                welcome = len(purposes) == 1 and len(self._clients) < MOST_CONNECTIONS and self._socket is listening
                if welcome and not fault.get("refuse"):
                    self._clients.add(client)
                    self._begin(self._serve, client)
                    continue
            break_off(connection, bool(fault.get("reset")))

    def _begin(self, work: Callable[..., None], *given: Any) -> None:
        threading.Thread(target=work, args=given, daemon=True, name=f"nbd-{self._host.name}").start()

    def _serve(self, client: Client) -> None:
        try:
            client.serve()
        except (OSError, ValueError, Cut, ApiError):
            pass  # the client went, or was sent away
        finally:
            with self._lock:
                self._clients.discard(client)
                client.connection.close()


def kinds(pool: Pool) -> set[str]:
    """The kinds of NBD that networks of a pool are for."""
    found = [pool.db.field("network", network, "purpose") for network in pool.db.refs("network")]
    return {"nbd", "insecure_nbd"} & {one for each in found for one in each}


@dataclass(eq=False)
class Client:
    """One connection; ``tls`` is there where it must be used."""

    pool: Pool
    host: Host
    connection: socket.socket
    tls: ssl.SSLContext | None
    rfile: Any = field(default=None, init=False)

    def wait(self) -> None:
        """Return when the host is not hung."""
        if self.host.listener:
            self.host.listener.wait_running()

    def send(self, data: bytes | memoryview) -> None:
        """Write to the client."""
        self.wait()
        self.connection.sendall(data)

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self.connection.fileno()

    def abort(self, reset: bool) -> None:
        """Break the connection, by RST or by FIN."""
        break_off(self.connection, reset)

    def serve(self) -> None:
        """The whole life of a connection. Every way to end early is an exception."""
        vdi = self._find(self._negotiate())
        facts = {"pool": self.pool.name, "host": self.host.name, "vdi": self.pool.db.field("VDI", vdi, "uuid")}
        with attached(self.pool, self.host, vdi, "RO", self.pool.nbd_lag) as disk:
            fault = self.pool.faults.take(kind="nbd", **facts) or {}
            self.send(struct.pack(">QH", disk.size, HAS_FLAGS | READ_ONLY) + ZEROES)
            self._answer_requests(disk, fault)
        # closing with something unread would be a reset, which takes the last reply away
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(CLOSING_SECONDS)
        while self.connection.recv(STEP):
            pass

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            done = self.connection.recv_into(view)
            if not done:
                raise Cut("the client went")
            view = view[done:]
        return bytes(data)

    def _negotiate(self) -> str:
        """Answer options until the client names an export."""
        self.send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", FIXED_NEWSTYLE))
        self._read(4)
        clear = self.tls is not None
        while True:
            magic, option, length = OPTION.unpack(self._read(OPTION.size))
            if magic != IHAVEOPT or length > LONGEST_OPTION:
                raise Cut("that is no option")
            data = self._read(length)
            if option == EXPORT_NAME and not clear:
                return data.decode()
            if option in (EXPORT_NAME, ABORT):
                raise Cut("nothing more to say")
            if self.tls and clear and option == STARTTLS:
                self._reply(option, ACK)
                self.connection = self.tls.wrap_socket(
                    self.connection, server_side=True, do_handshake_on_connect=False
                )
                self.connection.do_handshake()
                clear = False
            elif clear:
                self._reply(option, ERR_TLS_REQD)
            else:
                self._reply(option, ERR_POLICY if option in (LIST, STARTTLS) else ERR_UNSUP)

    def _reply(self, option: int, kind: int) -> None:
        self.send(ANSWER.pack(OPTION_REPLY, option, kind, 0))

    def _find(self, name: str) -> str:
        """The disk of an export's name, which holds a session."""
        parts = urlsplit(name)
        sessions.check(self.pool, parse_qs(parts.query).get("session_id", [""])[0])
        vdi = self.pool.db.by_uuid("VDI", parts.path.removeprefix("/"))
        if not sees(self.pool, self.host, [self.pool.db.field("VDI", vdi, "SR")]):
            raise Cut("the host does not see the disk")
        return vdi

    def _answer_requests(self, disk: Disk, fault: dict[str, Any]) -> None:
        """Answer one request after the other until the client is done or asks for what cannot be."""
        wire, buffer = Wire(self, fault), memoryview(bytearray(REPLY.size + STEP))
        while True:
            magic, dummy, command, handle, offset, length = REQUEST.unpack(self._read(REQUEST.size))
            if magic != REQUEST_MAGIC or command == DISC:
                return
            error = 0 if command == READ and _readable(disk, offset, length) else EINVAL
            if "errno" in fault and wire.moved >= fault.get("after", 0):
                error = fault["errno"]
            REPLY.pack_into(buffer, 0, REPLY_MAGIC, error, handle)
            if error:
                wire.write(buffer[:REPLY.size])
                return
            _send_data(wire, disk, offset, length, buffer)


def _readable(disk: Disk, offset: int, length: int) -> bool:
    aligned = offset % SECTOR == length % SECTOR == 0
    return aligned and length <= LONGEST_READ and offset + length <= disk.size


def _send_data(wire: Wire, disk: Disk, offset: int, length: int, buffer: memoryview) -> None:
    """Send the head, which is in the buffer, and the data in pieces of the buffer's size."""
    begin, end = REPLY.size, offset + length
    while True:
        count = min(end - offset, len(buffer) - begin)
        disk.read_into(offset, buffer[begin:begin + count])
        wire.write(buffer[:begin + count])
        offset, begin = offset + count, 0
        if offset == end:
            return
