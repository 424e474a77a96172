# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Takes an archive to a pool: everything that can be wrong is looked for first, then the VM is imported whole."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Iterator, Optional

from ..xapi import inventory, snapshots
from ..xapi.client import PoolClient
from ..xapi.errors import NotFound, PoolError
from ..xapi.tasks import call_async
from ..xapi.transfers import import_vm
from ..xva.ova import Ova
from ..xva.writer import BLOCK, END, ova_unit
from . import memory
from .archive import Archive
from .description import READABLE_BY_ALL
from .errors import EngineError, naming
from .progress import Progress

ORIGIN_KEY = "guestark:restored-from"  # in other_config of a restored VM: makes a second restore a no-op
VIF_KEPT = (
    "device", "MTU", "other_config", "qos_algorithm_type", "qos_algorithm_params", "locking_mode", "ipv4_allowed",
    "ipv6_allowed",
)


@dataclass(frozen=True)
class RestoreOrder:
    """Where a VM goes and how it is named there.

    ``name``: its name, by default the name it had. ``sr``: name or UUID, by default the pool's default SR.
    ``networks``: from the name a network had to the name (or UUID) it has on this pool; same names need no entry.
    ``macs``: ``keep`` or ``new``. ``memory``: ``keep`` or ``discard`` what was saved of it. ``start`` resumes a VM that
    comes with its memory.
    """

    name: Optional[str] = None
    sr: Optional[str] = None
    networks: dict[str, str] = field(default_factory=dict)
    macs: str = "keep"
    memory: str = "keep"
    start: bool = False
    stall_timeout: float = 300.0


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do, found without touching anything; ``existing`` is the VM an earlier run restored."""

    name: str
    sr: str
    sr_name: str
    networks: dict[str, dict[str, Any]]
    existing: Optional[str] = None


def plan(client: PoolClient, archive: Archive, order: RestoreOrder) -> RestorePlan:
    """Check everything that can be checked before anything is touched.

    Raises EngineError naming the VM, what does not fit and what to do.
    """
    name = order.name or archive.ova.vm["name_label"]
    with naming("restore", name):
        if archive.ova.has_memory:
            _decide_memory(client, archive.ova, order, name)
        vms = {ref: vm for ref, vm in client.call("VM.get_all_records").items() if inventory.is_guest(vm)}
        existing = _restored_before(vms, name, archive.origin)
        sr, record = inventory.find_sr(client, order.sr)
        if existing is None:
            _check_name(vms, name)
            _check_space(record, archive, name)
            if order.macs == "keep":
                _check_macs(client, vms, archive.ova, name)
        networks = _map_networks(client, archive.ova, order.networks, name)
        return RestorePlan(name, sr, record["name_label"], networks, existing)


def restore(
    client: PoolClient, archive: Archive, order: RestoreOrder, found: RestorePlan, progress: Progress
) -> str:
    """Import the archive as planned and return the new VM's ref.

    Raises EngineError; then nothing of the VM stays on the pool, as far as the pool can be reached.
    """
    with naming("restore", found.name):
        progress.phase("restore")
        resumes = archive.ova.has_memory
        chunks = _stream(archive, _description(archive.ova, found), progress)
        refs = import_vm(
            client, found.sr, chunks, stall_timeout=order.stall_timeout, restore=resumes, subject="VM %s" % found.name
        )
        try:
            if len(refs) != 1:
                raise EngineError("The pool made %d VMs instead of one from %s." % (len(refs), archive.origin))
            progress.phase("finish")
            _finish(client, refs[0], archive, order)
            if order.start:
                progress.phase("start")
                call = "VM.resume" if resumes else "VM.start"
                call_async(client, call, refs[0], False, False, subject="VM %s" % found.name)
        except BaseException:
            # a VM that is not as ordered is no restored VM; its disks go with it
            for ref in refs:
                with suppress(PoolError):
                    snapshots.remove(client, ref)
            raise
        return refs[0]


def _description(ova: Ova, found: RestorePlan) -> bytes:
    """The archive's description for this pool. Its numbers stay, so that blocks need not be relabelled.

    A guest that goes on from its memory needs the interfaces it knows, and only a full restore keeps their addresses:
    it would keep the UUIDs of the VM too, so that they are made new here.
    """
    if ova.has_memory:
        ova.renew()
    ova.set_vm(name_label=found.name, is_a_template=False)
    ova.set_version(*READABLE_BY_ALL)
    for label, network in found.networks.items():
        ova.rename_network(label, network["name_label"], network["bridge"])
    return ova.to_bytes()


def _stream(archive: Archive, description: bytes, progress: Progress) -> Iterator[bytes]:
    yield ova_unit(description)
    sent = 0
    for unit in archive.units():
        yield unit
        sent += BLOCK
        progress.advance(min(sent, archive.stored_bytes), archive.stored_bytes)
    yield END


def _finish(client: PoolClient, ref: str, archive: Archive, order: RestoreOrder) -> None:
    """Give the VM what an import drops: MAC addresses, blocked operations, and the note where it came from."""
    if order.macs == "keep":
        _set_macs(client, ref, {vif["device"]: vif["MAC"] for vif in archive.ova.vifs.values()})
    blocked = archive.ova.vm.get("blocked_operations") or {}
    if blocked:
        client.call("VM.set_blocked_operations", ref, dict(blocked))
    client.call("VM.remove_from_other_config", ref, ORIGIN_KEY)
    client.call("VM.add_to_other_config", ref, ORIGIN_KEY, archive.origin)


def _set_macs(client: PoolClient, vm: str, macs: dict[str, str]) -> None:
    """Importing makes new addresses, and an interface's address cannot be changed: it is made anew with the old one."""
    for ref in client.call("VM.get_VIFs", vm):
        record = client.call("VIF.get_record", ref)
        if record["device"] not in macs or record["MAC"] == macs[record["device"]]:
            continue
        client.call("VIF.destroy", ref)
        kept = {name: record[name] for name in VIF_KEPT if name in record}
        client.call(
            "VIF.create", {**kept, "VM": vm, "network": record["network"], "MAC": macs[record["device"]]}
        )


