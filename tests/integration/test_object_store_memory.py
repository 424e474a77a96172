# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup to an object store takes no more memory than one to a directory may, whatever the length of its segment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible_collections.guestark.xen.tests.s3_fixture import start_s3

MIB = 1024 * 1024
MOST_BACKUP = 96  # MiB of a process that backs up
WRITTEN = 2048 if os.environ.get("GUESTARK_PROOFS") else 512  # MiB that cannot be compressed


@pytest.fixture(scope="module", name="s3")
def fixture_s3(tmp_path_factory):
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


MEASURED = """
import atexit, os, re, runpy
def note():
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as file:
        file.write(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
atexit.register(note)
runpy.run_module("ansible_collections.guestark.xen.plugins.modules.xen_vm_export", run_name="__main__")
"""


def test_a_backup_to_an_object_store_takes_little_memory(site, s3, tmp_path):
    for number in range(WRITTEN // 64):
        site.simulator.control("POST", "/vms/production/sparse/write", {
            "disk": 0, "offset": number * 1024 * MIB, "random": {"seed": number, "bytes": 64 * MIB}})
    options = site.export_options("sparse", repository="s3://guestark/large", storage_options=s3.options)
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
    environment = {"PYTHONPATH": site.settings["ANSIBLE_COLLECTIONS_PATH"], "PEAK": str(tmp_path / "peak")}
    done = subprocess.run([sys.executable, "-c", MEASURED, str(arguments)], env=os.environ | environment, capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads(done.stdout.splitlines()[-1])["point"]["stored_bytes"]
    peak = int((tmp_path / "peak").read_text()) / 1024
    print("a segment of %d MiB: the process took at most %d MiB" % (stored // MIB, peak))
    assert stored > WRITTEN * MIB and peak < MOST_BACKUP
