# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Post-quantum keys through the modules: made, backed up with, restored with; and what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography.hazmat.primitives.hpke", reason="cryptography knows no post-quantum keys")


def test_a_vm_is_backed_up_and_restored_with_post_quantum_keys(site):
    data, catalog = str(site.folder / "pq-data.key"), str(site.folder / "pq-catalog.key")
    made = site.one("xen_backup_key", path=data, type="data", post_quantum=True)
    assert made["changed"] and made["recipient"].startswith("age1pq1")
    again = site.one("xen_backup_key", path=data, type="data", post_quantum=True)
    assert not again["changed"] and again["recipient"] == made["recipient"]
    site.one("xen_backup_key", path=catalog, type="catalog", post_quantum=True)
    repository = str(site.folder / "pq")
    keys = {"repository": repository, "recipients": [made["recipient"]], "catalog_identities": [catalog]}
    assert site.export("web", **keys)["point"]["kind"] == "full"
    assert site.export("web", **keys)["point"]["kind"] == "incremental"
    site.restore("web", repository=repository, identities=[data], name="pq")
    assert site.disks("recovery", "pq") == site.disks("production", "web")
    refused = site.restore("web", fails=True, repository=repository, identities=[catalog], name="sealed")
    assert "identit" in refused["msg"]


def test_kinds_of_keys_are_not_mixed(site):
    repository = site.folder / "mixed"
    recipient = site.one("xen_backup_key", path=str(site.folder / "quantum.key"), type="data", post_quantum=True)["recipient"]
    refused = site.export("web", fails=True, repository=str(repository), recipients=[recipient, site.recipient])
    assert "would protect nothing" in refused["msg"] and not repository.exists()
    refused = site.one("xen_backup_key", fails=True, path=str(site.folder / "sign.key"), type="signing", post_quantum=True)
    assert "no post-quantum signing key" in refused["msg"]
