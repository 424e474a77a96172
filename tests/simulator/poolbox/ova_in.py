# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making records of an archive's objects: the mapping rules of XAPI's import.ml, class by class, in its own order."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from .api import Context
from .errors import ApiError
from .lifecycle import update_allowed_operations
from .objects import create_vdi
from .ova import Exported, Ova, OvaError, parse, typed
from .ova_out import NULL, Record
from .snapshots import remove_vdi
from .tasks import TaskHandle
from .tpm import set_contents

MAC_SEED = "mac_seed"
DEFAULT_TEMPLATE = "default_template"
IMPORT_TASK = "import_task"


@dataclass(frozen=True)
class Options:
    """How to import. With an `sr` disks are made there; without one (metadata only) they must exist already."""

    sr: str | None
    restore: bool = False
    force: bool = False
    dry_run: bool = False
    vdi_map: Mapping[str, str] = field(default_factory=dict)


def open_document(ctx: Context, document: bytes, options: Options) -> Ova:
    """Parse ova.xml and check what has to hold before anything is made. Raises ApiError."""
    try:
        ova = parse(document)
    except OvaError as error:
        raise ApiError("IMPORT_ERROR", str(error)) from error
    _assert_compatible(ctx, ova)
    if options.restore:
        _assert_mac_seeds_free(ctx, ova)
    return ova


def streamed_disks(ova: Ova) -> list[tuple[str, int]]:
    """(id, size in bytes) of the disks whose content follows in the archive."""
    wanted = set()
    for vbd in ova.of_class("VBD"):
        if vbd.snapshot["type"] == "CD":
            continue
        vdi = _found(ova, vbd.snapshot["VDI"])
        if _found(ova, vdi.snapshot["SR"]).snapshot["content_type"] != "iso":
            wanted.add(vdi.id)
    vdis = [vdi for vdi in ova.of_class("VDI") if vdi.id in wanted or vdi.snapshot["type"] == "suspend"]
    return [(vdi.id, int(vdi.snapshot["virtual_size"])) for vdi in vdis]


def _found(ova: Ova, object_id: str) -> Exported:
    found = ova.find(object_id)
    if found is None:
        raise ApiError("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", object_id)
    return found


def _assert_compatible(ctx: Context, ova: Ova) -> None:
    """Newer archives are refused; 8.2 also refuses every other major version."""
    ours = tuple(map(int, ctx.db.field("host", ctx.host.ref, "software_version")["xapi"].split(".")))
    theirs = (int(ova.version["xapi_major"]), int(ova.version["xapi_minor"]))
    if theirs > ours or (ours[0] == 1 and theirs[0] != 1):
        raise ApiError("IMPORT_INCOMPATIBLE_VERSION")


def _assert_mac_seeds_free(ctx: Context, ova: Ova) -> None:
    """A restored VM keeps its MAC seed, which only the same VM, or a snapshot of it, may have already."""
    for item in ova.of_class("VM"):
        seed = item.snapshot["other_config"].get(MAC_SEED)
        for ref in ctx.db.refs("VM") if seed else ():
            existing = ctx.db.get("VM", ref)
            if existing["other_config"].get(MAC_SEED) == seed and not _same_vm(ctx, ova, item.snapshot, existing):
                raise ApiError("DUPLICATE_MAC_SEED", seed)


def _same_vm(ctx: Context, ova: Ova, ours: Record, theirs: Record) -> bool:
    def identity(record: Record) -> str | None:
        if not record["is_a_snapshot"]:
            return str(record["uuid"])
        origin = record["snapshot_of"]
        found = ova.find(origin)
        if found is not None:
            return str(found.snapshot["uuid"])
        return str(ctx.db.field("VM", origin, "uuid")) if ctx.db.exists("VM", origin) else None
    return identity(ours) is not None and identity(ours) == identity(theirs)


