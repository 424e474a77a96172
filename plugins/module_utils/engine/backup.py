# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Takes one VM from the pool to a restore point or a file: snapshot, export, commit, clean up."""
from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, Optional, Sequence
from uuid import uuid4

from ..age.sshsig import AllowedSigners
from ..repository.lease import Lease
from ..repository.point_writer import PointWriter, WriterKeys
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..repository.units import EncodedUnit, encode_block
from ..source.export_stream import ExportStream, open_export
from ..xapi import snapshots
from ..xapi.client import PoolClient
from ..xapi.errors import NotFound, PoolError
from ..xva.ova import OvaDisk
from ..xva.reader import Block
from ..xva.writer import BLOCK
from .archive import check_block
from .catalog import examine
from .description import canonical_labels, description_of
from .errors import naming
from .pipeline import ordered
from .progress import Progress

SNAPSHOT_LIFE = timedelta(days=1)  # hosts end export tasks after a day: nobody comes back later


@dataclass(frozen=True)
class BackupOrder:
    """What to protect and how.

    ``vm``: the VM's record, as ``inventory.find_vm`` gives it. ``snapshot_uuid``: a snapshot made before, which is left
    in place; without one a snapshot is taken and removed. ``max_age``: a valid point younger than this is enough.
    ``catalog``: identities that open the metadata of earlier points. ``tool``: name and version of who asks, recorded on
    the point.
    """

    vm: dict[str, Any]
    snapshot_uuid: Optional[str] = None
    max_age: Optional[timedelta] = None
    stall_timeout: float = 300.0
    catalog: Sequence[Any] = ()
    tool: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BackupResult:
    """The point that was made or found; ``warnings`` say what an operator must know although the point is good.

    ``meta`` and ``stored_bytes`` are there when the point was made.
    """

    changed: bool
    record: PointRecord
    meta: dict[str, Any] = field(default_factory=dict)
    stored_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


def find_recent(repository: Repository, order: BackupOrder, signers: Optional[AllowedSigners]) -> Optional[PointRecord]:
    """The VM's newest trusted, complete point whose moment is less than ``order.max_age`` ago, or None.

    The moment is when the run that made it began: what was written in the guest since is not in it.
    """
    if not order.max_age:
        return None
    now = datetime.now(timezone.utc)
    for record in reversed(repository.points(order.vm["uuid"], signers)):
        if record.trusted and timedelta(0) <= now - record.started < order.max_age:
            if not examine(repository, record, order.catalog)[0].problem:
                return record
    return None


def back_up(
    client: PoolClient, repository: Repository, keys: WriterKeys, signers: AllowedSigners, order: BackupOrder,
    progress: Progress,
) -> BackupResult:
    """Make a restore point of a VM, unless one younger than ``order.max_age`` exists.

    Raises EngineError; then no point appeared, what was written is removed, and the snapshot too as far as the pool
    can be reached (the VM's next run removes what could not be).
    """
    uuid, warnings = order.vm["uuid"], []  # type: ignore[var-annotated]
    with naming("back up", order.vm["name_label"]), ExitStack() as stack:
        lease = stack.enter_context(Lease(repository.store, uuid))
        # looked at only now: another run may have made the point while this one waited for the lease
        recent = find_recent(repository, order, signers)
        if recent:
            return BackupResult(False, recent)
        repository.sweep(lease)
        _remove_leftovers(client, order.vm, warnings)
        point = stack.enter_context(repository.new_point(uuid, keys, signers=signers))
        with source_of(client, order, str(point.point), progress, warnings) as snapshot:
            record = _export(client, point, order, snapshot, progress, warnings)
    return BackupResult(True, record, point.metadata, point.stored_bytes, warnings)


@contextmanager
def source_of(
    client: PoolClient, order: BackupOrder, point: str, progress: Progress, warnings: list[str]
) -> Iterator[str]:
    """The ref of the snapshot to export: the one that was named, or one that is taken and removed again.

    A snapshot that cannot be removed is a warning when all else went well: the next run of the VM removes it.
    """
    if order.snapshot_uuid:
        yield _named_snapshot(client, order)
        return
    progress.phase("snapshot")
    expiry = (datetime.now(timezone.utc) + SNAPSHOT_LIFE).strftime("%Y-%m-%dT%H:%M:%SZ")
    mark = snapshots.Mark(order.tool.get("name", "guestark"), str(uuid4()), point, expiry)
    snapshot = snapshots.take(client, order.vm["ref"], "guestark %s" % point, mark)
    try:
        yield snapshot
    except BaseException:
        _remove_snapshot(client, snapshot, warnings)
        raise
    progress.phase("clean up")
    _remove_snapshot(client, snapshot, warnings)


