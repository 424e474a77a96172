# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The commit record: a signed list, in sha256sum's format, of every object a restore point needs.

A point exists when its record does. The record has one form only: the text that is signed is the text that
``render()`` makes of what ``parse()`` reads.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from ..age.errors import AgeError
from ..age.sshsig import AllowedSigners, SigningKey, is_exact
from .errors import NotTrusted, PointDamaged
from .layout import PointId, parse_object, vm_folder

NAMESPACE = "guestark-restore-point"
KINDS = ("full", "incremental", "synthetic")

_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
_MOVER = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)", re.ASCII)
_HEAD = re.compile(
    r"# guestark 1\n# vm (?P<vm>\S+)\n# point (?P<point>\S+)\n# parent (?P<parent>\S+)\n# seq (?P<seq>\d+)\n"
    r"# started (?P<started>\S+)\n# committed (?P<committed>\S+)\n# kind (?P<kind>\S+)\n"
    r"# chain full=(?P<full>\S+) layers=(?P<layers>\d+)\n# mover (?P<mover>\S+)\n",
    re.ASCII,
)


@dataclass(frozen=True)
class PointRecord:
    """A committed restore point.

    ``objects``: (SHA-256 in hexadecimal, name relative to the VM's folder) of all segments, oldest layer first, then
    of the layers' indexes, then of the metadata. ``started`` and ``committed`` are UTC. ``mover`` names the machine.
    ``trusted``: a signer the reader trusts vouches for it, ``signer``. ``problem``: why it cannot be restored, or None;
    ``unlisted``: its objects that the store's listing left out, there or not.
    """

    vm_uuid: str
    point: PointId
    parent: Optional[PointId]
    seq: int
    started: datetime
    committed: datetime
    kind: str
    objects: tuple[tuple[str, str], ...]
    mover: str = "-"
    trusted: bool = False
    signer: Optional[str] = None
    problem: Optional[str] = None
    unlisted: tuple[str, ...] = ()

    @property
    def segments(self) -> list[str]:
        """Names of the segments, in the order in which they lie over each other."""
        return self._named("seg/")

    @property
    def indexes(self) -> list[str]:
        """Names of the layers' indexes, oldest first; the last one is the point's own."""
        return self._named("idx/")

    @property
    def meta(self) -> str:
        """Name of the metadata."""
        return self._named("meta/")[0]

    @property
    def encrypted(self) -> bool:
        """Whether this point's own objects are age files."""
        return self.meta.endswith(".age")

    def digest(self, name: str) -> str:
        """The SHA-256 the record gives for an object."""
        return next(digest for digest, listed in self.objects if listed == name)

    def _named(self, start: str) -> list[str]:
        return [name for _digest, name in self.objects if name.startswith(start)]


def render(record: PointRecord) -> bytes:
    """The text of a commit record. ValueError for a record that breaks a rule of ``parse()``."""
    _check(record)
    head = (
        ("guestark", "1"),
        ("vm", record.vm_uuid),
        ("point", record.point),
        ("parent", record.parent or "-"),
        ("seq", str(record.seq)),
        ("started", record.started.strftime(_MOMENT)),
        ("committed", record.committed.strftime(_MOMENT)),
        ("kind", record.kind),
        ("chain", "full=%s layers=%d" % (parse_object(record.indexes[0]).point, len(record.indexes))),
        ("mover", record.mover),
    )
    lines = ["# %s %s" % item for item in head]
    lines += ["%s  %s" % item for item in record.objects]
    lines.append("# end %d" % len(record.objects))
    return "".join(line + "\n" for line in lines).encode("ascii")


def parse(text: bytes) -> PointRecord:
    """Read a commit record. PointDamaged for anything that ``render()`` would not have written."""
    try:
        record = _read(text.decode("ascii"))
        if render(record) != text:
            raise ValueError("it is not in its one form")
    except ValueError as error:
        raise PointDamaged("The commit record is damaged: %s." % error) from error
    return record


def sign(text: bytes, key: SigningKey) -> bytes:
    """The content of the signature's file, as ``ssh-keygen -Y verify -n guestark-restore-point`` takes it."""
    return key.sign(text, NAMESPACE)


def verify(text: bytes, signature: bytes, signers: AllowedSigners) -> str:
    """Return the principal who signed. NotTrusted when it is none of ``signers``, or the text was changed."""
    if not is_exact(signature):
        raise NotTrusted("Its signature was changed.", "Bring the .sig file back from another copy of the repository.")
    try:
        return signers.verify(text, signature, NAMESPACE)
    except AgeError as error:
        raise NotTrusted(
            "No trusted signature: %s" % str(error).rstrip(".") + ".",
            "If the mover that made this point is yours, add its public key to the allowed signers.",
        ) from error


def _read(text: str) -> PointRecord:
    head = _HEAD.match(text)
    if not head:
        raise ValueError("its head is incomplete")
    lines = text[head.end():].split("\n")
    objects = []
    for line in lines[:-2]:  # the end line, and the nothing behind its line feed
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError("a line is malformed")
        objects.append((found[1], found[2]))
    return PointRecord(
        vm_uuid=head["vm"],
        point=PointId(head["point"]),
        parent=None if head["parent"] == "-" else PointId(head["parent"]),
        seq=int(head["seq"]),
        started=_moment(head["started"]),
        committed=_moment(head["committed"]),
        kind=head["kind"],
        objects=tuple(objects),
        mover=head["mover"],
    )


def _moment(text: str) -> datetime:
    return datetime.strptime(text, _MOMENT).replace(tzinfo=timezone.utc)


def _check(record: PointRecord) -> None:
    vm_folder(record.vm_uuid)
    if record.kind not in KINDS:
        raise ValueError("%r is no kind of restore point" % record.kind)
    if record.seq != record.point.seq:
        raise ValueError("its sequence number is not its name's")
    if not _MOVER.fullmatch(record.mover):
        raise ValueError("the mover's name is malformed")
    names = [name for _digest, name in record.objects]
    parsed = [parse_object(name) for name in names]
    kinds = [one.kind for one in parsed]
    if kinds != sorted(kinds, key=("seg", "idx", "meta").index) or kinds.count("meta") != 1 or kinds[:1] != ["seg"]:
        raise ValueError("its objects are not segments, indexes and one metadata object, in this order")
    if len(set(names)) != len(names):
        raise ValueError("it lists an object twice")
    layers = [one.point for one in parsed if one.kind == "idx"]
    order = [one.point for one in parsed if one.kind == "seg"]
    if list(dict.fromkeys(order)) != layers or layers[-1:] != [record.point] or parsed[-1].point != record.point:
        raise ValueError("its layers do not end with the point itself, or lack segments or indexes")
    expected = [number for layer in layers for number in range(order.count(layer))]
    if order != sorted(order, key=layers.index) or [one.number for one in parsed if one.kind == "seg"] != expected:
        raise ValueError("segments are missing or out of order")
    if record.kind != "incremental" and len(layers) != 1:
        raise ValueError("a full point has one layer")
