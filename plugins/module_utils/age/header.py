# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The header of an age file: stanzas and their authentication.

Source: the age v1 format, age-encryption.org/v1. Limits on size are this reader's own.
"""
from __future__ import annotations

import base64
import binascii
import hmac
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from .errors import HeaderError

with suppress(ImportError):
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = b"age-encryption.org/v1"
MOST_STANZAS = 64
MOST_BYTES = 65536
COLUMNS = 64
ARGUMENT = re.compile(rb"[\x21-\x7e]+")


@dataclass(frozen=True)
class Stanza:
    """One recipient's share of the file key: ``type``, further ``arguments`` and the ``body``."""

    type: str
    arguments: tuple[str, ...]
    body: bytes


@dataclass(frozen=True)
class Header:
    """A parsed header; ``size`` is its length in bytes."""

    stanzas: tuple[Stanza, ...]
    mac: bytes
    authenticated: bytes
    size: int


def encode64(data: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode()


def decode64(text: str | bytes) -> bytes:
    """Canonical base64 without padding. Raises HeaderError for anything else."""
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    try:
        data = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HeaderError("the header holds malformed base64") from error
    if base64.b64encode(data).rstrip(b"=") != raw:
        raise HeaderError("the header holds base64 that is not canonical")
    return data


def derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 to 32 bytes."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def header_mac(file_key: bytes, authenticated: bytes) -> bytes:
    """The MAC over a header up to and including ``---``."""
    return hmac.new(derive(file_key, b"", b"header"), authenticated, "sha256").digest()


def render(stanzas: list[Stanza], file_key: bytes) -> bytes:
    """The header of a new file."""
    lines = [VERSION.decode()]
    for stanza in stanzas:
        lines.append(" ".join(("->", stanza.type) + stanza.arguments))
        body = encode64(stanza.body)
        lines += [body[start:start + COLUMNS] for start in range(0, len(body) + 1, COLUMNS)]
    authenticated = ("\n".join(lines) + "\n---").encode()
    return authenticated + b" " + encode64(header_mac(file_key, authenticated)).encode() + b"\n"


class _Lines:
    """Reads lines and keeps what it read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.seen = bytearray()

    def line(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            char = self._source.read(1)
            if not char:
                raise HeaderError("the header is cut short: this is no age file, or only the beginning of one")
            line += char
            if len(self.seen) + len(line) > MOST_BYTES:
                raise HeaderError("the header is longer than %d bytes" % MOST_BYTES)
        self.seen += line
        return bytes(line[:-1])


def parse(source: BinaryIO) -> Header:
    """Read a header and leave ``source`` at the first byte of the payload. Raises HeaderError."""
    lines = _Lines(source)
    first = source.read(len(VERSION))
    lines.seen += first
    if first != VERSION or lines.line():
        raise HeaderError("this is no age file, or one of a version that is not supported")
    stanzas: list[Stanza] = []
    while True:
        line = lines.line()
        if line.startswith(b"---"):
            break
        if len(stanzas) == MOST_STANZAS:
            raise HeaderError("the header has more than %d recipients" % MOST_STANZAS)
        stanzas.append(_stanza(line, lines))
    if not stanzas:
        raise HeaderError("the header has no recipient")
    if not line.startswith(b"--- "):
        raise HeaderError("the header's last line is malformed")
    mac = decode64(line[4:])
    if len(mac) != 32:
        raise HeaderError("the header's authentication code has the wrong length")
    authenticated = bytes(lines.seen[:-(len(line) + 1) + 3])
    return Header(tuple(stanzas), mac, authenticated, len(lines.seen))


def _stanza(line: bytes, lines: _Lines) -> Stanza:
    start, *arguments = line.split(b" ")
    if start != b"->" or not arguments or not all(ARGUMENT.fullmatch(argument) for argument in arguments):
        raise HeaderError("the header has a malformed line")
    body = bytearray()
    while True:
        part = lines.line()
        if len(part) > COLUMNS:
            raise HeaderError("the header has a line that is too long")
        body += part
        if len(part) < COLUMNS:
            break
    name, *rest = (argument.decode() for argument in arguments)
    return Stanza(name, tuple(rest), decode64(bytes(body)))
