# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Post-quantum recipients: ML-KEM-768 beside X25519, so that both would have to be broken.

Sources: the age v1 format, "mlkem768x25519"; RFC 9180 (HPKE); the seed is spread out as in X-Wing
(draft-connolly-cfrg-xwing-kem). Needs a release of cryptography that has this HPKE suite; ``AVAILABLE`` tells.
"""
from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any, Optional, Sequence

from . import bech32
from .errors import HeaderError, KeyFormatError
from .header import Stanza, decode64, encode64

try:
    from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    _SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    AVAILABLE = True
except (ImportError, AttributeError):
    AVAILABLE = False

TYPE = "mlkem768x25519"
PREFIX = "age1pq"
SECRET_PREFIX = "AGE-SECRET-KEY-PQ-"
INFO = b"age-encryption.org/mlkem768x25519"
PUBLIC_SIZE = 1184 + 32
SHARE_SIZE = 1088 + 32
WRAPPED_SIZE = 32


def _need() -> None:
    if not AVAILABLE:
        raise KeyFormatError(
            "the installed release of cryptography knows no post-quantum keys", "Install a newer one: pip install -U cryptography"
        )


class HybridRecipient:
    """The public half of a key pair: ``age1pq1…``."""

    def __init__(self, raw: bytes) -> None:
        _need()
        self.raw = raw
        try:
            mlkem, x25519 = MLKEM768PublicKey.from_public_bytes(raw[:1184]), X25519PublicKey.from_public_bytes(raw[1184:])
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFormatError("it is no post-quantum recipient") from error
        self._key = hpke.MLKEM768X25519PublicKey(mlkem, x25519)

    @classmethod
    def from_string(cls, text: str) -> HybridRecipient:
        """Parse ``age1pq1…``. Raises KeyFormatError."""
        prefix, raw = bech32.decode(text)
        if prefix != PREFIX or len(raw) != PUBLIC_SIZE:
            raise KeyFormatError("it is no post-quantum recipient (age1pq1...)")
        return cls(raw)

    def __str__(self) -> str:
        return bech32.encode(PREFIX, self.raw)

    def wrap(self, file_key: bytes) -> Stanza:
        """See Recipient."""
        sealed = _SUITE.encrypt(file_key, self._key, info=INFO)
        return Stanza(TYPE, (encode64(sealed[:SHARE_SIZE]),), sealed[SHARE_SIZE:])


class HybridIdentity:
    """A key pair: ``AGE-SECRET-KEY-PQ-1…``."""

    def __init__(self, seed: bytes) -> None:
        _need()
        self._seed = seed
        spread = hashlib.shake_256(seed).digest(96)
        mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(spread[:64]), X25519PrivateKey.from_private_bytes(spread[64:])
        self._key, self._x25519 = hpke.MLKEM768X25519PrivateKey(mlkem, x25519), x25519
        self._public = b"".join(_raw(one.public_key()) for one in (mlkem, x25519))

    @classmethod
    def generate(cls) -> HybridIdentity:
        """A new identity."""
        return cls(os.urandom(32))

    @classmethod
    def from_string(cls, text: str) -> HybridIdentity:
        """Parse ``AGE-SECRET-KEY-PQ-1…``. Raises KeyFormatError, whose text does not hold the key."""
        prefix, seed = bech32.decode(text)
        if prefix != SECRET_PREFIX or len(seed) != 32:
            raise KeyFormatError("the text is not a post-quantum age identity (AGE-SECRET-KEY-PQ-1...)")
        return cls(seed)

    def to_string(self) -> str:
        """The secret as text."""
        return bech32.encode(SECRET_PREFIX.lower(), self._seed).upper()

    def recipient(self) -> HybridRecipient:
        """The public half."""
        return HybridRecipient(self._public)

    def unwrap(self, stanzas: Sequence[Stanza]) -> Optional[bytes]:
        """See Identity."""
        for stanza in stanzas:
            if stanza.type != TYPE:
                continue
            share = decode64(stanza.arguments[0]) if len(stanza.arguments) == 1 else b""
            if len(share) != SHARE_SIZE or len(stanza.body) != WRAPPED_SIZE:
                raise HeaderError("the header has a malformed post-quantum recipient")
            try:
                self._x25519.exchange(X25519PublicKey.from_public_bytes(share[1088:]))  # the suite does not tell
            except ValueError as error:
                raise HeaderError("the header has a post-quantum share of low order") from error
            with suppress(InvalidTag):
                return bytes(_SUITE.decrypt(share + stanza.body, self._key, info=INFO))
        return None


def _raw(public: Any) -> bytes:
    return bytes(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
