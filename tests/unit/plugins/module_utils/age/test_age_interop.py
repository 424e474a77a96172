# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ways with the stock age and ssh-keygen programs, ranges, cuts and keys."""
from __future__ import annotations

import io
import random
import shutil
import subprocess

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import (
    AgeError,
    HeaderError,
    KeyFormatError,
    NoMatchError,
    PayloadError,
    SignatureError,
)
from ansible_collections.guestark.xen.plugins.module_utils.age.header import parse
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import (
    ScryptIdentity,
    ScryptRecipient,
    X25519Identity,
    parse_recipient,
    read_identities,
)
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import AllowedSigners, SigningKey
from ansible_collections.guestark.xen.plugins.module_utils.age.stream import AgeRangeReader, AgeReader, AgeWriter
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 65536
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 16 * CHUNK, 16 * CHUNK + 1, 5_000_000]
NAMESPACE = "test@example.org"
needs_age = pytest.mark.skipif(not shutil.which("age"), reason="the program age is not installed")
needs_ssh = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="the program ssh-keygen is not installed")


def encrypt(data: bytes, *recipients, step: int = 300_000) -> bytes:
    sink = io.BytesIO()
    writer = AgeWriter(sink, recipients)
    for start in range(0, len(data), step):
        writer.write(memoryview(data)[start:start + step])
    writer.close()
    return sink.getvalue()


def decrypt(sealed: bytes, *identities) -> bytes:
    return io.BufferedReader(AgeReader(io.BytesIO(sealed), identities), 1 << 20).read()


@needs_age
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_with_age(tmp_path, size):
    data = random.Random(size).randbytes(size)
    ours, other = X25519Identity.generate(), X25519Identity.generate()
    key = tmp_path / "key"
    key.write_text("# a comment\n\n" + ours.to_string() + "\n")
    sealed = encrypt(data, other.recipient(), ours.recipient())
    opened = subprocess.run(["age", "-d", "-i", key], input=sealed, capture_output=True, check=True)
    assert opened.stdout == data
    theirs = subprocess.run(
        ["age", "-r", str(ours.recipient()), "-r", str(other.recipient())], input=data, capture_output=True, check=True
    ).stdout
    assert decrypt(theirs, ours) == data == decrypt(theirs, other)
    assert AgeRangeReader(io.BytesIO(theirs), read_identities(key.read_text())).read_at(0, size) == data


@needs_age
def test_age_keygen_reads_our_identity_as_we_do(tmp_path):
    identity = X25519Identity.generate()
    key = tmp_path / "key"
    key.write_text(identity.to_string() + "\n")
    public = subprocess.run(["age-keygen", "-y", key], capture_output=True, check=True, text=True).stdout.strip()
    assert public == str(identity.recipient()) == str(parse_recipient(public))


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 10 * CHUNK + 77])
def test_ranges(size):
    identity = X25519Identity.generate()
    data = random.Random(size).randbytes(size)
    reader = AgeRangeReader(io.BytesIO(encrypt(data, identity.recipient())), [identity])
    assert reader.size == size
    chance = random.Random(7)
    for _turn in range(100):
        offset = chance.randrange(size)
        length = chance.randrange(size - offset + 1)
        assert reader.read_at(offset, length) == data[offset:offset + length]
    with pytest.raises(PayloadError):
        reader.read_at(size, 1)


def test_every_cut_is_seen():
    identity = X25519Identity.generate()
    data = bytes(2 * CHUNK + 5)
    sealed = encrypt(data, identity.recipient())
    start = len(sealed) - (len(data) + 3 * 16)
    for length in (0, 10, start - 17, start - 16, start - 1, start, start + 1, start + CHUNK, start + CHUNK + 16,
                   start + 2 * CHUNK + 32, len(sealed) - 6, len(sealed) - 1):
        with pytest.raises(AgeError):
            decrypt(sealed[:length], identity)
        with pytest.raises(AgeError):
            AgeRangeReader(io.BytesIO(sealed[:length]), [identity])
    with pytest.raises(PayloadError):
        decrypt(sealed + b"x", identity)


