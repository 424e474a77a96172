# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of the API: a code and its parameters."""
from __future__ import annotations


class ApiError(Exception):
    """A failure as a client sees it: ``ApiError("HANDLE_INVALID", "VM", ref)``."""

    def __init__(self, code: str, *params: str) -> None:
        super().__init__(code, *params)
        self.code = code
        self.params = [str(param) for param in params]

    @property
    def description(self) -> list[str]:
        """The error as it is sent: the code, then its parameters."""
        return [self.code, *self.params]


class Dropped(Exception):
    """The connection is broken instead of an answer."""
