# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ova.xml: one XML-RPC value, without an XML declaration, that holds a version header and database records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from .database import Database, DateTime, initial
from .xmlvalue import from_element, to_xml

EXPORT_VERSION = 2


class OvaError(Exception):
    """The document is not an ova.xml."""


@dataclass
class Exported:
    """One object of the document: its class, its id in this archive, its record as it was sent."""

    cls: str
    id: str
    snapshot: dict[str, Any]


@dataclass
class Ova:
    """A whole document."""

    version: dict[str, Any]
    objects: list[Exported]

    def find(self, object_id: str) -> Exported | None:
        """The object of that id, if the archive has one."""
        return next((item for item in self.objects if item.id == object_id), None)

    def of_class(self, cls: str) -> list[Exported]:
        """All objects of one class, in the document's order."""
        return [item for item in self.objects if item.cls == cls]

    def to_xml(self) -> bytes:
        """Render the document."""
        objects = [{"class": item.cls, "id": item.id, "snapshot": item.snapshot} for item in self.objects]
        return to_xml({"version": self.version, "objects": objects}).encode()


def parse(document: bytes) -> Ova:
    """Read a document. Raises OvaError when it has not the right shape."""
    try:
        value = from_element(ElementTree.fromstring(document))
        objects = [Exported(item["class"], item["id"], item["snapshot"]) for item in value["objects"]]
        return Ova(value["version"], objects)
    except (ElementTree.ParseError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise OvaError(f"ova.xml cannot be read: {error!r}") from error


def typed(db: Database, cls: str, snapshot: Mapping[str, Any], every: bool = False) -> dict[str, Any]:
    """A record as the database holds it: what may be given to create, or every field, missing ones by the model."""
    known = db.model.classes[cls]
    return {
        name: _converted(one.type, snapshot[name]) if name in snapshot else initial(one.type, one.default, known.enums)
        for name, one in known.fields.items() if every or one.mode != "RO"
    }


def _converted(kind: str, value: Any) -> Any:
    if kind.endswith(" set"):
        return [_converted(kind.removesuffix(" set"), item) for item in value]
    if kind.endswith(" map"):
        inner = kind.removesuffix(" map").strip("()").partition(" -> ")[2]
        return {key: _converted(inner, item) for key, item in value.items()}
    if kind in ("int", "float", "bool"):
        return {"int": int, "float": float, "bool": bool}[kind](value)
    return DateTime(value) if kind == "datetime" else str(value)
