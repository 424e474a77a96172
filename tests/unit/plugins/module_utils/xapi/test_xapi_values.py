# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi.rpc import parse_value
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "text, value",
    [
        ("", ""),
        ("<value></value>", ""),
        ("<value>OpaqueRef:1</value>", "OpaqueRef:1"),
        ("<value><array><data><value>OpaqueRef:1</value><value>OpaqueRef:2</value></data></array></value>",
         ["OpaqueRef:1", "OpaqueRef:2"]),
        ("<value><array><data/></array></value>", []),
        ("<value><struct><member><name>a</name><value><boolean>1</boolean></value></member></struct></value>",
         {"a": True}),
        ("<value><dateTime.iso8601>20260131T13:45:10Z</dateTime.iso8601></value>", "20260131T13:45:10Z"),
        ("<value><i4>7</i4></value>", 7),
        ("<value>9007199254740993</value>", "9007199254740993"),
        ("<value>a &amp; b</value>", "a & b"),
    ],
)
@pytest.mark.trap(5, 29)
def test_values(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["plain", "<value>", "<value>a</value></param>", "<oops/>", "<value>&x;</value>"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ValueError):
        parse_value(text)


@given(st.text(max_size=60))
def test_arbitrary_text_is_refused_or_read(text):
    try:
        parse_value(text)
    except ValueError:
        pass
