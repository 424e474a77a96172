# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments: the compressed stream cut on frames' boundaries, each piece a complete file for the stock tools."""
from __future__ import annotations

import hashlib
import random
import subprocess

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import PayloadError
from ansible_collections.guestark.xen.plugins.module_utils.repository import segments
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import PointDamaged
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.segments import SegmentReader, SegmentWriter
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMIT = 200_000


def write(store, frames, encrypted=True, limit=LIMIT):
    ending = ".age" if encrypted else ""
    recipients = [DATA.recipient()] if encrypted else None
    writer = SegmentWriter(store, lambda number: "seg/%03d%s" % (number, ending), recipients, limit)
    offsets = [writer.put(frame) for frame in frames]
    return offsets, writer.finish()


def fresh_store(tmp_path) -> PosixStore:
    store = PosixStore(str(tmp_path / ("store%d" % len(list(tmp_path.iterdir())))))
    store.make_root()
    return store


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 150_000), min_size=1, max_size=12), st.booleans(), st.randoms(use_true_random=False))
def test_every_frame_can_be_read_alone(tmp_path, lengths, encrypted, chance):
    store = fresh_store(tmp_path)
    frames = [random.Random(number).randbytes(length) for number, length in enumerate(lengths)]
    offsets, done = write(store, frames, encrypted)
    assert offsets == [sum(lengths[:number]) for number in range(len(lengths))]
    assert all(one.plain_len <= LIMIT for one in done) and sum(one.plain_len for one in done) == sum(lengths)
    for one in done:
        content = store.read(one.name)
        assert len(content) == one.cipher_len and hashlib.sha256(content).digest() == one.sha256
    identities = [DATA] if encrypted else None
    with SegmentReader(store, [(one.name, one.entry) for one in done], identities) as reader:
        order = list(range(len(frames)))
        chance.shuffle(order)
        for number in order:
            assert reader.read_at(offsets[number], lengths[number]) == frames[number]
            assert reader.end_of(offsets[number]) >= offsets[number] + lengths[number]


def test_each_segment_opens_with_age_alone(tmp_path):
    store = fresh_store(tmp_path)
    frames = [random.Random(number).randbytes(90_000) for number in range(5)]
    _offsets, done = write(store, frames)
    assert [one.name for one in done] == ["seg/000.age", "seg/001.age", "seg/002.age"]
    (tmp_path / "identity").write_text(DATA.to_string())
    plain = b"".join(
        subprocess.run(
            ["age", "-d", "-i", str(tmp_path / "identity"), f"{store.path}/{one.name}"], capture_output=True, check=True
        ).stdout
        for one in done
    )
    assert plain == b"".join(frames)


def test_extents_are_the_digests_of_pieces_of_the_ciphertext(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "EXTENT", 4096)
    store = fresh_store(tmp_path)
    for length in (4096 * 3 - 200, 4096 * 3 - 10, 4096 * 3 + 1, 70_000):
        _offsets, (one,) = write(store, [bytes(length)])
        content = store.read(one.name)
        pieces = [content[at:at + 4096] for at in range(0, len(content), 4096)]
        assert one.extents == b"".join(hashlib.sha256(piece).digest() for piece in pieces)
        store.remove(one.name)


def test_the_largest_segment_fits_into_32_gib():
    plain = segments.MOST_PLAIN
    assert plain + 16 * -(-plain // 65536) + 65536 + 16 <= 32 * 2**30


def test_a_damaged_segment_and_a_range_outside_are_refused(tmp_path):
    store = fresh_store(tmp_path)
    _offsets, (one,) = write(store, [b"x" * 100_000])
    path = tmp_path / store.path / one.name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with SegmentReader(store, [(one.name, one.entry)], [DATA]) as reader, pytest.raises(PayloadError):
        reader.read_at(0, 10)
    path.write_bytes(whole)
    with SegmentReader(store, [(one.name, one.entry)], [DATA]) as reader:
        for offset, length in ((99_999, 2), (100_000, 1)):
            with pytest.raises(PointDamaged):
                reader.read_at(offset, length)
