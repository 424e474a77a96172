# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Tasks of the pool: waiting for them, reading their outcome, and never leaving one behind."""
from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Callable, Iterator, Mapping, Optional

from .client import PoolClient
from .errors import OutcomeUnknown, PoolError, TaskTimeout, XapiError
from .rpc import parse_value

EVENT_SECONDS = 30.0  # how long one event.from waits at most; then the task itself is looked at
POLL_SECONDS = 1.0
ENDING_SECONDS = 3.0  # what a cancelled task is given to end before its row is left to the pool
TASK_MARK = "guestark"  # the first word of the description of tasks that we make
PATIENCE = 10.0  # seconds for a coordinator to answer where the work is over anyway

Record = dict[str, Any]
Progress = Callable[[float], None]


class Task:
    """A task made by us for an HTTP transfer; leaving it cancels it if it still runs, and destroys it always.

    ``adopted`` says that a handler of the pool took it over, and so will end it.
    """

    def __init__(self, client: PoolClient, ref: str) -> None:
        self._client = client
        self.ref = ref
        self.adopted = False

    @classmethod
    def create(cls, client: PoolClient, label: str, marks: Optional[Mapping[str, str]] = None) -> Task:
        """Make a task named ``label``.

        ``marks`` go into its description, as ``guestark key=value …``: other_config of a task takes a pool operator.
        """
        description = " ".join([TASK_MARK, *("%s=%s" % item for item in (marks or {}).items())])
        return cls(client, str(client.call("task.create", label, description, safe=True)))

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_exc: object) -> None:
        end(self._client, self.ref, self.adopted)

    def succeeded(self, seconds: float) -> bool:
        """Whether the task ends well within ``seconds``."""
        record = ended(self._client, self.ref, seconds)
        return record is not None and record["status"] == "success"

    def failure(self, seconds: float, operation: str, subject: str = "") -> Optional[XapiError]:
        """The error with which the task ended, looked for up to ``seconds`` long; None when it has none (yet)."""
        record = ended(self._client, self.ref, seconds)
        return _error(record, operation, subject) if record and record["status"] != "success" else None


def wait(
    client: PoolClient,
    ref: str,
    on_progress: Optional[Progress] = None,
    wait_timeout: Optional[float] = None,
    stall_timeout: Optional[float] = None,
    clock: Callable[[], float] = time.monotonic,
    operation: str = "The task",
    subject: str = "",
) -> Any:
    """Wait until a task has ended and return its result: text, or a list of text for a set.

    ``on_progress`` is given 0.0 to 1.0 whenever the pool reports it. ``wait_timeout`` seconds at most altogether,
    ``stall_timeout`` seconds at most without any progress; the task goes on then, TaskTimeout says how far it was.
    Raises XapiError when the task failed or was cancelled, OutcomeUnknown when it vanished (the coordinator went
    away): then it may or may not have been done.
    """
    started = moved = clock()
    progress = -1.0
    limits = [limit for limit in (wait_timeout, stall_timeout) if limit is not None]
    interval = max(1.0, min([EVENT_SECONDS, *limits]))
    for record in _watch(client, ref, interval, operation, subject):
        now = clock()
        if record["status"] == "success":
            return _result(record)
        if record["status"] != "pending":
            raise _error(record, operation, subject)
        if float(record["progress"]) != progress:
            progress, moved = float(record["progress"]), now
            if on_progress:
                on_progress(progress)
        what = "%s%s" % (operation, " of " + subject if subject else "")
        if wait_timeout is not None and now - started >= wait_timeout:
            raise TaskTimeout(
                "%s did not end within %g s; it was at %d %%." % (what, wait_timeout, 100 * progress),
                "Give it more time, or look at what keeps the pool busy.",
            )
        if stall_timeout is not None and now - moved >= stall_timeout:
            raise TaskTimeout(
                "%s made no progress for %g s; it is at %d %%." % (what, stall_timeout, 100 * progress),
                "Look at the load of the pool's hosts and storage, or give it more time.",
            )
    raise AssertionError("the watch of a task ended")


def call_async(
    client: PoolClient,
    method: str,
    *args: Any,
    subject: str = "",
    on_progress: Optional[Progress] = None,
    wait_timeout: Optional[float] = None,
    stall_timeout: Optional[float] = None,
) -> Any:
    """Do ``method`` as a task, wait for it as wait() does, destroy it, and return its result.

    A task that is left before its end (timeout, interrupt) is cancelled.
    """
    ref = str(client.call("Async." + method, *args, subject=subject))
    try:
        result = wait(
            client, ref, on_progress, wait_timeout, stall_timeout, operation=method, subject=subject
        )
    except BaseException:
        end(client, ref, adopted=True)
        raise
    with suppress(PoolError):  # the pool collects tasks that are left
        client.call("task.destroy", ref, safe=True, patience=PATIENCE)
    return result


def end(client: PoolClient, ref: str, adopted: bool) -> None:
    """Destroy a task, after cancelling it when it still runs; problems in doing so are nobody's."""
    try:
        if client.call("task.get_status", ref, patience=PATIENCE) == "pending":
            client.call("task.cancel", ref, safe=True, patience=PATIENCE)
            if adopted:
                ended(client, ref, ENDING_SECONDS)
            else:
                # nobody in the pool knows of it, so nobody would ever end it
                client.call("task.set_status", ref, "cancelled", safe=True, patience=PATIENCE)
        client.call("task.destroy", ref, safe=True, patience=PATIENCE)
    except PoolError:
        pass  # vanished, or the pool is gone; the pool collects tasks that are left


def ended(client: PoolClient, ref: str, seconds: float) -> Optional[Record]:
    """The record of a task that ends within ``seconds``; None when it does not, or cannot be seen."""
    deadline = time.monotonic() + seconds
    try:
        while True:
            record: Record = client.call("task.get_record", ref, patience=PATIENCE)
            if record["status"] != "pending":
                return record
            if time.monotonic() >= deadline:
                return None
            time.sleep(min(POLL_SECONDS, seconds / 10))
    except PoolError:
        return None


def _watch(client: PoolClient, ref: str, interval: float, operation: str, subject: str) -> Iterator[Record]:
    """The task's record now, and again whenever it changed or ``interval`` seconds passed."""
    token, events_work = "", True
    while True:
        records: list[Record] = []
        if events_work:
            try:
                batch = client.call("event.from", ["task/" + ref], token, interval)
                token = batch["token"]
                records = [event["snapshot"] for event in batch["events"] if event.get("snapshot")]
            except XapiError:
                events_work = False
        if not records:
            try:
                records = [client.call("task.get_record", ref)]
            except XapiError as error:
                if error.code != "HANDLE_INVALID":
                    raise
                raise OutcomeUnknown(
                    "%s%s began, but its task has vanished (a host or the coordinator went away)."
                    % (operation, " of " + subject if subject else ""),
                    "It may or may not have been done: look at the pool before repeating it.",
                ) from error
        yield records[-1]
        if not events_work:
            time.sleep(POLL_SECONDS)


def _result(record: Record) -> Any:
    try:
        return parse_value(record["result"])
    except ValueError:
        return record["result"]  # some plugins put plain text there


def _error(record: Record, operation: str, subject: str) -> XapiError:
    code, *params = record["error_info"] or ["TASK_CANCELLED"]
    return XapiError(code, params, operation, subject)
