# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all transfer handlers share: parameters, credentials, the task, redirects and answers."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from .api import Context, Request
from .errors import ApiError
from .lifecycle import assert_operation_valid, update_allowed_operations
from .model import NULL
from .pool import Host
from .sessions import authorize_http
from .tasks import TaskHandle, new_task
from .wire import Cut, SilentError, Wire, stall
from .xva_out import CHECKSUMS, Style, style_for

REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}
EXPORT_LOCK_SECONDS = 120.0
RETRY_SECONDS = 0.25
# A real host lets go of disks and locks before it closes the connection. Some clients depend on it: undici 6 breaks off
# with an assertion when the end comes while it holds back what was sent (nodejs/undici#5360).
CLOSING_SECONDS = 0.3
COMMON_HEADERS = {"Connection": "close", "Cache-Control": "no-cache, no-store"}


class Exchange:
    """One transfer request and what is answered."""

    def __init__(self, req: Request, ctx: Context) -> None:
        self.req = req
        self.ctx = ctx
        self._fault: dict[str, Any] = {}

    def param(self, name: str, default: str = "") -> str:
        """A parameter of the request; a cookie goes before the query."""
        return self.req.cookies.get(name, self.req.query.get(name, default))

    def has(self, name: str) -> bool:
        """Whether a parameter is there, whatever its value."""
        return name in self.req.cookies or name in self.req.query

    def flag(self, name: str, default: bool = False) -> bool:
        """A parameter that is "true" or "false"."""
        return self.param(name, str(default).lower()) == "true"

    def header(self, name: str) -> str:
        """A header of the request, or ""."""
        return next((value for key, value in self.req.headers.items() if key.lower() == name), "")

    def length(self) -> int | None:
        """The body's length in bytes, if the client said it."""
        text = self.header("content-length")
        return int(text) if text.isdigit() else None

    def vm(self) -> str:
        """The VM asked for: `ref` as it stands, or that of `uuid`. Raises UUID_INVALID."""
        if self.has("ref"):
            return self.param("ref")
        return self.ctx.db.by_uuid("VM", self.param("uuid"))

    def vdi(self, name: str) -> str:
        """The VDI of a parameter that is a reference or a uuid. Raises UUID_INVALID."""
        value = self.param(name)
        return value if self.ctx.db.exists("VDI", value) else self.ctx.db.by_uuid("VDI", value)

    def sr(self) -> str | None:
        """The SR asked for by `sr_id` (a reference, unchecked) or `sr_uuid`. Raises UUID_INVALID."""
        if self.has("sr_id"):
            return self.param("sr_id")
        return self.ctx.db.by_uuid("SR", self.param("sr_uuid")) if self.has("sr_uuid") else None

    def authorize(self, realm: str, permission: str) -> None:
        """Check the credentials. Without valid ones the task is left alone; a role too weak fails it."""
        self.ctx.session = authorize_http(self.req, self.ctx, realm, permission)
        if not self.has("session_id"):  # Basic authentication: the session was made for this request only
            self.ctx.db.destroy("session", self.ctx.session)
            self.ctx.session = NULL

    @contextmanager
    def task(self, label: str) -> Iterator[TaskHandle]:
        """Adopt the client's task, or make a private one, and complete it when the block ends."""
        db = self.ctx.db
        ref = self.param("task_id")
        if ref:
            task = TaskHandle(db, ref)
        else:
            task = new_task(db, self.ctx.host.ref, label, session=self.ctx.session, parent=self.param("subtask_of"),
                            owned=True)
        for key in ("method", "path"):
            task.mark(f"http:{key}", getattr(self.req, key))
        try:
            yield task
        except Cut:
            task.fail(ApiError("CLIENT_ERROR", 'Unix.Unix_error(Unix.EPIPE, "write", "")'))
        except SilentError as error:
            task.fail(error)
        except ApiError as error:
            task.fail(error)
            raise
        except Exception as error:  # a mistake of the simulator: the client must see it, not wait for ever
            traceback.print_exc()
            task.fail(ApiError("INTERNAL_ERROR", repr(error)))
            raise ApiError("INTERNAL_ERROR", repr(error)) from error
        else:
            task.succeed()
            if self.req.method == "GET":
                time.sleep(CLOSING_SECONDS)

    def fail_task(self, error: ApiError) -> None:
        """Fail the client's task, if the request names one."""
        if self.has("task_id"):
            TaskHandle(self.ctx.db, self.param("task_id")).fail(error)

    def fault(self, kind: str, **facts: str) -> dict[str, Any]:
        """What is to go wrong with this transfer. Raises the error that is to come before any answer."""
        facts |= {"kind": kind, "path": f"/{kind}", "pool": self.ctx.pool.name, "host": self.ctx.host.name}
        self._fault = self.ctx.pool.faults.take(**facts) or {}
        if "delay" in self._fault:
            stall(self.req.fileno(), self._fault["delay"])
        if "error" in self._fault:
            raise ApiError(*self._fault["error"])
        return self._fault

    def answer(self, version: str, content_type: str, filename: str | None, task: TaskHandle,
               length: int | None = None) -> Wire:
        """Send the 200 that promises nothing, and return the body's wire."""
        headers = {"task-id": task.ref, "Content-Type": content_type}
        if version == "1.0":
            major, minor = self.xapi_version()
            headers["Server"] = f"xapi/{major}.{minor}"
        if length is not None:
            headers["Content-Length"] = str(length)
        if filename is not None:
            headers["Content-Disposition"] = f'attachment; filename="{filename}"'
        self.head(version, 200, headers)
        return Wire(self.req, self._fault)

    def head(self, version: str, status: int, headers: dict[str, str] | None = None) -> None:
        """Send a status line and headers; every handler's connection ends after its answer."""
        self.req.send_head(version, status, REASONS[status], COMMON_HEADERS | (headers or {}))

    def redirect(self, host: Host) -> None:
        """Send the client to a host that sees the storage. Cookies do not travel with it, only path and query."""
        query = urlencode(self.req.query, quote_via=quote, safe=":")
        location = f"{host.url}{quote(self.req.path)}" + (f"?{query}" if query else "")
        self.head("1.1", 302, {"Location": location})

    def xapi_version(self) -> tuple[int, int]:
        """Major and minor version of this pool's toolstack."""
        major, minor = self.ctx.release.package.split(".")[:2]
        return int(major), int(minor)

    def style(self) -> Style:
        """The release's way of writing archives, and what a rule asks for on top."""
        style = style_for(self.xapi_version(), int(time.time()))
        if "checksum" in self._fault:
            style = dataclasses.replace(style, checksum=CHECKSUMS[self._fault["checksum"]])
        corrupt = self._fault.get("corrupt_chunk")
        return dataclasses.replace(style, keep_alive=int(self._fault.get("keep_alive", 0)), corrupt=corrupt)


