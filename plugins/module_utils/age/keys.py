# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Recipients, to whom a file is encrypted, and identities, which open it. Source: the age v1 format."""
from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Optional, Protocol, Sequence

from . import bech32, hybrid
from .errors import HeaderError, KeyFormatError
from .header import Stanza, decode64, derive, encode64
from .hybrid import HybridIdentity, HybridRecipient

with suppress(ImportError):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

X25519_INFO = b"age-encryption.org/v1/X25519"
SCRYPT_SALT = b"age-encryption.org/v1/scrypt"
NO_NONCE = bytes(12)  # every wrapping key is used once
WRAPPED_SIZE = 32  # a file key of 16 bytes and its tag


class Recipient(Protocol):
    """One who may open a file."""

    def wrap(self, file_key: bytes) -> Stanza:
        """Encrypt the file key to this recipient."""


class Identity(Protocol):
    """The secret that opens files encrypted to its recipient."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> Optional[bytes]:
        """Return the file key, or None when no stanza is for this identity. Raises HeaderError for malformed ones."""


class KeyPair(Identity, Protocol):
    """An identity as key files hold it."""

    def recipient(self) -> Recipient:
        """The public half; its text is ``age1…``."""


def _open(key: bytes, body: bytes) -> Optional[bytes]:
    try:
        return ChaCha20Poly1305(key).decrypt(NO_NONCE, body, None)
    except InvalidTag:
        return None


class X25519Recipient:
    """The public half of a key pair: ``age1…``."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_string(cls, text: str) -> X25519Recipient:
        """Parse ``age1…``. Raises KeyFormatError."""
        prefix, raw = bech32.decode(text)
        if prefix != "age" or len(raw) != 32:
            raise KeyFormatError("%r is not an age recipient" % _shown(text))
        return cls(raw)

    def __str__(self) -> str:
        return bech32.encode("age", self.raw)

    def wrap(self, file_key: bytes) -> Stanza:
        """See Recipient."""
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        try:
            shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.raw))
        except ValueError as error:
            raise KeyFormatError("recipient %s is a point of low order" % self) from error
        key = derive(shared, share + self.raw, X25519_INFO)
        return Stanza("X25519", (encode64(share),), ChaCha20Poly1305(key).encrypt(NO_NONCE, file_key, None))


class X25519Identity:
    """A key pair: ``AGE-SECRET-KEY-1…``."""

    def __init__(self, raw: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(raw)
        self._public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def generate(cls) -> X25519Identity:
        """A new identity."""
        return cls(os.urandom(32))

    @classmethod
    def from_string(cls, text: str) -> X25519Identity:
        """Parse ``AGE-SECRET-KEY-1…``. Raises KeyFormatError, whose text does not hold the key."""
        prefix, raw = bech32.decode(text)
        if prefix != "AGE-SECRET-KEY-" or len(raw) != 32:
            raise KeyFormatError("the text is not an age identity (AGE-SECRET-KEY-1...)")
        return cls(raw)

    def to_string(self) -> str:
        """The secret as text."""
        raw = self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return bech32.encode("age-secret-key-", raw).upper()

    def recipient(self) -> X25519Recipient:
        """The public half."""
        return X25519Recipient(self._public)

    def unwrap(self, stanzas: Sequence[Stanza]) -> Optional[bytes]:
        """See Identity."""
        for stanza in stanzas:
            if stanza.type != "X25519":
                continue
            share = decode64(stanza.arguments[0]) if len(stanza.arguments) == 1 else b""
            if len(share) != 32 or len(stanza.body) != WRAPPED_SIZE:
                raise HeaderError("the header has a malformed X25519 recipient")
            try:
                shared = self._private.exchange(X25519PublicKey.from_public_bytes(share))
            except ValueError as error:
                raise HeaderError("the header has an X25519 share of low order") from error
            file_key = _open(derive(shared, share + self._public, X25519_INFO), stanza.body)
            if file_key is not None:
                return file_key
        return None


def _scrypt_key(passphrase: str, salt: bytes, work_factor: int) -> bytes:
    return Scrypt(salt=SCRYPT_SALT + salt, length=32, n=1 << work_factor, r=8, p=1).derive(passphrase.encode())


class ScryptRecipient:
    """A passphrase; must be a file's only recipient. ``work_factor`` is the logarithm of scrypt's N."""

    def __init__(self, passphrase: str, work_factor: int = 18) -> None:
        self._passphrase = passphrase
        self._work_factor = work_factor

    def wrap(self, file_key: bytes) -> Stanza:
        """See Recipient."""
        salt = os.urandom(16)
        key = _scrypt_key(self._passphrase, salt, self._work_factor)
        body = ChaCha20Poly1305(key).encrypt(NO_NONCE, file_key, None)
        return Stanza("scrypt", (encode64(salt), str(self._work_factor)), body)


class ScryptIdentity:
    """The same passphrase, for opening; files that ask for more work than ``max_work_factor`` are refused."""

    def __init__(self, passphrase: str, max_work_factor: int = 22) -> None:
        self._passphrase = passphrase
        self._most = max_work_factor

    def unwrap(self, stanzas: Sequence[Stanza]) -> Optional[bytes]:
        """See Identity."""
        if not any(stanza.type == "scrypt" for stanza in stanzas):
            return None
        stanza = stanzas[0]
        if len(stanzas) != 1 or len(stanza.arguments) != 2:
            raise HeaderError("the header mixes a passphrase with other recipients, or is malformed")
        salt, factor = decode64(stanza.arguments[0]), stanza.arguments[1]
        if len(salt) != 16 or len(stanza.body) != WRAPPED_SIZE or not re.fullmatch("[1-9][0-9]{0,3}", factor):
            raise HeaderError("the header has a malformed passphrase recipient")
        if int(factor) > self._most:
            raise HeaderError("the file asks for a work factor of %s, more than %d" % (factor, self._most))
        return _open(_scrypt_key(self._passphrase, salt, int(factor)), stanza.body)


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def parse_recipient(text: str) -> Recipient:
    """Parse ``age1…``. Raises KeyFormatError."""
    text = text.strip()
    if text.upper().startswith("AGE-SECRET-KEY-"):
        raise KeyFormatError("a secret identity was given where a recipient (age1...) is expected")
    try:
        kind = HybridRecipient if text.lower().startswith(hybrid.PREFIX + "1") else X25519Recipient
        return kind.from_string(text)
    except KeyFormatError as error:
        raise KeyFormatError("recipient %r: %s" % (_shown(text), error)) from error


def parse_identity(text: str) -> KeyPair:
    """Parse one identity. Raises KeyFormatError, whose text does not hold the key."""
    kind = HybridIdentity if text.upper().startswith(hybrid.SECRET_PREFIX) else X25519Identity
    return kind.from_string(text)


def read_identities(text: str) -> list[KeyPair]:
    """Parse an identity file: one identity a line, blank lines and lines that begin with # aside.

    Raises KeyFormatError naming the line.
    """
    identities = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            identities.append(parse_identity(line.strip()))
        except KeyFormatError as error:
            raise KeyFormatError("line %d: %s" % (number, error)) from error
    if not identities:
        raise KeyFormatError("there is no identity in it")
    return identities
