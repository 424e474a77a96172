# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The one error of this package."""
from __future__ import annotations

from typing import Optional


class XvaError(Exception):
    """An archive is cut, damaged, or not an archive of one VM.

    ``message`` says what is wrong and, when one disk is concerned, begins with its name; ``disk`` is that disk's label.
    """

    def __init__(self, message: str, disk: Optional[str] = None) -> None:
        self.disk = disk
        self.message = "disk %s: %s" % (disk, message) if disk else message
        super().__init__(self.message)
