# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Units of an archive as zstd frames. Each block, with its checksum member, is one frame that can be read alone.

These functions share nothing between calls but a compressor per thread: worker threads may call them.
"""
from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional, Union

from ..xva.errors import XvaError
from ..xva.tarfmt import SECTOR, make_header, padding, parse_header
from ..xva.writer import BLOCK, END, OVA_NAME, SUFFIX, block_unit, ova_unit
from .errors import PointDamaged

with suppress(ImportError):
    import zstandard

LEVEL = 1
MOST_UNIT = SECTOR + BLOCK + 2 * SECTOR
MOST_FRAME = MOST_UNIT + 8192  # zstd's own bound for what does not compress is smaller
MOST_OVA_UNIT = 17 * 1024 * 1024

Data = Union[bytes, bytearray, memoryview]

_local = threading.local()


@dataclass(frozen=True)
class EncodedUnit:
    """A block ready to be stored.

    ``frame``: one zstd frame holding the block's tar members. ``digest``: SHA-256 of the block's bytes. ``zero``: all
    of them are zero. ``short``: there are fewer than 1 MiB of them, ``plain_len``.
    """

    frame: bytes
    digest: bytes
    zero: bool
    short: bool
    plain_len: int


def encode_block(
    label: str, number: int, data: Data, kind: str = "sha1", checksum: Optional[str] = None, digest: Optional[bytes] = None
) -> EncodedUnit:
    """Digest, wrap and compress a block (1 byte to 1 MiB) of the disk ``label``; ``number`` is its offset in MiB.

    ``kind`` and ``checksum`` are those of ``xva.writer.block_unit``; ``digest``: SHA-256 of the data, where it is known.
    Raises XvaError for what an archive cannot hold.
    """
    digest = digest or hashlib.sha256(data).digest()
    length = len(data)
    frame = _compress(block_unit(label, number, data, kind, checksum))
    return EncodedUnit(frame, digest, digest == zero_digest(length), length < BLOCK, length)


def encode_ova(xml: bytes) -> bytes:
    """The frame with the description of the VM; the first one of a point."""
    return _compress(ova_unit(xml))


def encode_end() -> bytes:
    """The frame with the archive's two zero sectors; the last one of a point."""
    return _compress(END)


def decode(frame: Data, most: int) -> bytes:
    """Decompress a frame that says it holds at most ``most`` bytes.

    Raises PointDamaged when it says more, says nothing, or is no whole frame with a right checksum.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= most:
            raise PointDamaged("A compressed block claims to hold %d bytes, more than the %d possible." % (size, most))
        unit: bytes = _decompressor().decompress(frame, max_output_size=most)
    except zstandard.ZstdError as error:
        raise PointDamaged("A compressed block is damaged: %s." % error) from error
    return unit


def decode_block(frame: Data, label: str, number: int) -> tuple[bytes, bytes]:
    """Return a block's tar members, ready to be sent, and the SHA-256 of its bytes.

    Raises PointDamaged when the frame does not hold exactly the block ``number`` of the disk ``label``. The caller
    compares the digest with the index's.
    """
    unit = decode(frame, MOST_UNIT)
    name = "%s/%08d" % (label, number)
    length = _length(unit, 0, name)
    checksum_at = SECTOR + length + padding(length)
    kind = next((one for one in SUFFIX.values() if _names(unit, checksum_at, name + one)), None)
    if kind is None or len(unit) != checksum_at + 2 * SECTOR:
        raise PointDamaged("A compressed block is not block %d of disk %s." % (number, label))
    return unit, hashlib.sha256(memoryview(unit)[SECTOR:SECTOR + length]).digest()


def decode_ova(frame: Data) -> bytes:
    """Return the description of the VM from its frame. Raises PointDamaged when it is none."""
    unit = decode(frame, MOST_OVA_UNIT)
    length = _length(unit, 0, OVA_NAME)
    if len(unit) != SECTOR + length + padding(length):
        raise PointDamaged("The description of the VM is not whole.")
    return unit[SECTOR:SECTOR + length]


@lru_cache(maxsize=64)
def zero_digest(length: int) -> bytes:
    """SHA-256 of ``length`` zero bytes."""
    return hashlib.sha256(bytes(length)).digest()


def _length(unit: bytes, at: int, name: str) -> int:
    """Length of the member whose header lies at ``at``; PointDamaged when that is not ``name``'s."""
    try:
        member = parse_header(unit[at:at + SECTOR])
    except XvaError as error:
        raise PointDamaged("A compressed block holds no archive member.") from error
    if member is None or member.name != name:
        raise PointDamaged("A compressed block holds %r instead of %r." % (member and member.name, name))
    return member.size


def _names(unit: bytes, at: int, name: str) -> bool:
    return any(unit[at:at + SECTOR] == make_header(name, size) for size in (40, 16))


def _compress(unit: bytes) -> bytes:
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    return compressor.compress(unit)  # type: ignore[no-any-return]


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor
