# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives we write, judged by tar, by xva-img where it is installed, and by a model of XAPI's importer."""
from __future__ import annotations

import io
import shutil
import subprocess

import pytest
import xxhash
from ansible_collections.guestark.xen.plugins.module_utils.xva.errors import XvaError
from ansible_collections.guestark.xen.plugins.module_utils.xva.reader import XvaReader, gapless
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import (
    BLOCK,
    END,
    block_unit,
    ova_unit,
    verify_checksum,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.importer_model import Refused, import_disks
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import (
    MIB,
    Disk,
    block,
    members_of,
    pack,
)


def rewritten(archive: bytes, checksum: str = "sha1") -> bytes:
    """Read an archive and write it again: canonical labels, numbers that are offsets."""
    reader = XvaReader(io.BytesIO(archive))
    labels = {disk.label: f"Ref:{1001 + i}" for i, disk in enumerate(reader.ova.disks)}
    ova = reader.ova.canonical(labels)
    ova.set_version(1, 20)
    units = [block_unit(labels[b.label], b.offset // BLOCK, b.data, checksum) for b in gapless(reader.ova.disks, reader.blocks())]
    return b"".join([ova_unit(ova.to_bytes()), *units, END])


@pytest.mark.parametrize("kind", ["sha1", "xxhash"])
@pytest.mark.parametrize("data", [b"x", b"y" * 512, b"z" * 1000, bytes(BLOCK)], ids=len)
@pytest.mark.trap(12, 13)
def test_units_are_what_xapi_writes(kind, data):
    expected = pack(block("Ref:12", 345, data, kind), end=b"")
    for given in (data, bytearray(data), memoryview(data)):
        assert block_unit("Ref:12", 345, given, kind) == expected
    assert block_unit("Ref:12", 345, data) == block_unit("Ref:12", 345, data, "sha1")


def test_description_and_end():
    member = members_of([])[0]
    assert ova_unit(member.data) + END == pack([member])


@pytest.mark.parametrize("number, data", [(-1, b"x"), (100000000, b"x"), (0, b""), (0, bytes(BLOCK + 1))])
def test_what_the_format_cannot_hold(number, data):
    with pytest.raises(XvaError, match="disk Ref:1: "):
        block_unit("Ref:1", number, data)


@pytest.mark.trap(11, 12)
def test_checksums():
    assert verify_checksum("xxhash", "EF46DB3751D8E999", b"")
    assert not verify_checksum("xxhash", "ef46db3751d8e999", b"")
    assert verify_checksum("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d", bytearray(b"abc"))
    assert not verify_checksum("sha1", "A9993E364706816ABA3E25717850C26C9CD0D89D", b"abc")
    with pytest.raises(XvaError):
        verify_checksum("md5", "", b"")
    with pytest.raises(XvaError):
        block_unit("Ref:1", 0, b"x", "md5")


@pytest.mark.parametrize("kind", ["sha1", "xxhash"])
@pytest.mark.trap(11)
def test_every_release_imports_what_was_rewritten(ext4, dense, kind):
    """Empty members, labels out of order and a disk of one short block are all gone through."""
    disks = [
        Disk("Ref:9", ext4, empty=frozenset({1, 5, 6})), Disk("Ref:10", dense), Disk("Ref:31", b"config" * 100),
    ]
    archive = rewritten(pack(members_of(disks)), kind)
    images = import_disks(archive, {"Ref:1001": len(dense), "Ref:1002": 600, "Ref:1003": len(ext4)})
    assert images == {"Ref:1001": dense, "Ref:1002": b"config" * 100, "Ref:1003": ext4}


def test_the_importer_misplaces_what_follows_a_first_disk_of_less_than_one_mib():
    """It takes the first chunk of all for the size of every skipped one: such a disk must not sort first."""
    sparse = b"a" * MIB + bytes(3 * MIB) + b"b" * MIB
    sizes = {"Ref:1": 600, "Ref:2": len(sparse)}
    archive = pack(members_of([Disk("Ref:1", b"config" * 100), Disk("Ref:2", sparse)]))
    with pytest.raises(Refused):
        import_disks(archive, sizes)
    archive = pack(members_of([Disk("Ref:3", b"config" * 100), Disk("Ref:2", sparse)]))
    assert import_disks(archive, {"Ref:3": 600, "Ref:2": len(sparse)})["Ref:2"] == sparse


@pytest.mark.parametrize("kind", ["sha1", "xxhash"])
def test_what_is_rewritten_leaves_no_block_out_behind_a_short_first_disk(kind):
    sparse = b"a" * MIB + bytes(3 * MIB) + b"b" * 700
    disks = [Disk("Ref:1", b"config" * 100), Disk("Ref:2", sparse), Disk("Ref:3", bytes(2 * MIB))]
    archive = rewritten(pack(members_of(disks)), kind)
    images = import_disks(archive, {"Ref:1001": 600, "Ref:1002": 4 * MIB + 700, "Ref:1003": 2 * MIB})
    assert list(images.values()) == [disk.image for disk in disks]


def test_a_checksum_that_is_known_is_not_computed_again():
    data = b"some block"
    known = block_unit("Ref:1001", 7, data, "xxhash", "0123456789ABCDEF")
    computed = block_unit("Ref:1001", 7, data, "xxhash")
    assert known == computed.replace(b"%016X" % xxhash.xxh64_intdigest(data), b"0123456789ABCDEF") != computed


def test_writing_again_changes_nothing(ext4):
    archive = rewritten(pack(members_of([Disk("Ref:9", ext4, empty=frozenset({5}))])))
    assert rewritten(archive) == archive.replace(b"Ref:1002", b"Ref:1001")


def test_tar_lists_and_extracts(ext4, tmp_path):
    archive = tmp_path / "vm.xva"
    archive.write_bytes(rewritten(pack(members_of([Disk("Ref:9", ext4)]))))
    listed = subprocess.run(["tar", "-tvf", str(archive)], capture_output=True, check=True, text=True)
    assert listed.stderr == ""
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert [line[-1] for line in lines[:3]] == ["ova.xml", "Ref:1001/00000000", "Ref:1001/00000000.checksum"]
    assert {line[0] for line in lines} == {"-r--------"}
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    image = bytearray(len(ext4))
    for path in (tmp_path / "Ref:1001").glob("????????"):
        data = path.read_bytes()
        image[int(path.name) * MIB:int(path.name) * MIB + len(data)] = data
    assert bytes(image) == ext4


def test_a_single_unit_is_a_tar_fragment(tmp_path):
    (tmp_path / "unit").write_bytes(block_unit("Ref:1001", 7, b"abc") + END)
    subprocess.run(["tar", "-xf", "unit"], cwd=tmp_path, check=True)
    assert (tmp_path / "Ref:1001" / "00000007").read_bytes() == b"abc"
    assert (tmp_path / "Ref:1001" / "00000007.checksum").read_text() == "a9993e364706816aba3e25717850c26c9cd0d89d"


needs_xva_img = pytest.mark.skipif(not shutil.which("xva-img"), reason="xva-img is not installed")


@needs_xva_img
def test_xva_img_makes_the_image_from_what_we_write(ext4, tmp_path):
    archive = rewritten(pack(members_of([Disk("Ref:9", ext4, empty=frozenset({5}))])))
    subprocess.run(["tar", "-xf", "-"], input=archive, cwd=tmp_path, check=True)
    subprocess.run(["xva-img", "disk-export", "Ref:1001", "image"], cwd=tmp_path, check=True)
    assert (tmp_path / "image").read_bytes() == ext4
    damaged = tmp_path / "Ref:1001" / "00000000"
    damaged.chmod(0o600)
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert subprocess.run(["xva-img", "disk-export", "Ref:1001", "image"], cwd=tmp_path, check=False).returncode != 0


@needs_xva_img
def test_we_read_what_xva_img_packs(ext4, tmp_path):
    vm = tmp_path / "vm"
    vm.mkdir()
    archive = rewritten(pack(members_of([Disk("Ref:9", ext4)])))
    subprocess.run(["tar", "-xf", "-"], input=archive, cwd=vm, check=True)
    subprocess.run(["xva-img", "package", "packed.xva", "vm/ova.xml", "vm/Ref:1001"], cwd=tmp_path, check=True)
    assert rewritten((tmp_path / "packed.xva").read_bytes()) == archive
