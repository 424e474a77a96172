# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The payload of an age file: 64 KiB chunks, each authenticated. Source: the age v1 format (STREAM)."""
from __future__ import annotations

import hmac
import io
import os
import struct
from contextlib import suppress
from typing import BinaryIO, Optional, Sequence, Union

from .errors import HeaderError, HmacError, NoMatchError, PayloadError
from .header import Header, derive, header_mac, parse, render
from .keys import Identity, Recipient, ScryptRecipient

with suppress(ImportError):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CHUNK = 65536
TAG = 16
SEALED = CHUNK + TAG
NONCE = 16
GULP = 16 * SEALED  # read ahead: about 1 MiB

Data = Union[bytes, bytearray, memoryview]


def _chunk_nonce(number: int, last: bool) -> bytes:
    return struct.pack(">3xQB", number, last)


def _payload_cipher(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(derive(file_key, nonce, b"payload"))


def open_header(source: BinaryIO, identities: Sequence[Identity]) -> tuple[Header, bytes]:
    """Read the header and find the file key.

    Raises HeaderError, NoMatchError when no identity fits, HmacError.
    """
    header = parse(source)
    if len(header.stanzas) > 1 and any(stanza.type == "scrypt" for stanza in header.stanzas):
        raise HeaderError("the header mixes a passphrase with other recipients")
    for identity in identities:
        file_key = identity.unwrap(header.stanzas)
        if file_key is None:
            continue
        if not hmac.compare_digest(header_mac(file_key, header.authenticated), header.mac):
            raise HmacError("the header's authentication code does not fit")
        return header, file_key
    raise NoMatchError("none of the identities given opens it")


class AgeWriter:
    """Encrypts what is written to it into ``sink`` (which needs only ``write``); ``close`` writes the last chunk.

    The sink stays open. Without ``close`` the file is recognisably cut short.
    """

    def __init__(self, sink: BinaryIO, recipients: Sequence[Recipient]) -> None:
        if not recipients:
            raise ValueError("an age file needs a recipient")
        if len(recipients) > 1 and any(isinstance(recipient, ScryptRecipient) for recipient in recipients):
            raise HeaderError("a passphrase must be the only recipient")
        file_key, nonce = os.urandom(16), os.urandom(NONCE)
        sink.write(render([recipient.wrap(file_key) for recipient in recipients], file_key) + nonce)
        self._sink = sink
        self._encrypt = _payload_cipher(file_key, nonce).encrypt
        self._number = 0
        self._rest = bytearray()  # at most one chunk: whether it is the last is not known until more comes

    def write(self, data: Data) -> int:
        """Take any amount of data."""
        view, start = memoryview(data), 0
        if self._rest:
            start = min(CHUNK - len(self._rest), len(view))
            self._rest += view[:start]
        if start == len(view):
            return len(view)
        sealed = []
        if self._rest:
            sealed.append(self._seal(bytes(self._rest), False))
            self._rest.clear()
        # a chunk is sealed only when at least one byte follows it, else it may be the last one
        while len(view) - start > CHUNK:
            sealed.append(self._seal(bytes(view[start:start + CHUNK]), False))
            start += CHUNK
        self._rest += view[start:]
        if sealed:
            self._sink.write(sealed[0] if len(sealed) == 1 else b"".join(sealed))
        return len(view)

    def close(self) -> None:
        """Write the last chunk."""
        self._sink.write(self._seal(bytes(self._rest), True))
        self._rest.clear()

    def _seal(self, data: bytes, last: bool) -> bytes:
        sealed: bytes = self._encrypt(_chunk_nonce(self._number, last), data, None)
        self._number += 1
        return sealed


class _Opener:
    """Decrypts chunk by number."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        self._cipher = _payload_cipher(file_key, nonce)

    def open(self, number: int, last: bool, sealed: bytes) -> Optional[bytes]:
        if len(sealed) < TAG:
            return None
        try:
            return self._cipher.decrypt(_chunk_nonce(number, last), sealed, None)
        except InvalidTag:
            return None


def _read_nonce(source: BinaryIO) -> bytes:
    nonce = source.read(NONCE)
    if len(nonce) != NONCE:
        raise HeaderError("the file ends before its payload")
    return nonce


class AgeReader(io.RawIOBase):
    """Decrypts a file from its beginning to its end. Raises as open_header does, and PayloadError while reading.

    What was returned is authentic; that nothing is missing is known when the end is reached without an error.
    ``io.BufferedReader`` may be put around it.
    """

    def __init__(self, source: BinaryIO, identities: Sequence[Identity]) -> None:
        super().__init__()
        dummy, file_key = open_header(source, identities)
        self._opener = _Opener(file_key, _read_nonce(source))
        self._source = source
        self._sealed = b""
        self._position = 0
        self._plain = memoryview(b"")
        self._number = 0
        self._ended = False
        self._error: Optional[PayloadError] = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Data) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes; 0 is the authentic end."""
        view, filled = memoryview(buffer), 0
        while filled < len(view):
            if not self._plain and not self._next_chunk(filled > 0):
                break
            size = min(len(self._plain), len(view) - filled)
            view[filled:filled + size] = self._plain[:size]
            self._plain = self._plain[size:]
            filled += size
        return filled

    def _next_chunk(self, defer: bool) -> bool:
        # with data in hand the error waits for the next call: what is authentic is given out first
        if self._error is None:
            try:
                return self._open_next()
            except PayloadError as error:
                self._error = error
        if defer:
            return False
        raise self._error

    def _open_next(self) -> bool:
        self._read_ahead()
        sealed = self._sealed[self._position:self._position + SEALED]
        self._position += len(sealed)
        if self._ended:
            if sealed:
                raise PayloadError("something follows the last chunk")
            return False
        if not sealed:
            raise PayloadError("the file is cut short")
        plain = self._opener.open(self._number, False, sealed) if len(sealed) == SEALED else None
        if plain is None:
            plain = self._opener.open(self._number, True, sealed)
            self._ended = True
        if plain is None or (self._ended and not plain and self._number):
            raise PayloadError("chunk %d is damaged, or the file is cut short" % self._number)
        self._plain = memoryview(plain)
        self._number += 1
        return bool(plain) or self._next_chunk(False)

    def _read_ahead(self) -> None:
        while len(self._sealed) - self._position < SEALED:
            more = self._source.read(GULP)
            if not more:
                return
            self._sealed = self._sealed[self._position:] + more
            self._position = 0


class AgeRangeReader:
    """Decrypts any range of a seekable file, reading no more than the header, the last chunk and the range.

    ``size`` is the length of the plain text in bytes. A range authenticates only the chunks it touches.
    """

    def __init__(self, source: BinaryIO, identities: Sequence[Identity]) -> None:
        source.seek(0)
        header, file_key = open_header(source, identities)
        self._opener = _Opener(file_key, _read_nonce(source))
        self._source = source
        self._start = header.size + NONCE
        cipher_size = source.seek(0, os.SEEK_END) - self._start
        self._chunks = -(-cipher_size // SEALED)
        self.size = cipher_size - TAG * self._chunks
        # the length can be trusted only when the last chunk says that it is the last
        if self.size < 0 or not self._chunks or (self.size == 0 and self._chunks != 1):
            raise PayloadError("the file is cut short")
        last = self._read_chunks(self._chunks - 1, self._chunks)
        if not last and self._chunks > 1:
            raise PayloadError("the last chunk is empty")

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``. Raises PayloadError, also for a range outside the file."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise PayloadError("the file has %d bytes: %d bytes at %d are not in it" % (self.size, length, offset))
        if not length:
            return b""
        first, end = offset // CHUNK, -(-(offset + length) // CHUNK)
        plain = self._read_chunks(first, end)
        start = offset - first * CHUNK
        return plain if not start and length == len(plain) else plain[start:start + length]

    def _read_chunks(self, first: int, end: int) -> bytes:
        self._source.seek(self._start + first * SEALED)
        sealed = self._source.read((end - first) * SEALED)
        parts = []
        for number in range(first, end):
            start = (number - first) * SEALED
            plain = self._opener.open(number, number == self._chunks - 1, sealed[start:start + SEALED])
            if plain is None:
                raise PayloadError("chunk %d is damaged, or the file is cut short" % number)
            parts.append(plain)
        return parts[0] if len(parts) == 1 else b"".join(parts)
