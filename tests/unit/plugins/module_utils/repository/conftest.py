# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small file system for tests that fill it up or make it read-only, an S3 server, and stores of both kinds."""
from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.repository.object_store import ObjectStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.tests.s3_fixture import start_s3

_numbers = itertools.count()


@pytest.fixture
def fast_path():
    """A directory on a file system in memory, where there is one: hundreds of runs need not wait for a disk."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def small_filesystem(tmp_path):
    """A directory on a file system of 4 MiB; ``small_filesystem.remount("ro")`` changes how it is mounted."""
    path = tmp_path / "mounted"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "guestark-test", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # also when a failed test left a file open


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A real S3 server with the bucket ``guestark``."""
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3_store(s3):
    """An empty store below a prefix of its own."""
    return ObjectStore("s3://guestark/tests/%d" % next(_numbers), s3.options)


@pytest.fixture(params=["posix", "s3"])
def any_store(request, tmp_path):
    """An empty store, of each kind in turn."""
    if request.param == "s3":
        return request.getfixturevalue("s3_store")
    store = PosixStore(str(tmp_path / "store"))
    store.make_root()
    return store
