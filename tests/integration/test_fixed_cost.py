# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an incremental backup of an unchanged VM costs the pool, whatever the size of its disks: calls of its API."""

from __future__ import annotations

from collections import Counter

import pytest

MOST_CALLS = 40


def calls_of(site, act) -> Counter:
    """The calls that something makes."""
    before = Counter(site.simulator.control("GET", "/calls")["production"])
    act()
    return Counter(site.simulator.control("GET", "/calls")["production"]) - before


@pytest.mark.parametrize("vm", ["web", "odd"])
@pytest.mark.parametrize("tracking", [False, True], ids=["digest", "cbt"])
def test_an_unchanged_vm_takes_few_calls(site, vm, tracking):
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    wish = {"catalog_identities": [catalog], "change_tracking": tracking}
    for _step in range(2):
        site.export(vm, **wish)
    points = []
    calls = calls_of(site, lambda: points.append(site.export(vm, **wish)["point"]))
    (point,) = points
    assert (point["kind"], point["changes_by"]) == ("incremental", "cbt" if tracking else "digest")
    assert point["stored_bytes"] < 65536
    print(vm, point["changes_by"], calls.total(), dict(calls))
    assert calls.total() <= MOST_CALLS, dict(calls)
