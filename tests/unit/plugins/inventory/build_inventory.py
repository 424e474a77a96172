# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets ansible-core build an inventory from a source file, with VMs from a JSON file in place of a pool's.

usage: build_inventory.py COLLECTIONS SOURCE VMS
VMS: {"first member": {"name": text, "vms": [facts, ...]} or {"error": text}}
Prints {"hosts": {name: variables}, "groups": {name: [host, ...]}, "connections": [options, ...], "error": text}.
"""

from __future__ import annotations

import contextlib
import json
import sys

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.vars.manager import VariableManager

init_plugin_loader([sys.argv[1]])

from ansible_collections.guestark.xen.plugins.inventory import pool as plugin  # noqa: E402

with open(sys.argv[3], encoding="utf-8") as stored:
    POOLS = json.load(stored)
connections = []


@contextlib.contextmanager
def pool_client(options):
    connections.append(options)
    yield POOLS[options["hostname"][0]]


def pool_name(pool):
    return pool.get("name")


def vm_facts(pool):
    if "error" in pool:
        raise plugin.PoolError(pool["error"], "Mend it.")
    return pool["vms"]


plugin.pool_client = pool_client
plugin.pool_name = pool_name
plugin.vm_facts = vm_facts
answer = {"hosts": {}, "groups": {}, "connections": connections, "error": None}
try:
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[sys.argv[2]])
    manager = VariableManager(loader=loader, inventory=inventory)
    for host in inventory.get_hosts():
        variables = manager.get_vars(host=host)
        templar = Templar(loader=loader, variables=variables)
        answer["hosts"][host.name] = {
            name: templar.template(value)
            for name, value in variables.items()
            if name.startswith(("xen_", "ansible_connection", "ansible_python", "my_"))
        }
    answer["groups"] = {name: [str(one) for one in hosts] for name, hosts in inventory.get_groups_dict().items()}
except AnsibleError as error:
    answer["error"] = str(error)
print(json.dumps(answer, default=str))
