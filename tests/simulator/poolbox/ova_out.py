# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which records of the database an export carries, and how they are changed on the way out.

The rules are those of XAPI's export.ml: the references of exported objects become "Ref:<n>", numbered by one counter
of the whole process; NULL metrics, resident_on and affinity get a number like any other reference; references to
classes that are not exported keep the pool's own "OpaqueRef:…" text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from .database import Database, DateTime
from .ova import EXPORT_VERSION, Exported, Ova
from .tpm import get_contents

NULL = "OpaqueRef:NULL"
EPOCH = DateTime("19700101T00:00:00Z")
CLASSES = ("host", "VM", "VM_metrics", "VM_guest_metrics", "VBD", "VIF", "network", "VDI", "SR", "VTPM")

_ids = itertools.count()

Record = dict[str, Any]
Fixer = Callable[["Table", Record], Record]


@dataclass(frozen=True)
class Selection:
    """What an export is asked to carry."""

    preserve_power_state: bool = False
    snapshots: bool = False
    excluded_devices: Collection[str] = ()


class Table:
    """The references of one export and the ids they got."""

    def __init__(self, db: Database, selection: Selection) -> None:
        self.db = db
        self.selection = selection
        self.ids: dict[str, str] = {}

    def add(self, ref: str) -> None:
        """Give a reference, NULL or not, an id."""
        if ref not in self.ids:
            self.ids[ref] = f"Ref:{next(_ids)}"

    def lookup(self, ref: str) -> str:
        """The id of a reference, or NULL."""
        return self.ids.get(ref, NULL)

    def only(self, refs: Iterable[str]) -> list[str]:
        """The ids of those references that are exported."""
        return [self.ids[ref] for ref in refs if ref in self.ids]

    def add_vm(self, vm: str, snapshots: bool) -> None:
        """Number a VM and everything that travels with it."""
        if vm in self.ids or not self.db.exists("VM", vm):
            return
        self.add(vm)
        record = self.db.get("VM", vm)
        self._add_devices(record)
        if snapshots:
            for snapshot in record["snapshots"]:
                self.add_vm(snapshot, False)
        suspended = self.selection.preserve_power_state and record["power_state"] == "Suspended"
        if suspended and self.db.exists("VDI", record["suspend_VDI"]):
            self._add_vdi(record["suspend_VDI"])
        for field in ("metrics", "guest_metrics", "resident_on", "affinity"):
            self.add(record[field])
        if snapshots:
            self.add_vm(record["parent"], False)

    def _add_devices(self, record: Record) -> None:
        excluded = self.selection.excluded_devices
        for vif in record["VIFs"] if "vif" not in excluded else ():
            self.add(vif)
            self.add(self.db.field("VIF", vif, "network"))
        for vbd in record["VBDs"] if "vbd" not in excluded else ():
            self.add(vbd)
            if not self.db.field("VBD", vbd, "empty"):
                self._add_vdi(self.db.field("VBD", vbd, "VDI"))
        for vtpm in record.get("VTPMs", ()) if "vtpm" not in excluded else ():
            self.add(vtpm)

    def _add_vdi(self, vdi: str) -> None:
        self.add(vdi)
        if self.db.exists("VDI", vdi):
            self.add(self.db.field("VDI", vdi, "SR"))

    def objects(self) -> list[Exported]:
        """All numbered rows of all exported classes, as they go into the document."""
        result = []
        for cls in (cls for cls in CLASSES if cls in self.db.model.classes):
            for ref in self.db.refs(cls):
                if ref in self.ids:
                    result.append(Exported(cls, self.ids[ref], _FIXERS[cls](self, self.db.get(cls, ref))))
        return result


def make_ova(db: Database, host: str, vms: Iterable[str], selection: Selection) -> tuple[Table, Ova]:
    """Return the ids given and the document for these VMs, as the host `host` would write it."""
    with db.lock:
        table = Table(db, selection)
        for vm in vms:
            table.add_vm(vm, selection.snapshots)
        return table, Ova(version_header(db.field("host", host, "software_version")), table.objects())


def version_header(software: dict[str, str]) -> Record:
    """The archive's version struct, from a host's software_version."""
    major, _unused, minor = software.get("xapi", "1.0").partition(".")
    texts = ("hostname", "date", "product_version", "product_brand", "build_number")
    named = {key: software.get(key, "") for key in texts}
    return named | {"xapi_major": int(major), "xapi_minor": int(minor), "export_vsn": EXPORT_VERSION}


