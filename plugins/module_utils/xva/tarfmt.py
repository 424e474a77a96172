# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Tar headers. XAPI writes the oldest kind, V7, without magic, users or times; it reads newer ones, as we do.

Field positions are those of POSIX ustar, which extends V7 from byte 257 on.
"""
from __future__ import annotations

import re
from typing import NamedTuple, Optional, Union

from .errors import XvaError

SECTOR = 512  # headers are one sector; contents are padded to whole sectors
ZERO_SECTOR = bytes(SECTOR)
FILE = ("", "0")  # type flags of a regular file
PAX = ("x", "g")  # type flags of extended headers, for the next member and for all that follow

_NAME_BYTES = 100
_MODE_AND_OWNER = b"0000400\0" + 2 * b"0000000\0"  # as XAPI 23 and later; older ones write a mode of zeros
_TIME = b"00000000000\0"
_CHECKSUM = slice(148, 156)
_CHECKSUM_AS_SPACES = 8 * ord(" ")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")
_USTAR = b"ustar\0"  # GNU's magic is "ustar  ": there the prefix field means something else


class Member(NamedTuple):
    """What a header says: ``size`` in bytes, ``kind`` the type flag ("" for V7's NUL)."""

    name: str
    size: int
    kind: str


def padding(size: int) -> int:
    """Number of zero bytes between the end of a content of ``size`` bytes and the next header."""
    return -size % SECTOR


def make_header(name: str, size: int) -> bytes:
    """Return the V7 header of a regular file, byte for byte as XAPI writes it (checksum: seven digits and NUL)."""
    start = name.encode("ascii").ljust(_NAME_BYTES, b"\0") + _MODE_AND_OWNER + b"%011o\0" % size + _TIME
    return (start + b"%07o\0" % (sum(start) + _CHECKSUM_AS_SPACES)).ljust(SECTOR, b"\0")


def parse_header(sector: Union[bytes, bytearray]) -> Optional[Member]:
    """Return what a header of 512 bytes says (V7, ustar, GNU or pax), None for a sector of zeros.

    Raises XvaError when it is no header.
    """
    if sector == ZERO_SECTOR:
        return None
    if _octal(sector[_CHECKSUM]) != sum(sector) - sum(sector[_CHECKSUM]) + _CHECKSUM_AS_SPACES:
        raise XvaError("a tar header is damaged")
    name = _text(sector[:_NAME_BYTES])
    prefix = _text(sector[345:500]) if sector[257:263] == _USTAR else ""
    return Member("%s/%s" % (prefix, name) if prefix else name, _octal(sector[124:136]), _text(sector[156:157]))


def pax_keywords(content: Union[bytes, bytearray]) -> set[str]:
    """Return the keywords of an extended header: records of "length keyword=value\\n".

    Raises XvaError when it is malformed.
    """
    keywords = set()
    start = 0
    while start < len(content):
        match = _PAX_RECORD.match(content, start)
        end = start + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise XvaError("an extended tar header is damaged")
        keywords.add(_text(match[2]))
        start = end
    return keywords


def _octal(field: Union[bytes, bytearray]) -> int:
    match = _OCTAL.fullmatch(field)
    if not match:
        raise XvaError("a tar header is damaged")
    return int(match[1], 8)


def _text(field: Union[bytes, bytearray]) -> str:
    return bytes(field).partition(b"\0")[0].decode("latin-1")
