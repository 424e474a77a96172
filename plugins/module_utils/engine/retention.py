# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Which restore points a policy keeps, with the meaning restic gives the same words (restic: snapshot_policy.go)."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Callable, NamedTuple, Optional, Sequence

PERIODS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
WITHIN = ("within", "within_hourly", "within_daily", "within_weekly", "within_monthly", "within_yearly")
UNLIMITED = -1

_SPAN = re.compile(r"(?=.)(?:(\d+)y)?(?:(\d+)m)?(?:(\d+)d)?(?:(\d+)h)?", re.ASCII)


class Span(NamedTuple):
    """A length of time in calendar units, as ``2y5m7d3h``."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read ``2y5m7d3h`` or a part of it. ValueError for anything else."""
        found = _SPAN.fullmatch(text)
        if not found:
            raise ValueError("%r is no span of time: expected years, months, days and hours, such as 1y6m or 7d12h" % text)
        return cls(*(int(number or 0) for number in found.groups()))

    def before(self, moment: datetime) -> datetime:
        """The moment this long before another; a day that a month lacks runs over into the next, as in Go's AddDate."""
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        if months < 12:
            return datetime.min.replace(tzinfo=moment.tzinfo)
        first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
        day = first + timedelta(days=moment.day - 1 - self.days)
        return (day.astimezone(timezone.utc) - timedelta(hours=self.hours)).astimezone(moment.tzinfo)


@dataclass(frozen=True)
class Policy:
    """How many points to keep of each period (0: none for its sake, -1: all), for how long, and with which tags.

    ``counts`` and ``spans`` are keyed by PERIODS and WITHIN; ``tags``: a point that has all tags of one of the sets stays.
    """

    counts: dict[str, int] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    tags: Sequence[frozenset[str]] = ()

    @property
    def empty(self) -> bool:
        """Whether the policy says nothing: then nothing is removed for its sake."""
        return not (any(self.counts.values()) or any(any(span) for span in self.spans.values()) or self.tags)


class Candidate(NamedTuple):
    """A point as far as a policy is concerned: when it was taken, with its time zone, and its VM's tags then."""

    moment: datetime
    tags: frozenset[str] = frozenset()


@dataclass
class _Rule:
    """One counter or span at work: ``last`` is the period of the newest point it kept."""

    name: str
    period: Callable[[datetime, int], int]
    count: int
    since: Optional[datetime] = None
    last: int = -1

    def keeps(self, moment: datetime, place: int, oldest: bool) -> bool:
        if self.count == 0 or (self.since is not None and moment <= self.since):
            return False
        period = self.period(moment, place)
        # what is left of a count also keeps the oldest point: the history is as long as it can be
        if period == self.last and not oldest:
            return False
        self.last = period
        self.count -= self.count > 0
        return True


def reasons(
    candidates: Sequence[Candidate], policy: Policy, now: datetime, zone: tzinfo = timezone.utc
) -> list[list[str]]:
    """Why the policy keeps each candidate, in their order; an empty list: it does not.

    Periods are those of the calendar in ``zone``. Spans reach back from the newest point that is not in the future.
    """
    moments = [one.moment.astimezone(zone) for one in candidates]
    order = sorted(range(len(candidates)), key=lambda at: moments[at], reverse=True)
    newest = max((moment for moment in moments if moment < now), default=datetime.min.replace(tzinfo=timezone.utc))
    rules = _rules(policy, newest)
    found: list[list[str]] = [[] for _one in candidates]
    for place, at in enumerate(order):
        why = found[at]
        why += ["keep_tags %s" % ",".join(sorted(tags)) for tags in policy.tags if tags <= candidates[at].tags]
        why += [rule.name for rule in rules if rule.keeps(moments[at], place, place == len(order) - 1)]
    return found


def _rules(policy: Policy, newest: datetime) -> list[_Rule]:
    rules = [_Rule("keep_%s" % name, _PERIODS[name], policy.counts.get(name, 0)) for name in PERIODS]
    for name in WITHIN:
        span = policy.spans.get(name, Span())
        if any(span):
            period = _PERIODS[name.partition("_")[2] or "last"]
            rules.append(_Rule("keep_%s" % name, period, UNLIMITED, span.before(newest)))
    return [rule for rule in rules if rule.count]


def _week(moment: datetime, _place: int) -> int:
    year, week, _day = moment.isocalendar()
    return year * 100 + week


_PERIODS: dict[str, Callable[[datetime, int], int]] = {
    "last": lambda _moment, place: place,
    "hourly": lambda moment, _place: int(moment.strftime("%Y%m%d%H")),
    "daily": lambda moment, _place: int(moment.strftime("%Y%m%d")),
    "weekly": _week,
    "monthly": lambda moment, _place: moment.year * 100 + moment.month,
    "yearly": lambda moment, _place: moment.year,
}
