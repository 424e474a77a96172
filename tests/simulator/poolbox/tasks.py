# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks: rows that tell what became of a call or a transfer."""
from __future__ import annotations

import threading
import uuid
from typing import Any

from . import clock
from .database import Database, DateTime
from .errors import ApiError
from .model import EPOCH, NULL
from .xmlvalue import to_xml

MOST_COMPLETED = 200
COMPLETED_SECONDS = 65 * 60  # how long a completed task is kept
PENDING_SECONDS = 24 * 3600  # how long a task is kept that nobody completes
FINAL = ("success", "failure", "cancelled")


class TaskHandle:
    """The side of a task that does the work."""

    def __init__(self, db: Database, ref: str, owned: bool = False) -> None:
        self._db = db
        self.ref = ref
        self.owned = owned  # made by the server for this piece of work: goes when it ends
        self._result: str | None = None

    def progress(self, value: float) -> None:
        """Say how far the work is, 0.0 to 1.0."""
        if self._pending():
            self._db.set("task", self.ref, progress=min(max(float(value), 0.0), 1.0))

    def mark(self, key: str, value: str) -> None:
        """Leave a note in other_config."""
        with self._db.lock:
            if self._db.exists("task", self.ref):
                self._db.set("task", self.ref, other_config=self._db.field("task", self.ref, "other_config") | {key: value})

    def cancelled(self) -> bool:
        """Whether somebody asked that the work stop."""
        with self._db.lock:
            return self._db.exists("task", self.ref) and "cancel" in _operations(self._db, self.ref).values()

    def check(self) -> None:
        """Raise TASK_CANCELLED when the work is to stop."""
        if self.cancelled():
            raise ApiError("TASK_CANCELLED", self.ref)

    def result(self, value: Any) -> None:
        """What the task's result will be when it succeeds."""
        self._result = to_xml(value)

    def succeed(self) -> None:
        """End well."""
        self._complete("success", result=self._result or "")

    def fail(self, error: ApiError) -> None:
        """End with an error; a cancelled task ends as cancelled."""
        if error.code == "TASK_CANCELLED":
            self._complete("cancelled", error_info=["TASK_CANCELLED", self.ref])
        else:
            self._complete("failure", error_info=error.description)

    def _pending(self) -> bool:
        return self._db.exists("task", self.ref) and self._db.field("task", self.ref, "status") == "pending"

    def _complete(self, status: str, **fields: Any) -> None:
        with self._db.lock:
            if self._pending():
                unwanted = self.owned or "destroy" in _operations(self._db, self.ref).values()
                self._db.set(
                    "task", self.ref, status=status, progress=1.0, finished=DateTime.now(), current_operations={},
                    allowed_operations=[], **fields,
                )
                if unwanted:
                    self._db.destroy("task", self.ref)
                collect(self._db)


def new_task(
    db: Database, host: str, label: str, description: str = "", session: str = NULL, parent: str = NULL, owned: bool = False
) -> TaskHandle:
    """Make a pending task."""
    ref = db.create(
        "task", name_label=label, name_description=description, created=DateTime.now(), finished=DateTime(EPOCH),
        status="pending", resident_on=host, progress=0.0, type="<none/>", subtask_of=parent,
        allowed_operations=["cancel"], backtrace="()",
    )
    with db.lock:
        if db.exists("session", session):
            others = [task for task in db.field("session", session, "tasks") if db.exists("task", task)]
            db.set("session", session, tasks=[*others, ref])
    return TaskHandle(db, ref, owned)


def collect(db: Database) -> None:
    """Remove tasks that are too old, and the oldest completed ones above the limit."""
    with db.lock:
        rows = {ref: db.get("task", ref) for ref in db.refs("task")}
        done = [ref for ref, row in rows.items() if row["status"] in FINAL]
        old = {ref for ref in done if clock.seconds_since(rows[ref]["finished"]) > COMPLETED_SECONDS}
        old |= {
            ref for ref, row in rows.items()
            if row["status"] not in FINAL and clock.seconds_since(row["created"]) > PENDING_SECONDS
        }
        for ref in old.union(done[:max(0, len(done) - MOST_COMPLETED)]):
            db.destroy("task", ref)


def _operations(db: Database, ref: str) -> dict[str, str]:
    found: dict[str, str] = db.field("task", ref, "current_operations")
    return found


def _begin(db: Database, ref: str, operation: str) -> None:
    db.set("task", ref, current_operations=_operations(db, ref) | {f"OpaqueRef:{uuid.uuid4()}": operation})


def cancel(db: Database, ref: str) -> None:
    """Ask the worker of a task to stop; nothing more happens here."""
    if db.field("task", ref, "status") == "pending":
        _begin(db, ref, "cancel")


def destroy(db: Database, ref: str) -> None:
    """Remove a completed task; a pending one goes when it completes."""
    with db.lock:
        if db.field("task", ref, "status") in FINAL:
            db.destroy("task", ref)
        else:
            _begin(db, ref, "destroy")


def run(task: TaskHandle, work: Any, on_done: Any = None) -> threading.Thread:
    """Do the work of a task in a thread of its own; ``work`` returns the result's value."""

    def body() -> None:
        try:
            task.result(work())
            task.succeed()
        except ApiError as error:
            task.fail(error)
        except Exception as error:  # a mistake of the simulator: the client must see it, not wait for ever
            task.fail(ApiError("INTERNAL_ERROR", repr(error)))
        finally:
            if on_done:
                on_done()

    thread = threading.Thread(target=body, daemon=True, name=f"task-{task.ref}")
    thread.start()
    return thread
