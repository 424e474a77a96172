# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Keys in files: reading them with errors that name the file, and making them once."""
from __future__ import annotations

import os
from contextlib import suppress
from typing import Callable, Sequence, TypeVar, Union

from .errors import AgeError, KeyFormatError
from .hybrid import HybridIdentity
from .keys import KeyPair, X25519Identity, read_identities
from .sshsig import AllowedSigners, SigningKey

Parsed = TypeVar("Parsed")

PUBLIC_ENDING = ".pub"


def _read(path: str, what: str, parse: Callable[[bytes], Parsed]) -> Parsed:
    try:
        with open(path, "rb") as source:
            return parse(source.read())
    except OSError as error:
        raise KeyFormatError(
            "the %s %s cannot be read: %s" % (what, path, error.strerror),
            "Check the path, and that the user the module runs as may read it.",
        ) from error
    except (AgeError, ValueError) as error:
        raise KeyFormatError(
            "the %s %s cannot be used: %s" % (what, path, error), "Check that the file is complete and of the right kind."
        ) from error


def load_identities(paths: Sequence[str]) -> list[KeyPair]:
    """The identities in the files, in order. Raises KeyFormatError."""
    return [one for path in paths for one in _read(path, "identity file", lambda data: read_identities(data.decode()))]


def load_signing_key(path: str) -> SigningKey:
    """Raises KeyFormatError."""
    return _read(path, "signing key", SigningKey.from_openssh)


def load_signers(path: str) -> AllowedSigners:
    """Raises KeyFormatError."""
    return _read(path, "allowed-signers file", lambda data: AllowedSigners.parse(data.decode()))


def make_identity(path: str, post_quantum: bool = False) -> tuple[str, bool]:
    """Make an age identity in ``path`` unless it is there; return its recipient and whether it was made.

    The recipient is also in ``path`` + ``.pub``. Raises KeyFormatError when what is there is no identity.
    """
    identity: Union[X25519Identity, HybridIdentity, None] = None
    if not os.path.exists(path):
        identity = HybridIdentity.generate() if post_quantum else X25519Identity.generate()
        text = "# public key: %s\n%s\n" % (identity.recipient(), identity.to_string())
        if not _write_new(path, text.encode()):
            identity = None
    recipients = [str(identity.recipient())] if identity else recipients_of(path)
    return recipients[0], _write_public(path, recipients[0] + "\n") or identity is not None


def recipients_of(path: str) -> list[str]:
    """The recipients of the identities in a file. Raises KeyFormatError."""
    return [str(one.recipient()) for one in load_identities([path])]


def make_signing_key(path: str, comment: str) -> tuple[str, bool]:
    """Make an Ed25519 signing key in ``path`` unless it is there; return its public line and whether it was made."""
    made = False
    if not os.path.exists(path):
        made = _write_new(path, SigningKey.generate().to_openssh())
    line = load_signing_key(path).public_line(comment)
    return line, _write_public(path, line + "\n") or made


def _write_new(path: str, data: bytes) -> bool:
    """Write a file that only its owner may read; False when another run was faster. It appears whole or not at all."""
    temporary = "%s.%d.new" % (path, os.getpid())
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise KeyFormatError(
            "the key %s cannot be written: %s" % (path, error.strerror),
            "Make its folder, on a file system with hard links, and let the user the module runs as write there.",
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return True


def _write_public(path: str, text: str) -> bool:
    public = path + PUBLIC_ENDING
    with suppress(OSError):
        with open(public, encoding="ascii") as source:
            if source.read().split()[:2] == text.split()[:2]:
                return False
    with open(public, "w", encoding="ascii") as sink:
        sink.write(text)
    return True
