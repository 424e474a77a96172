# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Takes one VM from the pool to a restore point: moment, export, commit, clean up."""
from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence, Union

from ..age.sshsig import AllowedSigners
from ..repository.lease import Lease
from ..repository.point_writer import PointWriter, WriterKeys
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..source.export_stream import ExportStream, open_export
from ..source.tracked import TrackedSource, open_tracked
from ..xapi.client import PoolClient
from ..xapi.errors import PoolError
from ..xapi.inventory import disks_of
from ..xapi.moments import SATISFIES, Moment
from ..xapi.tracking import forget
from ..xva.ova import Ova, OvaDisk
from .blocks import BlockOut, Unchanged, all_blocks, changed_blocks
from .capture import Source, Subject, begin_tracking, heal, source_of
from .catalog import examine
from .chain import Found, chain_labels, find_base, leaves_nothing_out
from .description import canonical_labels, description_of
from .errors import naming
from .progress import Progress
from .tracked import tracked_blocks


@dataclass(frozen=True)
class BackupOrder:
    """What to protect and how.

    ``max_age``: a valid point younger than this is enough. ``catalog``: identities that open the metadata of earlier
    points. ``tracking``: the pool may note what changes on the VM's disks.
    """

    subject: Subject
    max_age: Optional[timedelta] = None
    stall_timeout: float = 300.0
    catalog: Sequence[Any] = ()
    tracking: bool = False


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
        pool = _describe_pool(client)
        chain = find_base(repository, vm["uuid"], pool["pool_uuid"], keys, signers, order.catalog)
        if chain.base:
            stack.enter_context(chain.base)
        point = stack.enter_context(repository.new_point(vm["uuid"], keys, signers=signers))
        untracked = begin_tracking(client, subject, order.tracking)
        with source_of(client, subject, str(point.point), progress, warnings) as source:
            source.tracked = untracked == ""
            record = _export(client, point, order, source, replace(chain, untracked=untracked), pool, progress, warnings)
        if source.tracked:
            points = repository.points(vm["uuid"])
            earlier = {str(name) for one in points for name in (one.point, one.parent) if name}
            forget(client, vm["uuid"], earlier - {str(record.point)})
    if source.moment.degraded:
        warnings.append("Degraded: %s" % source.moment.degraded)
    return BackupResult(True, record, point.metadata, source.moment, point.stored_bytes, warnings)


def _export(
    client: PoolClient, point: PointWriter, order: BackupOrder, source: Source, chain: Found, pool: dict[str, str],
    progress: Progress, warnings: list[str],
) -> PointRecord:
    began, read = time.monotonic(), 0
    vm = order.subject.vm
    record = source.taken.record if source.taken else client.call("VM.get_record", source.ref)
    held = source.taken.disks if source.taken else _disks(client, record)
    origins = _origins(client, held.values(), vm)
    with ExitStack() as stack:
        tracked, chain = _open_tracked(client, order, source, chain, held, origins, stack)
        stream = tracked or stack.enter_context(
            open_export(client, source.ref, order.stall_timeout, vm["name_label"], source.memory)
        )
        labels, chain = _labels(stream.ova, origins, chain)
        point.put_ova(description_of(stream.ova, labels, vm), chain.base)
        progress.phase("export")
        for out in _blocks(stream, labels, progress, chain):
            if isinstance(out.unit, Unchanged):
                point.keep_block(out.label, out.number, out.unit.digest)
            else:
                point.put_block(out.label, out.number, out.unit)
            read += out.read
        disks = [_describe_disk(disk, labels[disk.label], origins) for disk in stream.ova.disks]
    if not disks:
        warnings.append("The VM has no disk of its own: the point holds its description alone.")
    warnings += chain.all_warnings()
    progress.phase("commit")
    return point.commit({
        "vm": {name: vm[name] for name in ("uuid", "name_label", "name_description", "tags")}
        | {"power_state": source.power_state},
        "host": pool,
        **source.moment.facts(),
        **chain.facts("cbt" if tracked else "digest"),
        "checksums": chain.base.meta["checksums"] if chain.base else stream.checksum_kind,  # type: ignore[union-attr]
        "snapshot_uuid": record["uuid"],
        "snapshot_time": str(record["snapshot_time"]),
        "disks": disks,
        "tool": order.subject.tool,
        "warnings": warnings,
        "stats": {"read_bytes": read, "seconds": round(time.monotonic() - began, 3)},
    })


def _open_tracked(
    client: PoolClient, order: BackupOrder, source: Source, chain: Found, held: Mapping[str, Mapping[str, Any]],
    origins: Mapping[str, str], stack: ExitStack,
) -> tuple[Optional[TrackedSource], Found]:
    """The snapshot as its storage tracked it since the base; None where that cannot be had, and the chain says why."""
    if not chain.base or not source.tracked:
        return None, chain
    if source.memory:
        return None, replace(chain, untracked="the memory of a guest is not tracked")
    before = {disk["vdi_uuid"]: disk["snapshot_vdi_uuid"] for disk in chain.base.meta["disks"]}
    earlier = {snapshot: before[disk] for snapshot, disk in origins.items() if disk in before}
    disks = {record["uuid"]: vdi for vdi, record in held.items()}
    try:
        found = stack.enter_context(
            open_tracked(client, source.ref, disks, earlier, order.stall_timeout, order.subject.vm["name_label"])
        )
    except PoolError as error:
        return None, replace(chain, untracked=str(error).rstrip("."))
    return (found, chain) if _labels(found.ova, origins, chain)[1].base else (None, chain)


def _blocks(
    stream: Union[TrackedSource, ExportStream], labels: dict[str, str], progress: Progress, chain: Found
) -> Iterator[BlockOut]:
    if isinstance(stream, TrackedSource) and chain.base:
        return tracked_blocks(stream, labels, progress, chain.base, chain.base.meta["checksums"])
    if chain.base:
        return changed_blocks(stream, labels, progress, chain.base, chain.base.meta["checksums"])
    return all_blocks(stream, labels, progress)


def _labels(ova: Ova, origins: Mapping[str, str], chain: Found) -> tuple[dict[str, str], Found]:
    """The disks' labels in the archive; and the chain, without its base where this VM cannot be laid over it."""
    if chain.base:
        uuids = {disk.label: origins.get(disk.vdi_uuid, disk.vdi_uuid) for disk in ova.disks}
        labels = chain_labels(ova.disks, uuids, chain.base)
        if labels and not leaves_nothing_out(ova.disks, labels):
            return labels, chain
        chain = replace(chain, base=None, reason="its first disk is smaller than 1 MiB" if labels else "labels ran out")
    return canonical_labels(ova), chain


def _disks(client: PoolClient, vm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of a VM's or snapshot's disks, by ref."""
    found = (client.call("VBD.get_VDI", vbd) for vbd in vm["VBDs"])
    return {vdi: client.call("VDI.get_record", vdi) for vdi in found if vdi != "OpaqueRef:NULL"}


def _origins(client: PoolClient, disks: Iterable[dict[str, Any]], vm: dict[str, Any]) -> dict[str, str]:
    """UUID of a snapshot's disk -> UUID of the disk it was taken of: what stays the same from point to point."""
    live = {ref: str(vdi["uuid"]) for ref, (_vbd, vdi) in disks_of(client, vm).items()}
    origins = {}
    for record in disks:
        try:
            of = record["snapshot_of"]
            origins[record["uuid"]] = live.get(of) or str(client.call("VDI.get_uuid", of))
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
