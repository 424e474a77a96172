# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Reading age files in their PEM-like armor; it is never written here. Source: the age v1 format (strict PEM)."""
from __future__ import annotations

import base64
import binascii

from .errors import ArmorError

BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
END = b"-----END AGE ENCRYPTED FILE-----"
COLUMNS = 64


def dearmor(text: bytes) -> bytes:
    """Return the age file inside. Raises ArmorError. Meant for small files: all of it is in memory."""
    lines = text.strip(b" \t\r\n").replace(b"\r\n", b"\n").split(b"\n")
    if len(lines) < 2 or lines[0] != BEGIN or lines[-1] != END:
        raise ArmorError("the armor has no proper beginning or end")
    body = lines[1:-1]
    if not body:
        return b""
    if any(len(line) != COLUMNS for line in body[:-1]) or not 0 < len(body[-1]) <= COLUMNS:
        raise ArmorError("the armor has a line of the wrong length")
    joined = b"".join(body)
    try:
        data = base64.b64decode(joined, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArmorError("the armor holds malformed base64") from error
    if base64.b64encode(data) != joined:
        raise ArmorError("the armor holds base64 that is not canonical")
    return data