class Importer:
    """One import: the ids of the archive and what became of them, and how to undo it."""

    def __init__(self, ctx: Context, task: TaskHandle, options: Options, ova: Ova) -> None:
        self._ctx = ctx
        self._db = ctx.db
        self._task = task
        self._options = options
        self.ova = ova
        self._undo: list[Callable[[], None]] = []
        self.table: dict[str, str] = {}
        self.vms: list[str] = []

    def make(self) -> None:
        """Make all records; `undo` when one fails."""
        handlers: list[tuple[str, Callable[[Exported], None]]] = [
            ("host", self._host), ("SR", self._sr), ("VDI", self._vdi), ("VM_guest_metrics", self._metrics),
            ("VM_metrics", self._metrics), ("VM", self._vm), ("network", self._network), ("VBD", self._vbd),
            ("VIF", self._vif), ("VTPM", self._vtpm),
        ]
        for cls, handle in handlers:
            for item in self.ova.of_class(cls) if cls in self._db.model.classes else ():
                handle(item)
        self._link_snapshots()

    def undo(self) -> None:
        """Remove everything this import made, newest first, unless forced."""
        while self._undo and not self._options.force:
            self._undo.pop()()

    def finish(self) -> list[str]:
        """Release the VMs; return those that are no snapshots, or all when all are."""
        with self._db.lock:
            if self._options.dry_run:
                return self.vms
            for vm in self.vms:
                operations = self._db.field("VM", vm, "current_operations")
                operations.pop(self._task.ref, None)
                self._db.set("VM", vm, current_operations=operations)
                update_allowed_operations(self._ctx, vm)
            real = [vm for vm in self.vms if not self._db.field("VM", vm, "is_a_snapshot")]
            return real or self.vms

    def _lookup(self, object_id: str) -> str:
        if object_id not in self.table:
            raise ApiError("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", object_id)
        return self.table[object_id]

    def _create(self, item: Exported, cls: str, **fields: Any) -> str:
        """Make a row that vanishes when the import fails; with dry_run, just a reference."""
        if self._options.dry_run:
            self.table[item.id] = f"OpaqueRef:{str(uuid4())}"
            return self.table[item.id]
        ref = self._db.create(cls, **fields)
        self._undo.append(lambda: self._db.destroy(cls, ref))
        self.table[item.id] = ref
        return ref

    def _host(self, item: Exported) -> None:
        self.table[item.id] = next(iter(self._db.find("host", uuid=item.snapshot["uuid"])), NULL)

    def _sr(self, item: Exported) -> None:
        if self._options.sr is None:
            for ref in self._db.find("SR", uuid=item.snapshot["uuid"]):
                self.table[item.id] = ref
        elif item.snapshot["content_type"] != "iso":
            self.table[item.id] = self._options.sr

    def _vdi(self, item: Exported) -> None:
        if _found(self.ova, item.snapshot["SR"]).snapshot["content_type"] == "iso":
            self._iso(item)
        elif self._options.sr is None:
            self._existing_vdi(item)
        else:
            self._new_vdi(item)

    def _iso(self, item: Exported) -> None:
        for ref in self._db.find("VDI", location=item.snapshot["location"]):
            sr = self._db.get("SR", self._db.field("VDI", ref, "SR"))
            if sr["content_type"] == "iso" and sr["type"] != "udev":
                self.table[item.id] = ref
                return

    def _existing_vdi(self, item: Exported) -> None:
        """Metadata only: the disk is named by the request, or lies at the same location of the same SR."""
        wanted = self._options.vdi_map.get(item.snapshot["uuid"])
        candidates = [*self._db.find("VDI", uuid=wanted), *(ref for ref in self._db.refs("VDI") if ref == wanted)]
        sr = self.table.get(item.snapshot["SR"])
        if not candidates and sr is not None:
            candidates = list(self._db.find("VDI", location=item.snapshot["location"], SR=sr))
        if candidates:
            self.table[item.id] = candidates[0]
        elif not self._options.force:
            if sr is not None:
                raise ApiError("VDI_LOCATION_MISSING", sr, item.snapshot["location"])
            raise ApiError("VDI_CONTENT_ID_MISSING")

    def _new_vdi(self, item: Exported) -> None:
        fields = typed(self._db, "VDI", item.snapshot)
        sr = self._lookup(item.snapshot["SR"])
        fields["sm_config"] = fields["sm_config"] | {IMPORT_TASK: self._task.ref}
        if not self._db.field("SR", sr, "PBDs"):
            raise ApiError("SR_HAS_NO_PBDS", sr)
        vdi = create_vdi(self._ctx, fields | {"SR": sr})
        self._undo.append(lambda: remove_vdi(self._ctx, vdi))
        self.table[item.id] = vdi

    def _metrics(self, item: Exported) -> None:
        fields = typed(self._db, item.cls, item.snapshot, every=True)
        fields.pop("uuid", None)
        self._create(item, item.cls, **fields)

    def _vm(self, item: Exported) -> None:
        record = item.snapshot
        same_name = self._db.find("VM", name_label=record["name_label"])
        if _is_default_template(record) and same_name:
            self.table[item.id] = same_name[0]
            self.vms.append(same_name[0])
            return
        existing = self._db.find("VM", uuid=record["uuid"]) if self._options.restore else []
        if existing and not self._replace(existing[0], record):
            return
        self._new_vm(item, bool(existing))

    def _replace(self, vm: str, record: Record) -> bool:
        """Make room for a VM that is restored; False when it is to be skipped. The old VM's disks stay behind."""
        state = self._db.field("VM", vm, "power_state")
        if state != "Halted":
            if self._options.force:
                return False
            raise ApiError("VM_BAD_POWER_STATE", vm, "Halted", state)
        version = self._db.field("VM", vm, "version")
        if version >= int(record["version"]) and not self._options.force:
            raise ApiError("VM_TO_IMPORT_IS_NOT_NEWER_VERSION", vm, str(version), record["version"])
        if not self._options.dry_run:
            for cls, devices in (("VIF", "VIFs"), ("VBD", "VBDs")):
                for device in self._db.field("VM", vm, devices):
                    self._db.destroy(cls, device)
            self._db.destroy("VM", vm)
        return True

    def _new_vm(self, item: Exported, replaces: bool) -> None:
        options, task = self._options, self._task.ref
        fields = typed(self._db, "VM", item.snapshot)
        if fields["has_vendor_device"] and self._restricted("pci_device_for_auto_update"):
            raise ApiError("LICENCE_RESTRICTION", "PCI_device_for_auto_update")
        other_config = {k: v for k, v in fields["other_config"].items() if k not in (IMPORT_TASK, "grant_api_access")}
        if not options.force and not replaces:
            other_config.pop(DEFAULT_TEMPLATE, None)
        if not options.restore:
            other_config[MAC_SEED] = str(uuid4())
        kept = ("bios_strings", "snapshot_info", "snapshot_time", "is_a_snapshot", "transportable_snapshot_id",
                "snapshot_metadata", "is_control_domain")
        everything = typed(self._db, "VM", item.snapshot, every=True)
        fields |= {name: everything[name] for name in kept if name in everything}
        fields |= {
            "other_config": other_config | {IMPORT_TASK: task},
            "generation_id": _generation(fields),
            "version": fields["version"] + 1 if options.restore else 0,
            "power_state": "Halted",
            "blocked_operations": {},
            "suspend_SR": fields["suspend_SR"] if self._db.exists("SR", fields["suspend_SR"]) else NULL,
        }
        fields |= dict.fromkeys(("suspend_VDI", "appliance", "protection_policy", "snapshot_schedule"), NULL)
        for name in ("resident_on", "affinity"):
            fields[name] = self.table.get(item.snapshot[name], NULL)
        if options.restore:
            fields["uuid"] = item.snapshot["uuid"]
        fields |= self._metrics_of(item)
        if not options.force:
            fields["current_operations"] = {task: "import"}
        vm = self._create(item, "VM", **fields)
        self.vms.append(vm)
        self._resume_state(vm, item)

    def _metrics_of(self, item: Exported) -> dict[str, str]:
        if self._options.dry_run:
            return {}
        metrics = self.table.get(item.snapshot["metrics"])
        if metrics is None:
            metrics = self._db.create("VM_metrics")
            self._undo.append(lambda made=metrics: self._db.destroy("VM_metrics", made))  # type: ignore[misc]
        return {"metrics": metrics, "guest_metrics": self.table.get(item.snapshot["guest_metrics"], NULL)}

    def _resume_state(self, vm: str, item: Exported) -> None:
        if item.snapshot["power_state"] == "Suspended" and not self._options.dry_run:
            image = self.table.get(item.snapshot["suspend_VDI"])
            if image is not None:
                self._db.set("VM", vm, power_state="Suspended", suspend_VDI=image)
            elif not self._options.force:
                raise ApiError("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", item.snapshot["suspend_VDI"])

    def _network(self, item: Exported) -> None:
        fields = typed(self._db, "network", item.snapshot)
        found = [*self._db.find("network", name_label=fields["name_label"]),
                 *self._db.find("network", bridge=fields["bridge"])]
        if found:
            self.table[item.id] = found[0]
        else:
            other_config = fields["other_config"] | {IMPORT_TASK: self._task.ref}
            self._create(item, "network", **(fields | {"other_config": other_config}))

    def _vbd(self, item: Exported) -> None:
        record = item.snapshot
        if self._options.restore and self._db.find("VBD", uuid=record["uuid"]):
            self.table[item.id] = self._db.find("VBD", uuid=record["uuid"])[0]
            return
        vm = self._lookup(record["VM"])
        vdi = self.table.get(record["VDI"])
        if record["currently_attached"] and vdi is None and record["type"] != "CD":
            raise ApiError("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND")
        if record["type"] == "Disk" and vdi is None:
            return
        fields = typed(self._db, "VBD", record) | {"VM": vm, "VDI": vdi or NULL, "device": ""}
        if vdi is None:
            fields["empty"] = True
        self._create(item, "VBD", **(fields | self._kept_uuid(record)))

    def _vif(self, item: Exported) -> None:
        record = item.snapshot
        if self._options.restore and self._db.find("VIF", uuid=record["uuid"]):
            self.table[item.id] = self._db.find("VIF", uuid=record["uuid"])[0]
            return
        vm, network = self._lookup(record["VM"]), self._lookup(record["network"])
        fields = typed(self._db, "VIF", record) | {"VM": vm, "network": network}
        if not self._options.restore and not self._options.dry_run:
            seed = self._db.field("VM", vm, "other_config")[MAC_SEED]
            fields |= {"MAC": seeded_mac(seed, fields["device"]), "MAC_autogenerated": True}
        if self._options.dry_run or self._db.field("VM", vm, "power_state") == "Halted":
            fields["currently_attached"] = False
        self._create(item, "VIF", **(fields | self._kept_uuid(record)))

    def _vtpm(self, item: Exported) -> None:
        record = {name.removeprefix("vTPM'_"): value for name, value in item.snapshot.items()}
        if self._options.restore and self._db.find("VTPM", uuid=record["uuid"]):
            raise ApiError("IMPORT_ERROR", f"A VTPM with UUID {record['uuid']} already exists")
        if self._restricted("vtpm"):
            raise ApiError("FEATURE_RESTRICTED")
        fields = {name: record[name] for name in ("is_unique", "is_protected")}
        vm = self._lookup(record["VM"])
        set_contents(self._create(item, "VTPM", VM=vm, **(fields | self._kept_uuid(record))), record["content"])

    def _restricted(self, feature: str) -> bool:
        """Whether the licence forbids a feature."""
        return bool(self._db.field("pool", self._ctx.pool.ref, "restrictions").get(f"restrict_{feature}") == "true")

    def _kept_uuid(self, record: Record) -> dict[str, str]:
        return {"uuid": record["uuid"]} if self._options.restore else {}

    def _link_snapshots(self) -> None:
        for item in self.ova.of_class("VM") if not self._options.dry_run else ():
            vm = self.table.get(item.id)
            if vm in self.vms and vm is not None:
                links = {"parent": self.table.get(item.snapshot["parent"], NULL)}
                if item.snapshot["is_a_snapshot"] and item.snapshot["snapshot_of"] != NULL:
                    links["snapshot_of"] = self._lookup(item.snapshot["snapshot_of"])
                self._db.set("VM", vm, **links)


def _is_default_template(record: Record) -> bool:
    marked = record["is_a_template"] and record["other_config"].get(DEFAULT_TEMPLATE) == "true"
    return bool(record.get("is_default_template") or marked)


def _generation(fields: Record) -> str:
    """A fresh VM generation id for guests that have one; templates keep theirs."""
    if fields["is_a_template"] or not fields["generation_id"]:
        return str(fields["generation_id"])
    return f"{secrets.randbits(63)}:{secrets.randbits(63)}"


def seeded_mac(seed: str, device: str) -> str:
    """The address XAPI would make of a VM's MAC seed: always the same, local and unicast."""
    digest = hashlib.md5(f"{seed}{device}".encode(), usedforsecurity=False).digest()[:6]
    return ":".join(f"{byte:02x}" for byte in bytes([digest[0] & 0xFC | 0x02]) + digest[1:])
