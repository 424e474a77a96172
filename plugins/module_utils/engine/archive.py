# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What can be restored: a point of a repository, or an exported file. Both give a description and checked tar units."""
from __future__ import annotations

import hmac
import io
import os
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Iterator, Protocol, Sequence

from ..age.errors import PayloadError
from ..age.stream import AgeReader
from ..repository.errors import PointDamaged
from ..repository.marks import restoring
from ..repository.point_reader import PointReader
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..repository.units import decode_block
from ..xva.errors import XvaError
from ..xva.ova import Ova
from ..xva.reader import Block, XvaReader, gapless
from ..xva.writer import BLOCK, block_unit, verify_checksum
from .description import canonical_labels
from .pipeline import ordered

with suppress(ImportError):
    import zstandard

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
AGE_MAGIC = b"age-encryption.org/v1"


class Archive(Protocol):
    """Anything that can be sent to a pool.

    ``origin`` names it, ``stored_bytes`` is what its disks hold beside zeros.
    """

    origin: str
    ova: Ova
    stored_bytes: int

    def units(self) -> Iterator[bytes]:
        """Yield each block of a disk of ``ova`` as a tar unit (data and checksum members), verified, in their order."""


class PointArchive:
    """A restore point. Every block is compared with the digest in the signed index before it is given out."""

    def __init__(self, repository: Repository, record: PointRecord, reader: PointReader) -> None:
        self.origin = str(record.point)
        self._store, self._record = repository.store, record
        self.ova = Ova.parse(reader.ova_xml)
        self.stored_bytes = BLOCK * sum(
            disk.get("units_needed", disk["units_written"]) for disk in reader.meta["disks"]
        )
        self._reader = reader

    def units(self) -> Iterator[bytes]:
        """See Archive. Raises PointDamaged naming disk and block. While it runs, the point is held."""
        wanted = {disk.label for disk in self.ova.disks}
        with restoring(self._store, self._record):
            yield from ordered((frame for frame in self._reader.frames() if frame.label in wanted), self._checked)

    def _checked(self, frame: Any) -> bytes:
        unit, digest = decode_block(frame.frame, frame.label, frame.number)
        if not hmac.compare_digest(digest, frame.digest):
            raise PointDamaged("Block %d of disk %s is not what was backed up." % (frame.number, frame.label))
        return unit


class FileDamaged(XvaError):
    """An exported file that is cut, damaged, or no export at all."""

    remedy = "Use another copy of the file, or a new export."


@contextmanager
def _judged(name: str) -> Iterator[None]:
    """Make FileDamaged of what its formats' readers say of a file."""
    try:
        yield
    except (XvaError, PayloadError, zstandard.ZstdError) as error:
        raise FileDamaged("%s is cut or damaged, or no export: %s" % (name, error)) from error


class FileArchive:
    """An exported file: plain, compressed with zstd, and encrypted with age, as its first bytes tell."""

    def __init__(self, path: str, stream: BinaryIO, size: int) -> None:
        self.origin = os.path.basename(path)
        with _judged(self.origin):
            self._reader = XvaReader(stream, verify=False)
        self._labels = canonical_labels(self._reader.ova)
        self.ova = self._reader.ova.canonical(self._labels)
        self.stored_bytes = size

    def units(self) -> Iterator[bytes]:
        """See Archive. Raises FileDamaged."""
        with _judged(self.origin):
            wanted = {disk.label for disk in self.ova.disks}
            blocks = gapless(self._reader.ova.disks, self._reader.blocks())
            yield from ordered((block for block in blocks if self._labels[block.label] in wanted), self._checked)

    def _checked(self, block: Block) -> bytes:
        check_block(block)
        return block_unit(
            self._labels[block.label], block.offset // BLOCK, block.data, block.checksum_kind, block.checksum
        )


def check_block(block: Block) -> None:
    """Raise XvaError when a block is not what its sender's checksum says."""
    if not verify_checksum(block.checksum_kind, block.checksum, block.data):
        raise XvaError("the block at byte %d does not fit its checksum" % block.offset, disk=block.label)


@contextmanager
def open_point(repository: Repository, record: PointRecord, identities: Sequence[Any]) -> Iterator[PointArchive]:
    """Open a point for restoring."""
    with repository.read_point(record, identities) as reader:
        yield PointArchive(repository, record, reader)


@contextmanager
def open_file(path: str, identities: Sequence[Any]) -> Iterator[FileArchive]:
    """Open an exported file for restoring; ``identities`` may be empty when it is not encrypted."""
    with open(path, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        stream: Any = source
        if stream.peek(len(AGE_MAGIC)).startswith(AGE_MAGIC):
            stream = io.BufferedReader(AgeReader(source, identities), BLOCK)
        if stream.peek(len(ZSTD_MAGIC)).startswith(ZSTD_MAGIC):
            stream = zstandard.ZstdDecompressor().stream_reader(stream, read_size=BLOCK, read_across_frames=True)
        yield FileArchive(path, stream, size)
