# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention through the modules: what a policy keeps, holds, and that what stays restores."""

from __future__ import annotations

import os

import pytest

MIB = 1024 * 1024


@pytest.fixture(scope="module", name="points")
def fixture_points(site):
    """A full point and three layers over it."""
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    made = []
    for step in range(4):
        site.simulator.control("POST", "/vms/production/web/write", {
            "disk": 0, "offset": 12 * MIB, "random": {"seed": step, "bytes": 2 * MIB}})
        made.append(site.export("web", catalog_identities=[catalog])["point"])
    assert [one["kind"] for one in made] == ["full", "incremental", "incremental", "incremental"]
    return [one["point"] for one in made]


def options(site, **more):
    return {"repository": str(site.repository), "allowed_signers": str(site.signers), **more}


def prune(site, **more):
    return options(site, **{"min_age": "0s", "grace": "0s", **more})


def listed(site, **more):
    return site.one("xen_backup_info", **options(site, **more))["points"]


def age_marks(site, hours: int) -> None:
    for mark in site.repository.glob("vm/*/trash/*.mark"):
        os.utime(mark, (mark.stat().st_mtime - hours * 3600,) * 2)


def test_check_mode_gives_the_reasons_and_touches_nothing(site, points):
    before = {path: path.stat().st_mtime for path in site.repository.rglob("*")}
    result = site.one("xen_backup_prune", check_mode=True, **prune(site, keep_last=2))
    assert result["marked"] == points[:2] and result["removed"] == [] and result["changed"]
    assert [(one["point"], one["keep"], one["reasons"]) for one in result["points"]] == [
        (points[0], False, ["no rule keeps it"]), (points[1], False, ["no rule keeps it"]),
        (points[2], True, ["keep_last"]), (points[3], True, ["newest", "keep_last"]),
    ]
    assert before == {path: path.stat().st_mtime for path in site.repository.rglob("*")}
    young = site.one("xen_backup_prune", check_mode=True, **options(site, keep_last=1))
    assert not young["changed"] and all("younger than min_age" in one["reasons"] for one in young["points"])
    empty = site.one("xen_backup_prune", check_mode=True, **prune(site))
    assert not empty["changed"] and {tuple(one["reasons"]) for one in empty["points"][:3]} == {("no policy",)}


def test_a_held_point_stays_until_it_is_let_go(site, points):
    catalog = [str(site.folder / "catalog.key")]
    hold = options(site, vm="web", catalog_identities=catalog, reason="before-upgrade", point=points[1])
    first, again = site.run(site.task("xen_backup_hold", **hold), site.task("xen_backup_hold", **hold))
    assert (first["changed"], again["changed"], again["holds"]) == (True, False, ["before-upgrade"])
    assert [one["holds"] for one in listed(site)] == [[], ["before-upgrade"], [], []]
    result = site.one("xen_backup_prune", check_mode=True, **prune(site, keep_last=1))
    assert result["points"][1]["reasons"] == ["hold: before-upgrade"]
    for reason in ("Two Words", "restore-mine"):
        refused = site.one("xen_backup_hold", fails=True, **{**hold, "reason": reason})
        assert "Choose another reason" in refused["msg"]


def test_marks_come_first_and_what_is_held_or_needed_stays(site, points):
    daily = prune(site, keep_last=1, grace="24h")
    marking = site.one("xen_backup_prune", **daily)
    assert marking["marked"] == [points[0], points[2]] and marking["removed"] == []
    assert [one["marked"] for one in listed(site)] == [True, False, True, False]
    early = site.one("xen_backup_prune", **daily)
    assert not early["changed"] and len(listed(site)) == 4
    age_marks(site, 25)
    done = site.one("xen_backup_prune", **daily)
    assert done["removed"] == [points[0], points[2]] and done["removed_objects"] >= 6 and done["removed_bytes"] > 0
    left = listed(site)
    assert [one["point"] for one in left] == [points[1], points[3]] and not any(one["problem"] for one in left)
    assert not site.one("xen_backup_prune", **daily)["changed"]


def test_what_is_left_in_the_middle_of_the_chain_restores(site, points):
    verified = site.one("xen_backup_verify", level="content", **options(site, identities=[str(site.data_key)]))
    assert verified["verified"] == [points[1], points[3]]
    site.restore("web", name="middle", point=points[1])
    site.simulator.control("POST", "/vms/production/web/write", {
        "disk": 0, "offset": 12 * MIB, "random": {"seed": 1, "bytes": 2 * MIB}})
    assert site.disks("production", "web") == site.disks("recovery", "middle")
    assert not list(site.repository.glob("vm/*/hold/*.restore-*"))


@pytest.mark.parametrize(("wrong", "told"), [
    ({"keep_last": -2}, "keep_last is -2"),
    ({"keep_within": "3w"}, "'3w' is no span of time"),
    ({"grace": "soon"}, "'soon' is no span of time"),
    ({"timezone": "Mars/Olympus"}, "no time zone"),
    ({"keep_tags": ["gold"]}, "Give a catalog identity"),
])
def test_what_makes_no_sense_is_refused_before_anything_is_touched(site, points, wrong, told):
    before = sorted(site.repository.rglob("*"))
    failed = site.one("xen_backup_prune", fails=True, **prune(site, **wrong))
    assert told in failed["msg"] and sorted(site.repository.rglob("*")) == before


def test_a_vm_that_was_given_up_goes_whole_but_for_what_is_held(site, points):
    catalog = [str(site.folder / "catalog.key")]
    gone = site.one("xen_backup_prune", **prune(site, vm="web", remove_all=True, catalog_identities=catalog))
    assert gone["removed"] == [points[3]]
    assert [one["point"] for one in listed(site)] == [points[1]]
    vm = gone["points"][0]["vm_uuid"]
    site.one("xen_backup_hold", **options(site, vm=vm, point=points[1], reason="before-upgrade", state="absent"))
    site.one("xen_backup_prune", **prune(site, vm=vm, remove_all=True))
    assert listed(site) == [] and not [path for path in site.repository.glob("vm/**/*") if path.is_file()]
    again = site.export("web", catalog_identities=catalog)
    assert again["point"]["kind"] == "full"
