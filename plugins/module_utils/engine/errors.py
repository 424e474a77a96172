# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The engine's one error, and how the errors of the layers below become it."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from ..age.errors import AgeError, NoMatchError
from ..repository.errors import RepositoryError
from ..xapi.errors import PoolError
from ..xva.errors import XvaError


class EngineError(Exception):
    """Something could not be done to a VM.

    ``message`` says what happened and to which VM, ``remedy`` what to do about it (may be empty); the error of the
    layer below, if any, is ``__cause__``.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "%s %s" % (self.message, self.remedy) if self.remedy else self.message


def _remedy(error: Exception) -> str:
    own = getattr(error, "remedy", "")
    if own:
        return str(own)
    if isinstance(error, NoMatchError):
        return "Give the identity that belongs to one of the recipients this was encrypted to."
    if isinstance(error, XvaError):
        return "Run it again; if it repeats, check the storage and the network between the mover and the host."
    if isinstance(error, AgeError):
        return "Verify the repository with sealed verification, and use an earlier point."
    return ""


@contextmanager
def naming(doing: str, vm: str) -> Iterator[None]:
    """Give every error of the layers below the VM's name: ``doing`` reads like "back up" or "restore"."""
    try:
        yield
    except (AgeError, PoolError, RepositoryError, XvaError, OSError) as error:
        cause = str(getattr(error, "message", "") or error).rstrip(".")
        raise EngineError("Could not %s VM %r: %s." % (doing, vm, cause), _remedy(error)) from error


PROBLEMS = (AgeError, EngineError, PoolError, RepositoryError, XvaError)  # all that is told to a user as it is
