# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Judges the restore points of a VM by a policy and what stands above it, and has those pruned that nothing keeps."""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Collection, Mapping, NamedTuple, Optional, Sequence

from ..age.errors import AgeError, NoMatchError
from ..age.sshsig import AllowedSigners
from ..repository import layout
from ..repository.errors import ObjectMissing, RepositoryError
from ..repository.layout import PointId
from ..repository.marks import RESTORE, read_holds, release
from ..repository.prune import Pruned, list_points, plan_prune, prune
from ..repository.record import PointRecord
from ..repository.repository import Repository
from .catalog import examine
from .errors import EngineError
from .retention import Candidate, Policy, reasons

MOST_SKEW = 3600.0  # seconds between this machine's clock and the store's; ages are told by this machine's
FORGOTTEN = 7 * 24 * 3600.0  # seconds after which the hold of a restore is that of one that died


@dataclass(frozen=True)
class PruneOrder:
    """What may go, and when.

    ``grace``: seconds between mark and removal. ``remove_damaged``: points that cannot be restored go too.
    ``remove_all``: every point goes that is not held or young. ``identities`` open the metadata (tags, sizes).
    """

    policy: Policy
    min_age: timedelta = timedelta(hours=1)
    grace: float = 24 * 3600.0
    zone: tzinfo = timezone.utc
    identities: Sequence[Any] = ()
    remove_damaged: bool = False
    remove_all: bool = False


class Decision(NamedTuple):
    """What becomes of a point: it stays for ``reasons``; when there is none it goes, for ``cause``.

    ``problem``: what is wrong with one that stays although it does not count.
    """

    point: PointId
    reasons: list[str]
    cause: str = ""
    problem: str = ""


@dataclass
class VmPruned:
    """The outcome for a VM."""

    decisions: list[Decision] = field(default_factory=list)
    done: Pruned = field(default_factory=Pruned)
    warnings: list[str] = field(default_factory=list)


def prune_vm(
    repository: Repository, vm_uuid: str, signers: Optional[AllowedSigners], order: PruneOrder, dry_run: bool = False
) -> VmPruned:
    """Mark what nothing keeps, and remove what was marked a grace ago; ``dry_run``: only say what would be marked.

    Raises EngineError and RepositoryError; then nothing that a kept point needs was touched.
    """
    result = VmPruned()
    now = datetime.now(timezone.utc)

    def doomed(records: Sequence[PointRecord]) -> set[PointId]:
        result.decisions = judge(repository, vm_uuid, records, order, now)
        return {one.point for one in result.decisions if not one.reasons}

    if dry_run:
        result.done = plan_prune(repository, vm_uuid, list_points(repository, vm_uuid, signers), doomed)
    else:
        _check_clock(repository)
        _forget_holds(repository, vm_uuid)
        result.done = prune(repository, vm_uuid, signers, doomed, order.grace)
    result.warnings = [
        "Restore point %s of VM %s does not count: %s." % (one.point, vm_uuid, one.problem)
        for one in result.decisions if one.problem and one.reasons
    ]
    return result


def judge(
    repository: Repository, vm_uuid: str, records: Sequence[PointRecord], order: PruneOrder, now: datetime
) -> list[Decision]:
    """What becomes of each point. Only complete points that an allowed signer vouches for are counted by the policy."""
    holds = read_holds(repository.store, vm_uuid)
    looked = [_look(repository, one, order) for one in records]
    counted = [one for one, _tags in looked if one.trusted and not one.problem]
    candidates = {one.point: Candidate(one.started, tags) for one, tags in looked if one.trusted and not one.problem}
    replaced = {one.parent for one in counted if one.kind == "synthetic" and one.parent}
    policy = _keeps(candidates, replaced, order, now)
    newest = counted[-1].point if counted else None
    return [
        _decide(
            one, holds.get(one.point, []), policy.get(one.point, []), one.point == newest, order, now, one.point not in replaced
        )
        for one, _tags in looked
    ]


def _keeps(
    candidates: Mapping[PointId, Candidate], replaced: Collection[PointId], order: PruneOrder, now: datetime
) -> dict[PointId, list[str]]:
    """The policy's reasons. A point that a synthetic one replaced counts for nothing, but spans of time keep it too.

    Whoever can only add points can add synthetic ones: what a policy keeps for a time must not go for their sake.
    """

    def asked(points: Sequence[PointId], policy: Policy) -> dict[PointId, list[str]]:
        return dict(zip(points, reasons([candidates[one] for one in points], policy, now, order.zone)))

    found = asked([one for one in candidates if one not in replaced], order.policy)
    of_time = asked(list(candidates), Policy(spans=order.policy.spans))
    return {**found, **{one: of_time[one] for one in candidates if one in replaced}}


def _decide(
    one: PointRecord, holds: Sequence[str], policy: Sequence[str], newest: bool, order: PruneOrder, now: datetime, counts: bool
) -> Decision:
    why = ["hold: %s" % reason for reason in holds]
    if now - one.committed < order.min_age:
        why.append("younger than min_age")
    if order.remove_all:
        return Decision(one.point, why, "remove_all")
    if not one.trusted:
        problem = one.problem or "none of the allowed signers vouches for it"
        return Decision(one.point, [*why, "does not count, and is not ours to remove"], problem=problem)
    if one.problem:
        stays = [] if order.remove_damaged else ["damaged, and stays without remove_damaged"]
        return Decision(one.point, [*why, *stays], "damaged: %s" % one.problem, one.problem)
    why += ["newest"] if newest else []
    why += ["no policy"] if order.policy.empty else policy
    return Decision(one.point, why, "no rule keeps it" if counts else "a synthetic point takes its place")


def _look(repository: Repository, record: PointRecord, order: PruneOrder) -> tuple[PointRecord, frozenset[str]]:
    """A point as its objects show it, and the tags its VM had."""
    if not record.trusted or record.problem:
        return record, frozenset()
    if not order.policy.tags:
        return examine(repository, record, order.identities)[0], frozenset()
    try:
        return record, frozenset(repository.meta(record, order.identities)["vm"]["tags"])
    except NoMatchError as error:
        raise EngineError(
            "The tags of point %s of VM %s are not known." % (record.point, record.vm_uuid),
            "Give a catalog identity that opens its metadata, or a policy without keep_tags.",
        ) from error
    except (RepositoryError, AgeError):
        return examine(repository, record, order.identities)[0], frozenset()


def _check_clock(repository: Repository) -> None:
    skew = repository.store.now() - time.time()
    if abs(skew) > MOST_SKEW:
        raise EngineError(
            "The clocks of this machine and of the repository's storage are %d seconds apart." % abs(skew),
            "Nothing was pruned, since the age of points is uncertain. Set the wrong one.",
        )


def _forget_holds(repository: Repository, vm_uuid: str) -> None:
    """End the holds of restores that must have died."""
    store, folder = repository.store, layout.vm_folder(vm_uuid)
    for point, found in read_holds(store, vm_uuid).items():
        for reason in found:
            try:
                if reason.startswith(RESTORE) and store.now() - store.modified(
                    folder + layout.hold_name(point, reason)
                ) > FORGOTTEN:
                    release(store, vm_uuid, point, reason)
            except ObjectMissing:
                continue  # its restore has just ended
