# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What is in the pool: finding objects by name or UUID, and facts about VMs in a number of calls that never grows."""
from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional

from .client import PoolClient
from .errors import Ambiguous, NotFound, XapiError

NULL = "OpaqueRef:NULL"
Record = dict[str, Any]
# everything vm_facts() joins, one call each
CLASSES = ("VM", "VBD", "VDI", "SR", "VIF", "network", "host", "VM_guest_metrics")


def is_guest(vm: Mapping[str, Any]) -> bool:
    """Whether a VM's record is that of a guest: no template, snapshot or control domain."""
    return not (vm["is_a_template"] or vm["is_a_snapshot"] or vm["is_control_domain"])


def find_vm(client: PoolClient, name: Optional[str] = None, uuid: Optional[str] = None) -> Record:
    """The record of one guest, with its reference as ``ref``.

    Raises NotFound; Ambiguous, listing the UUIDs, when several have the name.
    """
    found = {ref: vm for ref, vm in _named(client, "VM", name, uuid).items() if is_guest(vm)}
    ref = _only("VM", name or uuid or "", found)
    return {**found[ref], "ref": ref}


def disks_of(client: PoolClient, vm: dict[str, Any]) -> dict[str, tuple[Record, Record]]:
    """The records of VBD and VDI of a VM's disks, by the VDI's ref; asked for once, and kept in the VM's record."""
    if "disks" not in vm:
        vbds = (client.call("VBD.get_record", vbd) for vbd in vm["VBDs"])
        mine = [vbd for vbd in vbds if vbd["type"] == "Disk" and vbd["VDI"] != NULL]
        vm["disks"] = {vbd["VDI"]: (vbd, client.call("VDI.get_record", vbd["VDI"])) for vbd in mine}
    found: dict[str, tuple[Record, Record]] = vm["disks"]
    return found


def find_sr(client: PoolClient, name: Optional[str] = None) -> tuple[str, Record]:
    """Reference and record of a storage repository, by its name or UUID; without one, the pool's default.

    Raises NotFound or Ambiguous.
    """
    if name is not None:
        return _named_or_uuid(client, "SR", name)
    pool = next(iter(client.call("pool.get_all_records").values()))
    try:
        return pool["default_SR"], client.call("SR.get_record", pool["default_SR"])
    except XapiError as error:
        if error.code != "HANDLE_INVALID":
            raise
        raise NotFound("The pool has no default storage repository.", "Name the storage repository.") from error


def find_network(client: PoolClient, name: str) -> tuple[str, Record]:
    """Reference and record of a network, by its name or UUID. Raises NotFound or Ambiguous."""
    return _named_or_uuid(client, "network", name)


def vm_summary(client: PoolClient, ref: str) -> dict[str, str]:
    """What modules return of a VM: uuid, name, power_state."""
    record = client.call("VM.get_record", ref)
    return {"uuid": record["uuid"], "name": record["name_label"], "power_state": record["power_state"]}


def vm_facts(client: PoolClient, uuids: Optional[Iterable[str]] = None) -> list[Record]:
    """Facts about all guests, or those with the given UUIDs, by name; sizes and memory in bytes.

    Each has: uuid, ref, name, description, power_state, tags, other_config, blocked_operations, memory, vcpus, host
    (name or None), os, addresses, snapshots (uuid, name, time), disks (uuid, name, device, size, sr, sr_uuid,
    sr_type, cbt_enabled; no CDs) and interfaces (device, mac, network, network_uuid).
    """
    tables: dict[str, dict[str, Record]] = {name: client.call(name + ".get_all_records") for name in CLASSES}
    wanted = None if uuids is None else set(uuids)
    guests = [
        _facts(ref, vm, tables) for ref, vm in tables["VM"].items()
        if is_guest(vm) and (wanted is None or vm["uuid"] in wanted)
    ]
    return sorted(guests, key=lambda facts: (facts["name"], facts["uuid"]))


