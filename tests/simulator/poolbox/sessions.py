# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logging in and out, and who may do what."""
from __future__ import annotations

import base64
import time
from typing import Any

from .api import Context, Request, method
from .database import DateTime
from .errors import ApiError
from .model import NULL, ROLES
from .pool import Account, Host, Pool
from .tasks import TaskHandle

MOST_SESSIONS = 500  # per originator; the least recently used goes first
FAILURE_DELAY = 0.2  # seconds; a real host takes five
PERMITTED_FROM = {
    "http/get_export": "vm-admin", "http/put_import": "vm-admin", "http/get_export_raw_vdi": "vm-admin",
    "http/put_import_raw_vdi": "vm-admin", "http/get_export_metadata": "vm-admin", "http/put_import_metadata": "vm-admin",
}


def refuse_if_not_coordinator(pool: Pool, host: Host) -> None:
    """What every call meets first: an emergency, or the address of the coordinator."""
    if host.emergency:
        raise ApiError(host.emergency)
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
        same = db.find("session", originator=originator)
        for ref in sorted(same, key=lambda one: db.field("session", one, "last_active"))[:len(same) + 1 - MOST_SESSIONS]:
            db.destroy("session", ref)
        return db.create(
            "session", this_host=host.ref, this_user=NULL, last_active=DateTime.now(), pool=False, originator=originator,
            auth_user_name=account.name, auth_user_sid="", is_local_superuser=account.name == "root",
            validation_time=DateTime.now(), rbac_permissions=[],
        )


def check(pool: Pool, session: Any) -> Account:
    """The account of a valid session. Raises SESSION_INVALID."""
    if not isinstance(session, str) or not pool.db.exists("session", session):
        raise ApiError("SESSION_INVALID", str(session))
    return pool.accounts[pool.db.field("session", session, "auth_user_name")]


def require_role(account: Account, roles: tuple[str, ...], permission: str) -> None:
    """Raise RBAC_PERMISSION_DENIED unless the account has one of the roles."""
    if account.name != "root" and account.role not in roles:
        raise ApiError("RBAC_PERMISSION_DENIED", permission, f"No permission in user session. ({', '.join(roles)})")


def require_permission(account: Account, permission: str) -> None:
    """The same for an HTTP handler's permission, such as http/get_export."""
    least = ROLES.index(PERMITTED_FROM.get(permission, "vm-admin"))
    require_role(account, ROLES[:least + 1], permission)


@method("session.login_with_password")
def login(ctx: Context, uname: str, pwd: str, version: str, originator: str) -> str:
    """Log in."""
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
    """An HTTP request that is answered with a page of this status."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}


def authorize_http(req: Request, ctx: Context, realm: str, permission: str) -> str:
    """The session of a request's credentials: a session ref in cookie or query, or Basic authentication.

    Raises Refused: 401 leaves the client's task alone, 403 (role too weak) fails it.
    """
    unauthorised = Refused(401, "Unauthorised", {"WWW-Authenticate": f'Basic realm="{realm}"'})
    session = req.cookies.get("session_id", req.query.get("session_id", ""))
    try:
        if session:
            account = check(ctx.pool, session)
        else:
            kind, dummy, encoded = req.headers.get("authorization", "").partition(" ")
            if kind and kind != "Basic":
                raise Refused(500, "Internal Error")
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
        raise Refused(403, "Forbidden") from error
    return session
