# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for the repository as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NO_COMMENTS = {".json", ".md5", ".pub", ".sig"}
NO_HEADER = {"LICENSE", "LICENSES/BSD-2-Clause.txt", "LICENSES/GPL-3.0-or-later.txt", "changelogs/changelog.yaml"}


def listed_files():
    """Paths of what git tracks or would track."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def documentation(module):
    """A module's documentation as written, before fragments are merged into it."""
    text = re.search(r'DOCUMENTATION = r"""(.*?)"""', module.read_text(), re.DOTALL).group(1)
    return yaml.safe_load(text)


def modules_using(fragment):
    modules = (ROOT / "plugins/modules").glob("xen_*.py")
    return {
        module.stem for module in modules if fragment in documentation(module)["extends_documentation_fragment"]
    }


def test_every_file_says_its_licence():
    wrong = []
    for name in sorted(listed_files() - NO_HEADER):
        path = ROOT / name
        if path.suffix in NO_COMMENTS or path.is_symlink():
            continue
        head = path.read_bytes()[:600].decode(errors="replace")
        licence = "BSD-2-Clause" if name.startswith("plugins/module_utils/") else "GPL-3.0-or-later"
        wanted = ("Copyright (c) 2026 Guestark contributors\n", f"SPDX-License-Identifier: {licence}\n")
        if not all(line in head for line in wanted):
            wrong.append(f"{name}: {licence}")
    assert not wrong


@pytest.mark.parametrize(
    ("group", "fragment"), [("all", "guestark.xen.connection"), ("repository", "guestark.xen.repository")]
)
def test_action_groups_hold_the_modules_that_take_their_options(group, fragment):
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert set(runtime["action_groups"][group]) == modules_using(fragment)


def test_an_execution_environment_gets_what_a_mover_needs():
    assert requirements("meta/ee-requirements.txt") == requirements("requirements.txt")


def test_the_built_collection_holds_no_more_than_the_repository(tmp_path):
    build = [str(Path(sys.executable).with_name("ansible-galaxy")), "collection", "build", "--output-path", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (artifact,) = tmp_path.glob("guestark-xen-*.tar.gz")
    with tarfile.open(artifact) as archive:
        names = {member.name for member in archive if member.isfile()}
    assert names - listed_files() == {"MANIFEST.json", "FILES.json"}
    assert {"README.md", "LICENSE", "meta/runtime.yml", "plugins/module_utils/arguments.py"} <= names
