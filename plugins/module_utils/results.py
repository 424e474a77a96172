# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""How modules answer: failures with a cause and a remedy, moments in RFC 3339, and the libraries they need."""

from __future__ import annotations

import signal
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from ansible.module_utils.basic import missing_required_lib

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

# What the pool said, when it was the pool that refused.
POOL_DETAILS = ("code", "params", "operation", "subject")


def require_libraries(module: AnsibleModule, *names: str) -> None:
    """Fail the module when a library is missing on its machine, before anything is touched.

    Every file below imports its libraries under ``suppress(ImportError)``, because this is where their absence is
    told in words an administrator can use.
    """
    for name in names:
        if find_spec(name) is None:
            module.fail_json(msg=missing_required_lib(name), failure={"kind": "MissingLibrary", "library": name})


def unwind_on_signals() -> None:
    """Let a module that is told to end (SIGTERM, SIGHUP) undo what it did, as after an error."""

    def unwind(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what is being undone must not be broken off
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)


def fail(module: AnsibleModule, error: Exception, **more: Any) -> NoReturn:
    """End the module with an error of ours; ``more`` goes into the result beside it."""
    module.fail_json(msg=str(error), failure=failure(error), **more)
    raise AssertionError("fail_json came back")


def failure(error: Exception) -> dict[str, Any]:
    """An error as data: ``kind``, ``message``, ``remedy``; with ``code``, ``params``, ... when it was the pool's.

    An error of the engine stands before the one that caused it; the details come from whichever has them.
    """
    details: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": str(getattr(error, "message", "") or error),
        "remedy": str(getattr(error, "remedy", "")),
    }
    cause: BaseException | None = error
    while cause is not None:
        for name in POOL_DETAILS:
            value = getattr(cause, name, None)
            if value and name not in details:
                details[name] = [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value)
        cause = cause.__cause__
    return details


def rfc3339(moment: datetime) -> str:
    """A moment with its time zone as text in UTC, to the second: ``2026-11-23T01:00:00Z``."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
