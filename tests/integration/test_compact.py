# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains put together to synthetic full points: what they give back, what builds on them, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

MIB = 1024 * 1024


@pytest.fixture(scope="module", name="chain")
def fixture_chain(site):
    """A full point and three layers over it, of a VM with two disks; and the mover's catalog key."""
    catalog = str(site.folder / "catalog.key")
    recipient = site.one("xen_backup_key", path=catalog, type="catalog")["recipient"]
    made = [backed_up(site, step) for step in range(4)]
    assert [one["kind"] for one in made] == ["full", "incremental", "incremental", "incremental"]
    return {"points": [one["point"] for one in made], "recipient": recipient}


def backed_up(site, step: int):
    site.simulator.control("POST", "/vms/production/web/write", {
        "disk": 0, "offset": 12 * MIB, "random": {"seed": step, "bytes": 2 * MIB}})
    return site.export("web", catalog_identities=[str(site.folder / "catalog.key")])["point"]


def options(site, chain, **more):
    return {
        "repository": str(site.repository), "allowed_signers": str(site.signers), "identities": [str(site.data_key)],
        "recipients": [site.recipient], "catalog_recipients": [chain["recipient"]], "signing_key": str(site.signing_key),
        "layers": 3, **more,
    }


def verified(site, level: str = "content"):
    return site.one("xen_backup_verify", level=level, repository=str(site.repository), allowed_signers=str(site.signers),
                    identities=[str(site.data_key)])["verified"]


def restored(site, vm: str, point: str) -> list[str]:
    """Digests of the disks that a point gives back."""
    name = f"back-{point[-6:]}"
    site.restore(vm, point=point, name=name, macs="new")
    return site.disks("recovery", name)


def test_check_mode_and_short_chains_touch_nothing(site, chain):
    before = sorted(site.repository.rglob("*"))
    wished = site.one("xen_backup_compact", check_mode=True, **options(site, chain))
    assert wished["changed"] and wished["points"] == [
        {"vm_uuid": site.uuid("web"), "replaced": chain["points"][-1], "layers": 4}]
    short = site.one("xen_backup_compact", **options(site, chain, layers=5))
    assert not short["changed"] and short["points"] == []
    assert sorted(site.repository.rglob("*")) == before


def test_what_could_not_be_read_back_is_refused(site, chain):
    other = site.one("xen_backup_key", path=str(site.folder / "other.key"), type="data")["recipient"]
    refused = site.one("xen_backup_compact", fails=True, **options(site, chain, recipients=[other]))
    assert "None of the identities belongs to a recipient" in refused["msg"] and site.uuid("web") in refused["msg"]
    sealed = site.one("xen_backup_compact", fails=True, **options(site, chain, identities=[str(site.folder / "catalog.key")]))
    assert site.uuid("web") in sealed["msg"]
    assert len(site.point_names("web")) == 4


def test_a_damaged_layer_is_noticed_and_no_point_appears(site, chain):
    (segment,) = site.repository.glob(f"vm/*/seg/{chain['points'][0]}-000.*")
    whole = shutil.copy2(segment, site.folder / "whole")
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    before = site.contents()
    refused = site.one("xen_backup_compact", fails=True, **options(site, chain))
    assert site.uuid("web") in refused["msg"] and refused["points"] == []
    assert site.contents() == before
    shutil.copy2(whole, segment)


def test_the_synthetic_point_gives_the_same_and_the_next_one_builds_on_it(site, chain):
    now = site.disks("production", "web")
    done = site.one("xen_backup_compact", **options(site, chain))
    (made,) = done["points"]
    assert (made["replaced"], made["layers"]) == (chain["points"][-1], 4) and made["stored_bytes"] > 0
    assert restored(site, "web", made["point"]) == restored(site, "web", chain["points"][-1]) == now
    again = site.one("xen_backup_compact", **options(site, chain))
    assert not again["changed"]
    listed = site.info(catalog_identities=[str(site.folder / "catalog.key")])["points"]
    assert [one["point"] for one in listed][-2:] == [chain["points"][-1], made["point"]]
    assert listed[-1]["kind"] == "synthetic" and listed[-1]["started"] == listed[-2]["started"]
    assert "the 4 layers of" in listed[-1]["reason"]
    following = backed_up(site, 9)
    assert following["kind"] == "incremental" and following["stored_bytes"] < 4 * MIB
    (text,) = site.repository.glob(f"vm/*/pt/{following['point']}.sum")
    assert f"parent {made['point']}\n" in text.read_text() and "layers=2\n" in text.read_text()
    assert restored(site, "web", following["point"]) == site.disks("production", "web")


def test_old_layers_go_with_the_points_that_need_them(site, chain):
    prune = {"repository": str(site.repository), "allowed_signers": str(site.signers), "min_age": "0s", "grace": "0s"}
    kept = site.one("xen_backup_prune", check_mode=True, keep_within="1d", **prune)
    assert not kept["changed"]
    counted = site.one("xen_backup_prune", keep_last=2, **prune)
    assert chain["points"][-1] in counted["removed"] and len(counted["removed"]) == 4
    reasons = {one["point"]: one["reasons"] for one in counted["points"]}
    assert reasons[chain["points"][-1]] == ["a synthetic point takes its place"]
    assert not [one for one in site.repository.glob("vm/*/seg/*") if one.name[:29] in chain["points"]]
    assert len(verified(site)) == 2 and verified(site, "sealed")


def test_the_playbooks_do_the_same(site, chain):
    backed_up(site, 20)
    backed_up(site, 21)
    wish = {
        "guestark_repository": str(site.repository), "guestark_allowed_signers": str(site.signers),
        "guestark_identities": [str(site.data_key)], "guestark_recipients": [site.recipient],
        "guestark_catalog_recipients": [chain["recipient"]], "guestark_signing_key": str(site.signing_key), "compact_layers": 3,
    }
    assert "replaced" in site.playbook("guestark.xen.compact", "-e", json.dumps(wish))
    count = len(site.point_names("web"))
    for level in ("sealed", "content"):
        said = site.playbook("guestark.xen.verify", "-e", json.dumps({**wish, "verify_level": level}))
        assert f"{count} restore points are what was backed up" in said
