# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The members of an XVA: a block of a disk and its checksum, the description, the end."""
from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import lru_cache
from typing import Optional, Union

from .errors import XvaError
from .tarfmt import SECTOR, make_header, padding

with suppress(ImportError):
    import xxhash

BLOCK = 1048576
END = bytes(2 * SECTOR)
OVA_NAME = "ova.xml"
MAX_NUMBER = 99999999  # importers compare numbers as text: a ninth digit would break their order

# kind of checksum -> ending of the member's name, and its text: 40 lower-case or 16 upper-case hexadecimal digits
SUFFIX = {"sha1": ".checksum", "xxhash": ".xxhash"}

Data = Union[bytes, bytearray, memoryview]


def block_unit(label: str, number: int, data: Data, kind: str = "sha1", checksum: Optional[str] = None) -> bytes:
    """Return the tar members of one block: ``data`` (at most 1 MiB) and its checksum, each padded to 512 bytes.

    ``number``: where the block lies on the disk, in MiB. ``kind`` of checksum: ``sha1``, which every release imports, or
    ``xxhash``, which XAPI 1.170 and later do. ``checksum``: its digits, where they are known to be right.
    Raises XvaError for a number or a block the format cannot hold.
    """
    if not 0 <= number <= MAX_NUMBER or not 0 < len(data) <= BLOCK:
        raise XvaError("%d bytes as block %d do not fit into an archive" % (len(data), number), disk=label)
    name = "%s/%08d" % (label, number)
    text = (checksum or _checksum(kind, data)).encode("ascii")
    return b"".join((
        make_header(name, len(data)), data, bytes(padding(len(data))),
        make_header(name + SUFFIX[kind], len(text)), text, bytes(padding(len(text))),
    ))


def ova_unit(xml: bytes) -> bytes:
    """Return the first member of an archive, the description of the VM."""
    return make_header(OVA_NAME, len(xml)) + xml + bytes(padding(len(xml)))


def verify_checksum(kind: str, text: str, data: Data) -> bool:
    """Tell whether ``text``, the content of a checksum member, is right for ``data``; exact in case, as importers are.

    Raises XvaError for an unknown kind.
    """
    return _checksum(kind, data) == text


@lru_cache(maxsize=2)
def zero_checksum(kind: str) -> str:
    """The text of a checksum member for 1 MiB of zeros."""
    return _checksum(kind, bytes(BLOCK))


def _checksum(kind: str, data: Data) -> str:
    if kind == "sha1":
        return hashlib.sha1(data).hexdigest()  # noqa: S324  the format's own, against accidents
    if kind == "xxhash":
        return xxhash.xxh64_hexdigest(data).upper()
    raise XvaError("unknown kind of checksum %r" % kind)
