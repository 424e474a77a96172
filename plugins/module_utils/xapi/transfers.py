# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""VMs as streams: ``GET /export`` and ``PUT /import``. An HTTP 200 means nothing; the task's status decides.

The session travels as the one cookie of a request, so that it shows in no log of URLs. (Released servers split a
Cookie header at ``&`` instead of ``;``: a second cookie would spoil the first; ocaml/libs/http-lib/http.ml.)
"""
from __future__ import annotations

import html
import http.client
import io
import re
import select
import socket
import ssl
from contextlib import closing, contextmanager
from typing import Any, Iterable, Iterator, Mapping, Optional
from urllib.parse import urlencode, urlsplit

from .client import PoolClient
from .connection import Endpoint, HostConnection, reason
from .errors import OutcomeUnknown, PoolError, TransferError, XapiError
from .pace import Pace
from .tasks import ENDING_SECONDS, Task, wait

MOST_DESCRIPTION = 64 * 1024 * 1024  # bytes of an archive without disks
PIECE = 1048576
REDIRECTS = 3
EXPLAINING_SECONDS = 2.0  # the task ends a moment after its stream
AGAIN = "Run it again; if it repeats, check the network and the load of the host."


class Export(io.RawIOBase):
    """The bytes of an export under way, to be read once from start to end; then finish() says whether it is whole.

    ``transferred`` counts the bytes.
    """

    def __init__(
        self, sock: ssl.SSLSocket, response: http.client.HTTPResponse, client: PoolClient, task: Task,
        stall_timeout: float, subject: str,
    ) -> None:
        # since Python 3.10 a reset reads like an end that TLS did not announce, which by default reads like any end
        sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        self._sock = sock
        self._response = response
        self._client = client
        self._task = task
        self._stall_timeout = stall_timeout
        self._subject = subject
        self._early = b""  # what came with the head
        self._ended = False
        self.transferred = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; less than its size only at the end, 0 after it.

        Raises TransferError when the stream breaks, or when no byte comes for ``stall_timeout`` seconds.
        """
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and not self._ended:
            try:
                count = self._receive(view[filled:])
            except OSError as error:
                # some hosts just hang up when all is sent: then the task says that all is well
                if not isinstance(error, ssl.SSLEOFError) or not self._task.succeeded(ENDING_SECONDS):
                    raise _broken("export", self._subject, error, self.transferred, self._stall_timeout) from error
                count = 0
            self._ended = not count
            filled += count
            self.transferred += count
        return filled

    def _receive(self, view: memoryview) -> int:
        if not self.transferred and not self._early:
            self._early = self._response.fp.read1(io.DEFAULT_BUFFER_SIZE)  # leaves nothing in its buffer
            if not self._early:
                return 0
        if self._early:
            count = min(len(view), len(self._early))
            view[:count], self._early = self._early[:count], self._early[count:]
            return count
        count = self._sock.recv_into(view)
        self._client.pace.passed(count)
        return count

    def finish(self) -> None:
        """Read what is left of the stream and wait for the task.

        Raises XapiError when the task failed, TransferError when nothing can tell whether the export is whole.
        """
        rest = bytearray(PIECE)
        if self.readinto(rest) == len(rest):
            raise TransferError("The export of %s goes on after its end." % self._subject, AGAIN, self.transferred)
        try:
            wait(
                self._client, self._task.ref, stall_timeout=self._stall_timeout, operation="Export",
                subject=self._subject,
            )
        except OutcomeUnknown as error:
            raise TransferError(
                "The task of the export of %s vanished after %d bytes, so nothing proves that it is whole."
                % (self._subject, self.transferred), AGAIN, self.transferred,
            ) from error


