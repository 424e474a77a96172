#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_prune
short_description: Remove the restore points that a retention policy does not keep
description:
  - Keeps the restore points that a policy asks for, VM by VM, and removes the others. The rules mean what restic's rules of the same names
    mean. A point is kept when any rule keeps it.
  - Removal has two phases, so that backups and restores go on meanwhile. A run marks what is to go, and the first run after O(grace)
    removes it. Run the task daily. Until then a policy that was wrong does no harm, since only what the policy of the removing run too
    does not keep is removed.
  - Only complete points that an allowed signer vouches for are counted. The newest of them always stays, and so do points that are held,
    being restored, or younger than O(min_age).
  - Removing a point never touches what younger points need of it. A VM's points are left alone, and the task fails, when the storage does
    not list what is there.
  - In check mode nothing is touched, and RV(points) says what would become of each point and why.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography and zstandard on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.repository
  - guestark.xen.repository.catalog
  - guestark.xen.attributes
  - guestark.xen.attributes.actiongroup_repository
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  repository:
    required: true
  allowed_signers:
    required: true
  vm:
    description: The VM whose points to prune, by UUID or, with an identity, by name. Without it, all VMs.
    type: str
  keep_last:
    description: Keep this many of the newest points. V(-1) keeps all, for this and for the other numbers.
    type: int
    default: 0
  keep_hourly:
    description: Keep the newest point of each of this many hours that have one.
    type: int
    default: 0
  keep_daily:
    description: Keep the newest point of each of this many days that have one.
    type: int
    default: 0
  keep_weekly:
    description: Keep the newest point of each of this many ISO weeks that have one.
    type: int
    default: 0
  keep_monthly:
    description: Keep the newest point of each of this many months that have one.
    type: int
    default: 0
  keep_yearly:
    description: Keep the newest point of each of this many years that have one.
    type: int
    default: 0
  keep_within:
    description:
      - Keep all points of this time before the newest one, in years, months, days and hours, such as V(1y6m), V(7d) or V(2d12h).
    type: str
  keep_within_hourly:
    description: Keep the newest point of each hour of this time before the newest one.
    type: str
  keep_within_daily:
    description: Keep the newest point of each day of this time before the newest one.
    type: str
  keep_within_weekly:
    description: Keep the newest point of each ISO week of this time before the newest one.
    type: str
  keep_within_monthly:
    description: Keep the newest point of each month of this time before the newest one.
    type: str
  keep_within_yearly:
    description: Keep the newest point of each year of this time before the newest one.
    type: str
  keep_tags:
    description:
      - Keep points whose VM had this tag. An element with several tags, separated by commas, asks for all of them.
      - This needs an identity that opens the metadata.
    type: list
    elements: str
    default: []
  timezone:
    description: Time zone in which hours, days, weeks, months and years begin, by its IANA name.
    type: str
    default: UTC
  min_age:
    description: Never remove a point that was committed less than this time ago, in days, hours, minutes and seconds.
    type: str
    default: 1h
  grace:
    description:
      - How long a mark stands before what it names is removed.
      - With a grace shorter than a backup may be stuck in its very last step, a backup can fail and have to be run again. It is never
        reported as good when it is not. V(0s) marks and removes in one run.
    type: str
    default: 24h
  remove_damaged:
    description: Also remove points that lack an object. Without it they stay and are warned of, since another copy may make them whole.
    type: bool
    default: false
  remove_all:
    description: Remove all points of O(vm) that are not held or younger than O(min_age), the newest and those of unknown signers too.
    type: bool
    default: false
seealso:
  - module: guestark.xen.xen_backup_hold
  - module: guestark.xen.xen_backup_info
"""

EXAMPLES = r"""
---
- name: Keep a week of days, a month of weeks and a year of months
  guestark.xen.xen_backup_prune:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    keep_daily: 7
    keep_weekly: 5
    keep_monthly: 12

- name: Remove what there is of a VM that was given up
  guestark.xen.xen_backup_prune:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    vm: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    remove_all: true
"""

RETURN = r"""
points:
  description: What becomes of each point, by VM, newest last.
  returned: always
  type: list
  elements: dict
  contains:
    point:
      description: Name of the point.
      type: str
      sample: 20261123T010000Z-000042-9f3c2a7be1d0
    vm_uuid:
      description: UUID of the VM.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    keep:
      description: Whether it stays.
      type: bool
      sample: true
    reasons:
      description: The rules that keep it, or why it goes.
      type: list
      elements: str
      sample: [newest, keep_last, keep_daily]
marked:
  description: Points that this run marked, and that go once O(grace) is over. In check mode, those that it would mark.
  returned: always
  type: list
  elements: str
  sample: []