def _decide_memory(client: PoolClient, ova: Ova, order: RestoreOrder, name: str) -> None:
    if order.memory == "discard":
        memory.discard(ova, name)
        return
    if order.macs == "new":
        raise EngineError(
            "Could not restore VM %r with its memory and new MAC addresses: the guest goes on with those it knows." % name,
            "Keep them (macs: keep), or restore it without its memory (memory: discard).",
        )
    memory.check_resumable(client, ova, name)


def _restored_before(vms: dict[str, dict[str, Any]], name: str, origin: str) -> Optional[str]:
    for ref, vm in vms.items():
        if vm["name_label"] == name and vm["other_config"].get(ORIGIN_KEY) == origin:
            return ref
    return None


def _check_name(vms: dict[str, dict[str, Any]], name: str) -> None:
    taken = [vm["uuid"] for vm in vms.values() if vm["name_label"] == name]
    if taken:
        raise EngineError(
            "Could not restore VM %r: the pool has a VM of that name already (%s)." % (name, ", ".join(taken)),
            "Give the restored VM another name, or rename or remove the one that is there.",
        )


def _check_space(sr: dict[str, Any], archive: Archive, name: str) -> None:
    """Thick storage takes a disk's whole size, other storage what is written."""
    thick = sr["type"].startswith("lvm")
    needed = sum(disk.virtual_size for disk in archive.ova.disks) if thick else archive.stored_bytes
    free = int(sr["physical_size"]) - int(sr["physical_utilisation"])
    if int(sr["physical_size"]) > 0 and free < needed:
        raise EngineError(
            "Could not restore VM %r: storage repository %r has %d bytes free and %d are needed."
            % (name, sr["name_label"], free, needed),
            "Free space on it, or name another one (sr).",
        )


def _check_macs(client: PoolClient, vms: dict[str, dict[str, Any]], ova: Ova, name: str) -> None:
    wanted = {vif["MAC"].lower() for vif in ova.vifs.values()}
    for vif in client.call("VIF.get_all_records").values():
        if vif["MAC"].lower() in wanted and vif["VM"] in vms:
            raise EngineError(
                "Could not restore VM %r: VM %r of the pool uses its MAC address %s."
                % (name, vms[vif["VM"]]["name_label"], vif["MAC"]),
                "Have new addresses made (macs: new), or remove that VM first.",
            )


def _map_networks(client: PoolClient, ova: Ova, mapping: dict[str, str], name: str) -> dict[str, dict[str, Any]]:
    """Id of a network in the archive -> record of the pool's network that stands for it."""
    found, missing = {}, []
    used = {vif["network"] for vif in ova.vifs.values()}
    for label, source in ova.network_names().items():
        if label not in used:
            continue
        try:
            found[label] = inventory.find_network(client, mapping.get(source, source))[1]
        except NotFound:
            missing.append(mapping.get(source, source))
    if missing:
        raise EngineError(
            "Could not restore VM %r: the pool has no network %s." % (name, ", ".join(map(repr, missing))),
            "Say which network stands for it (networks), or create it.",
        )
    return found
