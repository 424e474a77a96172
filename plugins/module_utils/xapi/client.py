# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""A pool to talk to: its coordinator wherever it is, one session, calls from any thread."""
from __future__ import annotations

import random
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Sequence
from urllib.parse import urlencode

from .connection import Endpoint, HostConnection
from .errors import CertificateUntrusted, ConnectionFailed, OutcomeUnknown, PoolError, XapiError
from .pace import Pace
from .rpc import ResponseLost, Rpc
from .tls import TlsSettings

READ_TIMEOUT = 60.0
WRITE_TIMEOUT = 600.0  # the pool itself waits long for locks before it answers
LONGEST_PAUSE = 5.0
# Nothing was done when one of these is answered: the host has no coordinator, or is not up yet (emergency mode).
NO_COORDINATOR = frozenset(
    "HOST_STILL_BOOTING HOST_IN_EMERGENCY_MODE HOST_HAS_NO_MANAGEMENT_IP HOST_ITS_OWN_SLAVE HOST_UNKNOWN_TO_MASTER"
    " HOST_MASTER_CANNOT_TALK_BACK HOST_XAPI_VERSION_HIGHER_THAN_COORDINATOR HOST_BROKEN"
    " HA_HOST_CANNOT_ACCESS_STATEFILE HA_HEARTBEAT_DAEMON_STARTUP_FAILED"
    " HA_POOL_IS_ENABLED_BUT_HOST_IS_DISABLED".split()
)
BUSY = frozenset(("TOO_MANY_PENDING_TASKS", "TOO_BUSY"))


@dataclass(frozen=True)
class _Login:
    endpoint: Endpoint
    session: str


def pauses() -> Iterator[float]:
    """Seconds to wait between attempts, growing; never the same for two clients, so that they do not come at once."""
    pause = 0.5
    while True:
        yield pause * random.uniform(0.8, 1.2)
        pause = min(LONGEST_PAUSE, pause * 2)


def is_read_only(method: str) -> bool:
    """Whether a call changes nothing, so that it may be repeated when its answer was lost."""
    last = method.rpartition(".")[2]
    return not method.startswith("Async.") and (
        last.startswith(("get_", "is_", "assert_")) or method in ("event.from", "system.listMethods")
    )


