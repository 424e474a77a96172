# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tar dialect of an XVA: old V7 headers as XAPI writes them, and every dialect XAPI's reader takes.

A header carries no magic, a NUL as its type flag, and a checksum of seven octal digits and a NUL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512
END = bytes(2 * BLOCK)
_SUM_FIELD = slice(148, 156)
_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"


class TarError(Exception):
    """What follows in the stream is no tar header."""


class EndOfArchive(TarError):
    """Two zero blocks."""


@dataclass(frozen=True)
class Member:
    """One header read: the member's name and its size in bytes."""

    name: str
    size: int


def padding(size: int) -> int:
    """Number of zero bytes that follow `size` bytes of data."""
    return -size % BLOCK


def header(name: str, size: int, mode: int, mtime: int = 0) -> bytes:
    """Return the 512 header bytes of a regular file."""
    encoded = name.encode()
    if len(encoded) > 100:
        raise ValueError(f"a V7 header has no room for {name}")
    fields = b"%b%07o\0%b%011o\0%011o\0        " % (encoded.ljust(100, b"\0"), mode, b"0000000\0" * 2, size, mtime)
    return (fields[:148] + b"%07o\0" % sum(fields)).ljust(BLOCK, b"\0")


def next_member(read: Callable[[int], bytes]) -> Member:
    """Read headers with `read(exactly n bytes)` until one of a file comes.

    Raises EndOfArchive after two zero blocks, TarError for anything that is no header.
    """
    long_name = ""
    zero_blocks = 0
    while True:
        block = read(BLOCK)
        if not any(block):
            zero_blocks += 1
            if zero_blocks == 2:
                raise EndOfArchive("end of the archive")
            continue
        zero_blocks = 0
        name, size, flag = _parse(block)
        if flag == _LONG_NAME:
            long_name = read(size + padding(size))[:size].rstrip(b"\0").decode("utf-8", "replace")
        elif flag == _PAX:
            long_name = _pax_path(read(size + padding(size))[:size]) or long_name
        elif flag == _PAX_GLOBAL:
            read(size + padding(size))
        else:
            return Member(long_name or name, size)


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a tar header."""
    try:
        _parse(block)
    except TarError:
        return False
    return True


def _parse(block: bytes) -> tuple[str, int, bytes]:
    expected = _octal(block[_SUM_FIELD])
    actual = sum(block) - sum(block[_SUM_FIELD]) + 8 * ord(" ")
    if expected != actual:
        raise TarError("a tar header's checksum is wrong")
    name = _text(block[:100])
    if block[257:262] == b"ustar" and block[257:265] != b"ustar  \0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return name, _octal(block[124:136]), block[156:157]


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _octal(field: bytes) -> int:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise TarError("a tar header holds a number that is not octal") from error


def _pax_path(records: bytes) -> str:
    for record in records.split(b"\n"):
        _unused, _unused, pair = record.partition(b" ")
        key, _unused, value = pair.partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "replace")
    return ""
