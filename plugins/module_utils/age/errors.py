# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What can be wrong with an age file, a key or a signature."""
from __future__ import annotations


class AgeError(Exception):
    """Base of all errors of this package: ``message`` says what is wrong, ``remedy`` what to do (may be empty)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "%s. %s" % (self.message, self.remedy) if self.remedy else self.message


class KeyFormatError(AgeError):
    """A recipient, an identity or a key file is malformed."""


class ArmorError(AgeError):
    """The PEM-like armor around an age file is malformed."""


class HeaderError(AgeError):
    """The header of an age file is malformed or asks for something that is not supported."""


class HmacError(HeaderError):
    """The header was changed after it was written, or the file key is not the right one."""


class NoMatchError(AgeError):
    """None of the identities fits one of the file's recipients."""


class PayloadError(AgeError):
    """The payload is damaged, cut short or followed by something."""


class SignatureError(AgeError):
    """A signature does not vouch for the message."""
