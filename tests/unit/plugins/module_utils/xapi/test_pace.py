# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit of bandwidth, by a clock that only sleeping moves."""
from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import pace
from ansible_collections.guestark.xen.plugins.module_utils.xapi.pace import Pace


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


@pytest.fixture(name="clock")
def fixture_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@pytest.mark.parametrize("piece", [100, 16384, 1 << 20])
def test_as_many_bytes_pass_as_the_limit_lets(clock, piece):
    limited = Pace(1 << 20)
    for _step in range((10 << 20) // piece):
        limited.passed(piece)
    assert 10 - pace.BURST - 0.01 <= clock.now - 1000 <= 10.01


def test_a_rest_is_made_up_for_only_a_little(clock):
    limited = Pace(1000)
    limited.passed(1000)
    clock.now += 3600
    before = clock.now
    limited.passed(5000)
    assert clock.now - before == pytest.approx(5 - pace.BURST)


def test_without_a_limit_nothing_waits(clock):
    Pace().passed(1 << 40)
    assert clock.now == 1000.0
