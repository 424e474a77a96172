# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Writes a restore point: segments, index, metadata, signature and, last, the record that makes it exist."""
from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Optional, Sequence

from ..age.sshsig import SigningKey
from ..xva.ova import Ova, OvaDisk
from ..xva.writer import BLOCK
from . import layout, record
from .errors import PointDamaged, RepositoryError
from .index import IndexDisk, IndexRecord, IndexWriter
from .layers import Layers
from .layout import PointId
from .marks import marked_objects
from .metadata import describe_older, describe_recipient, describe_segment, mover_name
from .record import PointRecord
from .segments import EXTENT, ObjectWriter, Segment, SegmentWriter
from .store import Store
from .units import LEVEL, EncodedUnit, encode_end, encode_ova

MOMENT = "%Y-%m-%dT%H:%M:%SZ"
SCHEMA = 1


@dataclass(frozen=True)
class WriterKeys:
    """What a mover writes with.

    Everything is encrypted to ``data_recipients``; indexes and metadata to ``catalog_recipients`` too.
    ``encryption`` is ``age`` or ``none``. ValueError when they do not fit together.
    """

    data_recipients: Sequence[Any]
    catalog_recipients: Sequence[Any]
    signing_key: SigningKey
    encryption: str = "age"

    def __post_init__(self) -> None:
        """Refuse a run that would encrypt to nobody, or pretend to encrypt."""
        if self.encryption not in ("age", "none"):
            raise ValueError("encryption is age or none, not %r" % self.encryption)
        if self.encryption == "age" and not self.data_recipients:
            raise ValueError("encryption needs a recipient")
        if self.encryption == "none" and (self.data_recipients or self.catalog_recipients):
            raise ValueError("recipients are of no use without encryption")

    @property
    def encrypted(self) -> bool:
        """Whether anything is encrypted."""
        return self.encryption == "age"

    @property
    def data(self) -> Optional[list[Any]]:
        """Recipients of segments, None for no encryption."""
        return list(self.data_recipients) if self.encrypted else None

    @property
    def catalog(self) -> Optional[list[Any]]:
        """Recipients of index and metadata, None for no encryption."""
        return [*self.data_recipients, *self.catalog_recipients] if self.encrypted else None


