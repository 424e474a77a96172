# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""XVA streams of the simulator: the bytes it writes, judged by GNU tar, and what its reader takes and refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
import zstandard
from poolbox.errors import ApiError
from poolbox.storage import Storage
from poolbox.v7tar import header
from poolbox.xva_in import Archive, DiskReceiver
from poolbox.xva_out import CHECKSUMS, Style, XvaWriter, style_for

MIB = 1 << 20
OVA = b"<value>not read here</value>"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "disks")


def make_disk(storage: Storage, uuid: str, size: int, *writes: tuple[int, bytes]) -> None:
    storage.create(uuid, size)
    with storage.open(uuid) as disk:
        for offset, data in writes:
            disk.pwrite(offset, data)


def archive(storage: Storage, disks: dict[str, str], style: Style | None = None) -> bytes:
    parts: list[bytes] = []
    writer = XvaWriter(lambda data: parts.append(bytes(data)), style or Style())
    writer.ova(OVA)
    for label in sorted(disks):
        with storage.open(disks[label]) as disk:
            writer.disk(label, disk)
    writer.end()
    return b"".join(parts)


def receive(storage: Storage, stream: bytes, sizes: dict[str, int], force: bool = False) -> dict[str, bytes]:
    source = Archive(io.BytesIO(stream), len(stream))
    assert source.ova() == OVA
    targets = []
    for label, size in sizes.items():
        name = f"target {label} {random.random()}"
        storage.create(name, size)
        targets.append((label, size, storage.open(name)))
    DiskReceiver(source, force).receive(targets)
    source.settle()
    return {label: disk.pread(0, disk.size) for label, _unused, disk in targets}


def member_names(stream: bytes) -> list[str]:
    return tarfile.open(fileobj=io.BytesIO(stream)).getnames()


def content(storage: Storage, uuid: str) -> bytes:
    with storage.open(uuid) as disk:
        return disk.pread(0, disk.size)


@pytest.mark.trap(13)
def test_header_of_each_release() -> None:
    now = 1_700_000_000
    for version, mode, mtime in (((24, 19), b"0000400\0", now), ((1, 249), b"0000000\0", 0)):
        style = style_for(version, now)
        block = header("ova.xml", 1234, style.mode, style.mtime)
        assert block[:100] == b"ova.xml" + bytes(93)
        assert block[100:108] == mode
        assert block[108:124] == b"0000000\0" * 2
        assert block[124:136] == b"00000002322\0"
        assert block[136:148] == b"%011o\0" % mtime
        total = sum(block[:148]) + 8 * 32 + sum(block[156:])
        assert block[148:156] == b"%07o\0" % total
        assert block[156:] == bytes(356), "no type flag, no magic, no names"


@pytest.mark.trap(12)
def test_checksum_kind_follows_the_release() -> None:
    assert style_for((1, 169), 0).checksum is CHECKSUMS["sha1"]
    assert style_for((1, 249), 0).checksum is CHECKSUMS["xxhash"]
    assert style_for((24, 19), 0).checksum is CHECKSUMS["xxhash"]


def test_zero_members_are_left_out_but_first_and_last(storage: Storage) -> None:
    make_disk(storage, "d", 9 * MIB + 700, (3 * MIB + 5, b"x"), (5 * MIB, bytes(MIB)), (7 * MIB - 1, b"ab"))
    stream = archive(storage, {"Ref:7": "d"})
    numbers = ["00000000", "00000003", "00000006", "00000007", "00000009"]
    assert member_names(stream) == ["ova.xml", *(f"Ref:7/{n}{end}" for n in numbers for end in ("", ".xxhash"))]
    assert stream.endswith(bytes(1024)) and len(stream) % 512 == 0
    assert not stream.endswith(bytes(1024 + 512)), "no padding to 10 KiB"


