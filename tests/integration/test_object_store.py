# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository in an S3 server: backed up to, listed, verified, pruned, compacted and restored from; and what goes wrong."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from ansible_collections.guestark.xen.tests.s3_fixture import KEY, SECRET, start_s3

MIB = 1024 * 1024


@pytest.fixture(scope="module", name="s3")
def fixture_s3(tmp_path_factory):
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="module", name="where")
def fixture_where(site, s3):
    """Where the repository is, and the catalog key that its points are opened with."""
    catalog = str(site.folder / "catalog.key")
    site.one("xen_backup_key", path=catalog, type="catalog")
    return {"repository": "s3://guestark/vms", "storage_options": s3.options}


def backed_up(site, where, **more):
    """Make a point."""
    return site.export("web", catalog_identities=[str(site.folder / "catalog.key")], **{**where, **more})["point"]


def write(site, seed: int) -> None:
    site.simulator.control("POST", "/vms/production/web/write", {
        "disk": 0, "offset": 12 * MIB, "random": {"seed": seed, "bytes": 2 * MIB}})


def same(site, where, point: str, digests: list[str]) -> bool:
    """Whether a point gives back disks with these digests."""
    site.empty("recovery")
    site.restore("web", point=point, name="again", **where)
    return site.disks("recovery", "again") == digests


def test_points_are_made_listed_verified_pruned_and_restored(site, s3, where):
    believed = {**where, "allowed_signers": str(site.signers)}
    held, points = [], []
    for seed in range(4):
        write(site, seed)
        held.append(site.disks("production", "web"))
        points.append(backed_up(site, where, change_tracking=seed > 1))
    assert [one["kind"] for one in points] == ["full", "incremental", "incremental", "incremental"]
    assert points[3]["changes_by"] == "cbt" and points[3]["read_bytes"] < points[1]["read_bytes"]
    names = [one["point"] for one in points]
    listed = site.one("xen_backup_info", **believed)["points"]
    assert [one["point"] for one in listed] == names and not any(one["problem"] for one in listed)
    keys = {"sealed": {}, "structure": {"catalog_identities": [str(site.folder / "catalog.key")]},
            "content": {"identities": [str(site.data_key)]}}
    for level, key in keys.items():
        assert site.one("xen_backup_verify", level=level, **key, **believed)["verified"] == names
    pruned = site.one("xen_backup_prune", keep_last=3, min_age="0s", grace="0s", **believed)
    assert pruned["removed"] == names[:1] and pruned["removed_objects"] == 3  # what the others need of it stays
    assert same(site, where, names[1], held[1])
    made = site.one("xen_backup_compact", layers=3, recipients=[site.recipient], signing_key=str(site.signing_key),
                    catalog_identities=[str(site.folder / "catalog.key")], **keys["content"], **believed)["points"]
    assert [one["replaced"] for one in made] == names[3:]
    last = site.one("xen_backup_prune", keep_last=1, min_age="0s", grace="0s", **believed)
    assert sorted(last["removed"]) == sorted(names[1:])
    assert same(site, where, made[0]["point"], held[3])
    assert s3.uploads("guestark") == 0
    again = site.export("web", max_age="4h", **where)
    assert not again["changed"]


def test_credentials_come_from_the_environment_too(site, s3, where, monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
                        "AWS_ENDPOINT": s3.endpoint, "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    point = site.export("web", repository="s3://guestark/environment")["point"]
    assert same(site, {"repository": "s3://guestark/environment"}, point["point"], site.disks("production", "web"))


def test_no_secret_is_said(site, where):
    options = site.export_options("web", **{**where, "repository": "s3://guestark/loud"})
    done = subprocess.run([*site.command("xen_vm_export", **options), "-vvvv"], env=os.environ | site.settings,
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    result = done.stdout[done.stdout.index("localhost | CHANGED"):]
    assert SECRET not in result and "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in result


def dead_endpoint() -> str:
    """An address at which nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return "http://127.0.0.1:%d" % server.getsockname()[1]


@pytest.mark.parametrize(("change", "said"), [
    ({"secret_access_key": "wrong"}, ["denied", "credentials", "signature", "403", "allowed"]),
    ({"access_key_id": "nobody"}, ["denied", "credentials", "403", "allowed"]),
    ({"endpoint": None}, ["reach", "connect", "answer"]),
    ({"allow_http": False}, ["allow_http", "http"]),
    ({"no_such_option": "1"}, ["no_such_option"]),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_a_store_that_cannot_be_used_is_told_of_before_the_pool_is_touched(site, where, change, said):
    before = site.state()
    if "endpoint" in change:
        change = {"endpoint": dead_endpoint()}
    options = {**where["storage_options"], **change}
    refused = site.export("web", fails=True, repository="s3://guestark/vms", storage_options=options)
    assert any(word in refused["msg"] for word in said), refused["msg"]
    assert refused["failure"]["remedy"] and SECRET not in refused["msg"]
    assert site.state() == before


@pytest.mark.parametrize("url", ["s3://", "s3:///vms", "ftp://guestark/vms", "s3://guestark/../vms"])
def test_a_place_that_is_none_is_refused(site, where, url):
    refused = site.export("web", fails=True, **{**where, "repository": url})
    assert refused["failure"]["remedy"]
    assert not os.path.exists(url)


def test_a_bucket_that_is_missing_is_told_of_before_the_pool_is_touched(site, where):
    before = site.state()
    refused = site.export("web", fails=True, **{**where, "repository": "s3://nowhere/vms"})
    assert "Make the bucket" in refused["failure"]["remedy"]
    assert site.state() == before


def test_a_directory_may_be_relative_or_at_home_and_a_bucket_stays_one(site, where, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    at_home = site.export("web", repository="~/points")["point"]["point"]
    assert list((tmp_path / "home" / "points").glob(f"vm/*/pt/{at_home}.sum"))
    relative = os.path.relpath(tmp_path / "home" / "points", site.folder)  # the play's
    assert site.one("xen_backup_info", repository=relative)["points"][0]["point"] == at_home
    apart = {**where, "repository": "s3://guestark/apart"}
    in_bucket = site.export("web", **apart)["point"]["point"]
    assert [one["point"] for one in site.one("xen_backup_info", **apart)["points"]] == [in_bucket]
