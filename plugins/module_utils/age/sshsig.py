# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Signatures as OpenSSH makes and checks them (ssh-keygen -Y), with Ed25519 keys.

Sources: PROTOCOL.sshsig and PROTOCOL.key of OpenSSH; ssh-keygen(1), ALLOWED SIGNERS.
"""
from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import shlex
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from .errors import KeyFormatError, SignatureError

with suppress(ImportError):
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_ssh_private_key,
    )

MAGIC = b"SSHSIG"
KEY_TYPE = b"ssh-ed25519"
BEGIN, END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
COLUMNS = 70
TIMES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _strings(data: bytes) -> list[bytes]:
    out = []
    while data:
        if len(data) < 4 or len(data) - 4 < struct.unpack(">I", data[:4])[0]:
            raise SignatureError("the signature or key is cut short")
        end = 4 + struct.unpack(">I", data[:4])[0]
        out.append(data[4:end])
        data = data[end:]
    return out


def _signed(message: bytes, namespace: str) -> bytes:
    digest = hashlib.sha512(message).digest()
    return MAGIC + _string(namespace.encode()) + _string(b"") + _string(b"sha512") + _string(digest)


class SigningKey:
    """An Ed25519 key that vouches for restore points."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_openssh(cls, data: bytes) -> SigningKey:
        """Parse an unencrypted OpenSSH private key. Raises KeyFormatError."""
        try:
            private = load_ssh_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFormatError("the file is not an OpenSSH private key without a passphrase") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFormatError("the key is not an Ed25519 key")
        return cls(private)

    def to_openssh(self) -> bytes:
        """The secret as OpenSSH stores it."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    def public_line(self, comment: str = "") -> str:
        """The public half: ``ssh-ed25519 AAAA… comment``."""
        blob = base64.b64encode(_string(KEY_TYPE) + _string(self.public)).decode()
        return ("%s %s %s" % (KEY_TYPE.decode(), blob, comment)).rstrip()

    def sign(self, message: bytes, namespace: str) -> bytes:
        """An armored signature of the message, as ``ssh-keygen -Y sign -n namespace`` makes it."""
        signature = _string(KEY_TYPE) + _string(self._private.sign(_signed(message, namespace)))
        blob = (
            MAGIC + struct.pack(">I", 1) + _string(_string(KEY_TYPE) + _string(self.public))
            + _string(namespace.encode()) + _string(b"") + _string(b"sha512") + _string(signature)
        )
        return _armor(blob)


def is_exact(armored: bytes) -> bool:
    """Whether a signature is in the form that ``sign()`` and ``ssh-keygen`` give it, to the last byte."""
    try:
        return _armor(base64.b64decode(b"".join(armored.split(b"\n")[1:-2]))) == armored
    except (binascii.Error, ValueError):
        return False


def _armor(blob: bytes) -> bytes:
    text = base64.b64encode(blob)
    lines = [text[start:start + COLUMNS] for start in range(0, len(text), COLUMNS)]
    return b"\n".join([BEGIN, *lines, END]) + b"\n"


def _parse_signature(armored: bytes, namespace: str) -> tuple[bytes, bytes, str]:
    """Return public key, raw signature and hash name of an armored signature."""
    body = armored.strip().replace(b"\r", b"")
    if not body.startswith(BEGIN) or not body.endswith(END):
        raise SignatureError("this is no SSH signature")
    try:
        blob = base64.b64decode(b"".join(body[len(BEGIN):-len(END)].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("the signature holds malformed base64") from error
    if blob[:10] != MAGIC + struct.pack(">I", 1):
        raise SignatureError("this is no SSH signature of version 1")
    fields = _strings(blob[10:])
    if len(fields) != 5:
        raise SignatureError("the signature is malformed")
    key, signature = _strings(fields[0]), _strings(fields[4])
    if len(key) != 2 or key[0] != KEY_TYPE or len(signature) != 2 or signature[0] != KEY_TYPE:
        raise SignatureError("the signature is not of an Ed25519 key")
    if fields[1] != namespace.encode():
        raise SignatureError("the signature was made for another purpose than %s" % namespace)
    return key[1], signature[1], fields[3].decode("ascii", "replace")


@dataclass(frozen=True)
class _Signer:
    principals: str
    public: bytes
    namespaces: Optional[str]
    valid_after: Optional[datetime]
    valid_before: Optional[datetime]


class AllowedSigners:
    """Who may sign: the contents of an OpenSSH allowed-signers file."""

    def __init__(self, signers: list[_Signer]) -> None:
        self._signers = signers

    @classmethod
    def of(cls, key: SigningKey, principal: str = "mover") -> AllowedSigners:
        """Allow one key alone."""
        return cls([_Signer(principal, key.public, None, None, None)])

    @classmethod
    def parse(cls, text: str) -> AllowedSigners:
        """Parse a file's text: lines of ``principals [options] ssh-ed25519 AAAA...``.

        Raises KeyFormatError naming the line.
        """
        signers = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    signers.append(_signer(line))
                except (ValueError, SignatureError) as error:
                    raise KeyFormatError("line %d of the allowed signers: %s" % (number, error)) from error
        return cls(signers)

    def __add__(self, other: AllowedSigners) -> AllowedSigners:
        return AllowedSigners(self._signers + other._signers)

    def verify(self, message: bytes, signature: bytes, namespace: str, at: Optional[datetime] = None) -> str:
        """Return the principal that signed. Raises SignatureError.

        ``at`` is the moment at which the signer must have been valid, by default now.
        """
        public, raw, algorithm = _parse_signature(signature, namespace)
        if algorithm not in ("sha256", "sha512"):
            raise SignatureError("the signature uses the hash %r" % algorithm)
        signed = MAGIC + b"".join(
            _string(part) for part in
            (namespace.encode(), b"", algorithm.encode(), hashlib.new(algorithm, message).digest())
        )
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(raw, signed)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError("the signature does not fit: what it covers was changed") from error
        moment = at or datetime.now(timezone.utc)
        for signer in self._signers:
            if signer.public == public and _valid(signer, namespace, moment):
                return signer.principals.split(",")[0]
        raise SignatureError("it is signed by a key that is not among the allowed signers")


def _valid(signer: _Signer, namespace: str, moment: datetime) -> bool:
    if signer.namespaces and not any(fnmatch.fnmatchcase(namespace, one) for one in signer.namespaces.split(",")):
        return False
    if signer.valid_after and moment < signer.valid_after:
        return False
    return not (signer.valid_before and moment >= signer.valid_before)


def _signer(line: str) -> _Signer:
    words = shlex.split(line)
    kind = next((place for place, word in enumerate(words) if word == KEY_TYPE.decode()), 0)
    if not kind or kind > 2 or len(words) < kind + 2:
        raise ValueError("expected principals, options and an ssh-ed25519 key")
    key = _strings(base64.b64decode(words[kind + 1], validate=True))
    if len(key) != 2 or key[0] != KEY_TYPE or len(key[1]) != 32:
        raise ValueError("the key is malformed")
    options = _options(line, kind)
    unknown = set(options) - {"namespaces", "valid-after", "valid-before"}
    if unknown:
        raise ValueError("option %s is not supported" % ", ".join(sorted(unknown)))
    return _Signer(
        words[0], key[1], options.get("namespaces"), _moment(options.get("valid-after")),
        _moment(options.get("valid-before")),
    )


def _options(line: str, kind: int) -> dict[str, str]:
    if kind == 1:
        return {}
    # quotes protect the commas between options
    lexer = shlex.shlex(line.split(None, 1)[1].split(" ssh-ed25519 ")[0], posix=True, punctuation_chars=",")
    lexer.whitespace_split = True
    words = [word for word in lexer if word != ","]
    return {name.lower(): value for name, dummy, value in (word.partition("=") for word in words)}


def _moment(text: Optional[str]) -> Optional[datetime]:
    if not text:
        return None
    digits = text.rstrip("Z")
    moment = datetime.strptime(digits, TIMES.get(len(digits), "%Y%m%d"))
    return moment.replace(tzinfo=timezone.utc) if text.endswith("Z") else moment.astimezone(timezone.utc)