class PoolClient:
    """A session on a pool; enter it to log in, leave it to log out.

    ``members``: addresses of one or better all of the pool's hosts (``host``, ``host:port``, ``https://host:port``);
    the coordinator is found from any of them. ``patience``: how many seconds a call waits for a coordinator that went
    away to come back or be replaced. ``originator`` names the tool in the pool's own limit of sessions. ``pace``: how
    fast VMs and disks are transferred.

    Object references survive a new coordinator, sessions and tasks do not.
    """

    def __init__(
        self,
        members: Sequence[str],
        username: str,
        password: str,
        tls: TlsSettings = TlsSettings(),  # noqa: B008 - frozen
        originator: str = "guestark",
        patience: float = 300.0,
        pace: Optional[Pace] = None,
    ) -> None:
        self.pace = pace or Pace()
        self._members = [Endpoint.parse(member) for member in members]
        if not self._members:
            raise PoolError("No address of the pool was given.", "Name at least one of its hosts.")
        self._username = username
        self._password = password
        self._tls = tls
        self._context = tls.context()
        self._originator = originator
        self._patience = patience
        self._current: Optional[_Login] = None
        self._lock = threading.RLock()
        self._local = threading.local()
        self._open: weakref.WeakSet[Rpc] = weakref.WeakSet()

    def __repr__(self) -> str:
        return "PoolClient(%s)" % ", ".join(str(member) for member in self._members)

    def __enter__(self) -> PoolClient:
        """Log in. Raises XapiError for wrong credentials, ConnectionFailed, CertificateUntrusted."""
        self._current = self._find(self._members)
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            login, self._current = self._current, None
            try:
                if login:
                    self._rpc(login.endpoint).request("session.logout", (login.session,), 10.0, hidden=login.session)
            except PoolError:
                pass  # the session ends by itself when nobody uses it
            for rpc in list(self._open):
                rpc.close()

    @property
    def session(self) -> str:
        """The session's reference: as good as the password, so it belongs in no message and no log."""
        return self._login().session

    @property
    def endpoint(self) -> Endpoint:
        """Where the coordinator answers."""
        return self._login().endpoint

    @property
    def coordinator(self) -> str:
        """The coordinator's base URL, ``https://host:port``."""
        return self.endpoint.url

    def url(self, path: str, query: Optional[Mapping[str, str]] = None) -> str:
        """The URL of ``path`` on the coordinator."""
        return self.coordinator + path + ("?" + urlencode(query) if query else "")

    def connect(self, endpoint: Endpoint, timeout: float) -> HostConnection:
        """A verified connection of its own to a member of the pool; single reads and writes take ``timeout`` seconds.

        Raises ConnectionFailed or CertificateUntrusted.
        """
        connection = HostConnection(endpoint, self._tls, self._context, timeout)
        connection.connect()
        return connection

    def call(
        self,
        method: str,
        *args: Any,
        safe: Optional[bool] = None,
        subject: str = "",
        timeout: Optional[float] = None,
        patience: Optional[float] = None,
    ) -> Any:
        """Call ``VM.get_record``, ``Async.VM.snapshot``, … with the session put first; return the value.

        Integers and moments in the value are text, as XAPI sends them; integers in ``args`` may be integers. A call
        that only reads, or that is declared ``safe``, is repeated when its answer was lost; any other only when it
        surely was not carried out. ``subject`` (``VM web01``) appears in errors; ``timeout``: seconds to wait for the
        answer; ``patience``: the client's, for this call. Raises XapiError, ConnectionFailed, CertificateUntrusted,
        OutcomeUnknown.
        """
        safe = is_read_only(method) if safe is None else safe
        wait = timeout or (READ_TIMEOUT if is_read_only(method) else WRITE_TIMEOUT)
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        renewed = False
        for pause in pauses():
            login = self._login()
            try:
                rpc = self._rpc(login.endpoint)
                return rpc.request(method, (login.session, *args), wait, subject, hidden=login.session)
            except XapiError as error:
                if error.code == "SESSION_INVALID" and not renewed:
                    renewed = True
                    self._renew(login, deadline)
                    continue
                if time.monotonic() + pause > deadline or not self._passing(login, error, deadline):
                    raise
            except ConnectionFailed as error:
                if isinstance(error, ResponseLost) and not safe:
                    raise OutcomeUnknown(
                        "%s%s was sent, but its answer was lost: %s"
                        % (method, " of " + subject if subject else "", error.message),
                        "Look whether it was done before repeating it.",
                    ) from error
                if time.monotonic() + pause > deadline:
                    raise
                self._reconnect(login, deadline)
            time.sleep(pause)
        raise AssertionError("pauses() ended")

    def _renew(self, login: _Login, deadline: float) -> None:
        """Log in again because the session is no longer valid; another thread may have done it already."""
        with self._lock:
            if self._login() is login:
                self._current = self._find([login.endpoint, *self._members], deadline)

    def _login(self) -> _Login:
        if self._current is None:
            raise PoolError("The pool's client is not connected.")
        return self._current

    def _rpc(self, endpoint: Endpoint) -> Rpc:
        """This thread's connection, to ``endpoint``."""
        rpc: Optional[Rpc] = getattr(self._local, "rpc", None)
        if rpc is None or rpc.endpoint != endpoint:
            if rpc:
                rpc.close()
            rpc = self._local.rpc = Rpc(endpoint, self._tls, self._context)
            self._open.add(rpc)
        return rpc

    def _passing(self, login: _Login, error: XapiError, deadline: float) -> bool:
        """Do what lets a refused call be repeated; False when nothing does."""
        if error.code in BUSY:
            return True
        if _refused(error):
            return False
        with self._lock:
            if self._login() is login:
                self._current = self._find([*_named(error, login.endpoint), *self._members], deadline)
        return True

    def _reconnect(self, login: _Login, deadline: float) -> None:
        """After a lost connection: go on with the same coordinator when it still answers, else find the new one."""
        with self._lock:
            if self._login() is not login:
                return
            try:
                self.connect(login.endpoint, READ_TIMEOUT).close()
            except (ConnectionFailed, CertificateUntrusted):
                self._current = self._find([*self._members, login.endpoint], deadline)

    def _find(self, endpoints: Sequence[Endpoint], deadline: Optional[float] = None) -> _Login:
        """Log in wherever the coordinator is, waiting for it until ``deadline``.

        Without one (the first login) a pool whose toolstack starts is waited for, but not one that does not answer.
        """
        first = deadline is None
        deadline = time.monotonic() + self._patience if deadline is None else deadline
        for pause in pauses():
            try:
                return self._ask(endpoints)
            except PoolError as error:
                may_pass = _starting(error) if first else not _refused(error)
                if not may_pass or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
        raise AssertionError("pauses() ended")

    def _ask(self, endpoints: Sequence[Endpoint]) -> _Login:
        """Try every endpoint once, and those they name as coordinator; raise the most telling error."""
        waiting = list(endpoints)
        asked: set[Endpoint] = set()
        errors: list[PoolError] = []
        while waiting:
            endpoint = waiting.pop(0)
            if endpoint in asked:
                continue
            asked.add(endpoint)
            credentials = (self._username, self._password, "1.1", self._originator)
            try:
                session = self._rpc(endpoint).request(
                    "session.login_with_password", credentials, READ_TIMEOUT, str(endpoint), self._password
                )
                return _Login(endpoint, str(session))
            except XapiError as error:
                if _refused(error):
                    raise
                named = _named(error, endpoint)
                waiting = named + [other for other in waiting if other not in named]
                errors.append(error)
            except (ConnectionFailed, CertificateUntrusted) as error:
                errors.append(error)
        raise min(errors, key=_rank)


def _named(error: XapiError, endpoint: Endpoint) -> list[Endpoint]:
    """The coordinator that a host names; without a port it is the one of the host that answered."""
    return [Endpoint.parse(address, endpoint.port) for address in error.params[:1] if error.code == "HOST_IS_SLAVE"]


def _starting(error: PoolError) -> bool:
    """Whether a host says that it has no coordinator (yet)."""
    return isinstance(error, XapiError) and error.code in NO_COORDINATOR


def _refused(error: PoolError) -> bool:
    """Whether a coordinator itself gave this answer, so that no other host will answer differently."""
    return isinstance(error, XapiError) and error.code != "HOST_IS_SLAVE" and not _starting(error)


def _rank(error: PoolError) -> int:
    """How little an error tells of why no coordinator was found."""
    if isinstance(error, CertificateUntrusted):
        return 0
    if _starting(error):
        return 1
    return 2 if isinstance(error, ConnectionFailed) else 3
