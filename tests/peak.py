# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The largest resident memory of a Python program, as the program itself sees it.

What wait4 tells of a child begins with the memory of its parent, from which it was forked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

WATCHED = """
import atexit, os, re, runpy, sys
def note():
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as file:
        file.write(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
atexit.register(note)
program = sys.argv.pop(1)
(runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="__main__")
"""


def peak_of(program: str, *arguments: str, collections: str) -> tuple[float, str]:
    """Run a module, or a file that ends in .py: its largest memory in MiB, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder, "peak")
        done = subprocess.run([sys.executable, "-c", WATCHED, program, *arguments], check=False, capture_output=True, text=True,
                              timeout=600, env=os.environ | {"PYTHONPATH": collections, "PEAK": str(noted)})
        assert done.returncode == 0, done.stdout + done.stderr
        return int(noted.read_text()) / 1024, done.stdout
