#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_quiesce
short_description: Bring a VM to the state a backup needs, and give it back
description:
  - The pool's side of a backup's methods. It says which consistency a VM can reach by a method and why not more, shuts the guest down
    where the method needs that, and brings it back to what it was.
  - What a guest was is written on the VM before it is touched. So a guest that a dead run left switched off or suspended is known, and
    O(state=released) brings it back.
  - With O(leftovers=true) it is the janitor of a pool. What earlier runs left is recognised by our mark alone, shown in check mode, and
    put right.
  - The role C(vm-power-admin) suffices. Cancelling a task that another user's run left takes C(pool-operator).
author:
  - Guestark contributors (@guestark)
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.moment
  - guestark.xen.attributes
  - guestark.xen.attributes.actiongroup_all
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the VM. Templates and snapshots never match, and several VMs of this name are an error.
      - Without O(name) and O(uuid), O(state=released) is about every VM of the pool.
    type: str
    aliases: [name_label]
  uuid:
    description: UUID of the VM.
    type: str
  state:
    description:
      - V(quiesced) brings the VM to the state that O(method) needs. With V(offline) the guest is shut down; the other methods need
        nothing beforehand, and the result says what they can reach.
      - V(released) makes the guest what it was before.
    type: str
    choices: [quiesced, released]
    default: quiesced
  leftovers:
    description: With O(state=released), also remove the snapshots, disks and tasks that earlier runs left.
    type: bool
    default: false
  min_age:
    description:
      - What is younger than this may belong to a run that is alive, and is left alone when the whole pool is released or O(leftovers=true).
      - A number with a unit, V(s), V(m), V(h), V(d) or V(w).
    type: str
    default: 1d
seealso:
  - module: guestark.xen.guest_freeze
  - module: guestark.xen.xen_vm_export
"""

EXAMPLES = r"""
---
- name: Shut the guest down for a backup by other means
  guestark.xen.xen_quiesce:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    method: offline
    shutdown_timeout: 120

- name: Start it again, if it ran before
  guestark.xen.xen_quiesce:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    state: released

- name: Put right what dead runs left on the pool
  guestark.xen.xen_quiesce:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    state: released
    leftovers: true
"""

RETURN = r"""
vm:
  description: The VM as it is now.
  returned: success, when one VM was named
  type: dict
  contains:
    uuid:
      description: UUID of the VM.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    name:
      description: Name of the VM.
      type: str
      sample: web01
    power_state:
      description: Its power state.
      type: str
      sample: Halted
consistency:
  description: What a backup by O(method) can reach.
  returned: success, with O(state=quiesced)
  type: str
  sample: cold
reason:
  description: Why it is no more, or empty.
  returned: success, with O(state=quiesced)
  type: str
  sample: "The pool's licence does not allow checkpoints."
found:
  description: What earlier runs left, and what was done about it, or would be in check mode.
  returned: success, with O(state=released)
  type: list
  elements: dict
  contains:
    kind:
      description: V(guest), V(snapshot), V(disk) or V(task).
      type: str
      sample: guest
    uuid:
      description: Its UUID.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    name:
      description: Its name.
      type: str
      sample: web01
    vm:
      description: UUID of the VM it is about.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    since:
      description: When it was made, RFC 3339.
      type: str
      sample: "2026-11-23T01:00:00Z"
    remedy:
      description: What is done about it.
      type: str
      sample: brought back from Halted to Running
"""

from datetime import timedelta
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.xapi import janitor, moments
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import PoolError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm, vm_summary
from ansible_collections.guestark.xen.plugins.module_utils.xapi.power import HALTED, give_back, hold, stop


def quiesce(client: PoolClient, options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the VM to the state that the method needs. Raises PoolError; then it is what it was."""
    vm, wish = find_vm(client, name=options["name"], uuid=options["uuid"]), arguments.wish(options)
    moments.plan(client, vm, wish)
    grade, reason = moments.reach(client, vm, wish)
    changed = wish.method == "offline" and vm["power_state"] != HALTED and not reason
    if changed and not check_mode:
        hold(client, vm, "offline", "")
        try:
            grade = "cold" if stop(client, vm, wish.shutdown_timeout, wish.hard_shutdown) else "crash"
            moments.judged(wish, moments.Moment("offline", grade), vm["name_label"], vm["power_state"])
        except BaseException:
            give_back(client, vm["ref"])
            raise
    return {"changed": changed, "vm": vm_summary(client, vm["ref"]), "consistency": grade, "reason": reason}


def release(client: PoolClient, options: dict[str, Any], min_age: timedelta, check_mode: bool) -> dict[str, Any]:
    """Give back what was held, and remove what was left. Raises PoolError after everything else was seen to."""
    named = options["name"] or options["uuid"]
    vm = find_vm(client, name=options["name"], uuid=options["uuid"]) if named else None
    # whoever names a VM means it, however young the note on it is
    found = janitor.guests(client, timedelta(0) if vm else min_age, vm)
    if options["leftovers"]:
        found += janitor.objects(client, min_age, vm)
    problems = []
    for one in found if not check_mode else ():
        try:
            janitor.heal(client, one)
        except PoolError as error:
            problems.append(error)
    if problems:
        raise problems[0]
    result = {"changed": bool(found), "found": [one.facts() for one in found]}
    return {**result, "vm": vm_summary(client, vm["ref"])} if vm else result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.vm(), **arguments.moment(),
            "state": {"type": "str", "choices": ["quiesced", "released"], "default": "quiesced"},
            "leftovers": {"type": "bool", "default": False},
            "min_age": {"type": "str", "default": "1d"},
        },
        mutually_exclusive=arguments.VM_RULES["mutually_exclusive"],
        required_if=[("state", "quiesced", ("name", "uuid"), True)],
        supports_check_mode=True,
    )
    options = module.params
    results.unwind_on_signals()
    try:
        min_age = arguments.duration(options["min_age"])
        with arguments.pool_client(options) as client:
            if options["state"] == "quiesced":
                result = quiesce(client, options, module.check_mode)
            else:
                result = release(client, options, min_age, module.check_mode)
    except (PoolError, ValueError) as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
