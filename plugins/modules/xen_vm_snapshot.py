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
  method:
    description: How the VM is brought to the moment. V(normal) is consistent as after a crash.
    type: str
    choices: [normal]
    default: normal
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
"""

from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.xapi import snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import Ambiguous, NotFound, PoolError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tasks import call_async

MARK = snapshots.Mark("guestark.xen", "", "", "")  # no point and no expiry: nothing removes it by itself


def find(client: PoolClient, vm: dict[str, Any], name: str) -> Optional[str]:
    """The ref of the VM's snapshot of a name, or None. Raises Ambiguous when there are several."""
    named = [ref for ref in vm["snapshots"] if client.call("VM.get_name_label", ref) == name]
    if len(named) > 1:
        raise Ambiguous("VM %s has %d snapshots named %s." % (vm["name_label"], len(named), name), "Rename all but one.")
    return named[0] if named else None


def run(client: PoolClient, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring about the state."""
    name, state = options["snapshot_name"], options["state"]
    vm = find_vm(client, name=options["name"], uuid=options["uuid"])
    found = find(client, vm, name)
    if state == "reverted" and found is None:
        raise NotFound("VM %s has no snapshot named %s." % (vm["name_label"], name), "Name one that it has.")
    changed = state == "reverted" or (found is None) == (state == "present")
    if changed and not check_mode:
        if state == "present":
            found = snapshots.take(client, vm["ref"], name, MARK)
        elif state == "reverted":
            call_async(client, "VM.revert", found, subject="VM %s" % vm["name_label"])
        else:
            snapshots.remove(client, str(found))
    if found is None or state == "absent":
        return {"changed": changed}
    return {"changed": changed, "snapshot": {"uuid": client.call("VM.get_uuid", found), "name": name}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.vm(),
            "snapshot_name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
            "method": {"type": "str", "choices": ["normal"], "default": "normal"},
        },
        supports_check_mode=True,
        **arguments.VM_RULES,
    )
    try:
        with arguments.pool_client(module.params) as client:
            result = run(client, module.params, module.check_mode)
    except PoolError as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