@contextmanager
def export_vm(
    client: PoolClient,
    ref: str,
    compression: Optional[str] = None,
    stall_timeout: float = 300.0,
    subject: str = "VM",
    preserve_power_state: bool = False,
    marks: Optional[Mapping[str, str]] = None,
) -> Iterator[Export]:
    """Export the halted VM or snapshot ``ref`` as an XVA; within the context its bytes can be read.

    ``compression``: None, ``gzip`` or ``zstd``, done by the host on one core. ``stall_timeout``: seconds without a
    byte that are borne. Leaving without finish() gives the export up. When the body of the context fails because the
    pool did, the pool's error is raised in its place. Raises XapiError, TransferError, ConnectionFailed,
    CertificateUntrusted, OutcomeUnknown. No task is left behind.
    """
    query = {"ref": ref, "use_compression": compression or "false"}
    if preserve_power_state:
        query["preserve_power_state"] = "true"
    with Task.create(client, "Export of " + subject, marks) as task:
        with _explained(task, "Export", subject):
            connection, response = _open(
                client, "GET", "/export", {**query, "task_id": task.ref}, stall_timeout, subject
            )
        task.adopted = True
        # the task is asked while the stream is open: closing the stream would be its failure
        with connection, closing(response), _explained(task, "Export", subject):
            yield Export(connection.sock, response, client, task, stall_timeout, subject)


def export_description(client: PoolClient, ref: str, timeout: float, subject: str) -> bytes:
    """The export of a VM or snapshot without its disks: an archive that holds ova.xml alone. Raises as export_vm()."""
    query = {"ref": ref, "export_snapshots": "false"}
    connection, response = _open(client, "GET", "/export_metadata", query, timeout, subject)
    with connection, closing(response):
        try:
            return response.read(MOST_DESCRIPTION)
        except (OSError, http.client.HTTPException) as error:
            raise _broken("export", subject, error, 0, timeout) from error


def import_vm(
    client: PoolClient,
    sr_ref: str,
    chunks: Iterable[bytes],
    length: Optional[int] = None,
    stall_timeout: float = 300.0,
    subject: str = "VM",
    restore: bool = False,
    force: bool = False,
    marks: Optional[Mapping[str, str]] = None,
) -> list[str]:
    """Import the XVA that ``chunks`` make up, all its disks to the storage repository; return the new VMs' refs.

    ``length``: the exact number of bytes when it is known. ``restore`` keeps UUIDs and MAC addresses, ``force``
    ignores much. When it fails the pool removes what it had made. Raises as export_vm() does, and whatever
    ``chunks`` raises; OutcomeUnknown names the VMs that were found half-made.
    """
    query = {"sr_id": sr_ref}
    query.update({name: "true" for name, wanted in (("restore", restore), ("force", force)) if wanted})
    with Task.create(client, "Import of " + subject, marks) as task:
        with _explained(task, "Import", subject):
            # the answer comes before the body is read, redirects included: not a byte is sent twice
            connection, response = _open(
                client, "PUT", "/import", {**query, "task_id": task.ref}, stall_timeout, subject, length
            )
        task.adopted = True
        with connection, closing(response), _explained(task, "Import", subject):
            _send_all(connection, chunks, length, task, stall_timeout, subject, client.pace)
            try:
                # still connected: the host may yet be reading, and a closed connection would fail it
                refs = wait(client, task.ref, stall_timeout=stall_timeout, operation="Import", subject=subject)
            except OutcomeUnknown as error:
                raise OutcomeUnknown(error.message, _half_made(client, task.ref) or error.remedy) from error
    return [str(ref) for ref in refs]


class _SendFailed(TransferError):
    """Our side of an import broke: the task knows why."""


def _send_all(
    connection: HostConnection, chunks: Iterable[bytes], length: Optional[int], task: Task, stall_timeout: float,
    subject: str, pace: Pace,
) -> None:
    """Send the body; a host that stops reading because it has all it needs is no failure."""
    sent = 0
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), PIECE):
                piece = view[start:start + PIECE]
                try:
                    connection.sock.sendall(piece)
                except OSError as error:
                    raise _broken("import", subject, error, sent, stall_timeout, _SendFailed) from error
                sent += len(piece)
                pace.passed(len(piece))
    except _SendFailed:
        if not task.succeeded(ENDING_SECONDS):
            raise
        return
    if length is None or sent < length:
        _end_of_body(connection.sock, stall_timeout)


def _end_of_body(sock: ssl.SSLSocket, timeout: float) -> None:
    """Say that nothing more comes (TLS close_notify), and keep the connection: a bare FIN may make a proxy reset it."""
    sock.settimeout(0.0)
    while True:
        try:
            sock.unwrap()
        except ssl.SSLWantWriteError:
            if select.select([], [sock], [], timeout)[1]:
                continue
        except OSError:
            pass  # it is said, and the host need not answer; or the host is gone, which the task will tell
        return


