# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: pool
short_description: VMs of XenServer and XCP-ng pools as hosts
description:
  - Makes every VM of one or more pools a host, in groups by tag, power state, pool, host and storage repository.
  - Templates, snapshots and control domains are left out.
  - The host's variables are what M(guestark.xen.xen_vm_info) returns for the VM, each with V(xen_) before its name, like C(xen_uuid) and
    C(xen_power_state), and also C(xen_pool), the pool's name, and C(xen_pool_members), the addresses to reach it by.
  - The source is a file whose name ends in V(xen.yml) or V(xen.yaml).
author:
  - Guestark contributors (@guestark)
requirements:
  - jmespath, with O(query)
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.connection.plugin
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
notes:
  - A group's name begins with what it stands for, V(tag_), V(power_), V(pool_), V(host_) or V(sr_), and goes on with the tag or the object's
    name; the power state is in lower case. Characters that group names must not have become underscores.
  - Logging in needs the role C(read-only).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [guestark.xen.pool]
  hostname:
    required: false
  password:
    required: false
  pools:
    description:
      - The pools to take VMs from, each with the options of a connection. What an entry does not say is taken from the option of the same
        name outside.
      - Without it, the options outside describe the one pool.
    type: list
    elements: dict
    default: []
    suboptions:
      hostname:
        description: As O(hostname).
        type: list
        elements: str
      username:
        description: As O(username).
        type: str
      password:
        description: As O(password).
        type: str
      validate_certs:
        description: As O(validate_certs).
        type: bool
      ca_path:
        description: As O(ca_path).
        type: path
      fingerprint:
        description: As O(fingerprint).
        type: str
  query:
    description:
      - JMESPath expression that is given the list of all VMs and returns those to keep.
      - A VM has the names of its host variables without V(xen_).
    type: str
  host_name:
    description:
      - What a host is called. With V(name), VMs that share a name are each called by it and the first eight digits of their UUID,
        V(name_01234567).
    type: str
    choices: [name, uuid]
    default: name
  local:
    description:
      - Let tasks for a host run on the controller, with the Python that runs Ansible, as tasks do that speak to the pool and not to the guest.
      - Sets C(ansible_connection) and C(ansible_python_interpreter).
    type: bool
    default: false
"""

EXAMPLES = r"""
---
# production.xen.yml: one pool. XENSERVER_PASSWORD is in the environment.
plugin: guestark.xen.pool
hostname: [xen1.example.org, xen2.example.org, xen3.example.org]
username: backup
ca_path: /etc/guestark/pool-ca.pem
local: true

---
# all.xen.yml: two pools, and only the VMs that are to be backed up
plugin: guestark.xen.pool
username: backup
ca_path: /etc/guestark/pool-ca.pem
pools:
  - hostname: [xen1.example.org, xen2.example.org]
    password: "{{ lookup('ansible.builtin.env', 'PRODUCTION_PASSWORD') }}"
  - hostname: recovery1.example.org
    password: "{{ lookup('ansible.builtin.env', 'RECOVERY_PASSWORD') }}"
