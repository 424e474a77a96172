# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Bech32 (BIP 173 without its length limit), as age keys use it."""
from __future__ import annotations

from .errors import KeyFormatError

ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit in range(5):
            check ^= GENERATOR[bit] if (top >> bit) & 1 else 0
    return check


def _expand(prefix: str) -> list[int]:
    return [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]


def _regroup(values: bytes | list[int], width: int, to: int, pad: bool) -> list[int]:
    collected, bits, out = 0, 0, []
    for value in values:
        collected = (collected << width) | value
        bits += width
        while bits >= to:
            bits -= to
            out.append((collected >> bits) & ((1 << to) - 1))
        collected &= (1 << bits) - 1
    if pad:
        if bits:
            out.append((collected << (to - bits)) & ((1 << to) - 1))
    elif bits >= width or collected:
        raise KeyFormatError("the key is not canonical Bech32")
    return out


def encode(prefix: str, data: bytes) -> str:
    """Encode in lower case; ``prefix`` must be lower case."""
    values = _regroup(data, 8, 5, True)
    check = _polymod(_expand(prefix) + values + [0] * 6) ^ 1
    values += [(check >> 5 * (5 - place)) & 31 for place in range(6)]
    return prefix + "1" + "".join(ALPHABET[value] for value in values)


def decode(text: str) -> tuple[str, bytes]:
    """Return the prefix (as written) and the data. Raises KeyFormatError."""
    if text.lower() != text and text.upper() != text:
        raise KeyFormatError("the key mixes upper and lower case")
    prefix, separator, rest = text.rpartition("1")
    lower = rest.lower()
    if not separator or not prefix or len(rest) < 6 or any(not 33 <= ord(char) <= 126 for char in prefix):
        raise KeyFormatError("the key is not Bech32")
    if any(char not in ALPHABET for char in lower):
        raise KeyFormatError("the key has a character that Bech32 does not know")
    values = [ALPHABET.index(char) for char in lower]
    if _polymod(_expand(prefix.lower()) + values) != 1:
        raise KeyFormatError("the key is mistyped: its checksum does not fit")
    return prefix, bytes(_regroup(values[:-6], 5, 8, False))
