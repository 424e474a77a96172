# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""VHD streams of the simulator, judged by qemu-img where it has a say."""

from __future__ import annotations

import io
import random
import subprocess
from pathlib import Path

import pytest
from poolbox import vhd
from poolbox.storage import Storage

MIB = 1 << 20


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "disks")


def exported(storage: Storage, uuid: str, base: str | None = None) -> bytes:
    parts: list[bytes] = []
    with storage.open(uuid) as disk:
        parent = vhd.Parent(b"p" * 16, f"/run/sr-mount/sr/{base}.vhd") if base else None
        extents = storage.changed(base, uuid) if base else disk.data_extents()
        vhd.write_vhd(lambda data: parts.append(bytes(data)), disk, extents, parent)
    return b"".join(parts)


def receive(storage: Storage, uuid: str, image: bytes, length: int | None = None) -> None:
    stream = io.BytesIO(image)

    def fill(view: memoryview) -> None:
        while len(view):
            count = stream.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]

    with storage.open(uuid) as disk:
        vhd.VhdReader(fill, disk).receive(length)


def content(storage: Storage, uuid: str) -> bytes:
    with storage.open(uuid) as disk:
        return disk.pread(0, disk.size)


def fill_disk(storage: Storage, uuid: str, size: int, seed: int) -> None:
    chance = random.Random(seed)
    storage.create(uuid, size)
    with storage.open(uuid) as disk:
        for _unused in range(6):
            disk.pwrite(chance.randrange(size - 70000), chance.randbytes(chance.randrange(1, 70000)))


def test_dynamic_image_equals_the_disk_in_qemu(storage: Storage, tmp_path: Path) -> None:
    fill_disk(storage, "disk", 64 * MIB, 1)
    (tmp_path / "image.vhd").write_bytes(exported(storage, "disk"))
    raw = tmp_path / "image.raw"
    # current_size says to take the footer's size, not the geometry's, as XenServer means it
    source = f"driver=vpc,force_size_calc=current_size,file.filename={tmp_path}/image.vhd"
    subprocess.run(["qemu-img", "convert", "--image-opts", source, "-O", "raw", str(raw)], check=True)
    assert raw.read_bytes() == content(storage, "disk")


def test_layout_is_the_documented_one(storage: Storage) -> None:
    fill_disk(storage, "disk", 9 * MIB, 2)
    image = exported(storage, "disk")
    assert image[:512] == image[-512:]
    assert image[:8] == b"conectix" and int.from_bytes(image[60:64]) == 3
    assert image[512:520] == b"cxsparse"
    assert int.from_bytes(image[528:536]) == 2048 and int.from_bytes(image[544:548]) == 2 * MIB
    entries = [int.from_bytes(image[2048 + 4 * n:2052 + 4 * n]) for n in range(5)]
    used = [entry for entry in entries if entry != 0xFFFFFFFF]
    assert used == sorted(used) and used[0] == (2048 + 512) // 512
    assert all(image[entry * 512:entry * 512 + 512] == b"\xff" * 512 for entry in used)
    assert image[68:84] != exported(storage, "disk")[68:84], "each export has an id of its own"


def test_import_writes_what_the_export_held(storage: Storage) -> None:
    for number, size in enumerate((2 * MIB, 5 * MIB + 512, 3 * MIB + 1024)):
        fill_disk(storage, f"source{number}", size, number)
        image = exported(storage, f"source{number}")
        for length in (len(image), None):
            target = f"target{number}{length}"
            storage.create(target, size)
            receive(storage, target, image, length)
            assert content(storage, target) == content(storage, f"source{number}")


def test_image_made_by_qemu_is_taken(storage: Storage, tmp_path: Path) -> None:
    fill_disk(storage, "disk", 20 * MIB, 3)
    raw, image = tmp_path / "raw", tmp_path / "image.vhd"
    raw.write_bytes(content(storage, "disk"))
    options = ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, str(raw), str(image)], check=True)
    storage.create("copy", 20 * MIB)
    receive(storage, "copy", image.read_bytes(), image.stat().st_size)
    assert content(storage, "copy") == raw.read_bytes()


def test_delta_over_the_base_gives_the_newer_disk(storage: Storage) -> None:
    fill_disk(storage, "disk", 40 * MIB, 4)
    storage.snapshot("disk", "base")
    with storage.open("disk") as disk:
        disk.pwrite(10 * MIB, b"changed")
        disk.pwrite(0, bytes(100_000))
    storage.snapshot("disk", "newer")
    delta = exported(storage, "newer", base="base")
    assert int.from_bytes(delta[60:64]) == 4
    assert len(delta) == 2048 + 512 + 2 * (512 + 2 * MIB) + 512
    assert delta[512 + 40:512 + 56] == b"p" * 16
    assert delta[512 + 64:].startswith("/run/sr-mount/sr/base.vhd".encode("utf-16-be"))
    storage.create("restored", 40 * MIB)
    receive(storage, "restored", exported(storage, "base"))
    receive(storage, "restored", delta)
    assert content(storage, "restored") == content(storage, "newer")


@pytest.mark.parametrize("spoil", [0, 64, 520, 600])
def test_damaged_image_is_refused(storage: Storage, spoil: int) -> None:
    fill_disk(storage, "disk", 4 * MIB, 5)
    image = bytearray(exported(storage, "disk"))
    image[spoil] ^= 1
    with pytest.raises(vhd.VhdError):
        receive(storage, "disk", bytes(image))


def test_cut_image_is_noticed(storage: Storage) -> None:
    fill_disk(storage, "disk", 4 * MIB, 6)
    image = exported(storage, "disk")
    with pytest.raises(EOFError):
        receive(storage, "disk", image[:-1])


def test_fixed_image_is_refused(storage: Storage) -> None:
    storage.create("disk", 4 * MIB)
    with pytest.raises(vhd.VhdError, match="dynamic"):
        receive(storage, "disk", vhd.make_footer(4 * MIB, 2, bytes(16)))


def test_huge_sparse_disk_gives_a_small_image(storage: Storage) -> None:
    storage.create("disk", vhd.MAX_SIZE)
    with storage.open("disk") as disk:
        disk.pwrite(vhd.MAX_SIZE - 10, b"the end")
    assert len(exported(storage, "disk")) < 8 * MIB
