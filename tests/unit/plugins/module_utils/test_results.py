# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.guestark.xen.plugins.module_utils import results


class Failed(Exception):
    pass


class Module:
    """Stands for the one method of AnsibleModule that results needs; the real one ends the process."""

    def __init__(self):
        self.result = {}

    def fail_json(self, **result):
        self.result = result
        raise Failed


class Refused(Exception):
    def __init__(self, code, params):
        super().__init__(code)
        self.code = code
        self.params = params


class Explained(Exception):
    def __init__(self, message, remedy):
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self):
        return f"{self.message} {self.remedy}"


def test_a_failure_tells_what_happened_and_what_to_do():
    module = Module()
    with pytest.raises(Failed):
        results.fail(module, Explained("It broke.", "Mend it."), vm="web01")
    assert module.result == {
        "msg": "It broke. Mend it.",
        "failure": {"kind": "Explained", "message": "It broke.", "remedy": "Mend it."},
        "vm": "web01",
    }


def test_a_failure_carries_what_the_pool_said_further_down():
    error = Explained("It broke.", "")
    error.__cause__ = Refused("SR_FULL", ["1024", 2048])
    details = results.failure(error)
    assert details["kind"] == "Explained"
    assert details["code"] == "SR_FULL"
    assert details["params"] == ["1024", "2048"]


def test_the_failure_of_a_plain_exception():
    assert results.failure(ValueError("no")) == {"kind": "ValueError", "message": "no", "remedy": ""}


def test_a_missing_library_is_named_with_its_machine():
    module = Module()
    results.require_libraries(module, "json")
    with pytest.raises(Failed):
        results.require_libraries(module, "json", "guestark_has_no_such_library")
    assert "guestark_has_no_such_library" in module.result["msg"]
    assert "Python" in module.result["msg"]
    assert module.result["failure"] == {"kind": "MissingLibrary", "library": "guestark_has_no_such_library"}


def test_moments_are_rfc3339_in_utc():
    moment = datetime(2026, 11, 23, 2, 0, 0, 999999, timezone(timedelta(hours=1)))
    assert results.rfc3339(moment) == "2026-11-23T01:00:00Z"


def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(ValueError):
        results.rfc3339(datetime(2026, 11, 23))