query: "[?contains(tags, 'backup')]"
# a group for each policy tag, such as policy_gold from the tag policy=gold
keyed_groups:
  - key: xen_tags | select('match', 'policy=') | map('replace', 'policy=', '')
    prefix: policy
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /var/cache/guestark
cache_timeout: 600
"""

import typing as t
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from sys import executable

from ansible.errors import AnsibleParserError
from ansible.inventory.group import to_safe_group_name
from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.guestark.xen.plugins.module_utils.arguments import connection, pool_client
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import PoolError
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import vm_facts

with suppress(ImportError):
    import jmespath

if t.TYPE_CHECKING:
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader
    from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient

Vm = dict[str, t.Any]


def group_names(vm: Vm) -> t.Iterator[str]:
    """The groups a VM belongs to by itself."""
    named = [("power", vm["power_state"].lower()), ("pool", vm["pool"])]
    named += [("tag", tag) for tag in vm["tags"]]
    named += [("sr", sr) for sr in sorted({disk["sr"] for disk in vm["disks"] if disk["sr"]})]
    if vm["host"]:
        named.append(("host", vm["host"]))
    for kind, name in named:
        yield to_safe_group_name(f"{kind}_{name}", force=True, silent=True)


def host_names(vms: list[Vm], by: str) -> list[str]:
    """What each VM is called as a host; raises AnsibleParserError where two would be called the same."""
    times = Counter(vm["name"] for vm in vms)
    times[""] = 2  # a host has to be called something
    if by == "uuid":
        names = [vm["uuid"] for vm in vms]
    else:
        names = [vm["name"] if times[vm["name"]] == 1 else f"{vm['name']}_{vm['uuid'][:8]}" for vm in vms]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AnsibleParserError(f"Several VMs would be the host {', '.join(twice)}. Give their pools a source each.")
    return names


def select(vms: list[Vm], query: str | None) -> list[Vm]:
    """The VMs that a JMESPath expression returns of all of them; raises AnsibleParserError."""
    if not query:
        return vms
    if find_spec("jmespath") is None:
        raise AnsibleParserError(missing_required_lib("jmespath"))
    try:
        found = jmespath.search(query, vms)
    except jmespath.exceptions.JMESPathError as error:
        raise AnsibleParserError(f"The query {query!r} is not valid JMESPath: {error}") from error
    given = {id(vm) for vm in vms}
    if not isinstance(found, list) or not all(id(one) in given for one in found):
        raise AnsibleParserError(f"The query {query!r} must return VMs as it got them, like [?power_state=='Running'].")
    return found


def pool_name(client: PoolClient) -> str:
    """The pool's name; that of its coordinator when nobody gave it one."""
    (pool,) = client.call("pool.get_all_records").values()
    return pool["name_label"] or client.call("host.get_name_label", pool["master"])


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """See DOCUMENTATION."""

    NAME = "guestark.xen.pool"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith(("xen.yml", "xen.yaml"))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        source = self._read_config_data(path)
        vms = self._all_vms(source, path, cache)
        # by all VMs, so that what a host is called does not depend on the query
        names = {id(vm): name for vm, name in zip(vms, host_names(vms, self.get_option("host_name")))}
        for vm in select(vms, self.get_option("query")):
            # What the pool says is data: a VM's name or description is never a template.
            self._add(wrap_var(names[id(vm)]), wrap_var(vm))

    def _all_vms(self, source: dict[str, t.Any], path: str, cache: bool) -> list[Vm]:
        keep = self.get_option("cache")
        key = self.get_cache_key(path)
        if keep and cache:
            with suppress(KeyError):
                return self._cache[key]
        vms = [vm for options in self._pools(source) for vm in self._vms_of(options)]
        if keep:
            self._cache[key] = vms
        return vms

    def _pools(self, source: dict[str, t.Any]) -> t.Iterator[dict[str, t.Any]]:
        """The connection options of each pool, complete and checked."""
        outside = {}
        for name, option in connection().items():
            value = self.get_option(name)
            # what the file says may be a template, what the environment says is taken as it is
            written = {name, *option.get("aliases", [])} & source.keys()
            outside[name] = self.templar.template(value) if written else value
        for entry in self.get_option("pools") or [{}]:
            options = {**outside, **self.templar.template(entry)}
            said = {name: value for name, value in options.items() if value is not None}
            checked = ArgumentSpecValidator(connection()).validate(said)
            if checked.error_messages:
                raise AnsibleParserError(f"A pool's connection is not complete: {', '.join(checked.error_messages)}")
            yield checked.validated_parameters

    def _vms_of(self, options: dict[str, t.Any]) -> list[Vm]:
        try:
            with pool_client(options) as client:
                shared = {"pool": pool_name(client), "pool_members": options["hostname"]}
                return [{**vm, **shared} for vm in vm_facts(client)]
        except PoolError as error:
            raise AnsibleParserError(f"No inventory from pool {', '.join(options['hostname'])}: {error}") from error

    def _add(self, name: str, vm: Vm) -> None:
        self.inventory.add_host(name)
        variables = {f"xen_{fact}": value for fact, value in vm.items()}
        if self.get_option("local"):
            variables.update(ansible_connection="local", ansible_python_interpreter=executable)
        for variable, value in variables.items():
            self.inventory.set_variable(name, variable, value)
        for group in group_names(vm):
            self.inventory.add_child(self.inventory.add_group(group), name)

        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
