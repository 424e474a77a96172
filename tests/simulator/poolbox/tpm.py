# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of virtual TPMs, which no record shows: base64 text by the VTPM's reference."""

from __future__ import annotations

_states: dict[str, str] = {}


def get_contents(vtpm: str) -> str:
    """The state of a TPM, "" while it has none."""
    return _states.get(vtpm, "")


def set_contents(vtpm: str, contents: str) -> None:
    """Replace the state of a TPM."""
    _states[vtpm] = contents
