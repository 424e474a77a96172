# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the simulator serves against XAPI's own machine-readable data model, where that lies beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from poolbox.database import Database
from poolbox.model import NAMED_RELEASES, load
from poolbox.world import load_world

EXAMPLES = Path(__file__).resolve().parents[2] / "simulator" / "examples"
FILES = [parent / "shared" / "facts" / "xenapi.json" for parent in Path(__file__).resolve().parents]
FILES += [parent / "shared" / "facts" / "xenapi.json" for parent in Path.cwd().resolve().parents]
FOUND = next((path for path in FILES if path.is_file()), None)


@pytest.fixture(scope="module", name="described")
def fixture_described() -> dict[str, Any]:
    """The classes of the data model by name."""
    if FOUND is None:
        pytest.skip("the data model xenapi.json is not beside this checkout")
    return {cls["name"]: cls for cls in json.loads(FOUND.read_text())}


def published(item: dict[str, Any], release: str) -> bool:
    """Whether a class or field is there in a release."""
    since = [step["release"] for step in item["lifecycle"]["transitions"] if step["transition"] in ("published", "prototyped")]
    if release == "8.3" or not since or since[0] in NAMED_RELEASES:
        return True
    numbers = since[0].split(".")
    return numbers[0] == "1" and int(numbers[1]) <= 249


@pytest.mark.parametrize("release", ["8.2", "8.3"])
def test_every_class_has_exactly_its_fields(described, release):
    model = load(release)
    expected = {name: cls for name, cls in described.items() if published(cls, release)}
    assert set(model.classes) == set(expected)
    for name, cls in expected.items():
        fields = {field["name"] for field in cls["fields"] if published(field, release)}
        assert set(model.classes[name].fields) == fields, name
    assert "groups" not in model.classes["VM"].fields  # came after the data model that is described
    assert ("VTPM" in model.classes) == (release == "8.3")
    assert ("actions_after_softreboot" in model.classes["VM"].fields) == (release == "8.3")


@pytest.mark.parametrize("release", ["8.2", "8.3"])
def test_every_method_has_its_parameters(described, release):
    model = load(release)
    checked = 0
    for method in (method for cls in model.classes.values() for method in cls.methods.values()):
        (message,) = [one for one in described[method.cls]["messages"] if one["name"] == method.name]
        names = [param["name"] for param in message["params"] if param["name"] != "session_id"]
        assert [name for name, _kind in method.params] == names[:len(method.params)], method.full_name
        checked += 1
    assert checked > 1500
    assert len(model.method("VM.snapshot").params) == (3 if release == "8.3" else 2)


def test_all_records_of_a_class_are_alike(described, tmp_path):
    world = load_world(yaml.safe_load((EXAMPLES / "test.yml").read_text()), EXAMPLES, tmp_path)
    for pool in world.pools.values():
        seen = 0
        for name in pool.db.model.classes:
            fields = {field["name"] for field in described[name]["fields"]}
            for ref in pool.db.refs(name):
                assert set(pool.db.get(name, ref)) == fields, name
                seen += 1
        assert seen > 10


def test_back_references_follow_what_refers():
    db = Database("8.3")
    vm, other = db.create("VM"), db.create("VM")
    vbd = db.create("VBD", VM=vm)
    assert db.field("VM", vm, "VBDs") == [vbd]
    db.set("VBD", vbd, VM=other)
    assert (db.field("VM", vm, "VBDs"), db.field("VM", other, "VBDs")) == ([], [vbd])
    db.destroy("VBD", vbd)
    assert db.field("VM", other, "VBDs") == []
