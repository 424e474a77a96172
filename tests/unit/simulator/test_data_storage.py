# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of the simulator: copy-on-write chains against a plain model in memory, sparseness, and what they cost."""

from __future__ import annotations

import itertools
import random
import subprocess
import threading
from pathlib import Path

import pytest
from poolbox.layers import FILE_SPAN, Ranges
from poolbox.storage import Storage
from poolbox.tracking import BLOCK

TIB = 1 << 40


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "disks")


def layer_files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "disks").iterdir())


@pytest.mark.parametrize("seed", range(5))
def test_ranges_equal_a_set_of_numbers(seed: int) -> None:
    chance = random.Random(seed)
    ranges, model = Ranges(), set()
    for _unused in range(60):
        start = chance.randrange(200)
        end = start + chance.randrange(12)
        ranges.add(start, end)
        model |= set(range(start, end))
    pieces = list(ranges.cover(0, 220))
    assert [piece[0] for piece in pieces[1:]] == [piece[1] for piece in pieces[:-1]]
    assert {n for start, end, held in pieces if held for n in range(start, end)} == model
    listed = list(ranges)
    assert all(end < start for (_unused, end), (start, _unused) in zip(listed, listed[1:], strict=False))


@pytest.mark.parametrize("seed", range(8))
def test_snapshots_keep_what_they_saw(storage: Storage, seed: int) -> None:
    chance = random.Random(seed)
    size = 300_000
    model = {"d0": bytearray(size)}
    storage.create("d0", size)
    for step in range(80):
        name = chance.choice(sorted(model))
        action = chance.random()
        if action < 0.55:
            offset, data = chance.randrange(size - 9000), chance.randbytes(chance.randrange(1, 9000))
            with storage.open(name) as disk:
                disk.pwrite(offset, data)
            model[name][offset:offset + len(data)] = data
        elif action < 0.8:
            act = storage.copy if action > 0.77 else storage.snapshot
            act(name, f"d{step + 1}")
            model[f"d{step + 1}"] = bytearray(model[name])
        elif len(model) > 1:
            storage.destroy(name)
            del model[name]
    for name, content in model.items():
        with storage.open(name) as disk:
            assert disk.pread(0, size) == content
            rebuilt = bytearray(size)
            for offset, length in disk.data_extents():
                rebuilt[offset:offset + length] = disk.pread(offset, length)
            assert rebuilt == content


def test_destroying_everything_leaves_no_file(storage: Storage, tmp_path: Path) -> None:
    storage.create("live", 1 << 20)
    for number in range(5):
        with storage.open("live") as disk:
            disk.pwrite(number * 4096, b"data")
        storage.snapshot("live", f"snap{number}")
    for name in ("snap2", "live", "snap0", "snap4", "snap1", "snap3"):
        storage.destroy(name)
    assert layer_files(tmp_path) == []


def test_chain_does_not_grow_with_every_backup(storage: Storage, tmp_path: Path) -> None:
    storage.create("live", 1 << 20)
    for number in range(20):
        with storage.open("live") as disk:
            disk.pwrite(number * 4096, bytes([number + 1]) * 4096)
        storage.snapshot("live", "snap")
        with storage.open("live") as disk:
            disk.pwrite(0, bytes([number + 100]))
        storage.destroy("snap")
    assert len(layer_files(tmp_path)) == 1
    with storage.open("live") as disk:
        assert disk.pread(0, 1) == bytes([119])
        assert disk.pread(19 * 4096, 4096) == bytes([20]) * 4096


def test_64_tib_disk_is_sparse_from_end_to_end(storage: Storage) -> None:
    storage.create("huge", 64 * TIB)
    with storage.open("huge") as disk:
        disk.pwrite(FILE_SPAN - 3, b"across")
        disk.pwrite(64 * TIB - 4, b"last")
        assert disk.pread(FILE_SPAN - 4, 8) == b"\0across\0"
        assert disk.pread(64 * TIB - 5, 100) == b"\0last"
        extents = list(disk.data_extents())
    assert sum(length for _unused, length in extents) < 1 << 20
    assert extents[-1][0] + extents[-1][1] == 64 * TIB
    assert storage.used(["huge"]) < 1 << 20


def test_write_beyond_the_end_is_refused(storage: Storage) -> None:
    storage.create("small", 1000)
    with storage.open("small") as disk, pytest.raises(ValueError, match="beyond"):
        disk.pwrite(999, b"ab")


def test_grown_part_reads_as_zeros(storage: Storage) -> None:
    storage.create("disk", 4096)
    with storage.open("disk") as disk:
        disk.pwrite(0, b"x" * 4096)
        storage.snapshot("disk", "before")
        storage.resize("disk", 8192)
        assert disk.pread(4090, 10000) == b"x" * 6 + bytes(4096)
        disk.pwrite(8000, b"new")
    with storage.open("before") as before:
        assert before.size == 4096
    with pytest.raises(ValueError, match="shrink"):
        storage.resize("disk", 512)


def test_open_handle_outlives_its_disk(storage: Storage, tmp_path: Path) -> None:
    storage.create("disk", 4096)
    disk = storage.open("disk")
    disk.pwrite(0, b"still here")
    storage.destroy("disk")
    assert "disk" not in storage
    assert disk.pread(0, 10) == b"still here"
    disk.close()
    disk.close()
    assert layer_files(tmp_path) == []