def _facts(ref: str, vm: Record, tables: Mapping[str, Mapping[str, Record]]) -> Record:
    guest = tables["VM_guest_metrics"].get(vm["guest_metrics"], {})
    host = tables["host"].get(vm["resident_on"])
    snapshots = [tables["VM"][snapshot] for snapshot in vm["snapshots"] if snapshot in tables["VM"]]
    return {
        "uuid": vm["uuid"],
        "ref": ref,
        "name": vm["name_label"],
        "description": vm["name_description"],
        "power_state": vm["power_state"],
        "tags": sorted(vm["tags"]),
        "other_config": vm["other_config"],
        "blocked_operations": vm["blocked_operations"],
        "memory": int(vm["memory_static_max"]),
        "vcpus": int(vm["VCPUs_max"]),
        "host": host["name_label"] if host else None,
        "os": guest.get("os_version", {}).get("name", ""),
        "addresses": sorted({address for address in guest.get("networks", {}).values() if address}),
        "snapshots": sorted(
            ({"uuid": one["uuid"], "name": one["name_label"], "time": one["snapshot_time"]} for one in snapshots),
            key=lambda snapshot: snapshot["time"],
        ),
        "disks": _disks(vm, tables),
        "interfaces": _interfaces(vm, tables),
    }


def _disks(vm: Record, tables: Mapping[str, Mapping[str, Record]]) -> list[Record]:
    disks = []
    for vbd in (tables["VBD"][vbd] for vbd in vm["VBDs"] if vbd in tables["VBD"]):
        vdi = tables["VDI"].get(vbd["VDI"])
        if vbd["type"] != "Disk" or vdi is None:
            continue
        sr = tables["SR"].get(vdi["SR"], {})
        disks.append({
            "uuid": vdi["uuid"],
            "name": vdi["name_label"],
            "device": vbd["userdevice"],
            "size": int(vdi["virtual_size"]),
            "sr": sr.get("name_label", ""),
            "sr_uuid": sr.get("uuid", ""),
            "sr_type": sr.get("type", ""),
            "cbt_enabled": bool(vdi.get("cbt_enabled", False)),
        })
    return sorted(disks, key=lambda disk: _position(disk["device"]))


def _interfaces(vm: Record, tables: Mapping[str, Mapping[str, Record]]) -> list[Record]:
    interfaces = []
    for vif in (tables["VIF"][vif] for vif in vm["VIFs"] if vif in tables["VIF"]):
        network = tables["network"].get(vif["network"], {})
        interfaces.append({
            "device": vif["device"],
            "mac": vif["MAC"],
            "network": network.get("name_label", ""),
            "network_uuid": network.get("uuid", ""),
        })
    return sorted(interfaces, key=lambda interface: _position(interface["device"]))


def _position(device: str) -> tuple[int, str]:
    """Devices are numbers as text; anything else comes last."""
    return (int(device), "") if device.isdigit() else (1 << 16, device)


def _named(client: PoolClient, kind: str, name: Optional[str], uuid: Optional[str]) -> dict[str, Record]:
    """References and records of the objects of a class that have the UUID, or else the name."""
    if uuid:
        try:
            refs = [client.call(kind + ".get_by_uuid", uuid)]
        except XapiError as error:
            if error.code != "UUID_INVALID":
                raise
            return {}
    else:
        refs = client.call(kind + ".get_by_name_label", name)
    return {str(ref): client.call(kind + ".get_record", ref) for ref in refs}


def _named_or_uuid(client: PoolClient, kind: str, name: str) -> tuple[str, Record]:
    found = _named(client, kind, name, None) or _named(client, kind, None, name)
    ref = _only(kind, name, found)
    return ref, found[ref]


def _only(kind: str, name: str, found: Mapping[str, Record]) -> str:
    if not found:
        raise NotFound("The pool has no %s %r." % (kind, name), "Check the name; capital letters count.")
    if len(found) > 1:
        uuids = ", ".join(sorted(str(record["uuid"]) for record in found.values()))
        raise Ambiguous("The pool has %d objects of class %s named %r." % (len(found), kind, name),
                        "Use the UUID of one of them: %s." % uuids)
    return next(iter(found))
