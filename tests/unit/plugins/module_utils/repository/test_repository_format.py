# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worked example in docs/format.md is real: it is read, checked and verified as any point would be."""
from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import AllowedSigners
from ansible_collections.guestark.xen.plugins.module_utils.repository import record
from ansible_collections.guestark.xen.plugins.module_utils.repository.index import IndexReader
from ansible_collections.guestark.xen.plugins.module_utils.repository.segments import open_range
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import BLOCK

GUIDE = Path(__file__).parents[5].joinpath("docs/format.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", GUIDE[GUIDE.index("## A worked example"):], re.DOTALL | re.MULTILINE)


SUM, SIGNATURE, SIGNERS, INDEX, META = blocks()
INDEX_BYTES = b"".join(bytes.fromhex(line[4:]) for line in INDEX.splitlines())


def test_the_record_is_in_its_form_and_lists_what_is_shown():
    example = record.parse(SUM.encode())
    assert (example.seq, example.kind, example.mover) == (42, "full", "mover1")
    assert example.digest(example.indexes[0]) == hashlib.sha256(INDEX_BYTES).hexdigest()
    assert example.digest(example.meta) == hashlib.sha256(META.rstrip("\n").encode()).hexdigest()


def test_the_signature_is_good():
    signers = AllowedSigners.parse(SIGNERS)
    assert record.verify(SUM.encode(), SIGNATURE.encode(), signers) == "mover1"


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")
def test_the_documented_command_accepts_it(tmp_path):
    (tmp_path / "allowed_signers").write_text(SIGNERS)
    (tmp_path / "POINT.sum.sig").write_text(SIGNATURE)
    (tmp_path / "POINT.sum").write_text(SUM)
    (command,) = re.findall(r"To check both: `(.*?)`", GUIDE)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)


def test_the_index_says_what_the_text_says():
    reader = IndexReader(open_range(io.BytesIO(INDEX_BYTES), None))
    (disk,) = reader.disks
    (segment,) = reader.segments
    (first, last) = reader.records(disk)
    assert (disk.label, disk.virtual_size, segment.plain_len) == ("Ref:1001", 2 * BLOCK + 512, 1948)
    assert (first.number, first.offset, first.length, first.short) == (0, 1563, 220, False)
    assert (last.number, last.offset, last.length, last.short) == (2, 1783, 142, True)
    assert first.digest == hashlib.sha256(b"first block".ljust(BLOCK, b"\0")).digest()
    assert last.digest == hashlib.sha256(b"last block".ljust(512, b"\0")).digest()


def test_the_view_can_be_computed_from_the_index():
    reader = IndexReader(open_range(io.BytesIO(INDEX_BYTES), None))
    view = hashlib.sha256()
    for one in reader.records(reader.disks[0]):
        view.update(one.number.to_bytes(4, "little") + one.digest)
    meta = json.loads(META)
    assert meta["disks"][0]["digest_of_view"] == view.hexdigest()
    assert meta["segments"][0]["sha256"] == reader.segments[0].sha256.hex()
