# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool's database: rows of every class, complete by the data model, with a log of changes for events."""
from __future__ import annotations

import copy
import re
import threading
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import clock
from .errors import ApiError
from .model import EPOCH, NULL, Class, load

DELETIONS_KEPT = (512, 256)  # above the first number the log of deletions is cut to the second


class DateTime(str):
    """A moment as XAPI writes it: ``YYYYMMDDTHH:MM:SSZ``."""

    @classmethod
    def now(cls) -> DateTime:
        """This moment."""
        return cls(clock.now().strftime(clock.FORMAT))


# (class, field) that refers to one object of a class whose set field lists the referrers
RELATIONS = {
    ("VBD", "VM"): ("VM", "VBDs"), ("VIF", "VM"): ("VM", "VIFs"), ("VTPM", "VM"): ("VM", "VTPMs"),
    ("VUSB", "VM"): ("VM", "VUSBs"), ("VGPU", "VM"): ("VM", "VGPUs"), ("console", "VM"): ("VM", "consoles"),
    ("crashdump", "VM"): ("VM", "crash_dumps"), ("VM", "snapshot_of"): ("VM", "snapshots"),
    ("VM", "parent"): ("VM", "children"), ("VM", "resident_on"): ("host", "resident_VMs"),
    ("VM", "appliance"): ("VM_appliance", "VMs"), ("VBD", "VDI"): ("VDI", "VBDs"),
    ("crashdump", "VDI"): ("VDI", "crash_dumps"), ("VDI", "SR"): ("SR", "VDIs"),
    ("VDI", "snapshot_of"): ("VDI", "snapshots"), ("PBD", "SR"): ("SR", "PBDs"), ("PBD", "host"): ("host", "PBDs"),
    ("PIF", "host"): ("host", "PIFs"), ("host_cpu", "host"): ("host", "host_CPUs"),
    ("PCI", "host"): ("host", "PCIs"), ("PGPU", "host"): ("host", "PGPUs"), ("VIF", "network"): ("network", "VIFs"),
    ("PIF", "network"): ("network", "PIFs"), ("task", "subtask_of"): ("task", "subtasks"),
    ("Certificate", "host"): ("host", "certificates"),
}


def initial(kind: str, default: str | None, enums: dict[str, tuple[str, ...]]) -> Any:
    """The value of a field of the type that nobody gave a value."""
    if kind.endswith(" set"):
        return [0] if default == "{0}" else []
    if kind.endswith(" map"):
        return dict(re.findall(r'"([^"]*)" -> "([^"]*)"', default or ""))
    if kind.endswith(" ref"):
        return NULL
    if kind == "bool":
        return default == "true"
    if kind == "int":
        return int(default or 0)
    if kind == "float":
        return float(default or 0)
    if kind == "datetime":
        return DateTime(default or EPOCH)
    if kind.startswith("enum "):
        return default or next(iter(enums.get(kind[5:], ("",))))
    return (default or "").strip('"')


@dataclass
class Row:
    """One object and when (by the database's generation) it was made and changed last."""

    fields: dict[str, Any]
    created: int
    changed: int


