# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Sealed verification: what can be known about restore points without any key."""
from __future__ import annotations

import hashlib
from typing import NamedTuple, Sequence

from .errors import ObjectMissing, RepositoryError
from .layout import record_name, vm_folder
from .objects import digest_of
from .posix import reporting
from .record import PointRecord
from .repository import Repository


class Part(NamedTuple):
    """One of ``total`` parts of what could be read, by ``number`` from 1; all together are everything."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``3/28``. ValueError for what is no part."""
        number, slash, total = text.partition("/")
        part = cls(int(number), int(total)) if slash and number.isdecimal() and total.isdecimal() else cls(0, 0)
        if not 1 <= part.number <= part.total:
            raise ValueError("%r is no part: expected its number and how many there are, such as 3/28" % text)
        return part

    def holds(self, name: str) -> bool:
        """Whether something belongs to this part, told by its name alone."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % self.total == self.number - 1


EVERYTHING = Part(1, 1)


class Finding(NamedTuple):
    """Something wrong with a point: ``name`` is the object's, below the VM's folder, or empty for the whole point.

    What is wrong with the repository's own files has no VM and no point.
    """

    vm_uuid: str
    point: str
    name: str
    problem: str


def verify_sealed(repository: Repository, records: Sequence[PointRecord], part: Part = EVERYTHING) -> list[Finding]:
    """Read every object that these points list and compare its SHA-256; of the segments those of a part.

    Returns what is wrong; nothing found means that every point is exactly what was committed. An object that several
    points share is read once.
    """
    findings = [Finding("", "", name, problem) for name, problem in repository.damaged_files()]
    looked: dict[str, tuple[str, str]] = {}
    for record in records:
        folder = vm_folder(record.vm_uuid)
        if record.problem:
            findings.append(Finding(record.vm_uuid, record.point, "", record.problem))
        elif not repository.store.exists(folder + record_name(record.point) + ".sig"):
            findings.append(Finding(record.vm_uuid, record.point, "", "its signature is missing"))
        for committed, name in record.objects:
            if name.startswith("seg/") and not part.holds(folder + name):
                continue
            if folder + name not in looked:
                looked[folder + name] = _look(repository, folder + name)
            digest, problem = looked[folder + name]
            if digest != committed:
                findings.append(Finding(record.vm_uuid, record.point, name, problem))
    return findings


def _look(repository: Repository, path: str) -> tuple[str, str]:
    """The SHA-256 of an object, and what is wrong when that is not the committed one."""
    try:
        with repository.store.open(path) as file, reporting("read", path):
            return digest_of(file), "its SHA-256 is not the committed one"
    except ObjectMissing:
        return "", "it is missing"
    except RepositoryError as error:
        return "", "it cannot be read: %s" % error.message
