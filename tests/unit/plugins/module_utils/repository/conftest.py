# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small file system of its own for tests that fill it up or make it read-only."""
from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest


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
