# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""event.from and what belongs to it."""
from __future__ import annotations

import math
import re
import time
from typing import Any

from .api import Context, method
from .database import Database
from .errors import ApiError, Dropped
from .sessions import check
from .xmlvalue import Int32

BATCH_SECONDS = 0.05
ORDER = {"add": 0, "mod": 1, "del": 2}
UNCOUNTED = ("event", "message", "auth", "data_source", "sr_stat", "probe_result", "vdi_nbd_server_info")  # no tables


def token_text(generation: int) -> str:
    """Where in the log of changes a client is."""
    return f"{generation:020d},{0:020d}"


def token_generation(token: str) -> int:
    """The place a token names; "" is before everything."""
    if token == "":
        return 0
    match = re.fullmatch(r"(\d+),(\d+)", token)
    if not match:
        raise ApiError("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
    return int(match[1])


class Subscription:
    """Which objects a client asks for: classes in any case, ``class/ref``, or ``*``."""

    def __init__(self, db: Database, wanted: list[str]) -> None:
        by_lower = {name.lower(): name for name in db.model.classes if name not in ("event", "session")}
        self.classes: dict[str, set[str] | None] = {}
        for item in wanted:
            cls, dummy, ref = item.partition("/")
            if cls == "*":
                self.classes = dict.fromkeys(by_lower.values())
                break
            name = by_lower.get(cls.lower())
            if name is None:
                continue
            refs = self.classes.get(name, set())
            if not ref or refs is None:
                self.classes[name] = None
            else:
                self.classes[name] = refs | {ref}

    def collect(self, db: Database, since: int) -> list[dict[str, Any]]:
        """The events after a generation, messages first, then additions, changes and deletions."""
        found = []
        for cls, refs in self.classes.items():
            for operation, generation, ref, row in db.changes(cls, since):
                if refs is None or ref in refs:
                    event = {
                        "id": str(generation), "timestamp": "0.0", "class": cls.lower(), "operation": operation, "ref": ref,
                    }
                    if row is not None:
                        event["snapshot"] = row
                    found.append((cls != "message", ORDER[operation], generation, event))
        return [event for *dummy, event in sorted(found, key=lambda item: item[:3])]


@method("event.from")
def event_from(ctx: Context, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
    """Wait for changes; after the timeout the list is empty and the token new all the same."""
    db, since, deadline = ctx.db, token_generation(token), time.monotonic() + timeout
    with db.lock:
        subscription = Subscription(db, classes)
        events = _wait(ctx, subscription, since, deadline)
        counted = [cls for cls in db.model.classes if cls not in UNCOUNTED]
        return {
            "events": events,
            "valid_ref_counts": {cls.lower(): Int32(db.count(cls)) for cls in counted},
            "token": token_text(db.generation),
        }


def _wait(ctx: Context, subscription: Subscription, since: int, deadline: float) -> list[dict[str, Any]]:
    """The events after a generation, as soon as there are some; none after the deadline. The database is locked."""
    db = ctx.db
    while True:
        check(ctx.pool, ctx.session)
        if not ctx.host.alive:
            raise Dropped
        events = subscription.collect(db, since)
        remaining = deadline - time.monotonic()
        if events or remaining <= 0:
            return events
        db.changed.wait(min(remaining, 5.0))
        batch = time.monotonic() + BATCH_SECONDS
        while (left := batch - time.monotonic()) > 0:
            db.changed.wait(left)


@method("event.register")
def register(ctx: Context, classes: list[str]) -> None:
    """Have event.next tell of classes; the older way, which newer clients do not go."""
    with ctx.db.lock:
        since, known = ctx.pool.registered.get(ctx.session, (ctx.db.generation, []))
        ctx.pool.registered[ctx.session] = since, [*known, *classes]


@method("event.unregister")
def unregister(ctx: Context, classes: list[str]) -> None:
    """Have event.next tell of classes no more."""
    with ctx.db.lock:
        since, known = ctx.pool.registered.get(ctx.session, (ctx.db.generation, []))
        ctx.pool.registered[ctx.session] = since, [cls for cls in known if cls not in classes]


@method("event.next")
def event_next(ctx: Context) -> list[dict[str, Any]]:
    """Wait, for ever if need be, for changes of what was registered."""
    with ctx.db.lock:
        if ctx.session not in ctx.pool.registered:
            raise ApiError("SESSION_NOT_REGISTERED", ctx.session)
        since, known = ctx.pool.registered[ctx.session]
        events = _wait(ctx, Subscription(ctx.db, known), since, math.inf)
        known = ctx.pool.registered[ctx.session][1]
        ctx.pool.registered[ctx.session] = ctx.db.generation, known
        return events


@method("event.inject")
def inject(ctx: Context, cls: str, ref: str) -> str:
    """Make a change of one object appear, and return a token after it."""
    if cls not in ctx.db.model.classes:
        raise ApiError("HANDLE_INVALID", cls, ref)
    with ctx.db.lock:
        ctx.db.touch(cls, ref)
        return token_text(ctx.db.generation)


@method("event.get_current_id")
def current_id(ctx: Context) -> int:
    """The newest event's number."""
    return ctx.db.generation