def test_reader_of_a_snapshot_sees_no_write_and_no_merge(storage: Storage) -> None:
    block, blocks = 4096, 64
    storage.create("live", block * blocks)
    with storage.open("live") as live:
        live.pwrite(0, b"\x01" * block * blocks)
    storage.snapshot("live", "older")
    with storage.open("live") as live:
        live.pwrite(0, b"\x01" * block)
    storage.snapshot("live", "snap")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with storage.open("live") as live:
                live.pwrite((number % blocks) * block, b"\xff" * block)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with storage.open("snap") as snap:
            for round_number in range(200):
                assert snap.pread(0, snap.size) == b"\x01" * block * blocks
                if round_number == 50:
                    storage.destroy("older")
    finally:
        stop.set()
        writer.join()


def test_used_counts_shared_layers_once_and_allocated_what_would_be_freed(storage: Storage) -> None:
    storage.create("disk", 1 << 20)
    with storage.open("disk") as disk:
        disk.pwrite(0, b"a" * 65536)
    storage.snapshot("disk", "snap")
    assert storage.allocated("disk") == storage.allocated("snap") == 0
    assert storage.used(["disk", "snap"]) == storage.used(["disk"]) == 65536
    with storage.open("disk") as disk:
        disk.pwrite(0, b"b" * 4096)
    assert storage.allocated("disk") == 4096
    assert storage.used(["disk", "snap", "no such disk"]) == 65536 + 4096
    storage.destroy("snap")
    assert storage.used(["disk"]) == storage.allocated("disk") == 65536


def test_changed_lists_what_was_written_between(storage: Storage) -> None:
    storage.create("disk", 1 << 20)
    storage.snapshot("disk", "one")
    with storage.open("disk") as disk:
        disk.pwrite(5000, b"abc")
    storage.snapshot("disk", "two")
    with storage.open("disk") as disk:
        disk.pwrite(100_000, bytes(10))
    assert storage.changed("one", "two") == [(5000, 3)]
    assert storage.changed("one", "disk") == [(5000, 3), (100_000, 10)]
    storage.destroy("two")
    assert storage.changed("one", "disk") == [(5000, 3), (100_000, 10)]


def test_adopted_image_keeps_its_holes(storage: Storage, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 30)
        file.seek(5 << 30)
        file.write(b"in the middle")
    storage.adopt("disk", image, 9 << 30)
    with storage.open("disk") as disk:
        assert disk.size == 9 << 30
        assert disk.pread(5 << 30, 13) == b"in the middle"
    assert storage.used(["disk"]) < 1 << 20
    with pytest.raises(ValueError, match="larger"):
        storage.adopt("other", image, 1 << 30)


def test_tree_becomes_a_file_system_that_can_be_edited(storage: Storage, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("guest\n")
    storage.adopt_tree("disk", tree, (32 << 20) + 512)
    storage.snapshot("disk", "before")
    (tmp_path / "motd").write_text("changed inside\n")
    with storage.edit("disk") as image:
        assert image.stat().st_size == (32 << 20) + 512
        command = ["/usr/sbin/debugfs", "-w", "-R", f"write {tmp_path}/motd etc/motd", str(image)]
        subprocess.run(command, check=True, capture_output=True)
    assert 0 < sum(length for _unused, length in storage.changed("before", "disk")) < 1 << 20
    for name, expected in (("disk", "changed inside\n"), ("before", "")):
        with storage.edit(name) as image:
            command = ["/usr/sbin/debugfs", "-R", "cat etc/motd", str(image)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            subprocess.run(["/usr/sbin/e2fsck", "-fn", str(image)], check=True, capture_output=True)
        assert shown == expected


def test_a_log_of_changes_of_a_huge_disk_is_small(storage: Storage) -> None:
    storage.create("live", 16 * TIB)
    storage.track("live")
    storage.snapshot("live", "base")
    with storage.open("live") as disk:
        for number in range(16):
            disk.pwrite(number * TIB + BLOCK, b"far away")
    bitmap = storage.changed_blocks("base", "live")
    assert len(bitmap) == 16 * TIB // BLOCK // 8
    assert [bitmap[number * len(bitmap) // 16] for number in range(16)] == [0x40] * 16
    assert bitmap.count(0) == len(bitmap) - 16


def test_no_write_falls_between_a_snapshot_and_its_log(storage: Storage) -> None:
    storage.create("live", 64 * BLOCK)
    storage.track("live")
    stop = threading.Event()

    def keep_writing() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            with storage.open("live") as disk:
                disk.pwrite(number % 64 * BLOCK, number.to_bytes(8, "big"))

    writer = threading.Thread(target=keep_writing)
    writer.start()
    names = [f"snap{number}" for number in range(25)]
    for name in names:
        storage.snapshot("live", name)
    stop.set()
    writer.join()
    for older, newer in itertools.pairwise([*names, "live"]):
        told = "".join(f"{byte:08b}" for byte in storage.changed_blocks(older, newer))
        with storage.open(older) as before, storage.open(newer) as after:
            differ = [n for n in range(64) if before.pread(n * BLOCK, 8) != after.pread(n * BLOCK, 8)]
        assert all(told[block] == "1" for block in differ)
