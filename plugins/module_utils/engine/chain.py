# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Whether a new point can be a layer over an earlier one, over which one, and if not, why."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from ..age.errors import AgeError, NoMatchError
from ..age.sshsig import AllowedSigners
from ..repository.errors import RepositoryError
from ..repository.layers import Layers
from ..repository.marks import marked_objects
from ..repository.point_writer import WriterKeys
from ..repository.record import PointRecord
from ..repository.repository import Repository
from ..xva.ova import OvaDisk
from ..xva.writer import BLOCK
from .description import FIRST_LABEL

MOST_LAYERS = 30  # a restore opens them all, and each holds blocks that younger ones replaced
LAST_LABEL = 9999  # labels of a point have equal width
FIRST_POINT = "it is the VM's first restore point"


@dataclass(frozen=True)
class Found:
    """What a new point is laid over: ``base``, to be closed by the caller, or None and the ``reason``.

    ``problems``: earlier points that had to be passed over because something is wrong with them. ``untracked``: why the
    pool cannot say what changed; empty when it can, None when it was not to.
    """

    base: Optional[Layers]
    reason: str = ""
    problems: Sequence[str] = ()
    untracked: Optional[str] = None

    def facts(self, changes_by: str) -> dict[str, str]:
        """What the new point's metadata say of how it was made; ``changes_by``: ``cbt`` or ``digest``."""
        if not self.base:
            return {"reason": self.reason}
        return {"changes_by": changes_by, **({"changes_reason": self.untracked} if self.untracked else {})}

    def all_warnings(self) -> list[str]:
        """What an operator must know."""
        found = list(self.problems)
        if not self.base and self.reason != FIRST_POINT:
            found.append("Everything was read and stored again: %s." % self.reason)
        if self.untracked:
            text = "Everything was read and compared: %s." if self.base else "What changes is not tracked: %s."
            found.append(text % self.untracked)
        return found


def find_base(
    repository: Repository, vm_uuid: str, pool_uuid: str, keys: WriterKeys, signers: AllowedSigners,
    identities: Sequence[Any],
) -> Found:
    """The newest point of the VM over which a layer can lie; older ones are tried when it is damaged."""
    problems, reason = [], FIRST_POINT
    marked = marked_objects(repository.store, vm_uuid)
    for record in reversed(repository.points(vm_uuid, signers)):
        if not record.trusted or record.problem:
            problems.append("Restore point %s does not count: %s." % (record.point, record.problem or "nobody vouches for it"))
            reason = "no earlier restore point is usable"
            continue
        reason = _unfit(record, keys, identities)
        if marked.intersection(name for _digest, name in record.objects):
            reason = "the earlier restore points are about to be pruned"
        if reason:
            return Found(None, reason, problems)
        try:
            base = repository.layers(record, identities)
        except NoMatchError:
            return Found(None, "none of the catalog identities opens the earlier restore points", problems)
        except (RepositoryError, AgeError) as error:
            problems.append("Restore point %s is damaged, and what is built on it: %s" % (record.point, error))
            reason = "no earlier restore point is usable"
            continue
        reason = _unlike(base.meta, pool_uuid, keys)
        if reason:
            base.close()
            return Found(None, reason, problems)
        return Found(base, problems=problems)
    return Found(None, reason, problems)


def _unfit(record: PointRecord, keys: WriterKeys, identities: Sequence[Any]) -> str:
    if record.encrypted != keys.encrypted:
        return "encryption was switched %s" % ("on" if keys.encrypted else "off")
    if record.encrypted and not identities:
        return "no catalog identity was given, so that earlier restore points cannot be compared with"
    if len(record.indexes) >= MOST_LAYERS:
        return "the last one had %d layers" % len(record.indexes)
    return ""


def _unlike(meta: Mapping[str, Any], pool_uuid: str, keys: WriterKeys) -> str:
    if meta["host"]["pool_uuid"] != pool_uuid:
        return "the earlier restore points are from another pool"
    if "checksums" not in meta:
        return "the last one does not say which checksums it holds"
    # every identity that opens the new point must open all its layers; what was true of the last one's is true of them
    able = {one["id"] for one in meta["recipients"] if one["role"] == "data"}
    if not able.issuperset(_id(one) for one in keys.data_recipients):
        return "data recipients were added that cannot open the earlier restore points"
    return ""


def _id(recipient: Any) -> str:
    return "sha256:%s" % hashlib.sha256(str(recipient).encode("ascii")).hexdigest()[:16]


def chain_labels(disks: Sequence[OvaDisk], vdi_uuids: Mapping[str, str], base: Layers) -> dict[str, str]:
    """Map the disks' labels in the export to those in the archive: a disk that is in the base keeps its label.

    So does one that took another's place on the VM (after a revert, a move to other storage): its content is compared
    anyway. ``vdi_uuids``: label in the export -> UUID of the disk that the snapshot is of. Empty where labels run out.
    """
    before = {one["vdi_uuid"]: one for one in base.meta["disks"]}
    present = set(vdi_uuids.values())
    labels: dict[str, str] = {}
    for disk in disks:
        same = before.get(vdi_uuids[disk.label])
        if same is None and disk.userdevice:
            same = next(
                (one for uuid, one in before.items() if uuid not in present and one["userdevice"] == disk.userdevice), None
            )
        if same and same["virtual_size"] <= disk.virtual_size and same["label"] not in labels.values():
            labels[disk.label] = same["label"]
    unused = max([FIRST_LABEL - 1, *(int(label[4:]) for label in base.labels())]) + 1
    for disk in disks:
        if disk.label not in labels:
            labels[disk.label] = "Ref:%d" % unused
            unused += 1
    return labels if unused <= LAST_LABEL + 1 else {}


def leaves_nothing_out(disks: Sequence[OvaDisk], labels: Mapping[str, str]) -> bool:
    """Whether importers would misplace blocks if any was left out: the archive's first disk is shorter than 1 MiB."""
    sizes = [disk.virtual_size for disk in sorted(disks, key=lambda disk: labels[disk.label]) if disk.virtual_size]
    return bool(sizes) and sizes[0] < BLOCK
