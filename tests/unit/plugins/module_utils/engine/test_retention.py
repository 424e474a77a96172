# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention policies: what restic keeps of the same points by the same rules, and the rules' edges."""
from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.engine.retention import Candidate, Policy, Span, reasons

GOLDEN = json.loads((Path(__file__).parent / "golden" / "retention.json").read_text("utf-8"))
NOW = datetime(2026, 11, 24, tzinfo=timezone.utc)


def candidate(line: str) -> Candidate:
    moment, *tags = line.split()
    return Candidate(datetime.fromisoformat(moment.replace("Z", "+00:00")), frozenset(tags))


def policy_of(rules: dict) -> Policy:
    counts = {name[5:]: value for name, value in rules.items() if isinstance(value, int)}
    spans = {name[5:]: Span.parse(value) for name, value in rules.items() if isinstance(value, str)}
    return Policy(counts, spans, [frozenset(one.split(",")) for one in rules.get("keep_tags", ())])


def kept(points: list[Candidate], policy: Policy, **options) -> list[int]:
    return [at for at, why in enumerate(reasons(points, policy, NOW, **options)) if why]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: ",".join(map(str, case["policy"].items())))
def test_a_policy_keeps_what_restic_keeps(case):
    points = [candidate(line) for line in GOLDEN["points"]]
    oldest = min(range(len(points)), key=lambda at: points[at].moment)
    found = kept(points, policy_of(case["policy"]))
    # from 0.17 on restic also keeps the oldest for rules that are not used up: the next test
    assert set(found) - {oldest} == set(case["kept"]) - {oldest} and set(found) >= set(case["kept"])
    backwards = kept(points[::-1], policy_of(case["policy"]))
    assert sorted(len(points) - 1 - at for at in backwards) == found


@pytest.mark.parametrize(("rules", "expected"), [
    ({"keep_daily": 2}, [1, 3]),  # used up by the two days
    ({"keep_daily": 3}, [0, 1, 3]),
    ({"keep_within_daily": "7d"}, [0, 1, 3]),
    ({"keep_within_daily": "1h"}, [3]),
    ({"keep_within": "1h"}, [3]),
    ({"keep_yearly": 2}, [0, 3]),
])
def test_the_oldest_point_stays_for_a_rule_that_is_not_used_up(rules, expected):
    points = [candidate("2026-11-%02dT%02d:00:00Z" % (day, hour)) for day in (1, 2) for hour in (1, 20)]
    assert kept(points, policy_of(rules)) == expected


def test_the_reasons_name_every_rule_that_keeps_a_point():
    points = [candidate("2026-11-2%dT12:00:00Z" % day) for day in range(4)]
    found = reasons(points, policy_of({"keep_last": 1, "keep_daily": 2, "keep_within": "1d"}), NOW)
    assert found == [[], [], ["keep_daily"], ["keep_last", "keep_daily", "keep_within"]]


def test_unlimited_counts_keep_one_of_every_period():
    points = [candidate("2026-11-%02dT%02d:00:00Z" % (day, hour)) for day in (1, 2, 3) for hour in (1, 2)]
    assert kept(points, Policy({"daily": -1})) == [0, 1, 3, 5]  # the oldest stays too while a count is left
    assert kept(points, Policy({"last": -1})) == list(range(6))


def test_nothing_is_kept_by_an_empty_policy_and_it_says_that_it_is_empty():
    assert Policy().empty and Policy({"last": 0}, {"within": Span()}).empty
    assert not Policy(tags=[frozenset("a")]).empty and not Policy({"daily": -1}).empty
    assert reasons([candidate("2026-11-20T12:00:00Z")], Policy(), NOW) == [[]]
    assert reasons([], Policy({"last": 1}), NOW) == []


def test_a_point_from_the_future_does_not_move_the_span():
    points = [candidate("2026-11-20T12:00:00Z"), candidate("2026-11-22T12:00:00Z"), candidate("2031-01-01T00:00:00Z")]
    assert kept(points, Policy(spans={"within": Span(days=1)})) == [1, 2]


def test_days_begin_where_the_time_zone_says():
    points = [candidate("2026-11-20T04:30:00Z"), candidate("2026-11-20T05:30:00Z"), candidate("2026-11-20T09:00:00Z")]
    assert kept(points, Policy({"daily": 2})) == [0, 2]
    assert kept(points, Policy({"daily": 1})) == [2]
    new_york = kept([*points, candidate("2026-11-21T05:30:00Z")], Policy({"daily": 2}), zone=ZoneInfo("America/New_York"))
    assert new_york == [2, 3]


def test_a_span_runs_back_over_the_end_of_short_months_and_the_change_of_clocks():
    march = datetime(2026, 3, 31, 12, tzinfo=timezone.utc)
    assert Span.parse("1m").before(march) == datetime(2026, 3, 3, 12, tzinfo=timezone.utc)
    assert Span.parse("1y2m3d4h") == Span(1, 2, 3, 4)
    berlin = datetime(2026, 3, 29, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert berlin.astimezone(timezone.utc) - Span(hours=24).before(berlin).astimezone(timezone.utc) == timedelta(hours=24)
    assert Span(years=9999).before(march) == datetime.min.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["", "5", "1w", "3h2d", "-1d", "1.5d", "١d"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(ValueError, match="no span of time"):
        Span.parse(text)
