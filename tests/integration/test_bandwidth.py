# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bandwidth limit through the modules: what flows from the pool by export and NBD, and what flows to it."""

from __future__ import annotations

import pytest

MIB = 1024 * 1024


def test_backups_and_restores_keep_to_the_limit(site):
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    wish = {"catalog_identities": [catalog], "change_tracking": True}
    free = site.export("web", **wish)["point"]
    compared = site.export("web", catalog_identities=[catalog], bandwidth_limit="4M")["point"]
    assert compared["seconds"] >= compared["read_bytes"] / (4 * MIB) * 0.9
    site.export("web", **wish)
    site.simulator.control("POST", "/vms/production/web/write", {
        "disk": 0, "offset": 2 * MIB, "random": {"seed": 1, "bytes": 8 * MIB}})
    tracked = site.export("web", bandwidth_limit="4M", **wish)["point"]
    assert tracked["changes_by"] == "cbt"
    assert tracked["seconds"] >= tracked["read_bytes"] / (4 * MIB) * 0.9 - 0.5
    restored = site.restore("web", name="slow", bandwidth_limit="8M")
    assert restored["seconds"] >= free["read_bytes"] / (8 * MIB) * 0.9


@pytest.mark.parametrize("limit", ["fast", "0", "-5M", "5X"])
def test_a_limit_that_is_none_is_refused_before_anything_is_touched(site, limit):
    before = site.state()
    refused = site.export("web", fails=True, repository=str(site.folder / "never"), bandwidth_limit=limit)
    assert "bandwidth_limit" in refused["msg"]
    assert site.state() == before and not (site.folder / "never").exists()
