# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""XML-RPC with one host, over one kept connection. A request is sent once: whoever calls decides about repeating."""
from __future__ import annotations

import http.client
import ssl
import xmlrpc.client
from typing import Any, Optional, Sequence
from xml.parsers.expat import ExpatError

from .connection import Endpoint, HostConnection, reason
from .errors import ConnectionFailed, XapiError
from .tls import TlsSettings


class ResponseLost(ConnectionFailed):
    """The request was sent, or may have been, and no answer came: the call may have been carried out."""


class _Unmarshaller(xmlrpc.client.Unmarshaller):
    """Moments stay the text they are on the wire, ``20260131T13:45:10Z``; so do integers, which come untyped."""

    dispatch = dict(xmlrpc.client.Unmarshaller.dispatch)

    def end_moment(self, data: str) -> None:
        self.append(data)
        self._value = False

    dispatch["dateTime.iso8601"] = end_moment  # type: ignore[assignment]


def parse_value(text: str) -> Any:
    """Read a ``<value>…</value>`` element as a task's result carries it; empty text is an empty string.

    Raises ValueError for anything else.
    """
    if not text:
        return ""
    target = _Unmarshaller()
    parser = xmlrpc.client.ExpatParser(target)
    try:
        parser.feed("<params><param>%s</param></params>" % text)
        parser.close()
        return target.close()[0]
    except (ExpatError, xmlrpc.client.Error, IndexError) as error:
        raise ValueError("not an XML-RPC value: %.80r" % text) from error


def _wire(value: Any) -> Any:
    """Integers as decimal text, which is how XAPI wants its 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return {key: _wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_wire(item) for item in value]
    return value


class _Transport(xmlrpc.client.Transport):
    """Sends a request exactly once. The library's own repeats it on a reset, and might take a snapshot twice."""

    accept_gzip_encoding = False
    user_agent = "guestark"

    def __init__(self, connection: HostConnection) -> None:
        super().__init__()
        self._host = connection

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return self._host

    def getparser(self) -> Any:
        target = _Unmarshaller()
        return xmlrpc.client.ExpatParser(target), target

    def close(self) -> None:
        self._host.close()

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        name = self._host.endpoint
        self._host.drop_if_stale()
        try:
            if self._host.sock is None:
                self._host.connect()
            # a body cut short is never executed: the server waits for all of Content-Length
            self.send_request(host, handler, request_body, False)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ConnectionFailed("The connection to %s broke: %s." % (name, reason(error))) from error
        try:
            response = self._host.getresponse()
            if response.status == 200:
                parser, target = self.getparser()
                parser.feed(response.read())  # an answer cut short raises here
                parser.close()
                return target.close()
        except xmlrpc.client.Fault:
            raise
        except (OSError, http.client.HTTPException, ExpatError, xmlrpc.client.Error) as error:
            self.close()
            raise ResponseLost("No answer came from %s: %s." % (name, reason(error))) from error
        self.close()
        raise ResponseLost("%s answered a call with HTTP %d %s." % (name, response.status, response.reason))


class Rpc:
    """Calls to one host from one thread."""

    def __init__(self, endpoint: Endpoint, tls: TlsSettings, context: ssl.SSLContext) -> None:
        self.endpoint = endpoint
        self._connection = HostConnection(endpoint, tls, context, 60.0)
        self._proxy = xmlrpc.client.ServerProxy(endpoint.url, transport=_Transport(self._connection))

    def request(
        self, method: str, params: Sequence[Any], timeout: float, subject: str = "", hidden: Optional[str] = None
    ) -> Any:
        """Call ``method`` and return its value; integers and moments in it are text.

        ``timeout``: seconds to wait for the answer. ``hidden`` never shows in an error. Raises XapiError,
        ConnectionFailed or CertificateUntrusted (surely not carried out), ResponseLost (perhaps carried out).
        """
        self._connection.set_timeout(timeout)
        operation = method[len("Async."):] if method.startswith("Async.") else method
        try:
            answer = getattr(self._proxy, method)(*[_wire(param) for param in params])
        except xmlrpc.client.Fault as error:
            raise XapiError(str(error.faultCode), [error.faultString], operation, subject) from error
        if isinstance(answer, dict) and answer.get("Status") == "Success":
            return answer.get("Value", "")
        failure = answer.get("ErrorDescription") if isinstance(answer, dict) else None
        if not failure:
            raise ResponseLost("%s answered %s with something that is no XAPI answer." % (self.endpoint, operation))
        shown = [str(param).replace(hidden, "(hidden)") if hidden else str(param) for param in failure[1:]]
        raise XapiError(str(failure[0]), shown, operation, subject)

    def close(self) -> None:
        self._connection.close()
