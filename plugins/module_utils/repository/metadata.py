# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What a point's metadata say of its parts; ``docs/format.md`` explains each field."""
from __future__ import annotations

import hashlib
import re
import socket
from typing import Any

from .layers import Layers
from .segments import Segment

TOOL = {"name": "guestark.xen", "version": "0.1.0"}


def describe_older(base: Layers, prefix: int) -> list[dict[str, Any]]:
    """Names and lengths of the segments below: what is cut short is noticed without opening the older points."""
    return [
        {"name": name[prefix:], "cipher_bytes": entry.cipher_len} for layer in base.layers for name, entry in layer.segments
    ]


def describe_segment(segment: Segment, prefix: int) -> dict[str, Any]:
    """A segment of the point; ``prefix`` is the length of the VM's folder in its name."""
    extents = segment.extents
    return {
        "name": segment.name[prefix:],
        "plain_bytes": segment.plain_len,
        "cipher_bytes": segment.cipher_len,
        "sha256": segment.sha256.hex(),
        "extents_sha256": [extents[at:at + 32].hex() for at in range(0, len(extents), 32)],
    }


def describe_recipient(recipient: Any, role: str) -> dict[str, str]:
    """To whom the point is encrypted: ``id`` tells recipients apart without naming them."""
    text = str(recipient)
    kind = "mlkem768x25519" if text.startswith("age1pq1") else "X25519"
    return {"role": role, "type": kind, "id": "sha256:%s" % hashlib.sha256(text.encode("ascii")).hexdigest()[:16]}


def mover_name() -> str:
    """This machine's name, as a commit record takes it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:253] or "-"
