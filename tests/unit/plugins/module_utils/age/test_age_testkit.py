# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The public test vectors of the age format, where they lie beside the checkout."""
from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age import hybrid
from ansible_collections.guestark.xen.plugins.module_utils.age.armor import dearmor
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import (
    ArmorError,
    HeaderError,
    HmacError,
    NoMatchError,
    PayloadError,
)
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import ScryptIdentity, parse_identity
from ansible_collections.guestark.xen.plugins.module_utils.age.stream import AgeReader

FOLDERS = [
    parent / "shared" / "facts" / "age-testkit" / "testdata"
    for start in (Path(__file__).resolve(), Path.cwd().resolve())
    for parent in start.parents
]
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), None)
KNOWN = {"expect", "payload", "identity", "passphrase", "armored", "file key", "comment", "compressed"}
EXPECTED = {
    "header failure": HeaderError,
    "armor failure": ArmorError,
    "payload failure": PayloadError,
    "HMAC failure": HmacError,
    "no match": NoMatchError,
}


def vectors():
    if FOLDER is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason="the age testkit is not beside this checkout"))]
    return [pytest.param(path, id=path.name) for path in sorted(FOLDER.iterdir()) if path.name != "README.md"]


def parse(data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    head, dummy, body = data.partition(b"\n\n")
    return [tuple(line.split(": ", 1)) for line in head.decode().splitlines()], body


def decrypt(body: bytes, armored: bool, identities: list) -> tuple[bytes, Exception | None]:
    """Everything that was released, and the error that ended it."""
    released = bytearray()
    try:
        reader = AgeReader(io.BytesIO(dearmor(body) if armored else body), identities)
        buffer = bytearray(100_000)
        while size := reader.readinto(buffer):
            released += buffer[:size]
    except (ArmorError, HeaderError, NoMatchError, PayloadError) as error:
        return bytes(released), error
    return bytes(released), None


@pytest.mark.parametrize("path", vectors())
def test_vector(path):
    keys, body = parse(path.read_bytes())
    fields = dict(keys)
    assert set(fields) <= KNOWN
    if any(name == "identity" and value.startswith("AGE-SECRET-KEY-PQ-") for name, value in keys) and not hybrid.AVAILABLE:
        pytest.skip("the installed release of cryptography knows no post-quantum keys")
    if fields.get("compressed") == "zlib":
        body = zlib.decompress(body)
    identities = [parse_identity(value) for name, value in keys if name == "identity"]
    identities += [ScryptIdentity(value) for name, value in keys if name == "passphrase"]
    released, error = decrypt(body, "armored" in fields, identities)
    wanted = EXPECTED.get(fields["expect"])
    if wanted is None:
        assert fields["expect"] == "success"
        assert error is None
    else:
        assert isinstance(error, wanted)
        assert isinstance(error, HmacError) == (wanted is HmacError)
    if "payload" in fields:
        assert hashlib.sha256(released).hexdigest() == fields["payload"]