def _open(
    client: PoolClient, verb: str, path: str, query: Mapping[str, str], timeout: float, subject: str,
    length: Optional[int] = None,
) -> tuple[HostConnection, http.client.HTTPResponse]:
    """Ask the coordinator, or the member it redirects to, until one answers 200; every one is verified first."""
    endpoint = client.endpoint
    operation = "Import" if verb == "PUT" else "Export"
    for _attempt in range(1 + REDIRECTS):
        connection = client.connect(endpoint, timeout)
        try:
            response = _exchange(connection, verb, path + "?" + urlencode(query), client.session, length)
            if response.status == 200:
                return connection, response
            page = response.read(65536) if response.status != 302 else b""
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _broken(operation.lower(), subject, error, 0, timeout) from error
        connection.close()
        if response.status != 302:
            raise _refusal(response, page.decode("utf-8", "replace"), operation, subject)
        target = urlsplit(response.getheader("Location", ""))  # its query holds what we sent: not for messages
        endpoint = Endpoint.parse("%s://%s" % (target.scheme, target.netloc), endpoint.port)
    raise TransferError("%s of %s: the pool's hosts redirect in circles." % (operation, subject), AGAIN)


def _exchange(
    connection: HostConnection, verb: str, target: str, session: str, length: Optional[int]
) -> http.client.HTTPResponse:
    """Send the head of a request and read the head of its answer."""
    # HTTP/1.0 is how a body may lack its length; every handler refuses chunked encoding
    version = "1.0" if verb == "PUT" and length is None else "1.1"
    head = [
        "%s %s HTTP/%s" % (verb, target, version), "Host: %s" % connection.endpoint, "User-Agent: guestark",
        "Cookie: session_id=" + session, "Connection: close",
    ]
    if length is not None:
        head.append("Content-Length: %d" % length)
    connection.sock.sendall("\r\n".join([*head, "", ""]).encode("ascii"))
    response = http.client.HTTPResponse(connection.sock, method=verb)
    response.begin()
    return response


@contextmanager
def _explained(task: Task, operation: str, subject: str) -> Iterator[None]:
    """Put the error with which the task failed in the place of what followed from it on our side."""
    try:
        yield
    except (XapiError, OutcomeUnknown):
        raise
    except Exception as error:
        cause = task.failure(EXPLAINING_SECONDS, operation, subject)
        if cause is None or cause.code == "CLIENT_ERROR":
            raise
        raise cause from error


def _broken(
    what: str, subject: str, error: Exception, transferred: int, timeout: float, kind: type = TransferError
) -> TransferError:
    if isinstance(error, socket.timeout):
        message = "The %s of %s stalled: no byte for %g s, after %d bytes." % (what, subject, timeout, transferred)
    else:
        message = "The %s of %s broke off after %d bytes: %s." % (what, subject, transferred, reason(error))
    result: TransferError = kind(message, AGAIN, transferred)
    return result


def _refusal(response: http.client.HTTPResponse, page: str, operation: str, subject: str) -> PoolError:
    """The error that an HTTP error page tells of."""
    code = re.search(r"\b([A-Z][A-Z0-9]*_[A-Z0-9_]+): \[([^\]]*)\]", html.unescape(page))
    if code:
        params = [param.strip() for param in code.group(2).split(";") if param.strip()]
        return XapiError(code.group(1), params, operation, subject)
    if response.status == 401:
        return XapiError("SESSION_INVALID", [], operation, subject)
    return TransferError(
        "%s of %s was answered with HTTP %d %s." % (operation, subject, response.status, response.reason), AGAIN
    )


def _half_made(client: PoolClient, task_ref: str) -> str:
    """What an import whose task vanished left in the pool, as advice."""
    try:
        records = client.call("VM.get_all_records").values()
    except PoolError:
        return ""
    found = [vm["uuid"] for vm in records if vm["other_config"].get("import_task") == task_ref]
    return "Remove the half-made VM %s with its disks, then run it again." % ", ".join(found) if found else ""
