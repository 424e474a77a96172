# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Sealed verification: what can be known about restore points without any key."""
from __future__ import annotations

from typing import NamedTuple, Sequence

from .errors import ObjectMissing, RepositoryError
from .layout import PointId, record_name, vm_folder
from .objects import digest_of
from .posix import reporting
from .record import PointRecord
from .repository import Repository


class Finding(NamedTuple):
    """Something wrong with a point: ``name`` is the object's, below the VM's folder, or empty for the whole point."""

    vm_uuid: str
    point: PointId
    name: str
    problem: str


def verify_sealed(repository: Repository, records: Sequence[PointRecord]) -> list[Finding]:
    """Read every object that these points list and compare its SHA-256.

    Returns what is wrong; nothing found means that every point is exactly what was committed. An object that several
    points share is read once.
    """
    findings = []
    looked: dict[str, tuple[str, str]] = {}
    for record in records:
        folder = vm_folder(record.vm_uuid)
        if record.problem:
            findings.append(Finding(record.vm_uuid, record.point, "", record.problem))
        elif not repository.store.exists(folder + record_name(record.point) + ".sig"):
            findings.append(Finding(record.vm_uuid, record.point, "", "its signature is missing"))
        for committed, name in record.objects:
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
