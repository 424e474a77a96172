# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What runs that died left on a pool, found by our mark alone, and how each is put right."""
from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Mapping, Optional

from . import snapshots
from .client import PoolClient
from .errors import PoolError
from .inventory import is_guest
from .power import MOMENT, Hold, give_back
from .snapshots import WIRE_TIME, Leftover
from .tasks import TASK_MARK, end


@dataclass(frozen=True)
class Finding:
    """Something of ours that nobody comes back for.

    ``kind``: ``guest`` (one that is not what it was), ``snapshot``, ``disk`` or ``task``. ``vm``: UUID of the VM it is
    about, or empty. ``since``: RFC 3339, when it was made, or empty. ``remedy``: what is done about it.
    """

    kind: str
    uuid: str
    name: str
    vm: str
    since: str
    remedy: str
    ref: str
    leftover: Optional[Leftover] = None

    def facts(self) -> dict[str, str]:
        """What there is to tell of it."""
        return {name: getattr(self, name) for name in ("kind", "uuid", "name", "vm", "since", "remedy")}


def guests(client: PoolClient, min_age: timedelta, vm: Optional[Mapping[str, Any]] = None) -> list[Finding]:
    """Guests that were held for a backup at least ``min_age`` ago: one (its record with ``ref``), or all of the pool."""
    vms: dict[str, Any] = {vm["ref"]: vm} if vm else client.call("VM.get_all_records")
    return [_guest(ref, record) for ref, record in vms.items() if _held_for(record, min_age)]


def objects(client: PoolClient, min_age: timedelta, vm: Optional[Mapping[str, Any]] = None) -> list[Finding]:
    """Snapshots and disks of one VM, or of all and tasks too, that runs made at least ``min_age`` ago for themselves."""
    found, now = [], datetime.now(timezone.utc)
    for leftover in snapshots.leftovers(client, vm["uuid"] if vm else None):
        taken = _moment(client.call("%s.get_snapshot_time" % leftover.kind, leftover.ref))
        if leftover.mark.expiry and now - taken >= min_age:  # one without expiry is somebody's to keep
            found.append(Finding(
                "snapshot" if leftover.kind == "VM" else "disk", leftover.uuid, leftover.name, leftover.vm_uuid,
                taken.strftime(MOMENT), "removed", leftover.ref, leftover,
            ))
    for ref, task in {} if vm else client.call("task.get_all_records").items():
        created = _moment(task["created"])
        ours = task["status"] == "pending" and task["name_description"].split(" ")[0] == TASK_MARK
        if ours and now - created >= min_age:
            name, since = task["name_label"], created.strftime(MOMENT)
            found.append(Finding("task", task["uuid"], name, "", since, "cancelled", ref))
    return found


def heal(client: PoolClient, finding: Finding) -> None:
    """Put right what was found. Raises PoolError when that cannot be done."""
    if finding.kind == "guest":
        give_back(client, finding.ref)
    elif finding.leftover:
        snapshots.remove_leftover(client, finding.leftover)
    else:
        end(client, finding.ref, adopted=False)
        if finding.ref in client.call("task.get_all"):
            raise PoolError(
                "The task %s could not be cancelled." % finding.name, "Another user's task takes the role pool-operator."
            )


def _held_for(record: Mapping[str, Any], min_age: timedelta) -> bool:
    held = Hold.read(record)
    return held is not None and is_guest(record) and held.age >= min_age


def _guest(ref: str, record: Mapping[str, Any]) -> Finding:
    held = Hold.read(record)
    since, wanted = (held.since, held.power_state) if held else ("", "")
    remedy = "released" if record["power_state"] == wanted else "brought back from %s to %s" % (
        record["power_state"], wanted)
    return Finding("guest", record["uuid"], record["name_label"], record["uuid"], since, remedy, ref)


def _moment(wire: Any) -> datetime:
    return datetime.strptime(str(wire), WIRE_TIME).replace(tzinfo=timezone.utc)
