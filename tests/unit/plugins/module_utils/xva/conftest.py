# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks with real file systems on them."""
from __future__ import annotations

import hashlib
import subprocess

import pytest


def _noise(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


@pytest.fixture(scope="session")
def ext4(tmp_path_factory) -> bytes:
    """An ext4 image of 12 MiB and 300 KiB with files in it, most of it zero."""
    root = tmp_path_factory.mktemp("ext4")
    tree = root / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("web01\n")
    (tree / "data.bin").write_bytes(_noise("data", 3 * 1048576 + 4711))
    image = root / "image"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", str(tree), str(image), str(12 * 1024 + 300)], check=True
    )
    return image.read_bytes()


@pytest.fixture(scope="session")
def dense() -> bytes:
    """A disk of 3 MiB and 512 bytes without any zero block."""
    return _noise("second", 3 * 1048576 + 512)
