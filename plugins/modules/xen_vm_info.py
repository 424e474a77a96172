#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_vm_info
short_description: Tell what virtual machines a pool has
description:
  - Lists the VMs of a XenServer or XCP-ng pool with their disks, interfaces, tags and snapshots, in a fixed number of calls however many
    there are. Templates, snapshots and control domains are left out.
author:
  - Guestark contributors (@guestark)
requirements:
  - jmespath on the host that runs the module, for O(query)
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.attributes
  - guestark.xen.attributes.info
  - guestark.xen.attributes.actiongroup_all
options:
  name:
    description: Name of the VMs to tell about. Without O(name) and O(uuid), all of them.
    type: str
    aliases: [name_label]
  uuid:
    description: UUID of the VM to tell about.
    type: str
  query:
    description: A JMESPath expression over the list of VMs; its outcome is RV(result).
    type: str
seealso:
  - plugin: guestark.xen.pool
    plugin_type: inventory
"""

EXAMPLES = r"""
---
- name: Tell about all VMs
  guestark.xen.xen_vm_info:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
  register: pool

- name: Find the running VMs that carry the tag gold
  guestark.xen.xen_vm_info:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    query: "[?power_state == 'Running' && contains(tags, 'gold')].name"
  register: gold
"""

RETURN = r"""
vms:
  description: The VMs, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
      sample: web01
    uuid:
      description: UUID of the VM.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    power_state:
      description: Its power state.
      type: str
      sample: Running
    tags:
      description: Its tags.
      type: list
      elements: str
      sample: [gold]
    disks:
      description: Its disks, with their sizes in bytes.
      type: list
      elements: dict
result:
  description: What O(query) gives.
  returned: when O(query) is given
  type: raw
  sample: [web01, web02]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import PoolError, XapiError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm, vm_facts


def collect(module: AnsibleModule) -> list[dict[str, Any]]:
    """The facts of the VMs asked for, by name."""
    options = module.params
    with arguments.pool_client(options) as client:
        uuids = None
        if options["uuid"]:
            uuids = [find_vm(client, uuid=options["uuid"])["uuid"]]
        found = vm_facts(client, uuids)
    named = [vm for vm in found if options["name"] in (None, vm["name"])]
    return sorted(named, key=lambda vm: (vm["name"], vm["uuid"]))


def search(module: AnsibleModule, vms: list[dict[str, Any]]) -> Any:
    """What the expression of the option query gives."""
    import jmespath

    try:
        return jmespath.search(module.params["query"], vms)
    except jmespath.exceptions.JMESPathError as error:
        module.fail_json(msg="query: %s" % error)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.vm(),
            "query": {"type": "str"},
        },
        mutually_exclusive=arguments.VM_RULES["mutually_exclusive"],
        supports_check_mode=True,
    )
    if module.params["query"]:
        results.require_libraries(module, "jmespath")
    try:
        vms = collect(module)
    except (PoolError, XapiError) as error:
        results.fail(module, error)
    found = {"result": search(module, vms)} if module.params["query"] else {}
    module.exit_json(changed=False, vms=vms, **found)


if __name__ == "__main__":
    main()
