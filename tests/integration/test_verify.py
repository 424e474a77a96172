# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification fails for what could not be restored, and tells what is lost."""

from __future__ import annotations

import pytest

MIB = 1024 * 1024


@pytest.fixture(scope="module", name="points")
def fixture_points(site):
    """A full point and a layer over it."""
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    made = [site.export("web", catalog_identities=[catalog])["point"]["point"]]
    site.simulator.control("POST", "/vms/production/web/write", {
        "disk": 0, "offset": 12 * MIB, "random": {"seed": 1, "bytes": 3 * MIB}})
    made.append(site.export("web", catalog_identities=[catalog])["point"]["point"])
    return made


def options(site, level, **more):
    """Options of xen_backup_verify, with what the level needs."""
    key = {"sealed": {}, "structure": {"catalog_identities": [str(site.folder / "catalog.key")]},
           "content": {"identities": [str(site.data_key)]}}[level]
    return {"repository": str(site.repository), "allowed_signers": str(site.signers), "level": level, **key, **more}


def flipped(site, point, at):
    """Change a bit of a point's first segment, and return how to undo that."""
    (path,) = site.repository.glob(f"vm/*/seg/{point}-000*")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    return lambda: path.write_bytes(whole)


def test_what_is_whole_passes_at_every_level(site, points):
    for level in ("sealed", "structure", "content"):
        result = site.one("xen_backup_verify", **options(site, level))
        assert (result["verified"], result["findings"], result["changed"]) == (points, [], False)
    result = site.one("xen_backup_verify", **options(site, "content", vm="web", point="latest"))
    assert result["verified"] == points[1:]


def test_a_flipped_bit_fails_and_what_is_lost_is_named(site, points):
    (segment,) = site.repository.glob(f"vm/*/seg/{points[1]}-000*")
    undo = flipped(site, points[1], segment.stat().st_size // 2)  # in the three MiB that were written
    try:
        sealed, content = site.run(
            site.task("xen_backup_verify", **options(site, "sealed")),
            site.task("xen_backup_verify", **options(site, "content")), fails=True)
        structure = site.one("xen_backup_verify", **options(site, "structure"))
    finally:
        undo()
    assert structure["findings"] == []  # it does not look at the data
    (one,) = sealed["findings"]
    assert (one["point"], one["name"]) == (points[1], f"seg/{segment.name}")
    assert points[1] in sealed["msg"] and "Restore from other points" in sealed["msg"]
    (one,) = content["findings"]
    assert one["point"] == points[1] and "(Ref:1001)" in one["disk"]
    for offset, length in one["ranges"]:
        assert 12 * MIB <= offset < offset + length <= 16 * MIB and length <= 2 * MIB
    assert content["verified"] == points


def test_a_damaged_full_point_takes_what_is_built_on_it_along(site, points):
    (segment,) = site.repository.glob(f"vm/*/seg/{points[0]}-000*")
    undo = flipped(site, points[0], segment.stat().st_size // 3)
    try:
        content = site.one("xen_backup_verify", fails=True, **options(site, "content"))
    finally:
        undo()
    assert [one["point"] for one in content["findings"]] == points
    assert content["findings"][0]["ranges"] == content["findings"][1]["ranges"] != []
    assert content["msg"].startswith("2 of the restore points cannot be relied on")


def test_a_wrong_key_and_a_wrong_name_are_no_damage(site, points):
    wrong = site.run(
        site.task("xen_backup_verify", **options(site, "content") | {"identities": [str(site.folder / "catalog.key")]}),
        site.task("xen_backup_verify", **options(site, "sealed", point="latest", vm="00000000-0000-4000-8000-000000000000")),
        fails=True)
    assert "findings" not in wrong[0] and "findings" not in wrong[1]
    assert "There is no restore point to verify" in wrong[1]["msg"]


def test_a_point_nobody_vouches_for_is_a_finding(site, points):
    stranger = site.one("xen_backup_key", path=str(site.folder / "stranger.key"), type="signing")["allowed_signer"]
    signers = site.folder / "strangers"
    signers.write_text(stranger + "\n")
    for level in ("sealed", "structure"):
        result = site.one("xen_backup_verify", fails=True, **options(site, level) | {"allowed_signers": str(signers)})
        assert {one["point"] for one in result["findings"]} == set(points)
        assert "not among the allowed signers" in result["findings"][0]["problem"]


def test_parts_of_the_data_are_read_and_all_together_find_the_damage(site, points):
    (segment,) = site.repository.glob(f"vm/*/seg/{points[1]}-000*")
    undo = flipped(site, points[1], segment.stat().st_size // 2)
    try:
        for level in ("sealed", "content"):
            tasks = [site.task("xen_backup_verify", **options(site, level, part=f"{number}/3")) for number in (1, 2, 3)]
            found = []
            for task in tasks:
                found += [one for result in site.run(task, fails=None) for one in result["findings"]]
            assert found and {one["point"] for one in found} == {points[1]}
    finally:
        undo()
    refused = site.one("xen_backup_verify", fails=True, **options(site, "sealed", part="4/3"))
    assert "no part" in refused["msg"]


def test_a_damaged_recipe_is_named_and_hinders_nothing_else(site, points):
    script = site.repository / "restore-xva.sh"
    whole = script.read_bytes()
    script.write_bytes(whole.replace(b"set -eu", b"set -ex", 1))
    try:
        result = site.one("xen_backup_verify", fails=True, **options(site, "sealed"))
        assert "restore-xva.sh" in result["msg"] and [one["name"] for one in result["findings"]] == ["restore-xva.sh"]
        assert site.restore("web", name="by-hand", check_mode=True)["changed"]
    finally:
        script.write_bytes(whole)
