# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Reads a restore point back: metadata, the VM's description, and every block in the order of the archive."""
from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO, Iterator, NamedTuple, Optional, Sequence

from .errors import PointDamaged
from .index import IndexReader, IndexRecord
from .layout import vm_folder
from .posix import PosixStore, reporting
from .record import PointRecord
from .segments import SegmentReader, open_stream
from .units import decode_ova

# a read fetches neighbouring frames together; each frame given out keeps its read in memory
COALESCED = 4 * 1024 * 1024
MOST_META = 256 * 1024 * 1024

_PIECE = 1024 * 1024


class StoredFrame(NamedTuple):
    """A block as it is stored: ``units.decode_block`` opens ``frame``; ``digest`` is the SHA-256 of its bytes."""

    label: str
    number: int
    frame: memoryview
    digest: bytes


class PointReader(AbstractContextManager):  # type: ignore[type-arg]
    """An open full point. ``meta``: its metadata; ``ova_xml``: the VM's description; ``disks``: those in the archive.

    Index and metadata have been compared with the signed record. Raises PointDamaged, ObjectMissing, and what the
    age package raises for an identity that does not fit.
    """

    def __init__(self, store: PosixStore, record: PointRecord, identities: Sequence[Any]) -> None:
        self._stack = ExitStack()
        self._record = record
        self._store = store
        self._folder = vm_folder(record.vm_uuid)
        self._identities: Optional[Sequence[Any]] = identities if record.encrypted else None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()

    def frames(self) -> Iterator[StoredFrame]:
        """Yield every stored block in the order of the archive; to be walked once.

        What a frame holds is not looked at: the caller decodes it and compares its digest. The index's own checksum
        is compared when the last frame has been given out.
        """
        waiting: list[tuple[str, IndexRecord]] = []
        for disk, record in self._index.records():
            if waiting and not self._fits(waiting, record):
                yield from self._fetch(waiting)
                waiting = []
            waiting.append((disk.label, record))
        if waiting:
            yield from self._fetch(waiting)

    def _open(self) -> None:
        self.meta = read_meta(self._store, self._record, self._identities)
        name = self._record.indexes[-1]
        check_digest(self._store, self._record, name)
        file = self._stack.enter_context(self._store.open(self._folder + name))
        with reporting("read", name):
            self._index = IndexReader(open_stream(file, self._identities))
        if len(self._index.segments) != len(self._record.segments):
            raise PointDamaged("The index knows other segments than the commit record.")
        for entry, segment in zip(self._index.segments, self._record.segments):
            if entry.sha256.hex() != self._record.digest(segment):
                raise PointDamaged("The index knows another %s than the commit record." % segment)
        self.disks = self._index.disks
        names = [self._folder + segment for segment in self._record.segments]
        entries = list(zip(names, self._index.segments))
        self._segments = self._stack.enter_context(SegmentReader(self._store, entries, self._identities))
        self._segments.check_sizes()
        described = self.meta["ova_xml"]
        self.ova_xml = decode_ova(self._segments.read_at(0, described["frame_bytes"]))
        if hashlib.sha256(self.ova_xml).hexdigest() != described["sha256"]:
            raise PointDamaged("The description of the VM is not what was backed up.")

    def _fits(self, waiting: list[tuple[str, IndexRecord]], record: IndexRecord) -> bool:
        """Whether a record lies right behind those that wait, in the same segment, and the read stays small."""
        start, last = waiting[0][1].offset, waiting[-1][1]
        end = record.offset + record.length
        return (
            record.offset == last.offset + last.length
            and end - start <= COALESCED
            and end <= self._segments.end_of(start)
        )

    def _fetch(self, waiting: list[tuple[str, IndexRecord]]) -> Iterator[StoredFrame]:
        start, last = waiting[0][1].offset, waiting[-1][1]
        data = memoryview(self._segments.read_at(start, last.offset + last.length - start))
        for label, record in waiting:
            at = record.offset - start
            yield StoredFrame(label, record.number, data[at:at + record.length], record.digest)


def read_meta(store: PosixStore, record: PointRecord, identities: Optional[Sequence[Any]]) -> dict[str, Any]:
    """The metadata of a point. PointDamaged when it is not what the record lists."""
    check_digest(store, record, record.meta)
    with store.open(vm_folder(record.vm_uuid) + record.meta) as file, reporting("read", record.meta):
        text = _everything(open_stream(file, identities), record.meta)
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise PointDamaged("%s is malformed." % record.meta) from error
    if not isinstance(meta, dict) or meta.get("point") != record.point:
        raise PointDamaged("%s belongs to another restore point." % record.meta)
    return meta


def check_digest(store: PosixStore, record: PointRecord, name: str) -> None:
    """Raise PointDamaged unless the object ``name`` (relative to the VM's folder) is the one the record lists."""
    with store.open(vm_folder(record.vm_uuid) + name) as file, reporting("read", name):
        found = digest_of(file)
    if not hmac.compare_digest(found, record.digest(name)):
        raise PointDamaged("%s is not what the commit record lists." % name, "Use another copy or another point.")


def digest_of(file: BinaryIO) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    while True:
        length = file.readinto(buffer)  # type: ignore[attr-defined]
        if not length:
            return hasher.hexdigest()
        hasher.update(view[:length])


def _everything(stream: Any, name: str) -> bytes:
    data = bytearray()
    while True:
        part = stream.read(_PIECE)
        if not part:
            return bytes(data)
        data += part
        if len(data) > MOST_META:
            raise PointDamaged("%s is larger than metadata can be." % name)
