# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of objects, and the commit record: one form only, and nothing else is read."""
from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository import layout, record
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import NotTrusted, PointDamaged
from ansible_collections.guestark.xen.plugins.module_utils.repository.layout import PointId
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import SIGNERS, SIGNING, VM
from hypothesis import given
from hypothesis import strategies as st

MOMENT = datetime(2026, 11, 23, 1, 0, 0, tzinfo=timezone.utc)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=timezone.utc)
)


def full(point: PointId, segments: int = 1, encrypted: bool = True) -> record.PointRecord:
    names = [layout.segment_name(point, number, encrypted) for number in range(segments)]
    names += [layout.index_name(point, encrypted), layout.meta_name(point, encrypted)]
    objects = tuple(("%064x" % number, name) for number, name in enumerate(names))
    return record.PointRecord(VM, point, None, point.seq, point.moment, point.moment, "full", objects, "mover1")


@given(moments, st.integers(1, layout.MOST_SEQ))
def test_a_point_tells_its_moment_and_its_place(moment, seq):
    point = layout.new_point_id(moment.astimezone(timezone(timedelta(hours=3))), seq)
    assert (point.moment, point.seq) == (moment, seq)
    assert layout.new_point_id(moment, seq) != point


@pytest.mark.parametrize("text", [
    "", "20261123T010000Z-000042-9f3c2a7be1d", "20261123T010000Z-000042-9f3c2a7be1d00",
    "20261323T010000Z-000042-9f3c2a7be1d0",
    "20261123T010000Z-42-9f3c2a7be1d0", "20261123T010000Z-000042-9F3C2A7BE1D0", "../20261123T010000Z-000042-9f3c2a7be1",
    "20261123T010000Z-000042-9f3c2a7be1d0\n", "２0261123T010000Z-000042-9f3c2a7be1d0",
])
def test_other_texts_are_no_points(text):
    with pytest.raises(ValueError):
        PointId(text)


@pytest.mark.parametrize("uuid", ["", "..", "5E0A9D0C-1111-4222-8333-AAAAAAAAAAAA", "a/../b", VM + "/x", VM + "\n"])
def test_only_a_uuid_becomes_part_of_a_path(uuid):
    with pytest.raises(ValueError):
        layout.vm_folder(uuid)


@given(moments, st.integers(1, layout.MOST_SEQ), st.integers(1, 1100), st.booleans())
def test_a_record_reads_as_it_was_written(moment, seq, segments, encrypted):
    written = full(layout.new_point_id(moment, seq), segments, encrypted)
    read = record.parse(record.render(written))
    assert read == written
    assert (len(read.segments), len(read.indexes), read.encrypted) == (segments, 1, encrypted)


def test_an_incremental_lists_its_layers_oldest_first():
    first, second = (full(layout.new_point_id(MOMENT, seq), 2) for seq in (1, 2))
    by_kind = [
        [one for one in (*first.objects, *second.objects) if one[1].startswith(start)] for start in ("seg/", "idx/")
    ]
    layered = dataclasses.replace(
        second, kind="incremental", parent=first.point, objects=(*by_kind[0], *by_kind[1], second.objects[-1])
    )
    text = record.render(layered)
    assert record.parse(text) == layered
    assert ("# chain full=%s layers=2\n" % first.point).encode() in text
    swapped = (*by_kind[0][2:], *by_kind[0][:2], *by_kind[1], second.objects[-1])
    one_index = (*by_kind[0], *by_kind[1][:1], second.objects[-1])
    for objects in (swapped, layered.objects[1:], layered.objects[:-1], one_index):
        with pytest.raises(ValueError):
            record.render(dataclasses.replace(layered, objects=objects))


TEXT = record.render(full(PointId("20261123T010000Z-000042-9f3c2a7be1d0"), 3))


@pytest.mark.parametrize("change", [
    lambda text: text[:-1],
    lambda text: text + b"\n",
    lambda text: text + b"# end 5\n",
    lambda text: text.replace(b"# end 5\n", b""),
    lambda text: text.replace(b"# end 5", b"# end 4"),
    lambda text: text.replace(b"guestark 1", b"guestark 2"),
    lambda text: text.replace(b"# mover", b"# note x\n# mover"),
    lambda text: text.replace(b"seg/", b"seg/../seg/", 1),
    lambda text: text.replace(b"seg/", b"/seg/", 1),
    lambda text: text.replace(b"  seg", b" *seg", 1),
    lambda text: text.replace(b"-001.xva", b"-003.xva", 1),
    lambda text: text.replace(b"-001.xva", b"-000.xva", 1),
    lambda text: text.replace(b"# seq 42", b"# seq 43"),
    lambda text: text.replace(b"# kind full", b"# kind half"),
    lambda text: text.replace(b"layers=1", b"layers=2"),
    lambda text: text.replace(b"\n", b"\r\n"),
    lambda text: text.replace(b"# vm 5", b"# vm ../"),
    lambda text: b"".join(sorted(text.splitlines(keepends=True))),
    lambda text: b"",
    lambda text: b"\xff" + text,
])
def test_any_other_form_is_refused(change):
    changed = change(TEXT)
    assert changed != TEXT
    with pytest.raises(PointDamaged):
        record.parse(changed)


@given(st.binary(max_size=400), st.integers(0, len(TEXT)))
def test_noise_is_refused_or_means_what_it_says(noise, at):
    text = TEXT[:at] + noise + TEXT[at + len(noise):]
    try:
        assert record.render(record.parse(text)) == text
    except PointDamaged:
        assert text != TEXT


def test_a_signature_is_good_for_one_text_and_one_purpose():
    signature = record.sign(TEXT, SIGNING)
    assert record.verify(TEXT, signature, SIGNERS) == "mover1"
    for text, given_one in (
        (TEXT.replace(b"1", b"2", 1), signature),
        (TEXT, SIGNING.sign(TEXT, "file")), (TEXT, b""), (TEXT, signature[:-9])
    ):
        with pytest.raises(NotTrusted):
            record.verify(text, given_one, SIGNERS)
