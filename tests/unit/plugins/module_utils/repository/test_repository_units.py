# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units: what a frame holds is what was backed up, and no frame makes a reader use more memory than a block needs."""
from __future__ import annotations

import hashlib
import io
import random
import subprocess
import tarfile

import pytest
import zstandard
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import PointDamaged
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import (
    MOST_FRAME,
    decode,
    decode_block,
    decode_ova,
    encode_block,
    encode_end,
    encode_ova,
)
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import BLOCK, block_unit
from hypothesis import given
from hypothesis import strategies as st


def packed(unit: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(unit)


@given(st.integers(1, BLOCK), st.integers(0, 99999999), st.booleans(), st.integers(0, 2**32))
def test_a_block_comes_back_with_its_digest(length, number, zero, seed):
    data = bytes(length) if zero else random.Random(seed).randbytes(length - 1) + b"x"
    encoded = encode_block("Ref:1001", number, bytearray(data))
    assert (encoded.zero, encoded.short, encoded.plain_len) == (zero, length < BLOCK, length)
    assert encoded.digest == hashlib.sha256(data).digest()
    assert len(encoded.frame) <= MOST_FRAME
    unit, digest = decode_block(memoryview(encoded.frame), "Ref:1001", number)
    assert digest == encoded.digest
    with tarfile.open(fileobj=io.BytesIO(unit + bytes(1024)), mode="r:") as tar:
        names = ["Ref:1001/%08d" % number, "Ref:1001/%08d.checksum" % number]
        assert tar.getnames() == names
        assert tar.extractfile(names[0]).read() == data
        assert tar.extractfile(names[1]).read() == hashlib.sha1(data).hexdigest().encode()


def test_frames_in_a_row_are_an_archive_for_stock_tools():
    blocks = {0: b"a" * BLOCK, 3: random.Random(1).randbytes(700)}
    frames = [encode_ova(b"<value/>"), *(encode_block("Ref:1001", n, data).frame for n, data in blocks.items())]
    plain = subprocess.run(["zstd", "-dcq"], input=b"".join([*frames, encode_end()]), capture_output=True, check=True)
    listing = subprocess.run(["tar", "-tf", "-"], input=plain.stdout, capture_output=True, check=True).stdout
    assert listing.decode().split() == [
        "ova.xml", *("Ref:1001/%08d%s" % (n, end) for n in blocks for end in ("", ".checksum"))
    ]


@given(st.binary(min_size=1, max_size=5000))
def test_the_description_comes_back(xml):
    assert decode_ova(encode_ova(xml)) == xml


def test_a_block_of_another_place_is_refused():
    frame = encode_block("Ref:1001", 7, b"x" * 4096).frame
    for label, number in (("Ref:1002", 7), ("Ref:1001", 8)):
        with pytest.raises(PointDamaged, match="Ref:1001/00000007"):
            decode_block(frame, label, number)


UNIT = block_unit("Ref:1001", 0, b"x" * 4096)


@pytest.mark.parametrize("frame", [
    b"",
    b"no frame at all",
    encode_block("Ref:1001", 0, b"x" * 4096).frame[:-1],
    packed(bytes(64 * BLOCK)),
    packed(UNIT, write_content_size=False),
    packed(UNIT + bytes(512)),
    packed(UNIT[:-512]),
    packed(UNIT[:512]),
    packed(bytes(len(UNIT))),
    packed(UNIT[:512] + bytes(4096) + UNIT[512 + 4096:].replace(b".checksum", b".checksux")),
], ids=["empty", "noise", "cut", "bomb", "no size", "longer", "shorter", "header alone", "zeros", "no checksum"])
def test_no_other_frame_is_opened(frame):
    with pytest.raises(PointDamaged):
        decode_block(frame, "Ref:1001", 0)


def test_a_size_that_lies_does_not_fill_the_memory():
    # a frame that claims 4 KiB and holds 64 MiB; and the reverse
    real = bytearray(packed(bytes(64 * BLOCK)))
    at = 4 + 2  # after magic number, frame descriptor and window
    assert int.from_bytes(real[at:at + 4], "little") == 64 * BLOCK
    real[at:at + 4] = (4096).to_bytes(4, "little")
    with pytest.raises(PointDamaged):
        decode(bytes(real), BLOCK)
    real[at:at + 4] = (2**31).to_bytes(4, "little")
    with pytest.raises(PointDamaged, match="claims"):
        decode(bytes(real), BLOCK)


@given(st.data())
def test_every_flipped_bit_is_noticed(data):
    frame = bytearray(encode_block("Ref:1001", 0, b"some text " * 3000).frame)
    digest = encode_block("Ref:1001", 0, b"some text " * 3000).digest
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    try:
        _unit, found = decode_block(bytes(frame), "Ref:1001", 0)
    except PointDamaged:
        return
    assert found == digest  # some bits pad something and mean nothing
