# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Errors of talking to a pool, in an administrator's words: what happened, to what, what to do, and the raw code."""
from __future__ import annotations

from typing import Sequence

from .error_table import MEANINGS, Meaning


class PoolError(Exception):
    """Base of every error of this package.

    ``message`` says what happened and to what; ``remedy`` what to do about it, or is empty. Neither ever holds a
    password or a session.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "%s %s" % (self.message, self.remedy) if self.remedy else self.message


class XapiError(PoolError):
    """The pool refused or failed a call.

    ``code`` and ``params`` are what the server sent, ``operation`` is the method (``VM.snapshot``) or what else was
    going on, ``subject`` what it was done to (``VM web01``); both may be empty.
    """

    def __init__(self, code: str, params: Sequence[str] = (), operation: str = "", subject: str = "") -> None:
        self.code = code
        self.params = [str(param) for param in params]
        self.operation = operation
        self.subject = subject
        meaning = _meaning(code, self.params)
        what = " of ".join(part for part in (operation, subject) if part)
        explained = _fill(meaning.happened, self.params)
        raw = ": ".join(part for part in (code, ", ".join(param for param in self.params if param)) if part)
        happened = "%s failed: %s" % (what, explained) if what else explained[0].upper() + explained[1:]
        super().__init__("%s [%s]." % (happened, raw), _fill(meaning.remedy, self.params))

    @property
    def wire(self) -> list[str]:
        """The code and its parameters as the server's ErrorDescription has them."""
        return [self.code, *self.params]


class ConnectionFailed(PoolError):
    """No answer could be had from a host, or from any member of the pool."""


class CertificateUntrusted(PoolError):
    """A host showed a certificate that nothing vouches for; nothing was sent to it."""


class TaskTimeout(PoolError):
    """A task took longer than it was given; the message says how far it got."""


class TransferError(PoolError):
    """An export or import broke off; ``transferred`` is how many bytes had passed."""

    def __init__(self, message: str, remedy: str = "", transferred: int = 0) -> None:
        super().__init__(message, remedy)
        self.transferred = transferred


class OutcomeUnknown(PoolError):
    """A call or task was lost after it had begun (the coordinator went away): it may or may not have been done."""


class NotFound(PoolError):
    """The pool has no such object."""


class Ambiguous(PoolError):
    """More than one object answers to a name."""


def _meaning(code: str, params: Sequence[str]) -> Meaning:
    if code == "SR_BACKEND_FAILURE_81" or code == "SR_BACKEND_FAILURE_82":
        if any("space" in param.lower() for param in params):
            code = "SR_BACKEND_FAILURE_44"
    if code in MEANINGS:
        return MEANINGS[code]
    for prefix in ("XEN_VSS_REQ_ERROR", "SR_BACKEND_FAILURE"):
        if code.startswith(prefix):
            return MEANINGS[prefix]
    return Meaning("the pool answered with an error", "Look for the code in the documentation of the XenServer API.")


class _Params(dict):  # type: ignore[type-arg]
    """Servers differ in how many parameters they send: a missing one reads as an ellipsis."""

    def __missing__(self, key: str) -> str:
        return "…"


def _fill(text: str, params: Sequence[str]) -> str:
    return text.format_map(_Params(("p%d" % number, param) for number, param in enumerate(params)))
