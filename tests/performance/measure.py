# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes measured, and data to measure with."""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("/usr", sys.base_prefix)  # real files; taken again under another name until there are enough


@dataclass(frozen=True)
class Run:
    """One process tree: wall clock and CPU in seconds, the largest process's resident memory in MiB, and what it said."""

    wall: float
    cpu: float
    memory: float
    output: bytes = b""


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end. SystemExit with what it said when it fails."""
    began = time.monotonic()
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _pid, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{output.decode(errors='replace')[-4000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def fill(folder: Path, wanted: int) -> None:
    """Copy real files until there are ``wanted`` bytes of them."""
    total = turn = 0
    while total < wanted:
        before = total
        for source in SOURCES:
            for place, folders, names in os.walk(source):
                folders.sort()
                for name in sorted(names):
                    path = Path(place, name)
                    if path.is_symlink() or not path.is_file():
                        continue
                    target = folder / f"{turn}{place}" / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                    total += path.stat().st_size
                    if total >= wanted:
                        return
        if total == before:
            raise SystemExit(f"There are no files in {', '.join(SOURCES)}.")
        turn += 1


def written_bytes(image: Path) -> int:
    """Bytes of an image in MiB that are not all zero: what an export carries."""
    total, zero = 0, bytes(1 << 20)
    with image.open("rb") as file:
        while block := file.read(1 << 20):
            total += len(block) if block != zero[:len(block)] else 0
    return total
