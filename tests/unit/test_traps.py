# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where XAPI is not what it seems: each such trap has tests, of the simulator, of the client, or of both.

``pytest -m trap --collect-only`` lists them all.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TRAPS = {
    1: "an HTTP 200 does not mean that the import worked",
    2: "a failed export is a 200 too, with an error page glued to the end of its body",
    3: "a refused request may leave its task pending for ever, and a failed task may send no answer",
    4: "without a task of the client's own the result is lost",
    5: "a task's result is XML, to JSON clients too",
    6: "progress 1.0 is no success, and a cancelled task stays pending for a while",
    7: "redirects carry no cookies",
    8: "chunked encoding is refused, and 100-continue never answered",
    9: "a compressed import goes on to the end of the body",
    10: "the host that sees the storage serves the transfer, coordinator or not",
    11: "a chunk's number is not its offset",
    12: "checksums are of two kinds",
    13: "headers are of the oldest kind of tar, and ova.xml comes first",
    14: "references may dangle, identifiers go on counting, and disks follow in the order of text",
    15: "an archive of a snapshot becomes a template, and loses its memory unless asked",
    16: "restore=true is refused beside the VM that is there, and leaks the disks of the one it replaces",
    17: "older releases refuse archives of newer ones",
    18: "imports drop blocked operations, appliance and storage, and make up networks",
    19: "only disks have checksums, and only the end of an archive tells that it is whole",
    20: "removed methods are listed still, and say so only to who is logged in",
    21: "the third parameter of VM.snapshot is not in every release",
    22: "a checkpoint is a suspended VM whose disks look attached",
    23: "no list of allowed operations speaks of changed block tracking",
    24: "data_destroy wants every VBD of the disk gone",
    25: "bitmaps have a bit for 64 KiB, the most significant first, and begin with the older disk",
    26: "reverting replaces the disks of the VM",
    27: "the NBD server knows little but EXPORT_NAME, and nothing before STARTTLS",
    28: "destroying a VM frees no disk, and chains of snapshots have an end",
    29: "integers are text in XML",
    30: "errors are answers with status 200, in one shape per encoding",
    31: "some errors are not what is documented",
    32: "OTHER_OPERATION_IN_PROGRESS comes with parameters of several shapes",
    33: "events are no complete log",
    34: "references outlive the coordinator, sessions and tasks do not",
    35: "each call has its least role",
    36: "the 501st session of an originator ends the least recently used one",
    37: "disks are busy only for a while",
    38: "a blocked operation is refused before anything else, with its reason",
    40: "what is not exported keeps its reference into the source pool",
    41: "not every volume takes sparse formats",
}


def marked() -> set[int]:
    """The numbers in the markers of all test files."""
    texts = (path.read_text() for path in Path(__file__).resolve().parents[1].rglob("test_*.py"))
    marks = [mark for text in texts for mark in re.findall(r"^@pytest\.mark\.trap\(([\d, ]+)\)$", text, re.MULTILINE)]
    return {int(number) for mark in marks for number in mark.split(",")}


@pytest.mark.parametrize("number", TRAPS, ids=str)
def test_every_trap_has_a_test(number):
    assert number in marked(), TRAPS[number]
