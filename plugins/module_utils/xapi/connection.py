# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Connections to hosts: addresses, verified TLS, timeouts, and whether a failed request can have been received."""
from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Optional
from urllib.parse import urlsplit

from .errors import CertificateUntrusted, ConnectionFailed, PoolError
from .tls import UNTRUSTED_REMEDY, TlsSettings

HTTPS_PORT = 443
CONNECT_TIMEOUT = 10.0
# Seconds: a peer that vanished without a word is noticed after about two minutes even where no timeout runs.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


@dataclass(frozen=True)
class Endpoint:
    """One host's API: always HTTPS."""

    host: str
    port: int = HTTPS_PORT

    @classmethod
    def parse(cls, text: str, default_port: int = HTTPS_PORT) -> Endpoint:
        """Read ``host``, ``host:port``, ``https://host:port``, ``[v6]:port`` or a bare IPv6 address.

        Raises PoolError for anything else, ``http://`` included: a password would travel in the clear.
        """
        url = text.strip()
        if "://" not in url:
            url = "https://[%s]" % url if url.count(":") > 1 and "[" not in url else "https://" + url
        try:
            parts = urlsplit(url)
            if parts.scheme == "https" and parts.hostname and "@" not in parts.netloc:
                return cls(parts.hostname, parts.port or default_port)
        except ValueError:
            pass
        shown = text.rpartition("@")[2]  # what stands before it may be a password
        raise PoolError("This is not the address of a host: %r." % shown, "Write host, host:port or https://host:port.")

    @property
    def netloc(self) -> str:
        """``host:port``, with an IPv6 address in brackets; the port is left out where it is HTTPS's own."""
        host = "[%s]" % self.host if ":" in self.host else self.host
        return host if self.port == HTTPS_PORT else "%s:%d" % (host, self.port)

    @property
    def url(self) -> str:
        return "https://" + self.netloc

    def __str__(self) -> str:
        return self.netloc


class HostConnection(http.client.HTTPSConnection):
    """An HTTPS connection that trusts as TlsSettings says and speaks our errors.

    ``timeout`` is how long (in seconds) any single read or write may take once connected.
    """

    def __init__(self, endpoint: Endpoint, tls: TlsSettings, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=min(CONNECT_TIMEOUT, timeout), context=context)
        self.endpoint = endpoint
        self._tls = tls
        self._read_timeout = timeout

    def __enter__(self) -> HostConnection:
        return self

    def __exit__(self, kind: Optional[type], *_exc: object) -> None:
        """Close; after an error by a reset, which also reaches a host that has stopped reading what we sent."""
        if kind and self.sock is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def connect(self) -> None:
        """Connect and verify. Raises ConnectionFailed or CertificateUntrusted; nothing was sent then."""
        try:
            super().connect()
            self._tls.check_pin(self.sock, str(self.endpoint))
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise CertificateUntrusted(
                "The certificate of %s is not trusted: %s." % (self.endpoint, error.verify_message or error.reason),
                UNTRUSTED_REMEDY,
            ) from error
        except OSError as error:
            self.close()
            raise ConnectionFailed(
                "No connection to %s: %s." % (self.endpoint, reason(error)),
                "Check the address, the network, and that the host's toolstack runs.",
            ) from error
        except CertificateUntrusted:
            self.close()
            raise
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.set_timeout(self._read_timeout)

    def set_timeout(self, seconds: float) -> None:
        """Let single reads and writes take this long from now on."""
        self._read_timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def drop_if_stale(self) -> None:
        """Close a kept connection that the host has closed meanwhile: a request on it would be lost."""
        if self.sock is None:
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if poll.poll(0):
            self.close()


def reason(error: Optional[BaseException]) -> str:
    """Why a socket failed, in a few words."""
    if isinstance(error, socket.timeout):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the host closed the connection without an answer"
    if isinstance(error, ssl.SSLEOFError):
        return "the connection was cut"
    if isinstance(error, ssl.SSLError):
        return "TLS failed (%s)" % (error.reason or error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__