def test_a_flipped_bit_anywhere_is_seen():
    identity = X25519Identity.generate()
    sealed = encrypt(b"content", identity.recipient())
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(AgeError):
            decrypt(bytes(damaged), identity)


def test_passphrases():
    sealed = encrypt(b"content", ScryptRecipient("correct horse", work_factor=10))
    assert decrypt(sealed, ScryptIdentity("correct horse")) == b"content"
    with pytest.raises(NoMatchError):
        decrypt(sealed, ScryptIdentity("wrong"))
    with pytest.raises(HeaderError, match="work factor"):
        decrypt(sealed, ScryptIdentity("correct horse", max_work_factor=9))
    with pytest.raises(HeaderError):
        encrypt(b"", ScryptRecipient("one", 10), X25519Identity.generate().recipient())


@pytest.mark.parametrize("text", ["", "age1", "age1qqqq", "AGE1" + "q" * 58, "age1" + "b" * 58, "ssh-ed25519 AAAA"])
def test_malformed_recipients_are_refused(text):
    with pytest.raises(KeyFormatError):
        parse_recipient(text)


def test_a_secret_given_as_a_recipient_is_not_repeated_in_the_error():
    secret = X25519Identity.generate().to_string()
    with pytest.raises(KeyFormatError) as caught:
        parse_recipient(secret)
    assert secret not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_version_line_end_in_an_age_error(noise):
    with pytest.raises(AgeError):
        header = parse(io.BytesIO(b"age-encryption.org/v1\n" + noise))
        raise HeaderError(f"parsed, which chance does not bring about: {header}")


@needs_ssh
def test_ssh_keygen_accepts_our_signature(tmp_path):
    key = SigningKey.generate()
    (tmp_path / "allowed").write_text("mover1 " + key.public_line("a mover") + "\n")
    (tmp_path / "sig").write_bytes(key.sign(b"message\n", NAMESPACE))
    command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "mover1", "-n", NAMESPACE, "-s", tmp_path / "sig"]
    assert subprocess.run(command, input=b"message\n", capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, input=b"massage\n", capture_output=True, check=False).returncode != 0


@needs_ssh
def test_we_accept_ssh_keygens_key_and_signature(tmp_path):
    secret = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "c", "-f", secret], check=True)
    (tmp_path / "message").write_bytes(b"message\n")
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", secret, "-n", NAMESPACE, tmp_path / "message"],
                   check=True, capture_output=True)
    public = (tmp_path / "id.pub").read_text()
    signature = (tmp_path / "message.sig").read_bytes()
    allowed = AllowedSigners.parse(f"# who may\nmover1,other namespaces=\"x,{NAMESPACE}\",valid-after=\"20200101Z\" {public}")
    assert allowed.verify(b"message\n", signature, NAMESPACE) == "mover1"
    assert SigningKey.from_openssh(secret.read_bytes()).public_line("c") == public.strip()
    with pytest.raises(SignatureError, match="another purpose"):
        allowed.verify(b"message\n", signature, "other")
    with pytest.raises(SignatureError, match="does not fit"):
        allowed.verify(b"massage\n", signature, NAMESPACE)


@pytest.mark.parametrize("options", ["valid-before=20200101Z", "valid-after=29990101Z", "namespaces=elsewhere"])
def test_a_signer_outside_its_limits_is_refused(options):
    key = SigningKey.generate()
    signature = key.sign(b"message", NAMESPACE)
    with pytest.raises(SignatureError, match="not among"):
        AllowedSigners.parse(f"mover {options} {key.public_line()}").verify(b"message", signature, NAMESPACE)
    assert AllowedSigners.of(key).verify(b"message", signature, NAMESPACE) == "mover"


@pytest.mark.parametrize("line", ["nonsense", "mover ssh-rsa AAAA", "mover cert-authority ssh-ed25519 AAAA", "mover ssh-ed25519"])
def test_malformed_signers_are_refused(line):
    with pytest.raises(KeyFormatError):
        AllowedSigners.parse(line)
