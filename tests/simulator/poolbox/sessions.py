# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logging in and out, and who may do what."""
from __future__ import annotations

import base64
import time
from typing import Any

from . import clock
from .api import Context, Request, method
from .database import DateTime
from .errors import ApiError
from .model import NULL, ROLES
from .pool import Account, Host, Pool
from .tasks import TaskHandle

MOST_SESSIONS = 500  # per originator, and per user but root; the least recently used goes first
IDLE_SECONDS = 24 * 3600  # after which a session is gone, unless tasks of it are pending
REFRESH_SECONDS = 600  # how old last_active may grow
FAILURE_DELAY = 0.2  # seconds; a real host takes five
PERMITTED_FROM = {
    "http/get_export": "vm-admin", "http/put_import": "vm-admin", "http/get_export_raw_vdi": "vm-admin",
    "http/put_import_raw_vdi": "vm-admin", "http/get_export_metadata": "vm-admin", "http/put_import_metadata": "vm-admin",
}


def coordinator_only(pool: Pool, host: Host) -> None:
    """Raise HOST_IS_SLAVE on a supporter, with the address of the coordinator."""
    if host.ref != pool.coordinator:
        raise ApiError("HOST_IS_SLAVE", pool.host(pool.coordinator).address)


def authenticate(pool: Pool, user: str, password: str) -> Account:
    """The account of a name and password. Raises SESSION_AUTHENTICATION_FAILED."""
    account = pool.accounts.get(user)
    if account is None or account.password != password:
        time.sleep(FAILURE_DELAY)
        raise ApiError("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")
    return account


def open_session(pool: Pool, host: Host, account: Account, originator: str) -> str:
    """Make a session and return its ref."""
    db = pool.db
    with db.lock:
        _make_room(pool, db.find("session", originator=originator))
        if account.name != "root":
            _make_room(pool, db.find("session", auth_user_name=account.name))
        return db.create(
            "session", this_host=host.ref, this_user=NULL, last_active=DateTime.now(), pool=False, originator=originator,
            auth_user_name=account.name, auth_user_sid="", is_local_superuser=account.name == "root",
            validation_time=DateTime.now(), rbac_permissions=[],
        )


def _make_room(pool: Pool, alike: list[str]) -> None:
    # sorting is stable: of those active in the same second, the oldest goes
    unused = sorted(
        (ref for ref in alike if not _has_work(pool, ref)), key=lambda ref: pool.db.field("session", ref, "last_active")
    )
    for ref in unused[:max(0, len(unused) + 1 - MOST_SESSIONS)]:
        pool.db.destroy("session", ref)


def _has_work(pool: Pool, session: str) -> bool:
    """Whether tasks of a session are pending."""
    db = pool.db
    tasks = db.field("session", session, "tasks")
    return any(db.exists("task", task) and db.field("task", task, "status") == "pending" for task in tasks)


def check(pool: Pool, session: Any) -> Account:
    """The account of a valid session, which counts as a use of it. Raises SESSION_INVALID."""
    db = pool.db
    with db.lock:
        if not isinstance(session, str) or not db.exists("session", session) or _expired(pool, session):
            raise ApiError("SESSION_INVALID", str(session))
        if clock.seconds_since(db.field("session", session, "last_active")) > REFRESH_SECONDS:
            db.set("session", session, last_active=DateTime.now())
        return pool.accounts[db.field("session", session, "auth_user_name")]


def _expired(pool: Pool, session: str) -> bool:
    """Whether a session has been idle for too long; then it is gone."""
    db = pool.db
    if clock.seconds_since(db.field("session", session, "last_active")) <= IDLE_SECONDS or _has_work(pool, session):
        return False
    db.destroy("session", session)
    return True


def expire(pool: Pool) -> int:
    """End all sessions of a pool and return how many there were."""
    with pool.db.lock:
        refs = pool.db.refs("session")
        for ref in refs:
            pool.db.destroy("session", ref)
    return len(refs)


def require_role(account: Account, roles: tuple[str, ...], permission: str) -> None:
    """Raise RBAC_PERMISSION_DENIED unless the account has one of the roles. Permissions are in lower case."""
    if account.name != "root" and account.role not in roles:
        text = f"No permission in user session. (Roles with this permission: {', '.join(roles)})"
        raise ApiError("RBAC_PERMISSION_DENIED", permission.lower(), text)


def require_permission(account: Account, permission: str) -> None:
    """The same for an HTTP handler's permission, such as http/get_export."""
    least = ROLES.index(PERMITTED_FROM.get(permission, "vm-admin"))
    require_role(account, ROLES[:least + 1], permission)


@method("session.login_with_password")
def login(ctx: Context, uname: str, pwd: str, version: str, originator: str) -> str:
    """Log in."""
    coordinator_only(ctx.pool, ctx.host)
    return open_session(ctx.pool, ctx.host, authenticate(ctx.pool, uname, pwd), originator)


@method("session.logout")
def logout(ctx: Context) -> None:
    """Log out."""
    ctx.db.destroy("session", ctx.session)


@method("session.change_password")
def change_password(ctx: Context, old_pwd: str, new_pwd: str) -> None:
    """Change one's password."""
    account = check(ctx.pool, ctx.session)
    if account.password != old_pwd:
        raise ApiError("CHANGE_PASSWORD_REJECTED", "The old password is wrong.")
    account.password = new_pwd


class Refused(Exception):
    """An HTTP request that is answered with an error page of this status."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, more: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or {}
        self.more = more


def authorize_http(req: Request, ctx: Context, realm: str, permission: str) -> str:
    """The session of a request's credentials: a session ref in cookie or query, or Basic authentication.

    Raises Refused: 401 leaves the client's task alone, 403 (role too weak) fails it.
    """
    unauthorised = Refused(401, {"WWW-Authenticate": f'Basic realm="{realm}"'})
    session = req.cookies.get("session_id", req.query.get("session_id", ""))
    try:
        if session:
            account = check(ctx.pool, session)
        else:
            kind, dummy, encoded = req.headers.get("authorization", "").partition(" ")
            if kind and kind != "Basic":
                raise Refused(500)
            user, dummy, password = base64.b64decode(encoded).decode().partition(":")
            account = authenticate(ctx.pool, user, password)
            session = open_session(ctx.pool, ctx.host, account, "http")
    except (ApiError, ValueError) as error:
        raise unauthorised from error
    try:
        require_permission(account, permission)
    except ApiError as error:
        task = req.cookies.get("task_id", req.query.get("task_id", ""))
        if task:
            TaskHandle(ctx.db, task).fail(error)
        raise Refused(403) from error
    return session
