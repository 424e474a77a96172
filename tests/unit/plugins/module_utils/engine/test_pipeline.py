# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pipeline keeps order, bounds what is in flight, and never loses an error."""
from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.engine.pipeline import ordered


def test_results_come_in_the_order_of_the_items():
    def slow_for_even(item: int) -> int:
        time.sleep(0.002 if item % 2 == 0 else 0)
        return item * item

    assert list(ordered(range(100), slow_for_even, workers=4)) == [item * item for item in range(100)]


def test_reads_ahead_no_further_than_its_bound():
    read = []

    def items():
        for item in range(50):
            read.append(item)
            yield item

    results = ordered(items(), lambda item: item, workers=2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(read) <= 2 * 2 + 3
    results.close()


@pytest.mark.parametrize("where", ["source", "work"])
def test_an_error_comes_where_its_item_would_have_come(where):
    def items():
        yield from range(5)
        if where == "source":
            raise OSError("the source broke")

    def work(item: int) -> int:
        if where == "work" and item == 4:
            raise OSError("the work broke")
        return item

    received = []
    with pytest.raises(OSError, match=f"the {where} broke"):
        for result in ordered(items(), work, workers=2):
            received.append(result)
    assert received == ([0, 1, 2, 3, 4] if where == "source" else [0, 1, 2, 3])


def test_an_abandoned_pipeline_leaves_no_thread():
    before = threading.active_count()
    results = ordered(iter(range(10_000)), lambda item: item, workers=2)
    assert next(results) == 0
    results.close()
    for _wait in range(50):
        if threading.active_count() == before:
            break
        time.sleep(0.02)
    assert threading.active_count() == before
