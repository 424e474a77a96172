# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Reads disks over NBD with TLS, as far as XAPI's server goes (xen-api: ocaml/nbd; NetworkBlockDevice: doc/proto.md).

That server knows the fixed newstyle handshake, STARTTLS, EXPORT_NAME and simple replies, and reads whole sectors.
"""
from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Optional, Sequence

from ..xapi.connection import CONNECT_TIMEOUT, reason
from ..xapi.errors import PoolError
from ..xapi.pace import Pace

SECTOR = 512
ATTEMPTS = 3  # at a read, on a new connection each

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTS_MAGIC, _REPLY_MAGIC = 0x49484156454F5054, 0x0003E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _STARTTLS = 1, 5
_ACK = 1
_READ, _DISCONNECT = 0, 2
_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN: the host's own certificate is trusted, whoever signed it


class NbdError(PoolError):
    """A disk could not be read over NBD."""


@dataclass(frozen=True)
class NbdExport:
    """Where a disk can be read, as ``VDI.get_nbd_info`` says: ``certificate`` (PEM) and ``subject`` are the host's."""

    address: str
    port: int
    name: str
    certificate: str
    subject: str

    def __str__(self) -> str:
        # the name holds a session
        return "%s:%d" % (self.address, self.port)


class NbdConnection:
    """One connection to one export; ``size`` is that of the disk in bytes. Raises NbdError, and is of no use then."""

    def __init__(self, export: NbdExport, timeout: float) -> None:
        self._export = export
        self._handle = 0
        try:
            plain = socket.create_connection((export.address, export.port), min(CONNECT_TIMEOUT, timeout))
        except OSError as error:
            raise self._failed(error) from error
        self._sock: socket.socket = plain
        try:
            plain.settimeout(timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            zeroes = self._greet()
            self._sock = self._secure(plain)
            self.size = self._choose(zeroes)
        except (OSError, ValueError) as error:
            self._sock.close()
            raise self._failed(error) from error
        except NbdError:
            self._sock.close()
            raise

    def read(self, offset: int, length: int) -> bytearray:
        """Read whole sectors."""
        self._handle += 1
        data = bytearray(length)
        try:
            self._sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._handle, offset, length))
            magic, error, handle = _REPLY.unpack(self._receive(bytearray(_REPLY.size)))
            if (magic, handle) != (_SIMPLE_REPLY_MAGIC, self._handle):
                raise NbdError("The NBD server at %s answered something else than it was asked." % self._export)
            if error:
                raise NbdError("The NBD server at %s cannot read %d bytes at %d: error %d." % (
                    self._export, length, offset, error))
            self._receive(data)
        except OSError as broken:
            raise self._failed(broken) from broken
        return data

    def close(self) -> None:
        """Say goodbye and close."""
        with suppress(OSError):
            self._sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        self._sock.close()

    def _greet(self) -> bool:
        """Take the greeting and answer it; returns whether zeroes follow the export's description."""
        start, options, flags = _GREETING.unpack(self._receive(bytearray(_GREETING.size)))
        if (start, options) != (b"NBDMAGIC", b"IHAVEOPT") or not flags & _FIXED_NEWSTYLE:
            raise NbdError("What answers at %s is no NBD server of the fixed newstyle." % self._export)
        self._sock.sendall(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        return not flags & _NO_ZEROES

    def _secure(self, plain: socket.socket) -> ssl.SSLSocket:
        """Go over to TLS; nothing is ever read in clear."""
        plain.sendall(_OPTION.pack(_OPTS_MAGIC, _STARTTLS, 0))
        magic, option, kind, length = _OPTION_REPLY.unpack(self._receive(bytearray(_OPTION_REPLY.size)))
        if (magic, option) != (_REPLY_MAGIC, _STARTTLS):
            raise NbdError("The NBD server at %s answered something else than it was asked." % self._export)
        if kind != _ACK or length:
            raise NbdError(
                "The NBD server at %s refuses TLS." % self._export, "Give the network the purpose nbd instead of insecure_nbd."
            )
        return self._context().wrap_socket(plain, server_hostname=self._export.subject)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= _PARTIAL_CHAIN
        context.load_verify_locations(cadata=self._export.certificate)
        return context

    def _choose(self, zeroes: bool) -> int:
        name = self._export.name.encode("utf-8")
        self._sock.sendall(_OPTION.pack(_OPTS_MAGIC, _EXPORT_NAME, len(name)) + name)
        size, _flags = _EXPORT.unpack(self._receive(bytearray(_EXPORT.size)))
        if zeroes:
            self._receive(bytearray(124))
        return int(size)

    def _receive(self, buffer: bytearray) -> bytearray:
        """Fill ``buffer``."""
        view = memoryview(buffer)
        while view:
            count = self._sock.recv_into(view)
            if not count:
                raise ConnectionResetError("the server closed the connection")
            view = view[count:]
        return buffer

    def _failed(self, error: Exception) -> NbdError:
        if isinstance(error, ssl.SSLCertVerificationError):
            said = "its certificate is not the one that the pool told of (%s)" % error.verify_message
        else:
            said = reason(error)
        return NbdError("Reading over NBD from %s failed: %s." % (self._export, said), "Check the host and its network.")


class DiskReader(AbstractContextManager):  # type: ignore[type-arg]
    """Reads a disk from any thread, each over a connection of its own, and over a new one when one breaks.

    The first connection is made at once. Raises NbdError, also when the disk has not ``size`` bytes there.
    """

    def __init__(self, exports: Sequence[NbdExport], size: int, timeout: float, pace: Optional[Pace] = None) -> None:
        self._pace = pace or Pace()
        self._exports = exports
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: list[NbdConnection] = []
        self.size = size
        if size % SECTOR:
            raise NbdError("A disk of %d bytes does not consist of whole sectors." % size)
        self._idle.append(self._connect())

    def __exit__(self, *exc_info: object) -> None:
        while self._idle:
            self._idle.pop().close()

    def read(self, offset: int, length: int) -> bytearray:
        """Read whole sectors."""
        for attempt in range(ATTEMPTS):
            connection = None
            try:
                connection = self._take()
                data = connection.read(offset, length)
            except NbdError:
                if connection:
                    connection.close()
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(attempt)
                continue
            with self._lock:
                self._idle.append(connection)
            self._pace.passed(length)
            return data
        raise AssertionError("the last attempt returns or raises")

    def _take(self) -> NbdConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _connect(self) -> NbdConnection:
        failed: Optional[NbdError] = None
        for export in self._exports:
            try:
                connection = NbdConnection(export, self._timeout)
            except NbdError as error:
                failed = failed or error
                continue
            if connection.size != self.size:
                connection.close()
                raise NbdError("At %s the disk has %d bytes instead of %d." % (export, connection.size, self.size))
            return connection
        raise failed or NbdError("There is no host to read the disk from.")
