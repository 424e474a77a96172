# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""How fast the data of a run may flow."""
from __future__ import annotations

import threading
import time
from typing import Optional

BURST = 0.25  # seconds of rest that may be made up for


class Pace:
    """Lets ``limit`` bytes a second through, all threads together; None: as many as come."""

    def __init__(self, limit: Optional[int] = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._due = 0.0  # when all that went through so far may have gone through

    def passed(self, count: int) -> None:
        """Take note of bytes that were moved, and sleep as long as they were too many."""
        if self._limit:
            with self._lock:
                now = time.monotonic()
                self._due = max(self._due, now - BURST) + count / self._limit
                wait = self._due - now
            if wait > 0:
                time.sleep(wait)
