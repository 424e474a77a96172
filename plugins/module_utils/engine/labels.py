# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Names of disks inside archives that the engine writes."""
from __future__ import annotations

from ..xva.ova import Ova

FIRST_LABEL = 1001  # labels of equal width: their byte order, which importers demand, is then their numeric order


def canonical_labels(ova: Ova) -> dict[str, str]:
    """Map the disks' labels, in the order of the stream, to ``Ref:1001``, ``Ref:1002``, …"""
    return {disk.label: "Ref:%d" % (FIRST_LABEL + position) for position, disk in enumerate(ova.disks)}
