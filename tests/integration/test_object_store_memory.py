# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup to an object store takes no more memory than one to a directory may, whatever the length of its segment."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.guestark.xen.tests.peak import peak_of
from ansible_collections.guestark.xen.tests.s3_fixture import start_s3

MIB = 1024 * 1024
MOST_BACKUP = 96  # MiB of a process that backs up
WRITTEN = 2048 if os.environ.get("GUESTARK_PROOFS") else 512  # MiB that cannot be compressed


@pytest.fixture(scope="module", name="s3")
def fixture_s3(tmp_path_factory):
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


def test_a_backup_to_an_object_store_takes_little_memory(site, s3, tmp_path):
    for number in range(WRITTEN // 64):
        site.simulator.control("POST", "/vms/production/sparse/write", {
            "disk": 0, "offset": number * 1024 * MIB, "random": {"seed": number, "bytes": 64 * MIB}})
    options = site.export_options("sparse", repository="s3://guestark/large", storage_options=s3.options)
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
    peak, output = peak_of("ansible_collections.guestark.xen.plugins.modules.xen_vm_export", str(arguments),
                           collections=site.settings["ANSIBLE_COLLECTIONS_PATH"])
    stored = json.loads(output.splitlines()[-1])["point"]["stored_bytes"]
    print("a segment of %d MiB: the process took at most %d MiB" % (stored // MIB, peak))
    assert stored > WRITTEN * MIB and peak < MOST_BACKUP
