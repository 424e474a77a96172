# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers: any history of a VM's disks restores at every point, with our reader and with the stock recipe."""
from __future__ import annotations

import hashlib
import random
import subprocess

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import NoMatchError
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import PointDamaged, RepositoryError
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import encode_block
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    DATA,
    KEYS,
    OPEN_KEYS,
    SIGNING,
    VM,
    back_up,
    disk,
    equal,
    lay,
    make,
    restore,
    two_disks,
    write,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, Disk, ova
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

META = {"vm": {"uuid": VM, "name_label": "web01"}, "method": "normal"}


def touched(one: Disk, seed: int, size: int | None = None) -> Disk:
    """A disk after its guest wrote, discarded, and perhaps it grew."""
    draw = random.Random(seed)
    image = bytearray(one.image) + bytes((size or len(one.image)) - len(one.image))
    for block in range(-(-len(image) // MIB)):
        room = min(MIB, len(image) - block * MIB)
        what = draw.randrange(4)
        if what == 0:
            image[block * MIB:block * MIB + room] = bytes(room)
        elif what == 1:
            image[block * MIB + draw.randrange(room)] = 1 + draw.randrange(255)
    return Disk(one.label, bytes(image), checksum=one.checksum, extra=one.extra)


def stock(repository, record, folder):
    """The archive that the repository's own script makes."""
    (folder / "identity").write_text(DATA.to_string() + "\n")
    (folder / "signers").write_text("mover1 %s\n" % SIGNING.public_line())
    out = folder / ("%s.xva" % record.point)
    root = repository.store.path
    done = subprocess.run(
        ["sh", f"{root}/restore-xva.sh", "identity", "signers", f"{root}/vm/{VM}/pt/{record.point}.sum", str(out)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )
    return done, out.read_bytes() if out.exists() else b""


def history(repository, steps, keys=KEYS):
    """Points of disks that change, grow, come, go and change places: [(record, disks)]."""
    disks = two_disks()
    points = [(back_up(repository, disks, keys), disks)]
    labels = 2
    for seed, what in enumerate(steps):
        disks = [touched(one, 10 * seed + number) for number, one in enumerate(disks)]
        if what == "grow":
            disks[-1] = touched(disks[-1], seed, len(disks[-1].image) + MIB + 512)
        elif what == "add":
            disks = [*disks, disk(labels, 2 * MIB + 512 * seed, {0: seed, 1: seed + 1})]
            labels += 1
        elif what == "remove" and len(disks) > 1:
            disks = disks[1:]
        elif what == "nothing":
            disks = points[-1][1]
        order = [one.label for one in reversed(disks)] if what == "reorder" else None
        points.append((lay(repository, points[-1][0], disks, keys, order), disks))
    return points


STEPS = ("write", "grow", "add", "remove", "reorder", "nothing")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
def test_every_point_of_any_history_restores(fast_path, steps):
    repository = make(fast_path / ("r%d" % len(list(fast_path.iterdir()))))
    for record, disks in history(repository, steps, OPEN_KEYS):
        archive = restore(repository, record, ())
        assert equal(archive, disks)
        meta = repository.meta(record, ())
        for described, one in zip(meta["disks"], disks, strict=True):
            view = hashlib.sha256()
            for number in range(-(-len(one.image) // MIB)):
                data = one.image[number * MIB:(number + 1) * MIB]
                if any(data):
                    view.update(number.to_bytes(4, "little") + hashlib.sha256(data).digest())
            assert described["digest_of_view"] == view.hexdigest()
        needed = sum(one.get("units_needed", one["units_written"]) for one in meta["disks"])
        with repository.read_point(record, ()) as reader:
            assert sum(1 for _frame in reader.frames()) == needed


def test_the_stock_recipe_restores_every_layer(tmp_path):
    repository = make(tmp_path / "repository")
    points = history(repository, ("write", "grow", "reorder", "add", "remove", "nothing"))
    assert [record.kind for record, _disks in points] == ["full", *["incremental"] * 6]
    for record, disks in points:
        done, archive = stock(repository, record, tmp_path)
        assert done.returncode == 0, done.stderr
        assert equal(archive, disks)
        assert equal(restore(repository, record), disks)


def test_the_stock_recipe_refuses_what_is_missing_cut_or_swapped(tmp_path):
    repository = make(tmp_path / "repository")
    points = history(repository, ("write", "write"))
    record = points[-1][0]
    root = tmp_path / "repository/vm" / VM
    first, middle, _last = (root / name for name in record.segments)
    kept = {path: path.read_bytes() for path in (first, middle)}

    def refused() -> bool:
        done, archive = stock(repository, record, tmp_path)
        for path, data in kept.items():
            path.write_bytes(data)
        return done.returncode != 0 and not archive

    middle.unlink()
    assert refused()
    middle.write_bytes(kept[middle][:-1])
    assert refused()
    middle.write_bytes(kept[first])
    first.write_bytes(kept[middle])
    assert refused()
    done, archive = stock(repository, record, tmp_path)
    assert done.returncode == 0 and equal(archive, points[-1][1])


def test_a_layer_takes_what_changed_and_needs_no_data_key(tmp_path):
    repository = make(tmp_path / "repository")
    full = back_up(repository, two_disks())
    same = lay(repository, full, two_disks())
    meta = repository.meta(same, [CATALOG])
    assert (same.kind, same.parent, same.seq) == ("incremental", full.point, 2)
    assert [one["units_written"] for one in meta["disks"]] == [2, 2]  # the ends of each disk
    assert meta["layers"] == [full.point, same.point]
    assert same.segments[:1] == full.segments and same.indexes[:1] == full.indexes
    with pytest.raises(NoMatchError):
        restore(repository, same, [CATALOG])
    assert equal(restore(repository, same, [DATA]), two_disks())


def test_a_damaged_layer_is_found_by_every_point_above_it_and_by_no_other(tmp_path):
    repository = make(tmp_path / "repository")
    points = [record for record, _disks in history(repository, ("write", "write"))]
    root = tmp_path / "repository/vm" / VM
    for name in (points[1].segments[-1], points[1].indexes[-1]):
        path = root / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        for record in points[1:]:
            with pytest.raises(PointDamaged):
                restore(repository, record)
            with pytest.raises(RepositoryError):
                repository.layers(record, [CATALOG])
        assert restore(repository, points[0])
        path.unlink()
        assert [bool(one.problem) for one in repository.points(VM)] == [False, True, True]
        path.write_bytes(whole)
    meta = repository.meta(points[2], [CATALOG])
    (root / points[0].segments[0]).write_bytes(b"short")
    with pytest.raises(PointDamaged, match=str(points[0].point)):
        repository.check_sizes(points[2], meta)


def test_blocks_out_of_place_are_no_layer(tmp_path):
    repository = make(tmp_path / "repository")
    full = back_up(repository, two_disks())
    digest = bytes(32)
    unit = encode_block("Ref:1001", 1, b"x" * MIB)
    with repository.layers(full, [CATALOG]) as base:
        for wrong in (
            lambda point: point.keep_block("Ref:1001", 0, digest),
            lambda point: point.keep_block("Ref:1002", 3, digest),
            lambda point: [point.put_block("Ref:1001", 1, unit), point.keep_block("Ref:1001", 1, digest)],
        ):
            with repository.new_point(VM, KEYS) as point, pytest.raises(ValueError):
                point.put_ova(ova(two_disks()), base)
                wrong(point)
        with repository.new_point(VM, KEYS) as point, pytest.raises(PointDamaged, match="not complete"):
            point.put_ova(ova(two_disks()), base)
            point.put_block("Ref:1001", 0, encode_block("Ref:1001", 0, bytes(MIB)))
            point.commit(META)
        with repository.new_point(VM, KEYS) as point, pytest.raises(ValueError, match="shorter than 1 MiB"):
            point.put_ova(ova([disk(5, 4096, {0: 1})]), base)
    with repository.new_point(VM, KEYS) as point, pytest.raises(ValueError):
        point.put_ova(ova(two_disks()))
        point.keep_block("Ref:1001", 1, digest)
    assert [one.point for one in repository.points(VM)] == [full.point]


def test_what_a_younger_point_needs_is_no_garbage(tmp_path):
    repository = make(tmp_path / "repository")
    points = history(repository, ("write", "write"))
    root = tmp_path / "repository/vm" / VM
    for ending in (".sum", ".sum.sig"):
        (root / ("pt/%s%s" % (points[0][0].point, ending))).unlink()
    with Lease(repository.store, VM) as lease:
        assert repository.sweep(lease) == []
        assert equal(restore(repository, points[2][0]), points[2][1])
        unreadable = root / ("pt/%s.sum" % points[2][0].point)
        kept = unreadable.read_bytes()
        unreadable.write_bytes(kept[:-1])  # what it lists is unknown: nothing may go
        (root / ("pt/%s.sum" % points[1][0].point)).unlink()
        assert not [name for name in repository.sweep(lease) if "/seg/" in name or "/idx/" in name]
        unreadable.write_bytes(kept)
    assert equal(restore(repository, points[2][0]), points[2][1])


def test_a_hundred_layers(fast_path):
    repository = make(fast_path / "repository")
    disks = [disk(0, 4 * MIB, {0: 1, 2: 2})]
    records = [back_up(repository, disks, OPEN_KEYS)]
    for seed in range(99):
        disks = [touched(disks[0], seed)]
        records.append(lay(repository, records[-1], disks, OPEN_KEYS))
    assert len(records[-1].indexes) == 100 and equal(restore(repository, records[-1], ()), disks)


def test_full_points_keep_the_order_of_labels(tmp_path):
    repository = make(tmp_path / "repository")
    with repository.new_point(VM, KEYS) as point, pytest.raises(ValueError, match="too late"):
        write(point, two_disks()[::-1])
