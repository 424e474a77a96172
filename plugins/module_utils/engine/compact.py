# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Puts the layers of a restore point together to a synthetic full one, from what is stored and without the pool."""
from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import Any, Optional, Sequence

from ..age.sshsig import AllowedSigners
from ..repository.errors import PointDamaged
from ..repository.lease import Lease
from ..repository.marks import restoring
from ..repository.metadata import TOOL
from ..repository.point_reader import PointReader, StoredFrame
from ..repository.point_writer import PointWriter, WriterKeys
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..repository.units import EncodedUnit, decode_block, zero_digest
from ..xva.writer import BLOCK
from .errors import EngineError
from .pipeline import ordered
from .progress import Progress
from .verify import verify

# what the metadata say of how the layer was made, and that is not true of the whole
OF_THE_LAYER = ("older_segments", "changes_by", "changes_reason", "stats")


@dataclass(frozen=True)
class CompactOrder:
    """Points of ``layers`` layers or more are put together; ``identities`` open their data."""

    layers: int
    identities: Sequence[Any]


@dataclass(frozen=True)
class Compacted:
    """``record`` took the place of the point ``replaced``, which had so many ``layers``, and takes ``stored_bytes``."""

    record: PointRecord
    replaced: PointRecord
    layers: int
    stored_bytes: int


def find_layered(
    repository: Repository, vm_uuid: str, signers: Optional[AllowedSigners], layers: int
) -> Optional[PointRecord]:
    """The VM's newest good point when it has at least that many layers, and more than one."""
    good = [one for one in repository.points(vm_uuid, signers) if one.trusted and not one.problem]
    return good[-1] if good and len(good[-1].indexes) >= max(layers, 2) else None


def compact(
    repository: Repository, vm_uuid: str, keys: WriterKeys, signers: AllowedSigners, order: CompactOrder, progress: Progress
) -> Optional[Compacted]:
    """Make a synthetic full point of the VM's newest one, unless that has fewer layers than ``order`` says.

    Nothing is compressed again: the newest frame of every block is encrypted anew. Before the point exists all of it is
    read back and compared with the one it is made of. Raises EngineError, RepositoryError and AgeError; then no point
    appeared. A backup of the VM waits meanwhile.
    """
    _check_readable(keys, order.identities)
    with Lease(repository.store, vm_uuid) as lease:
        record = find_layered(repository, vm_uuid, signers, order.layers)
        if not record:
            return None
        repository.sweep(lease)
        with restoring(repository.store, record), repository.read_point(record, order.identities) as old:
            with repository.synthetic_point(record, keys) as point:
                return Compacted(_put_together(repository, record, old, point, order, progress), record,
                                 len(record.indexes), point.stored_bytes)


def _put_together(
    repository: Repository, record: PointRecord, old: PointReader, point: PointWriter, order: CompactOrder, progress: Progress
) -> PointRecord:
    began, read = time.monotonic(), 0
    sizes = {disk.label: disk.virtual_size for disk in old.disks}
    total, before, current = sum(sizes.values()), 0, ""

    def opened(frame: StoredFrame) -> tuple[StoredFrame, EncodedUnit]:
        if not hmac.compare_digest(decode_block(frame.frame, frame.label, frame.number)[1], frame.digest):
            raise PointDamaged("Block %d of disk %s is not what was backed up." % (frame.number, frame.label))
        length = min(BLOCK, sizes[frame.label] - frame.number * BLOCK)
        zero = frame.digest == zero_digest(length)
        return frame, EncodedUnit(bytes(frame.frame), frame.digest, zero, length < BLOCK, length)

    progress.phase("putting %s together" % record.point)
    point.put_ova(old.ova_xml)
    for frame, unit in ordered(old.frames(), opened):
        point.put_block(frame.label, frame.number, unit)
        read += len(unit.frame)
        if frame.label != current:
            before, current = before + sizes.get(current, 0), frame.label
        progress.advance(before + frame.number * BLOCK, total)

    def prove(made: PointRecord) -> None:
        """Refuse what does not give, read back from the store, exactly what the old point gives."""
        views = [{disk["label"]: disk["digest_of_view"] for disk in meta["disks"]} for meta in (old.meta, point.metadata)]
        if views[0] != views[1]:
            raise PointDamaged("The layers of %s do not give what was backed up." % record.point)
        for damage in verify(repository, [made], "content", order.identities, progress):
            raise PointDamaged("What was written for %s reads back as damaged: %s." % (record.point, damage.problem))

    meta = {name: value for name, value in old.meta.items() if name not in OF_THE_LAYER}
    disks = [{name: value for name, value in disk.items() if name != "units_needed"} for disk in meta["disks"]]
    return point.commit({
        **meta,
        "disks": disks,
        "reason": "the %d layers of %s were put together" % (len(record.indexes), record.point),
        "tool": TOOL,
        "warnings": [],
        "stats": {"read_bytes": read, "seconds": round(time.monotonic() - began, 3)},
    }, prove)


def _check_readable(keys: WriterKeys, identities: Sequence[Any]) -> None:
    """Refuse to write what could not be read back to prove it."""
    own = {str(one.recipient()) for one in identities}
    if keys.encrypted and not own.intersection(map(str, keys.data_recipients)):
        raise EngineError(
            "None of the identities belongs to a recipient: what is written could not be compared with what it is made of.",
            "Give the identity of one of the recipients, or a recipient of one of the identities.",
        )