removed:
  description: Points that this run removed.
  returned: always
  type: list
  elements: str
  sample: [20261101T010000Z-000020-0a1b2c3d4e5f]
removed_objects:
  description: Number of objects that this run removed.
  returned: always
  type: int
  sample: 4
removed_bytes:
  description: Bytes that these objects took.
  returned: always
  type: int
  sample: 1073741824
retained:
  description: Objects that the storage does not let go yet, because they are locked. A later run removes them.
  returned: always
  type: list
  elements: str
  sample: []
"""

from datetime import tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import find_uuids
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, EngineError
from ansible_collections.guestark.xen.plugins.module_utils.engine.prune import PruneOrder, VmPruned, prune_vm
from ansible_collections.guestark.xen.plugins.module_utils.engine.retention import PERIODS, UNLIMITED, WITHIN, Policy, Span
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store


def policy_of(options: dict[str, Any]) -> Policy:
    """The rules that the options give. ValueError for one that makes no sense."""
    counts = {name: options["keep_%s" % name] for name in PERIODS}
    for name, count in counts.items():
        if count < UNLIMITED:
            raise ValueError("keep_%s is %d: expected a number of points, or -1 for all" % (name, count))
    spans = {name: Span.parse(options["keep_%s" % name]) for name in WITHIN if options["keep_%s" % name]}
    return Policy(counts, spans, [frozenset(one.split(",")) for one in options["keep_tags"]])


def zone_of(name: str) -> tzinfo:
    """A time zone by its name. ValueError for one that this machine does not know."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError) as error:
        raise ValueError("%r is no time zone that this machine knows" % name) from error


def order_of(options: dict[str, Any]) -> PruneOrder:
    """What the options ask for. ValueError for what makes no sense, AgeError for an identity that is no good."""
    return PruneOrder(
        policy_of(options), arguments.duration(options["min_age"]), arguments.duration(options["grace"]).total_seconds(),
        zone_of(options["timezone"]), arguments.identities(options), options["remove_damaged"], options["remove_all"],
    )


def described(vm_uuid: str, result: VmPruned) -> list[dict[str, Any]]:
    """The decisions on a VM's points as data."""
    return [
        {"vm_uuid": vm_uuid, "point": str(one.point), "keep": bool(one.reasons), "reasons": one.reasons or [one.cause]}
        for one in result.decisions
    ]


def run(module: AnsibleModule) -> tuple[dict[str, Any], list[Exception]]:
    """Prune VM by VM; what is wrong with one does not keep the others. Returns (result, errors)."""
    try:
        order = order_of(module.params)
    except ValueError as error:
        raise EngineError("%s." % error, "Nothing was touched.") from error
    repository, signers = Repository.open(open_store(module.params["repository"], module.params["storage_options"])), arguments.signers(module.params)
    result: dict[str, Any] = {
        "points": [], "marked": [], "removed": [], "removed_objects": 0, "removed_bytes": 0, "retained": [],
    }
    errors: list[Exception] = []
    for uuid in find_uuids(repository, module.params["vm"], order.identities):
        try:
            one = prune_vm(repository, uuid, signers, order, module.check_mode)
        except PROBLEMS as error:
            errors.append(error)
            continue
        result["points"] += described(uuid, one)
        result["marked"] += map(str, one.done.marked)
        result["removed"] += map(str, one.done.removed)
        result["removed_objects"] += one.done.removed_objects
        result["removed_bytes"] += one.done.removed_bytes
        result["retained"] += one.done.retained
        for warning in one.warnings:
            module.warn(warning)
    result["changed"] = bool(result["marked"] or result["removed_objects"])
    return result, errors


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.repository(required=True), **arguments.catalog(),
            "allowed_signers": {"type": "path", "required": True},
            "vm": {"type": "str"},
            **{"keep_%s" % name: {"type": "int", "default": 0} for name in PERIODS},
            **{"keep_%s" % name: {"type": "str"} for name in WITHIN},
            "keep_tags": {"type": "list", "elements": "str", "default": []},
            "timezone": {"type": "str", "default": "UTC"},
            "min_age": {"type": "str", "default": "1h"},
            "grace": {"type": "str", "default": "24h"},
            "remove_damaged": {"type": "bool", "default": False},
            "remove_all": {"type": "bool", "default": False},
        },
        required_if=[("remove_all", True, ("vm",))],
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard")
    try:
        result, errors = run(module)
    except PROBLEMS as error:
        results.fail(module, error)
    if errors:
        results.fail(module, errors[0] if len(errors) == 1 else EngineError(" ".join(map(str, errors))), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
