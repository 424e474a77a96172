# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Chooses the store that a repository's address means."""
from __future__ import annotations

import re
from typing import Any, Mapping, Optional

from .errors import RepositoryError
from .object_store import KINDS, ObjectStore
from .posix import PosixStore
from .store import Store


def open_store(address: str, options: Optional[Mapping[str, Any]] = None) -> Store:
    """The store at ``address``: a directory, or ``s3://``, ``az://`` or ``gs://`` with a bucket and perhaps a prefix.

    ``options`` are for object stores. RepositoryError when there can be no such store.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", address)
    if not scheme:
        return PosixStore(address)
    if scheme[1] not in KINDS:
        raise RepositoryError(
            "%s is no repository this version can use." % address, "Give a directory, or an address with s3, az or gs."
        )
    return ObjectStore(address, options)