@contextmanager
def vm_locked(ctx: Context, vm: str, task: TaskHandle, operation: str) -> Iterator[None]:
    """Hold a VM for an operation, waiting two minutes at most for another one that excludes it."""
    deadline = time.monotonic() + EXPORT_LOCK_SECONDS
    while not _try_lock(ctx, vm, task, operation, time.monotonic() > deadline):
        time.sleep(RETRY_SECONDS)
    try:
        yield
    finally:
        _set_operations(ctx, vm, task.ref, None)


def _try_lock(ctx: Context, vm: str, task: TaskHandle, operation: str, last_time: bool) -> bool:
    with ctx.db.lock:
        try:
            assert_operation_valid(ctx, vm, operation)
        except ApiError as error:
            if error.code != "OTHER_OPERATION_IN_PROGRESS" or last_time:
                raise
            return False
        _set_operations(ctx, vm, task.ref, operation)
        return True


def _set_operations(ctx: Context, vm: str, task: str, operation: str | None) -> None:
    with ctx.db.lock:
        if ctx.db.exists("VM", vm):
            operations = ctx.db.field("VM", vm, "current_operations")
            operations.pop(task, None)
            if operation is not None:
                operations[task] = operation
            ctx.db.set("VM", vm, current_operations=operations)
            update_allowed_operations(ctx, vm)
