# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Verification of restore points: as they are stored, as their indexes fit together, as what they give back."""
from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Sequence, Union

from ..age.errors import AgeError, NoMatchError
from ..repository.errors import PointDamaged, RepositoryError
from ..repository.index import IndexDisk
from ..repository.layers import Layers
from ..repository.point_reader import PointReader, StoredFrame
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..repository.sealed import EVERYTHING, Part, verify_sealed
from ..repository.units import decode_block
from ..xva.errors import XvaError
from ..xva.ova import Ova
from ..xva.writer import BLOCK
from .pipeline import ordered
from .progress import Progress

LEVELS = ("sealed", "structure", "content")


@dataclass(frozen=True)
class Damage:
    """Something wrong with a point. ``name``: the object, below the VM's folder, where it is known to be one.

    ``disk``: name and label of the disk that is not whole, and ``ranges`` (offset, length in bytes) what is lost of it.
    """

    vm_uuid: str
    point: str
    problem: str
    name: str = ""
    disk: str = ""
    ranges: tuple[tuple[int, int], ...] = ()


def verify(
    repository: Repository, records: Sequence[PointRecord], level: str, identities: Sequence[Any], progress: Progress,
    part: Part = EVERYTHING,
) -> Iterator[Damage]:
    """Yield what is wrong with points. ``sealed`` needs no key, ``structure`` a catalog identity, ``content`` a data one.

    ``content`` holds ``structure``. ``part``: of the segments, or of the blocks of each disk, only these. Raises
    NoMatchError when no identity opens a point, RepositoryError when the repository cannot be read.
    """
    if level == "sealed":
        progress.phase("sealed verification")
        for found in verify_sealed(repository, records, part):
            yield Damage(found.vm_uuid, str(found.point), found.problem, found.name)
        return
    for record in records:
        progress.phase("verification of %s" % record.point)
        try:
            with repository.layers(record, identities) as layers:
                yield from _structure(record, layers)
            if level == "content":
                with repository.read_point(record, identities) as reader:
                    yield from _content(record, reader, progress, part)
        except NoMatchError:
            raise
        except (RepositoryError, AgeError, XvaError) as error:
            yield _damage(record, str(getattr(error, "message", "") or error))


def _structure(record: PointRecord, layers: Layers) -> Iterator[Damage]:
    """Whether the layers give, block for block, what the metadata say of each disk."""
    described = {disk["label"]: disk for disk in layers.meta["disks"]}
    for disk in layers.disks:
        view = hashlib.sha256()
        for block in layers.blocks(disk):
            if not block.record.zero:
                view.update(block.record.number.to_bytes(4, "little") + block.record.digest)
        if not hmac.compare_digest(view.hexdigest(), described.get(disk.label, {}).get("digest_of_view", "")):
            yield _damage(record, "its layers do not give what was backed up", disk=_name(layers.meta, disk))


def _content(record: PointRecord, reader: PointReader, progress: Progress, part: Part) -> Iterator[Damage]:
    """Whether every block that an archive needs can be opened and has its digest."""
    missing = {disk.label for disk in Ova.parse(reader.ova_xml).disks} - {disk.label for disk in reader.disks}
    if missing:
        yield _damage(record, "its description has disks that it does not hold: %s" % ", ".join(sorted(missing)))
    total, before = sum(disk.virtual_size for disk in reader.disks), 0
    for disk in reader.disks:
        lost: dict[int, str] = {}
        for number, problem in ordered(_attempts(reader, disk, part), _judge):
            if problem:
                lost[number] = problem
            progress.advance(before + number * BLOCK, total)
        before += disk.virtual_size
        if lost:
            ranges = _ranges(sorted(lost), disk.virtual_size)
            yield _damage(record, lost[min(lost)], disk=_name(reader.meta, disk), ranges=ranges)


def _attempts(reader: PointReader, disk: IndexDisk, part: Part) -> Iterator[tuple[int, Union[StoredFrame, str]]]:
    """Each block by itself, or why it cannot be had: one that is lost must not hide the next ones."""
    for block in reader.needed(disk):
        if not part.holds("%s/%d" % (disk.label, block.record.number)):
            continue
        try:
            (frame,) = reader.fetch(disk.label, [block])
            yield block.record.number, frame
        except NoMatchError:
            raise
        except (PointDamaged, AgeError) as error:
            yield block.record.number, str(getattr(error, "message", "") or error)


def _judge(attempt: tuple[int, Union[StoredFrame, str]]) -> tuple[int, Optional[str]]:
    number, frame = attempt
    if isinstance(frame, str):
        return number, frame
    try:
        digest = decode_block(frame.frame, frame.label, frame.number)[1]
    except PointDamaged as error:
        return number, error.message
    return number, None if hmac.compare_digest(digest, frame.digest) else "a block is not what was backed up"


def _ranges(numbers: Sequence[int], size: int) -> tuple[tuple[int, int], ...]:
    """Blocks as byte ranges, neighbours together."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        start, end = number * BLOCK, min((number + 1) * BLOCK, size)
        if ranges and sum(ranges[-1]) == start:
            start = ranges.pop()[0]
        ranges.append((start, end - start))
    return tuple(ranges)


def _name(meta: dict[str, Any], disk: IndexDisk) -> str:
    names = {one["label"]: one["name_label"] for one in meta["disks"]}
    return "%s (%s)" % (names.get(disk.label, ""), disk.label)


def _damage(record: PointRecord, problem: str, **more: Any) -> Damage:
    return Damage(record.vm_uuid, str(record.point), problem.rstrip("."), **more)
