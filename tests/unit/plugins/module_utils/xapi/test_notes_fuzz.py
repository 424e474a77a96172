# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever stands under our keys of other_config, which anybody may write: a note of ours, or none."""
from __future__ import annotations

import json

from ansible_collections.guestark.xen.plugins.module_utils.xapi.moments import NOTE, Moment
from ansible_collections.guestark.xen.plugins.module_utils.xapi.power import HELD, Hold
from ansible_collections.guestark.xen.plugins.module_utils.xapi.snapshots import MARK, TAKING, Mark
from hypothesis import example, given, settings
from hypothesis import strategies as st

UUID = "00000000-0000-4000-8000-000000000001"
NAMES = ["of", "vm", "object", "mark", "name", "tool", "run", "point", "expiry", "method", "consistency", "power_state", "scope",
         "since", "excluded"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([UUID, "taken", "2026-11-24T01:00:00Z", ""])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
                      max_leaves=12)
WRITTEN = {name: "taken" if name == "name" else UUID for name in NAMES}
KINDS = [("of", "method", "consistency"), ("vm", "power_state", "method", "scope", "since"), ("name", "vm", "mark"),
         ("object", "vm", "tool", "run", "point", "expiry")]
# a note with some values of its own and some that are not
NOTES = st.sampled_from(KINDS).flatmap(
    lambda names: st.fixed_dictionaries({name: st.just(WRITTEN[name]) | VALUES for name in names}))
TEXTS = (VALUES | NOTES).map(json.dumps) | st.text(max_size=40)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
@example("[" * 100_000)
@example('{"of": ' * 100_000)
@example('"text"')
def test_no_note_stops_a_run(text):
    record = {"uuid": UUID, "name_label": "taken", "is_a_snapshot": True,
              "other_config": dict.fromkeys((NOTE, HELD, MARK, TAKING), text)}
    assert isinstance(Mark.read(record), (Mark, type(None)))
    assert isinstance(Moment.read(record), (Moment, type(None)))
    inherited = Mark.inherited(record)
    assert inherited is None or isinstance(inherited[0], Mark)
    held = Hold.read(record)
    assert held is None or held.age
