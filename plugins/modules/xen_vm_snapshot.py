#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_vm_snapshot
short_description: Take, remove and go back to snapshots of a VM
description:
  - Keeps a snapshot of a VM of a XenServer or XCP-ng pool, removes it with its disks, or brings the VM back to it.
  - Only snapshots of the VM itself are ever looked at. Removing a snapshot frees its space after the pool has coalesced its disks.
author:
  - Guestark contributors (@guestark)
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.vm
  - guestark.xen.moment
  - guestark.xen.attributes
  - guestark.xen.attributes.actiongroup_all
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - O(state=reverted) brings the VM back each time.
options:
  snapshot_name:
    description: Name of the snapshot.
    type: str
    required: true
  state:
    description:
      - V(present) takes a snapshot of this name unless the VM has one.
      - V(absent) removes the VM's snapshot of this name and its disks.
      - V(reverted) brings the VM to the snapshot's state. What was written since is lost, and a running VM is switched off.
    type: str
    choices: [present, absent, reverted]
    default: present
  exclude_disks:
    description:
      - Disks to leave out, by name, UUID or position on the VM. Needs release 8.3 and O(method=normal) or O(method=offline).
      - Disks with C([NOBAK]) or C([NOSNAP]) in their name are left out where that is possible, and warned of where it is not.
    type: list
    elements: str
    default: []
  expires:
    description:
      - The snapshot is a run's own and nobody comes back for it after this time, so that the janitor (M(guestark.xen.xen_quiesce)) removes it.
      - A number with a unit, V(s), V(m), V(h), V(d) or V(w). Without it, the snapshot is kept until somebody removes it.
    type: str
seealso:
  - module: guestark.xen.xen_vm_export
"""

EXAMPLES = r"""
---
- name: Have a snapshot before the upgrade
  guestark.xen.xen_vm_snapshot:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    snapshot_name: before-upgrade

- name: Remove it when all is well
  guestark.xen.xen_vm_snapshot:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    snapshot_name: before-upgrade
    state: absent
"""

RETURN = r"""
snapshot:
  description: The snapshot that is there.
  returned: success, when there is one
  type: dict
  contains:
    uuid:
      description: UUID of the snapshot.
      type: str
      sample: 1d7bb0c9-2ff4-4f86-b32e-6b1f0f30a7a2
    name:
      description: Name of the snapshot.
      type: str
      sample: before-upgrade
    method:
      description: How the VM was brought to the moment. Returned when the snapshot was taken by this module.
      type: str
      sample: normal
    consistency:
      description: What the snapshot guarantees. Returned when it was taken by this module.
      type: str
      sample: crash
    degraded:
      description: Why it is less than what was asked for. Returned when it is.
      type: str
      sample: "The pool's licence does not allow checkpoints."
    down_seconds:
      description: How long the guest was off. Returned when it was.
      type: float
      sample: 21.5
    frozen_seconds:
      description: How long the guest stood still. Returned when it did.
      type: float
      sample: 1.4
    excluded:
      description: Disks that are not in it, each with C(uuid), C(name) and C(reason). Returned when there are any.
      type: list
      elements: dict
    time:
      description: When it was taken, by the pool's clock, RFC 3339.
      type: str
      sample: "2026-11-23T01:00:00Z"
"""

from datetime import datetime, timezone
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.xapi import moments, snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import Ambiguous, NotFound, PoolError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import call_async


def mark_of(expires: Optional[str]) -> snapshots.Mark:
    """The mark of a snapshot that is kept, or that nobody comes back for after ``expires``. Raises ValueError."""
    if not expires:
        return snapshots.Mark("guestark.xen", "", "", "")  # no point and no expiry: nothing removes it by itself
    expiry = datetime.now(timezone.utc) + arguments.duration(expires)
    return snapshots.Mark("guestark.xen", "", "", results.rfc3339(expiry))


def described(client: PoolClient, ref: str) -> dict[str, Any]:
    """The snapshot as the module returns it."""
    record = client.call("VM.get_record", ref)
    taken = datetime.strptime(str(record["snapshot_time"]), "%Y%m%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    moment = moments.Moment.read(record)
    facts = moment.facts() if moment else {}
    return {"uuid": record["uuid"], "name": record["name_label"], "time": results.rfc3339(taken), **facts}


def find(client: PoolClient, vm: dict[str, Any], name: str) -> Optional[str]:
    """The ref of the VM's snapshot of a name, or None. Raises Ambiguous when there are several."""
    named = [ref for ref in vm["snapshots"] if client.call("VM.get_name_label", ref) == name]
    if len(named) > 1:
        raise Ambiguous("VM %s has %d snapshots named %s." % (vm["name_label"], len(named), name), "Rename all but one.")
    return named[0] if named else None


def run(module: AnsibleModule, client: PoolClient) -> dict[str, Any]:
    """Bring about the state."""
    options = module.params
    name, state = options["snapshot_name"], options["state"]
    vm = find_vm(client, name=options["name"], uuid=options["uuid"])
    found = find(client, vm, name)
    if state == "reverted" and found is None:
        raise NotFound("VM %s has no snapshot named %s." % (vm["name_label"], name), "Name one that it has.")
    changed = state == "reverted" or (found is None) == (state == "present")
    planned = moments.plan(client, vm, arguments.wish(options)) if state == "present" and found is None else None
    if changed and not module.check_mode:
        if planned:
            found = moments.take(client, planned, name, mark_of(options["expires"]))[0].ref
        elif state == "reverted":
            call_async(client, "VM.revert", found, subject="VM %s" % vm["name_label"])
        else:
            snapshots.remove(client, str(found))
    for warning in planned.all_warnings if planned else ():
        module.warn(warning)
    if found is None or state == "absent":
        return {"changed": changed}
    return {"changed": changed, "snapshot": described(client, found)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.vm(), **arguments.moment(),
            "snapshot_name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
            "exclude_disks": {"type": "list", "elements": "str", "default": []},
            "expires": {"type": "str"},
        },
        supports_check_mode=True,
        **arguments.VM_RULES,
    )
    results.unwind_on_signals()
    try:
        with arguments.pool_client(module.params) as client:
            result = run(module, client)
    except (PoolError, ValueError) as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
