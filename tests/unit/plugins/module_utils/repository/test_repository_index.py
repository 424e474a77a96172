# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: what was written is read, in bounded memory, and nothing that breaks a rule is."""
from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import tracemalloc

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import PointDamaged
from ansible_collections.guestark.xen.plugins.module_utils.repository.index import (
    IndexDisk,
    IndexReader,
    IndexRecord,
    IndexSegment,
    IndexWriter,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import Scratch
from ansible_collections.guestark.xen.plugins.module_utils.repository.segments import open_range
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import BLOCK
from hypothesis import given
from hypothesis import strategies as st


def uuid_of(number: int) -> str:
    return "00000000-0000-4000-8000-%012d" % number


@st.composite
def contents(draw):
    """Disks with their records, laid into segments as a writer does: in order, none over a segment's end."""
    disks, records, segments = [], [], []
    offset, start = draw(st.integers(1, 5000)), 0
    for number in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 40 * BLOCK))
        blocks = -(-size // BLOCK)
        chosen = sorted(draw(st.sets(st.integers(0, blocks - 1), max_size=10))) if blocks else []
        disks.append(IndexDisk(uuid_of(number), "Ref:%d" % (1001 + number), size, len(records), len(chosen)))
        for block in chosen:
            length = draw(st.integers(1, BLOCK))
            short = bool(size % BLOCK) and block == blocks - 1
            digest = draw(st.binary(min_size=32, max_size=32))
            records.append(IndexRecord(block, offset, length, draw(st.booleans()), short, digest))
            offset += length
            if draw(st.booleans()):
                sealed = hashlib.sha256(b"%d" % start).digest()
                segments.append(IndexSegment(start, offset - start, offset - start + 300, sealed))
                start = offset
    segments.append(IndexSegment(start, offset + 30 - start, 999, bytes(32)))
    return disks, records, segments


def written(disks, records, segments) -> bytes:
    writer = IndexWriter(Scratch(os.memfd_create("scratch")))
    for record in records:
        writer.add(record)
    out = io.BytesIO()
    writer.finish(out, disks, segments, [disk.label for disk in disks])
    writer.close()
    return out.getvalue()


def read(data: bytes):
    reader = IndexReader(open_range(io.BytesIO(data), None))
    return reader.disks, [record for disk in reader.disks for record in reader.records(disk)], reader.segments


@given(contents())
def test_an_index_reads_as_it_was_written(content):
    assert read(written(*content)) == content


def test_the_layout_is_the_documented_one():
    digest = hashlib.sha256(b"block").digest()
    data = written(
        [IndexDisk(uuid_of(7), "Ref:1001", BLOCK + 512, 0, 2)],
        [IndexRecord(0, 900, 1000, True, False, digest), IndexRecord(1, 1900, 80, False, True, digest)],
        [IndexSegment(0, 2000, 2200, bytes(range(32)))],
    )
    assert data[:8] == b"XVAIDX1\0"
    assert struct.unpack("<HHB3xIIIIQ", data[8:40]) == (64, 48, 1, BLOCK, 1, 1, 0, 2) and data[40:64] == bytes(24)
    assert data[64:80].hex() == "00000000000040008000000000000007"
    assert data[80:96] == b"Ref:1001".ljust(16, b"\0")
    assert struct.unpack("<QQQ", data[96:120]) == (BLOCK + 512, 0, 2)
    assert struct.unpack("<QQQ", data[120:144]) == (0, 2000, 2200) and data[144:176] == bytes(range(32))
    assert struct.unpack("<IIQ", data[176:192]) == (0, 1000 | 1 << 31, 900) and data[192:224] == digest
    assert struct.unpack("<IIQ", data[224:240]) == (1, 80 | 1 << 30, 1900) and data[240:272] == digest
    assert data[272:] == hashlib.sha256(data[:272]).digest()


@given(contents(), st.data())
def test_every_flipped_bit_and_every_cut_is_noticed(content, data):
    whole = written(*content)
    flipped = bytearray(whole)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (bytes(flipped), whole[:data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(PointDamaged):
            read(damaged)


@given(st.binary(max_size=600))
def test_noise_is_refused(noise):
    with pytest.raises(PointDamaged):
        read(b"XVAIDX1\0" + noise)


DISK = IndexDisk(uuid_of(1), "Ref:1001", 3 * BLOCK - 5, 0, 2)
SEGMENT = IndexSegment(0, 10000, 10300, bytes(32))
FIRST, LAST = IndexRecord(0, 100, 50, False, False, bytes(32)), IndexRecord(2, 150, 50, False, True, bytes(32))


@pytest.mark.parametrize("records, segments, disks", [
    ([LAST, FIRST], [SEGMENT], [DISK]),
    ([FIRST, FIRST], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(number=3)], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(short=False)], [SEGMENT], [DISK]),
    ([FIRST._replace(short=True), LAST], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(offset=149)], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(offset=9999)], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(length=0)], [SEGMENT], [DISK]),
    ([FIRST, LAST._replace(length=2**29)], [IndexSegment(0, 2**30, 1, bytes(32))], [DISK]),
    ([FIRST, LAST], [SEGMENT, SEGMENT], [DISK]),
    ([FIRST, LAST], [], [DISK]),
    ([FIRST, LAST], [SEGMENT], [IndexDisk(uuid_of(1), "../../x", 3 * BLOCK - 5, 0, 2)]),
    ([FIRST, LAST], [SEGMENT], [IndexDisk(uuid_of(1), "Ref:1001", 3 * BLOCK - 5, 1, 2)]),
    ([FIRST, LAST], [SEGMENT], [IndexDisk(uuid_of(1), "Ref:1001", 3 * BLOCK - 5, 0, 1)]),
    ([FIRST, LAST], [SEGMENT], [DISK, IndexDisk(uuid_of(2), "Ref:1000", BLOCK, 2, 0)]),
    ([FIRST, LAST], [SEGMENT], []),
])
def test_what_breaks_a_rule_is_refused(records, segments, disks):
    assert read(written([DISK], [FIRST, LAST], [SEGMENT]))
    with pytest.raises(PointDamaged):
        read(written(disks, records, segments))


