# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""A repository: where restore points are found, begun and opened. ``docs/format.md`` describes all that lies in it."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, Collection, Optional, Sequence
from uuid import uuid4

from ..age.sshsig import AllowedSigners
from . import layout, record
from .errors import NotTrusted, ObjectExists, ObjectMissing, PointDamaged, RepositoryError
from .layers import Layers
from .layout import PointId
from .lease import Lease
from .objects import read_meta
from .point_reader import PointReader
from .point_writer import MOMENT, PointWriter, WriterKeys
from .recipe import GUIDE, SCRIPT
from .record import PointRecord
from .store import Store
from .sweep import sweep

__all__ = ["PointRecord", "Repository", "WriterKeys"]

FORMAT = "guestark"
VERSION = 1
FEATURES: frozenset[str] = frozenset()  # what repository.json may require of a reader, beyond version 1


class Repository:
    """Restore points in a store. ``id`` is the repository's UUID, ``created`` when it was made (RFC 3339)."""

    def __init__(self, store: Store, description: dict[str, Any]) -> None:
        self.store = store
        self.id: str = description["id"]
        self.created: str = description["created"]

    @classmethod
    def open(cls, store: Store) -> Repository:
        """Open a repository, writing nothing.

        RepositoryError when there is none, or when it needs what this version does not know.
        """
        try:
            text = store.read(layout.REPOSITORY_JSON)
        except ObjectMissing as error:
            raise RepositoryError("There is no repository in %s." % store.path, error.remedy) from error
        return cls(store, _check_description(text, store.path))

    @classmethod
    def create_or_open(cls, store: Store) -> Repository:
        """Open a repository, or make one where there is none.

        RepositoryError when the directory cannot be used: not writable, not a place where nothing is ever replaced.
        """
        store.make_root()
        if not store.exists(layout.REPOSITORY_JSON):
            _create(store)
        return cls.open(store)

    def vm_uuids(self) -> list[str]:
        """VMs that have restore points, trusted or not."""
        found = [name for name in self.store.folders("vm/") if layout.is_vm_uuid(name)]
        return [uuid for uuid in found if self._committed(uuid)]

    def points(self, vm_uuid: Optional[str] = None, signers: Optional[AllowedSigners] = None) -> list[PointRecord]:
        """The points of one VM, or of all, newest last (by VM, sequence number and name).

        Every commit record gives one, whatever is wrong with it: ``trusted`` and ``problem`` say whether it counts.
        Without ``signers`` none is trusted.
        """
        uuids = self.vm_uuids() if vm_uuid is None else [vm_uuid]
        return [one for uuid in uuids for one in self._points_of(uuid, signers)]

    def new_point(self, vm_uuid: str, keys: WriterKeys, signers: Optional[AllowedSigners] = None) -> PointWriter:
        """Begin a restore point. Its sequence number follows the newest point's; with ``signers``, the newest trusted.

        Raises RepositoryError when nothing can be written.
        """
        self.store.probe()
        known = [one.seq for one in self.points(vm_uuid, signers) if signers is None or one.trusted]
        seq = max(known, default=0) + 1
        if seq > layout.MOST_SEQ:
            raise RepositoryError(
                "The sequence numbers of VM %s are used up." % vm_uuid,
                "Somebody wrote points with absurd numbers: give the allowed signers, so that they do not count.",
            )
        point = layout.new_point_id(datetime.now(timezone.utc), seq)
        return PointWriter(self.store, vm_uuid, keys, point)

    def synthetic_point(self, record: PointRecord, keys: WriterKeys) -> PointWriter:
        """Begin a full point that takes the place of another: its moment, its place in the order, its content."""
        self.store.probe()
        point = layout.new_point_id(record.point.moment, record.seq)
        return PointWriter(self.store, record.vm_uuid, keys, point, replaces=record.point)

    def read_point(self, point: PointRecord, identities: Sequence[Any]) -> PointReader:
        """Open a point; ``identities`` open its data. PointDamaged for a point with a problem."""
        _refuse_problem(point)
        return PointReader(self.store, point, identities)

    def layers(self, point: PointRecord, identities: Sequence[Any]) -> Layers:
        """Open a point as far as a catalog identity can see it. PointDamaged for a point with a problem."""
        _refuse_problem(point)
        return Layers(self.store, point, identities)

    def meta(self, point: PointRecord, identities: Sequence[Any]) -> dict[str, Any]:
        """The metadata of a point; a catalog identity is enough. PointDamaged for a point with a problem."""
        _refuse_problem(point)
        return read_meta(self.store, point, identities)

    def check_sizes(self, point: PointRecord, meta: dict[str, Any]) -> None:
        """Raise PointDamaged unless every segment is as long as it was; ``meta`` is the point's metadata."""
        for segment in [*meta.get("older_segments", ()), *meta["segments"]]:
            size = self.store.size(layout.vm_folder(point.vm_uuid) + segment["name"])
            if size != segment["cipher_bytes"]:
                raise PointDamaged(
                    "%s has %d bytes instead of %d." % (segment["name"], size, segment["cipher_bytes"]),
                    "Use another copy or another point.",
                )

    def damaged_files(self) -> list[tuple[str, str]]:
        """Name and problem of each of the repository's own files that is not what was written."""
        text = self.store.read(layout.REPOSITORY_JSON)
        description = _check_description(text, self.store.path)
        if description.get("sha256") != _digest(description) or text != _rendered(description):
            return [(layout.REPOSITORY_JSON, "it is not what was written")]
        found = []
        for name, digest in description["files"].items():
            try:
                if hashlib.sha256(self.store.read(name)).hexdigest() != digest:
                    found.append((name, "it is not what was written"))
            except ObjectMissing:
                found.append((name, "it is missing"))
        return found

    def sweep(self, lease: Lease) -> list[str]:
        """Remove what earlier runs of the lease's VM left when they were killed, and return the names.

        To be called by the lease's holder before ``new_point``; see ``sweep.sweep`` for when something may go.
        """
        return sweep(self.store, lease)

    def _committed(self, vm_uuid: str) -> list[PointId]:
        return layout.committed_points(self.store.list(layout.vm_folder(vm_uuid) + "pt/"))

    def _points_of(self, vm_uuid: str, signers: Optional[AllowedSigners]) -> list[PointRecord]:
        folder = layout.vm_folder(vm_uuid)
        committed = self._committed(vm_uuid)
        # listed after the records: a point's objects are there before its record is
        present = {name for part in ("seg/", "idx/", "meta/") for name in self.store.list(folder + part)}
        found = []
        for point in committed:
            with suppress(ObjectMissing):  # removed since it was listed
                found.append(self._read_record(vm_uuid, point, signers))
        unlisted = {name for one in found for _digest, name in one.objects if folder + name not in present}
        # a store may list what is new with a delay: nothing is missing before it was asked for by its name
        gone = {name for name in unlisted if not self.store.exists(folder + name)}
        found = [_with_lost(one, unlisted, gone) for one in found]
        # a synthetic point comes right behind the one whose place it takes
        return sorted(found, key=lambda one: (one.seq, one.point.moment, one.kind == "synthetic", one.point))

    def _read_record(self, vm_uuid: str, point: PointId, signers: Optional[AllowedSigners]) -> PointRecord:
        name = layout.vm_folder(vm_uuid) + layout.record_name(point)
        text = self.store.read(name)
        try:
            one = record.parse(text)
            if (one.vm_uuid, one.point) != (vm_uuid, point):
                raise PointDamaged("It is the commit record of another point.")
            if signers is None:
                return one
            signer = record.verify(text, self._signature(name), signers)
        except (PointDamaged, NotTrusted) as error:
            return _with_problem(vm_uuid, point, text, error)
        return dataclasses.replace(one, trusted=True, signer=signer)

    def _signature(self, name: str) -> bytes:
        try:
            return self.store.read(name + ".sig")
        except ObjectMissing as error:
            raise NotTrusted("Its signature is missing.") from error