@pytest.mark.parametrize("size", [1, 512, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_empty_disk_of_any_size(storage: Storage, size: int) -> None:
    make_disk(storage, "d", size)
    stream = archive(storage, {"Ref:0": "d"})
    chunks = [name for name in member_names(stream) if name.count(".") == 0]
    assert chunks == [f"Ref:0/{n:08}" for n in ([0] if size <= MIB else [0, 1])]
    assert receive(storage, stream, {"Ref:0": size})["Ref:0"] == bytes(size)


@pytest.mark.trap(12)
def test_checksum_members(storage: Storage) -> None:
    data = random.Random(1).randbytes(1000)
    make_disk(storage, "d", 1000, (0, data))
    for kind, name, text in (
        ("xxhash", "Ref:3/00000000.xxhash", f"{xxhash.xxh64_intdigest(data):016X}"),
        ("sha1", "Ref:3/00000000.checksum", hashlib.sha1(data).hexdigest()),
    ):
        tar = tarfile.open(fileobj=io.BytesIO(archive(storage, {"Ref:3": "d"}, Style(checksum=CHECKSUMS[kind]))))
        assert tar.getnames() == ["ova.xml", "Ref:3/00000000", name]
        assert tar.extractfile(name).read() == text.encode()  # type: ignore[union-attr]


def test_gnu_tar_reads_it(storage: Storage, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2 * MIB + 5)
    make_disk(storage, "d", len(data), (0, data))
    (tmp_path / "a.xva").write_bytes(archive(storage, {"Ref:1": "d"}))
    subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(tmp_path / "a.xva")], check=True)
    found = sorted(path for path in (tmp_path / "Ref:1").iterdir() if not path.suffix)
    assert b"".join(path.read_bytes() for path in found) == data


@pytest.mark.trap(14)
def test_disks_follow_each_other_as_text_sorts(storage: Storage) -> None:
    for number in (9, 10):
        make_disk(storage, f"d{number}", MIB, (0, b"%d" % number))
    stream = archive(storage, {"Ref:9": "d9", "Ref:10": "d10"})
    assert member_names(stream)[1::2] == ["Ref:10/00000000", "Ref:9/00000000"]
    assert receive(storage, stream, {"Ref:9": MIB, "Ref:10": MIB})["Ref:9"] == content(storage, "d9")


@pytest.mark.trap(11)
def test_keep_alives_take_a_number_but_no_bytes(storage: Storage) -> None:
    make_disk(storage, "d", 12 * MIB, (7 * MIB, b"seven"), (11 * MIB, b"eleven"))
    stream = archive(storage, {"Ref:1": "d"}, Style(keep_alive=2))
    tar = tarfile.open(fileobj=io.BytesIO(stream))
    sizes = {member.name: member.size for member in tar.getmembers() if member.name.count(".") == 0}
    # zeros 1, 2, then an empty member, zeros 3, 4, another; 5, 6 follow, and the offset 7 MiB has number 9
    assert sizes == {
        "Ref:1/00000000": MIB, "Ref:1/00000003": 0, "Ref:1/00000006": 0, "Ref:1/00000009": MIB,
        "Ref:1/00000012": 0, "Ref:1/00000014": MIB,
    }
    assert tar.extractfile("Ref:1/00000003.xxhash").read() == b"EF46DB3751D8E999"  # type: ignore[union-attr]
    assert receive(storage, stream, {"Ref:1": 12 * MIB})["Ref:1"] == content(storage, "d")


def test_corrupted_member_is_noticed_and_forced_through(storage: Storage) -> None:
    make_disk(storage, "d", 3 * MIB, *((n * MIB, b"data") for n in range(3)))
    stream = archive(storage, {"Ref:1": "d"}, Style(corrupt=1))
    with pytest.raises(ApiError) as caught:
        receive(storage, stream, {"Ref:1": 3 * MIB})
    assert caught.value.code == "IMPORT_ERROR" and "Invalid_checksum" in caught.value.params[0]
    assert "Ref:1/00000001" in caught.value.params[0]
    taken = receive(storage, stream, {"Ref:1": 3 * MIB}, force=True)["Ref:1"]
    assert taken[MIB:MIB + 4] != b"data" and taken[2 * MIB:2 * MIB + 4] == b"data"