def blocks_of(
    stream: ExportStream, labels: dict[str, str], progress: Progress
) -> Iterator[tuple[str, int, EncodedUnit]]:
    """Encode an export's blocks on all cores: (label in the archive, number, unit), in order, each checked."""

    def encode(block: Block) -> tuple[Block, EncodedUnit]:
        check_block(block)
        return block, encode_block(
            labels[block.label], block.offset // BLOCK, block.data, block.checksum_kind, block.checksum
        )

    before = _offsets(stream.ova.disks)
    total = sum(disk.virtual_size for disk in stream.ova.disks)
    for block, unit in ordered(stream.blocks(), encode):
        yield labels[block.label], block.offset // BLOCK, unit
        progress.advance(before[block.label] + block.offset + unit.plain_len, total)


def _export(
    client: PoolClient, point: PointWriter, order: BackupOrder, snapshot: str, progress: Progress, warnings: list[str]
) -> PointRecord:
    began, read = time.monotonic(), 0
    source = client.call("VM.get_record", snapshot)
    origins = _origins(client, source)
    with open_export(client, snapshot, order.stall_timeout, order.vm["name_label"]) as stream:
        labels = canonical_labels(stream.ova)
        point.put_ova(description_of(stream.ova, labels, order.vm))
        progress.phase("export")
        for label, number, unit in blocks_of(stream, labels, progress):
            point.put_block(label, number, unit)
            read += unit.plain_len
        disks = [_describe_disk(disk, labels[disk.label], origins) for disk in stream.ova.disks]
    if not disks:
        warnings.append("The VM has no disk of its own: the point holds its description alone.")
    progress.phase("commit")
    return point.commit({
        "vm": {name: order.vm[name] for name in ("uuid", "name_label", "name_description", "tags")}
        | {"power_state": _power_state(source)},
        "host": _describe_pool(client),
        "method": "normal",
        "consistency": "cold" if _power_state(source) == "Halted" else "crash",
        "snapshot_uuid": source["uuid"],
        "snapshot_time": str(source["snapshot_time"]),
        "disks": disks,
        "tool": order.tool,
        "warnings": warnings,
        "stats": {"read_bytes": read, "seconds": round(time.monotonic() - began, 3)},
    })


def _named_snapshot(client: PoolClient, order: BackupOrder) -> str:
    ref = str(client.call("VM.get_by_uuid", order.snapshot_uuid))
    if client.call("VM.get_snapshot_of", ref) != order.vm["ref"]:
        raise NotFound(
            "VM %s has no snapshot %s." % (order.vm["name_label"], order.snapshot_uuid),
            "Name one of its own snapshots.",
        )
    return ref


def _remove_leftovers(client: PoolClient, vm: dict[str, Any], warnings: list[str]) -> None:
    """Remove snapshots of this VM that earlier runs took for a point: holding the lease, they are dead."""
    for leftover in snapshots.leftovers(client, vm["ref"]):
        if not leftover.mark.point:
            continue
        try:
            snapshots.remove_leftover(client, leftover)
        except PoolError as error:
            warnings.append("What an earlier run left could not be removed: %s: %s" % (leftover.name, error))


def _remove_snapshot(client: PoolClient, ref: str, warnings: list[str]) -> None:
    try:
        snapshots.remove(client, ref)
    except PoolError as error:
        warnings.append("The snapshot could not be removed, the VM's next run will try again: %s" % error)


def _power_state(snapshot: dict[str, Any]) -> str:
    return str(snapshot["snapshot_info"].get("power-state-at-snapshot", snapshot["power_state"]))


def _origins(client: PoolClient, snapshot: dict[str, Any]) -> dict[str, str]:
    """UUID of a snapshot's disk -> UUID of the disk it was taken of: what stays the same from point to point."""
    origins = {}
    for vbd in snapshot["VBDs"]:
        vdi = client.call("VBD.get_VDI", vbd)
        if vdi != "OpaqueRef:NULL":
            record = client.call("VDI.get_record", vdi)
            try:
                origins[record["uuid"]] = str(client.call("VDI.get_uuid", record["snapshot_of"]))
            except PoolError:
                origins[record["uuid"]] = record["uuid"]  # the live disk is gone, or this is no snapshot
    return origins


def _describe_disk(disk: OvaDisk, label: str, origins: dict[str, str]) -> dict[str, Any]:
    return {"label": label, "vdi_uuid": origins.get(disk.vdi_uuid, disk.vdi_uuid), "snapshot_vdi_uuid": disk.vdi_uuid}


def _describe_pool(client: PoolClient) -> dict[str, str]:
    (pool,) = client.call("pool.get_all_records").values()
    coordinator = client.call("host.get_record", pool["master"])
    return {
        "pool_uuid": pool["uuid"],
        "pool_name": pool["name_label"] or coordinator["name_label"],
        "host_uuid": coordinator["uuid"],
        "version": coordinator["software_version"].get("product_version", ""),
    }


def _offsets(disks: list[OvaDisk]) -> dict[str, int]:
    """Where each disk begins when all are laid one behind the other."""
    offsets, total = {}, 0
    for disk in disks:
        offsets[disk.label] = total
        total += disk.virtual_size
    return offsets
