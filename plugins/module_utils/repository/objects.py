# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Objects of a point, compared with its signed record before anything in them is believed."""
from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, BinaryIO, Optional, Sequence

from .errors import PointDamaged
from .layout import vm_folder
from .posix import reporting
from .record import PointRecord
from .segments import open_stream
from .store import Store

MOST_META = 256 * 1024 * 1024

_PIECE = 1024 * 1024


def read_meta(store: Store, record: PointRecord, identities: Optional[Sequence[Any]]) -> dict[str, Any]:
    """The metadata of a point; ``identities`` are for one that is encrypted.

    PointDamaged when it is not what the record lists.
    """
    check_digest(store, record, record.meta)
    with store.open(vm_folder(record.vm_uuid) + record.meta) as file, reporting("read", record.meta):
        text = _everything(open_stream(file, identities if record.encrypted else None), record.meta)
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PointDamaged("%s is malformed." % record.meta) from error
    if not isinstance(meta, dict) or meta.get("point") != record.point:
        raise PointDamaged("%s belongs to another restore point." % record.meta)
    return meta


def check_digest(store: Store, record: PointRecord, name: str) -> None:
    """Raise PointDamaged unless the object ``name`` (relative to the VM's folder) is the one the record lists."""
    with store.open(vm_folder(record.vm_uuid) + name) as file, reporting("read", name):
        found = digest_of(file)
    if not hmac.compare_digest(found, record.digest(name)):
        raise PointDamaged("%s is not what the commit record lists." % name, "Use another copy or another point.")


def digest_of(file: BinaryIO) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    while True:
        length = file.readinto(buffer)  # type: ignore[attr-defined]
        if not length:
            return hasher.hexdigest()
        hasher.update(view[:length])


def _everything(stream: Any, name: str) -> bytes:
    data = bytearray()
    while True:
        part = stream.read(_PIECE)
        if not part:
            return bytes(data)
        data += part
        if len(data) > MOST_META:
            raise PointDamaged("%s is larger than metadata can be." % name)
