# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods of the class task."""
from __future__ import annotations

from typing import Any

from . import tasks
from .api import Context, method
from .sessions import check, require_role

OPERATORS = ("pool-admin", "pool-operator")


def _own(ctx: Context, ref: str) -> None:
    ctx.db.get("task", ref)
    account = check(ctx.pool, ctx.session)
    sessions = ctx.db.find("session", auth_user_name=account.name)
    if not any(ref in ctx.db.field("session", session, "tasks") for session in sessions):
        require_role(account, OPERATORS, "task.destroy/any")


@method("task.create")
def create(ctx: Context, label: str, description: str) -> str:
    """A task that the caller hands to a transfer."""
    return tasks.new_task(ctx.db, ctx.host.ref, label, description, ctx.session).ref


@method("task.destroy")
def destroy(ctx: Context, task: str) -> None:
    """Remove it, or have it removed when it completes."""
    _own(ctx, task)
    tasks.destroy(ctx.db, task)


@method("task.cancel")
def cancel(ctx: Context, task: str) -> None:
    """Ask the worker to stop."""
    _own(ctx, task)
    tasks.cancel(ctx.db, task)


def _setter(field: str) -> Any:
    def change(ctx: Context, task: str, value: Any) -> None:
        _own(ctx, task)
        ctx.db.set("task", task, **{field: value})

    return change


for _field in ("status", "progress", "result", "error_info", "resident_on"):
    method(f"task.set_{_field}")(_setter(_field))
