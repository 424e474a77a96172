# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Errors of a repository: what happened to which object, and what to do about it."""
from __future__ import annotations


class RepositoryError(Exception):
    """Base of every error of this package.

    ``message`` says what happened and to what, ``remedy`` what to do about it (may be empty).
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "%s %s" % (self.message, self.remedy) if self.remedy else self.message


class ObjectExists(RepositoryError):
    """An object of that name is there already; objects are never replaced."""


class ObjectMissing(RepositoryError):
    """There is no object of that name."""


class NoSpace(RepositoryError):
    """The store is full, or a quota is used up."""


class Retained(RepositoryError):
    """The store does not let an object be removed: it is under retention, or one may only write."""


class PointDamaged(RepositoryError):
    """A restore point lacks an object, or one of its objects is not what its signed record says."""


class NotTrusted(RepositoryError):
    """Nobody who is trusted vouches for a restore point."""


class LeaseHeld(RepositoryError):
    """Another run is at work on the same VM."""
