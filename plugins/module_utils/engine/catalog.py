# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Finding restore points in a repository, by what a user calls them."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Optional, Sequence

from ..age.errors import AgeError, NoMatchError
from ..age.sshsig import AllowedSigners
from ..repository.errors import RepositoryError
from ..repository.layout import is_vm_uuid
from ..repository.record import PointRecord
from ..repository.repository import Repository
from .errors import EngineError

LATEST = "latest"


def choose_point(
    repository: Repository, vm: str, point: str, signers: Optional[AllowedSigners], identities: Sequence[Any]
) -> PointRecord:
    """The point a user means: ``vm`` is a UUID or the name at the time, ``point`` a point's name or ``latest``.

    Only points without a problem that an allowed signer vouches for are chosen. Raises EngineError.
    """
    if signers is None:
        raise EngineError(
            "Nobody's restore points are believed, so none can be restored.",
            "Give allowed_signers: a file that lists the public keys of your movers.",
        )
    uuids = [vm] if is_vm_uuid(vm) else named(repository, vm, identities)
    if not uuids:
        raise EngineError("The repository has no VM %r." % vm, "Name it as it was when it was backed up, or by UUID.")
    if len(uuids) > 1:
        raise EngineError("The repository has %d VMs %r: %s." % (len(uuids), vm, ", ".join(uuids)), "Name the UUID.")
    points = repository.points(uuids[0], signers)
    wanted = [one for one in points if point in (LATEST, str(one.point))]
    good = [one for one in wanted if one.trusted and not one.problem]
    if not good:
        problems = "; ".join("%s: %s" % (one.point, one.problem or "not signed by an allowed signer") for one in wanted)
        raise EngineError(
            "VM %r has no usable restore point %s (%s)." % (vm, point, problems or "there is none of that name"),
            "List its points with xen_backup_info, and choose another one.",
        )
    return good[-1]


def named(repository: Repository, name: str, identities: Sequence[Any]) -> list[str]:
    """UUIDs of the VMs whose newest readable point has the name."""
    found = []
    for uuid in repository.vm_uuids():
        if newest_name(repository, uuid, identities) == name:
            found.append(uuid)
    return found


def newest_name(repository: Repository, uuid: str, identities: Sequence[Any]) -> Optional[str]:
    """The VM's name in its newest point whose metadata can be read with these identities, or None."""
    for record in reversed(repository.points(uuid)):
        with suppress(RepositoryError, NoMatchError):
            return str(repository.meta(record, identities)["vm"]["name_label"])
    return None


def find_uuids(repository: Repository, vm: Optional[str], identities: Sequence[Any]) -> list[str]:
    """UUIDs of the VMs a user means: all without ``vm``, one by its UUID, those of a name. Raises EngineError."""
    if vm is None:
        return repository.vm_uuids()
    found = [vm] if is_vm_uuid(vm) else named(repository, vm, identities)
    if not found:
        raise EngineError(
            "The repository has no VM %r." % vm, "Name its UUID, or give an identity that opens the points' metadata."
        )
    return found


def examine(
    repository: Repository, record: PointRecord, identities: Sequence[Any]
) -> tuple[PointRecord, dict[str, Any]]:
    """Compare a point with its metadata; return (record, metadata).

    The record has a problem when metadata or segments are not what was written, as far as their sizes tell. The
    metadata is empty when there is a problem, and when none of the identities opens it: then nothing is compared.
    """
    if record.problem or (record.encrypted and not identities):
        return record, {}
    try:
        meta = repository.meta(record, identities)
        repository.check_sizes(record, meta)
    except NoMatchError:
        return record, {}
    except (RepositoryError, AgeError) as error:
        return replace(record, problem=str(error)), {}
    return record, meta


# what the metadata hold of how moment and changes were had, where there is something to tell
OF_THE_MOMENT = (
    "reason", "changes_by", "changes_reason", "degraded", "down_seconds", "frozen_seconds", "excluded", "group", "skew_seconds",
)


def describe_point(repository: Repository, record: PointRecord, identities: Sequence[Any]) -> dict[str, Any]:
    """A point as data; with an identity that opens its metadata also names, sizes and consistency."""
    record, meta = examine(repository, record, identities)
    point: dict[str, Any] = {
        "point": str(record.point), "vm_uuid": record.vm_uuid, "kind": record.kind, "started": record.started,
        "committed": record.committed, "trusted": record.trusted, "signer": record.signer, "problem": record.problem,
    }
    if meta:
        point.update(
            vm_name=meta["vm"]["name_label"], method=meta["method"], consistency=meta["consistency"],
            virtual_bytes=sum(disk["virtual_size"] for disk in meta["disks"]),
            stored_bytes=sum(segment["cipher_bytes"] for segment in meta["segments"]),
            read_bytes=meta["stats"]["read_bytes"], seconds=meta["stats"]["seconds"],
            **{name: meta[name] for name in OF_THE_MOMENT if name in meta},
        )
    return point
