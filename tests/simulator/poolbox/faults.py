# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults on request: rules that a control client lays down and that calls and transfers run into."""
from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rule:
    """A fault for what matches: every item of ``match`` must equal the fact of that name. ``times`` 0: for ever.

    ``after`` matches pass unharmed first.
    """

    match: dict[str, Any]
    fault: dict[str, Any]
    times: int = 1
    after: int = 0
    id: int = 0
    hits: int = 0


@dataclass
class FaultBook:
    """The rules in force."""

    rules: list[Rule] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ids: Any = field(default_factory=lambda: itertools.count(1))

    def add(self, match: dict[str, Any], fault: dict[str, Any], times: int = 1, after: int = 0) -> int:
        """Lay down a rule and return its number."""
        with self.lock:
            rule = Rule(dict(match), dict(fault), times, after, next(self.ids))
            self.rules.append(rule)
            return rule.id

    def clear(self) -> None:
        """Take all rules back."""
        with self.lock:
            self.rules.clear()

    def take(self, **facts: Any) -> dict[str, Any] | None:
        """The fault of the first rule that matches the facts, or None; a rule that is used up is gone."""
        with self.lock:
            for rule in self.rules:
                if any(facts.get(name) != value for name, value in rule.match.items()):
                    continue
                if rule.after > 0:
                    rule.after -= 1
                    continue
                rule.hits += 1
                if rule.times and rule.hits >= rule.times:
                    self.rules.remove(rule)
                return dict(rule.fault)
        return None