def streamed_disks(db: Database, vm: str, table: Table) -> list[tuple[str, str]]:
    """(archive id, VDI reference) of the disks whose content follows, in the order of the stream.

    The order is that of the ids as text, so Ref:10 comes before Ref:9.
    """
    record = db.get("VM", vm)
    vdis = [db.field("VBD", vbd, "VDI") for vbd in record["VBDs"] if db.field("VBD", vbd, "type") != "CD"]
    if record["power_state"] == "Suspended" and table.selection.preserve_power_state:
        vdis.append(record["suspend_VDI"])
    vdis = [vdi for vdi in vdis if vdi in table.ids and db.exists("VDI", vdi)]
    return sorted({(table.ids[vdi], vdi) for vdi in vdis if _content_type(db, vdi) != "iso"})


def _content_type(db: Database, vdi: str) -> str:
    return str(db.field("SR", db.field("VDI", vdi, "SR"), "content_type"))


def _host(table: Table, host: Record) -> Record:
    emptied = {
        "PIFs", "PBDs", "PGPUs", "PCIs", "host_CPUs", "license_params", "blobs", "external_auth_configuration",
        "patches", "crashdumps", "logging", "supported_bootloaders", "cpu_configuration", "other_config",
        "capabilities", "software_version", "ha_statefiles", "ha_network_peers", "tags",
    }
    blank = {"external_auth_type": "", "external_auth_service_name": "", "sched_policy": "", "metrics": NULL}
    host |= {field: type(host[field])() for field in emptied if field in host}
    host |= {field: value for field, value in blank.items() if field in host}
    host |= {field: table.lookup(host[field]) for field in ("crash_dump_sr", "suspend_image_sr")}
    return host | {"resident_VMs": table.only(host["resident_VMs"])}


def _vm(table: Table, vm: Record) -> Record:
    selection = table.selection
    vm |= {field: table.only(vm[field]) for field in ("VIFs", "VBDs", "VGPUs", "VTPMs") if field in vm}
    vm |= {field: table.lookup(vm[field]) for field in ("resident_on", "affinity", "metrics", "guest_metrics")}
    vm |= {"consoles": [], "crash_dumps": [], "blobs": {}, "protection_policy": NULL}
    if selection.preserve_power_state:
        vm["suspend_VDI"] = table.lookup(vm["suspend_VDI"])
    else:
        vm |= {"power_state": "Halted", "suspend_VDI": NULL}
    if selection.snapshots:
        vm |= {field: table.lookup(vm[field]) for field in ("snapshot_of", "parent")}
    else:
        vm |= {"is_a_snapshot": False, "snapshot_of": NULL, "snapshots": [], "snapshot_time": EPOCH, "parent": NULL}
        vm["transportable_snapshot_id"] = ""
    return _idle(vm)


def _device(*references: str) -> Fixer:
    def fix(table: Table, device: Record) -> Record:
        if not table.selection.preserve_power_state:
            device["currently_attached"] = False
        device |= {field: table.lookup(device[field]) for field in references}
        return _idle(device | {"metrics": NULL})
    return fix


def _network(table: Table, network: Record) -> Record:
    return _idle(network | {"VIFs": table.only(network["VIFs"]), "PIFs": []})


def _vdi(table: Table, vdi: Record) -> Record:
    return _idle(vdi | {"VBDs": table.only(vdi["VBDs"]), "crash_dumps": [], "SR": table.lookup(vdi["SR"])})


def _sr(table: Table, sr: Record) -> Record:
    return _idle(sr | {"VDIs": table.only(sr["VDIs"]), "PBDs": []})


def _vtpm(table: Table, vtpm: Record) -> Record:
    """A record of its own: the state of the TPM travels in clear."""
    fields = {"VM": table.lookup(vtpm["VM"])} | {field: vtpm[field] for field in ("uuid", "is_unique", "is_protected")}
    fields["content"] = get_contents(table.db.by_uuid("VTPM", vtpm["uuid"]))
    return {f"vTPM'_{field}": value for field, value in fields.items()}


def _idle(record: Record) -> Record:
    return record | {"current_operations": {}, "allowed_operations": []}


_FIXERS: dict[str, Fixer] = {
    "host": _host,
    "VM": _vm,
    "VM_metrics": lambda _table, record: record,
    "VM_guest_metrics": lambda _table, record: record,
    "VBD": _device("VDI", "VM"),
    "VIF": _device("network", "VM"),
    "network": _network,
    "VDI": _vdi,
    "SR": _sr,
    "VTPM": _vtpm,
}