@dataclass
class _Disk:
    """What is known of a disk while its blocks come.

    ``view`` digests (number, digest) of every block that is not zero; ``needed`` counts those an archive needs.
    """

    ova: OvaDisk
    units: int = 0
    zeros: int = 0
    plain: int = 0
    needed: int = 0
    next: int = 0
    first_seen: bool = False
    view: Any = field(default_factory=hashlib.sha256)

    @property
    def blocks(self) -> int:
        return -(-self.ova.virtual_size // BLOCK)


class PointWriter(AbstractContextManager):  # type: ignore[type-arg]
    """A point under way: ``put_ova`` once, ``put_block`` or ``keep_block`` for each block, disk by disk, ``commit``.

    Leaving the context without a successful ``commit`` removes every object that was written. ``point`` is its
    identifier, ``replaces`` the point that it is a synthetic full of; ``stored_bytes`` what it takes in the store so far,
    ``metadata`` (after ``commit``) what was recorded.
    """

    def __init__(
        self, store: Store, vm_uuid: str, keys: WriterKeys, point: PointId, replaces: Optional[PointId] = None
    ) -> None:
        self.point = point
        self.metadata: dict[str, Any] = {}
        self._store = store
        self._vm_uuid = vm_uuid
        self._folder = layout.vm_folder(vm_uuid)
        self._keys = keys
        self._base: Optional[Layers] = None
        self._replaces = replaces
        self._written: list[str] = []  # small objects, in the order of their creation
        self._disks: dict[str, _Disk] = {}
        self._order: list[str] = []  # labels of the disks as their blocks come
        self._gapless = False
        self._ova_frame = b""
        self._ova_digest = ""
        self._committed = False
        self._index = IndexWriter(store.scratch())
        self._segments = SegmentWriter(
            store, lambda number: self._folder + layout.segment_name(point, number, keys.encrypted), keys.data
        )

    def __exit__(self, *exc_info: object) -> None:
        self._index.close()
        if not self._committed:
            self.abort()

    @property
    def kind(self) -> str:
        """``full``, ``incremental`` or ``synthetic``."""
        return "incremental" if self._base else "synthetic" if self._replaces else "full"

    @property
    def _parent(self) -> Optional[PointId]:
        return self._base.record.point if self._base else self._replaces

    @property
    def stored_bytes(self) -> int:
        """Bytes of the point's objects so far."""
        return self._segments.stored_bytes

    def put_ova(self, xml: bytes, base: Optional[Layers] = None) -> None:
        """Store the description of the VM; it says which disks follow. Raises XvaError for one that is malformed.

        With ``base``, an open point of the VM, the new one is a layer over it: it holds what changed since.
        """
        if self._ova_frame:
            raise ValueError("a point has one description")
        self._base = base
        self._disks = {disk.label: _Disk(disk) for disk in Ova.parse(xml).disks}
        sizes = [disk.ova.virtual_size for disk in self._disks.values() if disk.ova.virtual_size]
        self._gapless = bool(sizes) and sizes[0] < BLOCK
        if self._gapless and self._base:
            raise ValueError("where the first disk is shorter than 1 MiB no layer can leave anything out")
        self._ova_frame = encode_ova(xml)
        self._ova_digest = hashlib.sha256(xml).hexdigest()
        self._segments.put(self._ova_frame)

    def put_block(self, label: str, number: int, unit: EncodedUnit) -> None:
        """Store the block at ``number`` MiB of the disk ``label``.

        A full point keeps no zero block but the first and the last of a disk: where it is restored, it would take
        space. Exception: importers take the length of the archive's first block for that of every block left out
        (xen-api: stream_vdi.ml), so where the first disk is shorter than 1 MiB nothing may be left out, by the caller either.
        A layer keeps every block it is given. ValueError for blocks that do not come in order or do not fit their disk.
        """
        disk = self._place(label, number, unit.plain_len)
        ends = (0, disk.blocks - 1)
        if self._gapless or not unit.zero or number in ends:
            disk.needed += 1
        elif not self._base:
            return
        self._store_block(disk, number, unit)

    def keep_block(self, label: str, number: int, digest: bytes) -> None:
        """Note that a block, which is not zero and whose SHA-256 is ``digest``, is what it was in the base.

        The first and the last block of a disk are never kept but stored. ValueError as for ``put_block``.
        """
        size = self._disks[label].ova.virtual_size
        disk = self._place(label, number, min(BLOCK, size - number * BLOCK))
        if not self._base or number in (0, disk.blocks - 1):
            raise ValueError("block %d of disk %s has to be stored" % (number, label))
        disk.needed += 1
        disk.view.update(number.to_bytes(4, "little") + digest)

    def commit(self, meta: dict[str, Any], prove: Optional[Callable[[PointRecord], None]] = None) -> PointRecord:
        """Make the point exist, and return its record; ``prove`` may look at all its objects before, and refuse it.

        ``meta`` is what the caller knows: ``vm``, ``host``, ``disks`` (a list; entries are joined by ``label`` with
        what is known here), ``method``, ``consistency``, ``warnings``, ``stats``, ``tool``, ...
        Raises PointDamaged when a disk is not complete, or an object vanished meanwhile.
        """
        self._check_complete()
        self._segments.put(encode_end())
        segments = self._segments.finish()
        committed = datetime.now(timezone.utc).replace(microsecond=0)
        self.metadata = self._complete(meta, segments, committed)
        below = self._base.record.objects if self._base else ()
        objects = [
            *(one for one in below if one[1].startswith("seg/")),
            *((one.sha256.hex(), one.name[len(self._folder):]) for one in segments),
            *(one for one in below if one[1].startswith("idx/")),
            self._write_index(segments),
            self._write_meta(),
        ]
        result = PointRecord(
            vm_uuid=self._vm_uuid, point=self.point, parent=self._parent, seq=self.point.seq,
            started=self.point.moment, committed=committed, kind=self.kind, objects=tuple(objects), mover=mover_name(),
        )
        text = record.render(result)
        if prove:
            prove(result)
        name = self._folder + layout.record_name(self.point)
        self._put(name + ".sig", record.sign(text, self._keys.signing_key))
        self._check_kept(objects, segments)
        self._put(name, text)
        # a run that took this one for dead, or a prune run, may have removed objects meanwhile: then it is no point
        self._check_kept(objects, segments)
        self._committed = True
        return result

    def abort(self) -> None:
        """Remove every object of the point, the record first: it must never list what is gone.

        Once others may have seen the record, it alone goes: a younger point may rest on the other objects by now. The
        VM's next run removes them if none does.
        """
        self._segments.abort()
        with suppress(RepositoryError):  # then all that remains stays: the VM's next run removes it
            name = self._folder + layout.record_name(self.point)
            if name in self._written and self._store.exists(name):
                self._store.remove(name)
                return
            for name in [*reversed(self._written), *self._segments.begun]:
                self._store.remove(name)

    def _store_block(self, disk: _Disk, number: int, unit: EncodedUnit) -> None:
        offset = self._segments.put(unit.frame)
        self._index.add(IndexRecord(number, offset, len(unit.frame), unit.zero, unit.short, unit.digest))
        disk.units += 1
        disk.plain += unit.plain_len
        if unit.zero:
            disk.zeros += 1
        else:
            disk.view.update(number.to_bytes(4, "little") + unit.digest)

    def _place(self, label: str, number: int, length: int) -> _Disk:
        """The disk that a block belongs to, when that is where the next one may come."""
        disk = self._disks[label]
        if self._order[-1:] != [label]:
            self._begin(label)
        furthest = disk.next if self._gapless else disk.blocks - 1
        room = min(BLOCK, disk.ova.virtual_size - number * BLOCK)
        if not disk.next <= number <= min(furthest, disk.blocks - 1) or length != room:
            raise ValueError("block %d of %d bytes has no place on disk %s" % (number, length, label))
        disk.first_seen = disk.first_seen or number == 0
        disk.next = number + 1
        return disk

    def _begin(self, label: str) -> None:
        """Leave the disk before this one behind, complete. A full archive has its disks in the order of their labels."""
        if label in self._order:
            raise ValueError("disk %s comes a second time" % label)
        if self._order:
            self._check_disk(self._disks[self._order[-1]])
            if not self._base and label < self._order[-1]:
                raise ValueError("disk %s comes too late" % label)
        self._order.append(label)

    def _check_complete(self) -> None:
        if not self._ova_frame:
            raise PointDamaged("The restore point has no description of its VM.")
        for disk in self._disks.values():
            self._check_disk(disk)

    def _check_disk(self, disk: _Disk) -> None:
        if disk.blocks and (not disk.first_seen or disk.next != disk.blocks):
            raise PointDamaged(
                "Disk %s (%s) is not complete: its blocks end at %d of %d MiB."
                % (disk.ova.label, disk.ova.name_label, disk.next, disk.blocks)
            )

    def _write_index(self, segments: Sequence[Segment]) -> tuple[str, str]:
        name = layout.index_name(self.point, self._keys.encrypted)
        self._written.append(self._folder + name)
        writer = ObjectWriter(self._store, self._folder + name, self._keys.catalog)
        try:
            disks = []
            count = 0
            for disk in self.metadata["disks"]:
                written = disk["units_written"]
                disks.append(IndexDisk(disk["vdi_uuid"], disk["label"], disk["virtual_size"], count, written))
                count += written
            self._index.finish(writer, disks, [one.entry for one in segments], self._order)
            writer.commit()
        finally:
            writer.abort()
        return writer.digest().hex(), name

    def _write_meta(self) -> tuple[str, str]:
        name = layout.meta_name(self.point, self._keys.encrypted)
        self._written.append(self._folder + name)
        writer = ObjectWriter(self._store, self._folder + name, self._keys.catalog)
        try:
            writer.write(json.dumps(self.metadata, ensure_ascii=False, sort_keys=True, indent=1).encode("utf-8"))
            writer.commit()
        finally:
            writer.abort()
        return writer.digest().hex(), name

    def _put(self, name: str, data: bytes) -> None:
        self._written.append(name)
        self._store.put(name, data)

    def _check_kept(self, objects: Sequence[tuple[str, str]], segments: Sequence[Segment]) -> None:
        """Raise PointDamaged when an object that the point needs is gone or about to be pruned.

        Marks come first: what is seen after a mark went is seen without the objects that went before it.
        """
        doomed = marked_objects(self._store, self._vm_uuid).intersection(name for _digest, name in objects)
        if doomed:
            raise PointDamaged(
                "%s was pruned while the restore point was being written." % ", ".join(sorted(doomed)), "Run the backup again."
            )
        sizes = {one.name: one.cipher_len for one in segments}
        for _digest, listed in objects:
            name = self._folder + listed
            size = self._store.size(name)
            if size != sizes.get(name, size):
                raise PointDamaged("%s changed while the restore point was being written." % name)

    def _complete(self, meta: dict[str, Any], segments: Sequence[Segment], committed: datetime) -> dict[str, Any]:
        given = {disk["label"]: disk for disk in meta.get("disks", ())}
        unknown = sorted(set(given) - set(self._disks))
        if unknown:
            raise ValueError("metadata for disks that are not in the archive: %s" % ", ".join(unknown))
        return {
            **meta,
            "schema": SCHEMA,
            "point": self.point,
            "parent": self._parent,
            "seq": self.point.seq,
            "kind": self.kind,
            "started": self.point.moment.strftime(MOMENT),
            "committed": committed.strftime(MOMENT),
            "disks": [
                {**_describe_disk(disk, given.get(label, {})), **({"units_needed": disk.needed} if self._base else {})}
                for label, disk in self._disks.items()
            ],
            "segments": [describe_segment(one, len(self._folder)) for one in segments],
            "extent_bytes": EXTENT,
            "layers": [*(one.point for one in self._base.layers), self.point] if self._base else [self.point],
            **({"older_segments": describe_older(self._base, len(self._folder))} if self._base else {}),
            "ova_xml": {"sha256": self._ova_digest, "frame_bytes": len(self._ova_frame)},
            "encryption": self._keys.encryption,
            "recipients": [
                *[describe_recipient(one, "data") for one in self._keys.data_recipients],
                *[describe_recipient(one, "catalog") for one in self._keys.catalog_recipients],
            ],
            "compression": {"name": "zstd", "level": LEVEL},
        }


def _describe_disk(disk: _Disk, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "vdi_uuid": disk.ova.vdi_uuid,
        "name_label": disk.ova.name_label,
        "userdevice": disk.ova.userdevice,
        "type": disk.ova.type,
        **given,
        "label": disk.ova.label,
        "virtual_size": disk.ova.virtual_size,
        "block_size": BLOCK,
        "units_written": disk.units,
        "zero_units": disk.zeros,
        "bytes_plain": disk.plain,
        "digest_of_view": disk.view.hexdigest(),
    }