def test_claims_of_a_header_are_not_believed():
    for at, form, value in ((24, "<I", 2**31), (28, "<I", 2**31), (32, "<Q", 2**60), (8, "<H", 10), (10, "<H", 64)):
        data = bytearray(written([DISK], [FIRST, LAST], [SEGMENT]))
        data[at - 4:at - 4 + struct.calcsize(form)] = struct.pack(form, value)
        with pytest.raises(PointDamaged):
            read(bytes(data))


def test_memory_does_not_grow_with_the_disk_and_no_digest_is_written_in_clear(tmp_path):
    count = 60_000  # 2.9 MB of records: a disk of 60 GiB
    disk = IndexDisk(uuid_of(1), "Ref:1001", count * BLOCK, 0, count)
    digests = random.Random(5)
    spool = os.open(tmp_path / "scratch", os.O_RDWR | os.O_CREAT)
    with open(tmp_path / "index", "wb") as out:
        tracemalloc.start()
        try:
            writer = IndexWriter(Scratch(spool))
            for number in range(count):
                writer.add(IndexRecord(number, 64 + 50 * number, 50, False, False, digests.randbytes(32)))
            spooled = (tmp_path / "scratch").read_bytes()
            tracemalloc.reset_peak()
            writer.finish(out, [disk], [IndexSegment(0, 64 + 50 * count, 1, bytes(32))], [disk.label])
            peak_writing = tracemalloc.get_traced_memory()[1] - len(spooled)
            in_clear = random.Random(5).randbytes(32) in spooled
            del spooled
            writer.close()
            out.close()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with open(tmp_path / "index", "rb") as file:
                reader = IndexReader(open_range(file, None))
                assert sum(1 for _record in reader.records(reader.disks[0])) == count
            peak_reading = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert peak_writing < 6 * BLOCK and peak_reading < BLOCK
    assert not in_clear and random.Random(5).randbytes(32) in (tmp_path / "index").read_bytes()
    assert (tmp_path / "index").stat().st_size == 64 + 56 + 56 + 48 * count + 32
