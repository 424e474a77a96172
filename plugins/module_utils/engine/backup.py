# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Takes one VM from the pool to a restore point: moment, export, commit, clean up."""
from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, Optional, Sequence

from ..age.sshsig import AllowedSigners
from ..repository.lease import Lease
from ..repository.point_writer import PointWriter, WriterKeys
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..repository.units import EncodedUnit, encode_block
from ..source.export_stream import ExportStream, open_export
from ..xapi.client import PoolClient
from ..xapi.errors import PoolError
from ..xapi.moments import SATISFIES, Moment
from ..xva.ova import OvaDisk
from ..xva.reader import Block
from ..xva.writer import BLOCK
from .archive import check_block
from .capture import Source, Subject, heal, source_of
from .catalog import examine
from .description import canonical_labels, description_of
from .errors import naming
from .pipeline import ordered
from .progress import Progress


@dataclass(frozen=True)
class BackupOrder:
    """What to protect and how.

    ``max_age``: a valid point younger than this is enough. ``catalog``: identities that open the metadata of earlier
    points.
    """

    subject: Subject
    max_age: Optional[timedelta] = None
    stall_timeout: float = 300.0
    catalog: Sequence[Any] = ()


@dataclass(frozen=True)
class BackupResult:
    """The point that was made or found; ``warnings`` say what an operator must know although the point is good.

    ``meta``, ``moment`` and ``stored_bytes`` are there when the point was made.
    """

    changed: bool
    record: PointRecord
    meta: dict[str, Any] = field(default_factory=dict)
    moment: Optional[Moment] = None
    stored_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


def find_recent(repository: Repository, order: BackupOrder, signers: Optional[AllowedSigners]) -> Optional[PointRecord]:
    """The VM's newest trusted, complete point whose moment is less than ``order.max_age`` ago, or None.

    The moment is when the run that made it began: what was written in the guest since is not in it. A point that is
    worth less than the wish demands is not enough, unless the wish allows less. A consistency that is asked for by name
    must be known, which takes an identity that opens the metadata.
    """
    if not order.max_age:
        return None
    now, wish = datetime.now(timezone.utc), order.subject.wish
    demand = "" if wish.fallback else wish.demand(order.subject.vm["power_state"])
    unknown = "crash" if wish.consistency else demand
    for record in reversed(repository.points(order.subject.vm["uuid"], signers)):
        if record.trusted and timedelta(0) <= now - record.started < order.max_age:
            found, meta = examine(repository, record, order.catalog)
            worth = meta.get("consistency", unknown)
            if not found.problem and (not demand or demand in SATISFIES[worth]):
                return record
    return None


def back_up(
    client: PoolClient, repository: Repository, keys: WriterKeys, signers: AllowedSigners, order: BackupOrder,
    progress: Progress,
) -> BackupResult:
    """Make a restore point of a VM, unless one younger than ``order.max_age`` exists.

    Raises EngineError; then no point appeared, what was written is removed, the snapshot too and the guest is again
    what it was, as far as the pool can be reached (the VM's next run sees to what could not be).
    """
    vm, warnings = order.subject.vm, []  # type: ignore[var-annotated]
    with naming("back up", vm["name_label"]), ExitStack() as stack:
        lease = stack.enter_context(Lease(repository.store, vm["uuid"]))
        # looked at only now: another run may have made the point while this one waited for the lease
        recent = find_recent(repository, order, signers)
        if recent:
            return BackupResult(False, recent)
        repository.sweep(lease)
        subject = heal(client, replace(order.subject, scope=repository.id), warnings)
        order = replace(order, subject=subject)
        point = stack.enter_context(repository.new_point(vm["uuid"], keys, signers=signers))
        with source_of(client, subject, str(point.point), progress, warnings) as source:
            record = _export(client, point, order, source, progress, warnings)
    if source.moment.degraded:
        warnings.append("Degraded: %s" % source.moment.degraded)
    return BackupResult(True, record, point.metadata, source.moment, point.stored_bytes, warnings)


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
    client: PoolClient, point: PointWriter, order: BackupOrder, source: Source, progress: Progress, warnings: list[str]
) -> PointRecord:
    began, read = time.monotonic(), 0
    vm = order.subject.vm
    record = client.call("VM.get_record", source.ref)
    origins = _origins(client, record)
    with open_export(client, source.ref, order.stall_timeout, vm["name_label"], source.memory) as stream:
        labels = canonical_labels(stream.ova)
        point.put_ova(description_of(stream.ova, labels, vm))
        progress.phase("export")
        for label, number, unit in blocks_of(stream, labels, progress):
            point.put_block(label, number, unit)
            read += unit.plain_len
        disks = [_describe_disk(disk, labels[disk.label], origins) for disk in stream.ova.disks]
    if not disks:
        warnings.append("The VM has no disk of its own: the point holds its description alone.")
    progress.phase("commit")
    return point.commit({
        "vm": {name: vm[name] for name in ("uuid", "name_label", "name_description", "tags")}
        | {"power_state": source.power_state},
        "host": _describe_pool(client),
        **source.moment.facts(),
        "snapshot_uuid": record["uuid"],
        "snapshot_time": str(record["snapshot_time"]),
        "disks": disks,
        "tool": order.subject.tool,
        "warnings": warnings,
        "stats": {"read_bytes": read, "seconds": round(time.monotonic() - began, 3)},
    })


def _origins(client: PoolClient, snapshot: dict[str, Any]) -> dict[str, str]:
    """UUID of a snapshot's disk -> UUID of the disk it was taken of: what stays the same from point to point."""
    origins = {}
    for vdi in (client.call("VBD.get_VDI", vbd) for vbd in snapshot["VBDs"]):
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
