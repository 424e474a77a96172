# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Names of a repository's objects. Names always use ``/`` and are relative to the repository's root."""
from __future__ import annotations

import re
import secrets
from datetime import datetime, timezone
from typing import Iterable, NamedTuple, Optional

REPOSITORY_JSON = "repository.json"
RESTORE_GUIDE = "RESTORE.md"
RESTORE_SCRIPT = "restore-xva.sh"
TEMPORARY = ".tmp/"
RECORD = ".sum"
SIGNATURE = ".sum.sig"
MARKS, MARK = "trash/", ".mark"
HOLDS = "hold/"
MOST_SEQ = 999_999

_POINT = r"\d{8}T\d{6}Z-\d{6}-[0-9a-f]{12}"
_POINT_ID = re.compile(_POINT, re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_OBJECT = re.compile(
    r"(seg/(?P<seg>%s)-(?P<number>\d{3,6})\.xva\.zst|idx/(?P<idx>%s)\.idx|meta/(?P<meta>%s)\.json)(\.age)?"
    % (_POINT, _POINT, _POINT),
    re.ASCII,
)
_REASON = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_MOMENT = "%Y%m%dT%H%M%SZ"


def parts(name: str) -> list[str]:
    """The parts of a name between its ``/``. ValueError for what is no name, such as a path that leads elsewhere."""
    found = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in found):
        raise ValueError("%r is no name" % name)
    return found


class PointId(str):
    """Identifier of a restore point, ``YYYYMMDDTHHMMSSZ-<seq, 6 digits>-<12 hex digits>``. ValueError otherwise.

    The sequence number decides what is newer; the moment is what the mover's clock said, and the 48 random bits keep
    two movers from choosing the same name.
    """

    def __new__(cls, text: str) -> PointId:
        """Check the form and that the moment exists."""
        if not _POINT_ID.fullmatch(text):
            raise ValueError("%r is no restore point" % text)
        datetime.strptime(text[:16], _MOMENT)
        return super().__new__(cls, text)

    @property
    def moment(self) -> datetime:
        """When the run that made the point started, UTC."""
        return datetime.strptime(self[:16], _MOMENT).replace(tzinfo=timezone.utc)

    @property
    def seq(self) -> int:
        """Place in the order of the VM's points."""
        return int(self[17:23])


def new_point_id(now: datetime, seq: int) -> PointId:
    """A fresh identifier; ``now`` carries its time zone."""
    return PointId("%s-%06d-%s" % (now.astimezone(timezone.utc).strftime(_MOMENT), seq, secrets.token_hex(6)))


class ObjectName(NamedTuple):
    """What the name of an object tells: ``kind`` is ``seg``, ``idx`` or ``meta``; ``number`` counts segments from 0."""

    kind: str
    point: PointId
    number: Optional[int]
    encrypted: bool


def parse_object(name: str) -> ObjectName:
    """Read a name relative to the VM's folder, as commit records hold them. ValueError for any other name."""
    found = _OBJECT.fullmatch(name)
    if not found:
        raise ValueError("%r is no name of an object" % name)
    kind = name.partition("/")[0]
    number = int(found["number"]) if kind == "seg" else None
    return ObjectName(kind, PointId(found[kind]), number, name.endswith(".age"))


def point_in(name: str) -> Optional[PointId]:
    """The point that the name of an object, or of a temporary file for one, belongs to; None for other names."""
    found = re.search(_POINT, name, re.ASCII)
    return PointId(found[0]) if found and _is_point(found[0]) else None


def segment_name(point: PointId, number: int, encrypted: bool) -> str:
    """Name of a segment, relative to the VM's folder."""
    return "seg/%s-%03d.xva.zst%s" % (point, number, ".age" if encrypted else "")


def index_name(point: PointId, encrypted: bool) -> str:
    """Name of a point's index, relative to the VM's folder."""
    return "idx/%s.idx%s" % (point, ".age" if encrypted else "")


def meta_name(point: PointId, encrypted: bool) -> str:
    """Name of a point's metadata, relative to the VM's folder."""
    return "meta/%s.json%s" % (point, ".age" if encrypted else "")


def record_name(point: PointId) -> str:
    """Name of a point's commit record, relative to the VM's folder; its signature has ``.sig`` behind it."""
    return "pt/%s%s" % (point, RECORD)


def mark_name(run: str) -> str:
    """Name of a prune run's mark, relative to the VM's folder."""
    return "%s%s%s" % (MARKS, run, MARK)


def hold_name(point: PointId, reason: str) -> str:
    """Name of a hold, relative to the VM's folder. ValueError when ``reason`` is not ``[a-z0-9-]{1,64}``."""
    if not _REASON.fullmatch(reason):
        raise ValueError("%r is no reason for a hold: it takes lower-case letters, digits and hyphens" % reason)
    return "%s%s.%s" % (HOLDS, point, reason)


def committed_points(names: Iterable[str]) -> list[PointId]:
    """The points whose commit records are among the names in a VM's folder ``pt/``."""
    ends = [name.rpartition("/")[2] for name in names if name.endswith(RECORD)]
    return [PointId(end[: -len(RECORD)]) for end in ends if _is_point(end[: -len(RECORD)])]


def vm_folder(vm_uuid: str) -> str:
    """Folder of a VM. ValueError when ``vm_uuid`` is no lower-case UUID: it becomes part of a path."""
    if not _UUID.fullmatch(vm_uuid):
        raise ValueError("%r is no UUID" % vm_uuid)
    return "vm/%s/" % vm_uuid


def lease_name(vm_uuid: str) -> str:
    """Name of a VM's lease."""
    return "lease/%s" % vm_folder(vm_uuid)[3:-1]


def is_vm_uuid(text: str) -> bool:
    """Whether a folder below ``vm/`` is a VM's."""
    return bool(_UUID.fullmatch(text))


def _is_point(text: str) -> bool:
    try:
        PointId(text)
    except ValueError:
        return False
    return True
