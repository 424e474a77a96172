# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever comes in, only XvaError comes out, and what comes out otherwise is right."""
from __future__ import annotations

import hashlib
import io
import tracemalloc

from ansible_collections.guestark.xen.plugins.module_utils.xva.errors import XvaError
from ansible_collections.guestark.xen.plugins.module_utils.xva.ova import Ova
from ansible_collections.guestark.xen.plugins.module_utils.xva.reader import XvaReader
from ansible_collections.guestark.xen.plugins.module_utils.xva.values import Scalar, parse_value, render_value
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import (
    END,
    MIB,
    Disk,
    block,
    header,
    members_of,
    ova,
    pack,
)
from hypothesis import given, settings
from hypothesis import strategies as st

quick = settings(deadline=None, max_examples=150)

DISKS = [Disk("Ref:9", b"\x01" * 1300), Disk("Ref:10", bytes(700), "sha1")]
DOCUMENT = ova(DISKS)
MEMBERS = members_of(DISKS)
ARCHIVE = pack(MEMBERS)
DATA_BEGINS = len(pack(MEMBERS[:1], end=b""))
DIGESTS = {disk.label: hashlib.sha256(disk.image).digest() for disk in DISKS}


def read(archive: bytes, verify: bool) -> dict[str, bytes] | None:
    """Label -> SHA-256 of the image, or None when the archive is refused; anything but XvaError fails the test."""
    try:
        reader = XvaReader(io.BytesIO(archive), verify)
        sizes = {disk.label: disk.virtual_size for disk in reader.ova.disks}
        digests = {label: hashlib.sha256() for label in sizes}
        at = dict.fromkeys(sizes, 0)
        for found in reader.blocks():
            assert at[found.label] <= found.offset < sizes[found.label]
            if sizes[found.label] < 64 * MIB:  # else a number was damaged, and the disk is refused for its length
                digests[found.label].update(bytes(found.offset - at[found.label]) + found.data)
            at[found.label] = found.offset + len(found.data)
        assert at == sizes
        return {label: digest.digest() for label, digest in digests.items()}
    except XvaError as error:
        assert str(error)
        return None


@st.composite
def damaged(draw, original: bytes, begin: int = 0) -> bytes:
    """The original with bytes changed, pieces cut out, put in, doubled or moved, from ``begin`` on."""
    content = bytearray(original)
    for _damage in range(draw(st.integers(1, 4))):
        at, to = sorted(draw(st.integers(begin, len(content))) for _end in range(2))
        kind = draw(st.sampled_from(["change", "cut", "truncate", "insert", "double", "sectors"]))
        if kind == "change" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:to]
        elif kind == "truncate":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=600) | st.sampled_from([END, ARCHIVE[-2048:], bytes(512)]))
        elif kind == "double":
            content[at:at] = content[at:to]
        else:  # whole sectors change places: headers stay valid
            at, to = at & ~511, to & ~511
            content[at:to] = content[to:to + 512] + content[at:to]
    return bytes(content)


def test_undamaged():
    assert read(ARCHIVE, True) == DIGESTS


@settings(deadline=None, max_examples=400)
@given(damaged(ARCHIVE, DATA_BEGINS))
def test_damaged_disks_are_refused_or_harmless(archive):
    """With checksums verified, what is not refused is what it was: the damage was in padding or after the end."""
    assert read(archive, True) in (None, DIGESTS)
    read(archive, False)


@quick
@given(damaged(ARCHIVE), st.booleans())
def test_damaged_archives(archive, verify):
    read(archive, verify)


@quick
@given(st.binary(max_size=3000))
def test_noise(archive):
    assert read(archive, True) is None
    assert read(header("ova.xml", len(archive), "v7") + archive + bytes(1024), True) is None


@quick
@given(st.lists(st.sampled_from([*MEMBERS, *block("Ref:9", 1, b""), *block("Ref:10", 1, b"x")]), max_size=8),
       st.sampled_from(["v7", "ustar", "gnu", "pax"]))
def test_members_in_any_order(members, style):
    found = read(pack([MEMBERS[0], *members], style), True)
    assert found == (DIGESTS if members == MEMBERS[1:] else None)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_disks(data):
    """Disks of any size and filling, sent with empty members anywhere, come back as they were."""
    disks = []
    for number in data.draw(st.lists(st.sampled_from([1, 2, *range(9, 100)]), unique=True, min_size=1, max_size=3)):
        blocks = data.draw(st.lists(st.sampled_from([b"\0", b"\1", b"\xff"]), max_size=5))
        tail = data.draw(st.integers(1, MIB))
        image = b"".join(filling * MIB for filling in blocks) + data.draw(st.sampled_from([b"\0", b"a"])) * tail
        empty = data.draw(st.frozensets(st.integers(1, 7), max_size=3)) if blocks else frozenset()
        disks.append(Disk(f"Ref:{number}", image, data.draw(st.sampled_from(["sha1", "xxhash"])), empty=empty))
    style = data.draw(st.sampled_from(["v7", "ustar", "gnu", "pax"]))
    expected = {disk.label: hashlib.sha256(disk.image).digest() for disk in disks}
    assert read(pack(members_of(disks), style), True) == expected


# Descriptions


@settings(deadline=None, max_examples=400)
@given(damaged(DOCUMENT))
def test_damaged_descriptions(document):
    try:
        found = Ova.parse(document)
    except XvaError:
        return
    again = Ova.parse(found.to_bytes())
    assert again.disks == found.disks and again.vm == found.vm
    found.canonical({disk.label: f"Ref:{1001 + n}" for n, disk in enumerate(found.disks)})


@quick
@given(st.lists(st.sampled_from([
    b"<value>", b"</value>", b"<struct>", b"</struct>", b"<member>", b"</member>", b"<name>", b"</name>", b"<array>",
    b"</array>", b"<data>", b"</data>", b"<nil/>", b"<value/>", b"<boolean>1</boolean>", b"<int>5</int>", b"<i4/>",
    b"objects", b" ", b"&amp;", b"&x;", b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?xml version='1.0'?>",
]), max_size=30))
def test_pieces_of_descriptions(pieces):
    for parse in (parse_value, Ova.parse):
        try:
            parse(b"".join(pieces))
        except XvaError:
            pass


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff",
                              include_characters="\t\n\r"), max_size=20)
tags = st.sampled_from(["int", "i4", "i8", "double", "dateTime.iso8601", "base64"])
values = st.recursive(
    st.none() | st.booleans() | texts | st.builds(Scalar, texts, tags),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=15,
)


def spelled(value):
    """The value with the types of its scalars, which comparing strings would not see."""
    if isinstance(value, dict):
        return [(name, spelled(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [spelled(item) for item in value]
    return (value, type(value), getattr(value, "tag", None))


@quick
@given(values)
def test_values_come_back_as_they_were(value):
    document = render_value(value)
    assert spelled(parse_value(document)) == spelled(value)
    assert render_value(parse_value(document)) == document


def test_reading_damaged_archives_takes_little_memory():
    @settings(deadline=None, max_examples=50, database=None)
    @given(damaged(ARCHIVE))
    def reading(archive):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        read(archive, True)
        assert tracemalloc.get_traced_memory()[1] - before < 4 * MIB

    tracemalloc.start()
    try:
        reading()
    finally:
        tracemalloc.stop()
