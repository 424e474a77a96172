# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Post-quantum keys: what is encrypted to one is opened by it alone. The testkit's vectors are in test_age_testkit.py."""
from __future__ import annotations

import io

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age import hybrid
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import KeyFormatError, NoMatchError
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import X25519Identity, parse_identity, parse_recipient
from ansible_collections.guestark.xen.plugins.module_utils.age.stream import AgeReader, AgeWriter

pytestmark = pytest.mark.skipif(not hybrid.AVAILABLE, reason="the installed release of cryptography knows no post-quantum keys")


def sealed(data: bytes, *recipients) -> bytes:
    sink = io.BytesIO()
    writer = AgeWriter(sink, list(recipients))
    writer.write(data)
    writer.close()
    return sink.getvalue()


def opened(data: bytes, *identities) -> bytes:
    buffer = bytearray(1 << 20)
    return bytes(buffer[:AgeReader(io.BytesIO(data), list(identities)).readinto(buffer)])


def test_what_is_encrypted_to_a_key_is_opened_by_it_alone():
    own, other, classic = hybrid.HybridIdentity.generate(), hybrid.HybridIdentity.generate(), X25519Identity.generate()
    data = sealed(b"secret", other.recipient(), own.recipient())
    assert opened(data, classic, own) == opened(data, other) == b"secret"
    for stranger in (hybrid.HybridIdentity.generate(), classic):
        with pytest.raises(NoMatchError):
            opened(data, stranger)


def test_keys_survive_as_text():
    own = hybrid.HybridIdentity.generate()
    again = parse_identity(own.to_string())
    recipient = parse_recipient(str(own.recipient()))
    assert own.to_string().startswith("AGE-SECRET-KEY-PQ-1") and str(recipient).startswith("age1pq1")
    assert str(again.recipient()) == str(recipient)
    assert opened(sealed(b"secret", recipient), again) == b"secret"


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: text[:-8] + "qqqqqqqq", lambda text: text.replace("pq1", "1", 1)]
)
def test_text_that_is_no_key_is_refused(change):
    text = str(hybrid.HybridIdentity.generate().recipient())
    with pytest.raises(KeyFormatError):
        parse_recipient(change(text))


def test_a_release_without_the_suite_says_what_to_do(monkeypatch):
    monkeypatch.setattr(hybrid, "AVAILABLE", False)
    with pytest.raises(KeyFormatError, match="cryptography") as caught:
        hybrid.HybridIdentity(bytes(32))
    assert "Install a newer one" in str(caught.value.remedy)