class Database:
    """All rows of a pool. Every method is safe from any thread; ``with db.lock`` makes several calls one."""

    def __init__(self, release: str) -> None:
        self.model = load(release)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.generation = 1
        self._rows: dict[str, dict[str, Row]] = {name: {} for name in self.model.classes}
        self._deleted: dict[str, list[tuple[int, int, str]]] = {name: [] for name in self.model.classes}
        self._enums = {name: values for cls in self.model.classes.values() for name, values in cls.enums.items()}

    def create(self, cls: str, /, **fields: Any) -> str:
        """Add a row and return its ref. Fields of other releases are left out; ``ref`` may be given."""
        known = self._class(cls)
        ref = fields.pop("ref", None) or f"OpaqueRef:{uuids.uuid4()}"
        row = {name: initial(one.type, one.default, self._enums) for name, one in known.fields.items()}
        if "uuid" in row:
            row["uuid"] = str(uuids.uuid4())
        row.update({name: copy.deepcopy(value) for name, value in fields.items() if name in row})
        with self.lock:
            self._tick()
            self._rows[cls][ref] = Row(row, self.generation, self.generation)
            for name, value in row.items():
                self._relate(cls, ref, name, value, True)
        return ref

    def destroy(self, cls: str, ref: str) -> None:
        """Remove a row; others may go on to refer to it."""
        with self.lock:
            row = self._row(cls, ref)
            self._tick()
            for name, value in row.fields.items():
                self._relate(cls, ref, name, value, False)
            del self._rows[cls][ref]
            log = self._deleted[cls]
            log.append((row.created, self.generation, ref))
            if len(log) > DELETIONS_KEPT[0]:
                del log[:-DELETIONS_KEPT[1]]

    def exists(self, cls: str, ref: str) -> bool:
        """Whether there is such a row."""
        return ref in self._rows.get(cls, {})

    def get(self, cls: str, ref: str) -> dict[str, Any]:
        """A copy of the row. Raises HANDLE_INVALID."""
        with self.lock:
            return copy.deepcopy(self._row(cls, ref).fields)

    def field(self, cls: str, ref: str, name: str) -> Any:
        """A copy of one field. Raises HANDLE_INVALID."""
        with self.lock:
            return copy.deepcopy(self._row(cls, ref).fields[name])

    def set(self, cls: str, ref: str, /, **fields: Any) -> None:
        """Change fields; those of other releases are left out. Raises HANDLE_INVALID."""
        with self.lock:
            row = self._row(cls, ref)
            self._tick()
            row.changed = self.generation
            for name, value in fields.items():
                if name in row.fields:
                    self._relate(cls, ref, name, row.fields[name], False)
                    row.fields[name] = copy.deepcopy(value)
                    self._relate(cls, ref, name, value, True)

    def touch(self, cls: str, ref: str) -> None:
        """Make the row appear in events although nothing changed."""
        self.set(cls, ref)

    def refs(self, cls: str) -> list[str]:
        """Refs of all rows of a class."""
        with self.lock:
            return list(self._rows[self._class(cls).name])

    def find(self, cls: str, /, **equals: Any) -> list[str]:
        """Refs of the rows whose fields equal those given."""
        with self.lock:
            return [
                ref for ref, row in self._rows[cls].items()
                if all(row.fields.get(name) == value for name, value in equals.items())
            ]

    def by_uuid(self, cls: str, uuid: str) -> str:
        """The ref of a UUID. Raises UUID_INVALID."""
        found = self.find(cls, uuid=uuid)
        if not found:
            raise ApiError("UUID_INVALID", cls, uuid)
        return found[0]

    def count(self, cls: str) -> int:
        """How many rows a class has."""
        return len(self._rows[cls])

    def changes(self, cls: str, since: int) -> Iterator[tuple[str, int, str, dict[str, Any] | None]]:
        """What happened in a class after a generation: operation, generation, ref and the row (None: deleted)."""
        for ref, row in self._rows[cls].items():
            if row.changed > since:
                yield "add" if row.created > since else "mod", row.changed, ref, copy.deepcopy(row.fields)
        for created, deleted, ref in self._deleted[cls]:
            if deleted > since >= created:
                yield "del", deleted, ref, None

    def _tick(self) -> None:
        self.generation += 1
        self.changed.notify_all()

    def _class(self, cls: str) -> Class:
        return self.model.classes[cls]

    def _row(self, cls: str, ref: str) -> Row:
        row = self._rows[cls].get(ref)
        if row is None:
            raise ApiError("HANDLE_INVALID", cls, ref)
        return row

    def _relate(self, cls: str, ref: str, name: str, value: Any, add: bool) -> None:
        relation = RELATIONS.get((cls, name))
        if relation is None or value == NULL:
            return
        other = self._rows.get(relation[0], {}).get(value)
        if other is None or relation[1] not in other.fields:
            return
        listed = other.fields[relation[1]]
        if add and ref not in listed:
            listed.append(ref)
        elif not add and ref in listed:
            listed.remove(ref)
        other.changed = self.generation
