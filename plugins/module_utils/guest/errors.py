# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What can go wrong in a guest."""
from __future__ import annotations


class GuestError(Exception):
    """Something could not be done in the guest: ``message`` says what happened, ``remedy`` what to do (may be empty)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "%s %s" % (self.message, self.remedy) if self.remedy else self.message


class GuaranteeLost(GuestError):
    """What a hook was to hold during the freeze may not have been held: the moment is not the application's."""