def test_64_tib_disk_in_a_moment(storage: Storage) -> None:
    make_disk(storage, "d", 64 << 40, (5 << 40, b"far out"))
    stream = archive(storage, {"Ref:1": "d"})
    assert member_names(stream)[1::2] == [f"Ref:1/{n:08}" for n in (0, 5 << 20, (64 << 20) - 1)]
    source = Archive(io.BytesIO(stream), None)
    source.ova()
    storage.create("target", 64 << 40)
    with storage.open("target") as disk:
        DiskReceiver(source, False).receive([("Ref:1", 64 << 40, disk)])
        assert disk.pread(5 << 40, 7) == b"far out"
    assert storage.used(["target"]) < 4 * MIB


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "two frames": lambda data: b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:MIB], data[MIB:])),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_archive_may_be_compressed(storage: Storage, kind: str) -> None:
    data = random.Random(3).randbytes(2 * MIB + 77)
    make_disk(storage, "d", len(data), (0, data))
    packed = PACKERS[kind](archive(storage, {"Ref:1": "d"}))
    assert receive(storage, packed, {"Ref:1": len(data)})["Ref:1"] == data
    for cut in (100, 512, 1000, len(packed) // 2, len(packed) - 3 * 512 - 8):
        with pytest.raises(ApiError) as caught:
            receive(storage, packed[:cut], {"Ref:1": len(data)})
        assert caught.value.code == "IMPORT_ERROR_PREMATURE_EOF"


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("checksum", CHECKSUMS)
@pytest.mark.trap(12, 13)
def test_other_tar_dialects_and_either_checksum_are_taken(storage: Storage, dialect: int, checksum: str) -> None:
    data = random.Random(4).randbytes(MIB)
    members = {"ova.xml": OVA, "Ref:é/00000000": data}
    kind = CHECKSUMS[checksum]
    members[f"Ref:é/00000000{kind.suffix}"] = kind.digest(memoryview(data)).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=dialect) as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    assert receive(storage, stream.getvalue(), {"Ref:é": MIB})["Ref:é"] == data


def raw_archive(*members: tuple[str, bytes]) -> bytes:
    parts = [header("ova.xml", len(OVA), 0o400), OVA.ljust(512, b"\0")]
    for name, body in members:
        parts += [header(name, len(body), 0o400), body, bytes(-len(body) % 512)]
    return b"".join(parts) + bytes(1024)


def summed(name: str, body: bytes) -> list[tuple[str, bytes]]:
    return [(name, body), (f"{name}.xxhash", f"{xxhash.xxh64_intdigest(body):016X}".encode())]


@pytest.mark.parametrize(("members", "code"), [
    (summed("Ref:2/00000000", b"x" * 100), "IMPORT_ERROR"),
    (summed("Ref:1/00000000", b"x" * 50) + summed("Ref:1/00000000", b"x" * 50), "IMPORT_ERROR"),
    (summed("Ref:1/0000000x", b"x" * 100), "IMPORT_ERROR"),
    ([("Ref:1/00000000", b"x" * 100), ("Ref:1/00000000.md5", b"y")], "IMPORT_ERROR"),
    ([("Ref:1/00000000", b"x" * 100), ("Ref:1/00000000.xxhash", b"ef46db3751d8e999")], "IMPORT_ERROR"),
    (summed("Ref:1/00000000", b"x" * 99), "IMPORT_ERROR"),
    (summed("Ref:1/00000000", b"x" * 101), "VDI_IO_ERROR"),
])
def test_what_the_importer_refuses(storage: Storage, members: list[tuple[str, bytes]], code: str) -> None:
    with pytest.raises(ApiError) as caught:
        receive(storage, raw_archive(*members), {"Ref:1": 100})
    assert caught.value.code == code


@pytest.mark.trap(13)
def test_first_member_must_be_the_document(storage: Storage) -> None:
    stream = header("readme", 0, 0o400) + bytes(1024)
    with pytest.raises(ApiError) as caught:
        Archive(io.BytesIO(stream), None).ova()
    assert (caught.value.code, *caught.value.params) == ("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", "readme")


@pytest.mark.trap(19)
def test_plain_import_reads_no_byte_behind_the_last_disk(storage: Storage) -> None:
    make_disk(storage, "d", MIB)
    stream = io.BytesIO(archive(storage, {"Ref:1": "d"}) + b"more")
    source = Archive(stream, None)
    source.ova()
    with storage.open("d") as disk:
        DiskReceiver(source, False).receive([("Ref:1", MIB, disk)])
    source.settle()
    assert stream.read() == bytes(1024) + b"more"


@pytest.mark.trap(9)
def test_compressed_import_reads_to_the_end_of_the_body(storage: Storage) -> None:
    make_disk(storage, "d", MIB)
    packed = gzip.compress(archive(storage, {"Ref:1": "d"}))
    for length, left in ((len(packed) + 3, b"behind"), (None, b"")):
        stream = io.BytesIO(packed + b"fed" + b"behind")
        source = Archive(stream, length)
        source.ova()
        with storage.open("d") as disk:
            DiskReceiver(source, False).receive([("Ref:1", MIB, disk)])
        source.settle()
        assert stream.read() == left
