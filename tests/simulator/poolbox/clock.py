# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The time the pools live in: the machine's, and what a control client has moved it on by."""
from __future__ import annotations

from datetime import datetime, timedelta, timezone

FORMAT = "%Y%m%dT%H:%M:%SZ"
_ahead = timedelta()


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(timezone.utc) + _ahead


def advance(seconds: float) -> None:
    """Move the pools' time on."""
    global _ahead
    _ahead += timedelta(seconds=seconds)


def seconds_since(moment: str) -> float:
    """How long ago a moment was that is written as XAPI writes it."""
    return (now() - datetime.strptime(moment, FORMAT).replace(tzinfo=timezone.utc)).total_seconds()