def _with_problem(vm_uuid: str, point: PointId, text: bytes, error: RepositoryError) -> PointRecord:
    """A record that does not count: what it says is kept when it can be read, else its name alone speaks."""
    problem = error.message.rstrip(".")
    if isinstance(error, NotTrusted):
        return dataclasses.replace(record.parse(text), problem=problem)
    return PointRecord(vm_uuid, point, None, point.seq, point.moment, point.moment, "unknown", (), problem=problem)


def _with_lost(one: PointRecord, unlisted: Collection[str], gone: Collection[str]) -> PointRecord:
    """A record with what the store did not list of it, and what it does not have."""
    names = [name for _digest, name in one.objects]
    missing = ", ".join(name for name in names if name in gone)
    problem = one.problem or (missing and "%s is missing" % missing) or None
    return dataclasses.replace(one, problem=problem, unlisted=tuple(name for name in names if name in unlisted))


def _refuse_problem(point: PointRecord) -> None:
    if point.problem:
        raise PointDamaged(
            "Restore point %s cannot be used: %s." % (point.point, point.problem), "Use another point or another copy."
        )


def _create(store: Store) -> None:
    if store.folders("vm/"):
        raise RepositoryError(
            "%s holds restore points but no %s." % (store.path, layout.REPOSITORY_JSON),
            "Bring that file back from a copy of the repository, or choose an empty directory.",
        )
    store.probe()
    digests = {}
    for name, text in ((layout.RESTORE_GUIDE, GUIDE), (layout.RESTORE_SCRIPT, SCRIPT)):
        with suppress(ObjectExists):  # another mover makes the same repository, or one was killed doing so
            store.put(name, text.encode("utf-8"))
        digests[name] = hashlib.sha256(store.read(name)).hexdigest()
    created = datetime.now(timezone.utc).strftime(MOMENT)
    description: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "id": str(uuid4()), "created": created, "requires": [], "files": digests,
    }
    description["sha256"] = _digest(description)
    with suppress(ObjectExists):
        store.put(layout.REPOSITORY_JSON, _rendered(description))  # last: it makes the repository exist


def _rendered(description: dict[str, Any]) -> bytes:
    return (json.dumps(description, indent=1) + "\n").encode("utf-8")


def _digest(description: dict[str, Any]) -> str:
    """SHA-256 of the description without this digest itself."""
    return hashlib.sha256(_rendered({name: value for name, value in description.items() if name != "sha256"})).hexdigest()


def _check_description(text: bytes, path: str) -> dict[str, Any]:
    try:
        description = json.loads(text)
        known = description["format"] == FORMAT and isinstance(description["id"], str) and description["created"]
        version, requires = description["version"], description["requires"]
        unknown = sorted(set(map(str, requires)) - FEATURES)
    except (ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        raise RepositoryError("%s/%s is damaged or not ours." % (path, layout.REPOSITORY_JSON))
    if version != VERSION or unknown:
        raise RepositoryError(
            "The repository in %s needs version %s of the format (%s)." % (path, version, ", ".join(unknown) or "-"),
            "Use the release of this collection that wrote it, or a newer one.",
        )
    return description  # type: ignore[no-any-return]
