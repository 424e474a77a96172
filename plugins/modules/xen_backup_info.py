#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_info
short_description: Tell what restore points a repository has
description:
  - Lists the restore points of a repository, which of them an allowed signer vouches for, and what is wrong with those that do not count.
  - Without any identity it tells what the signed commit records say. With a catalog identity (or a data identity) it adds names, disks,
    consistency and sizes.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography and zstandard on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.repository
  - guestark.xen.repository.catalog
  - guestark.xen.attributes
  - guestark.xen.attributes.info
options:
  repository:
    required: true
  vm:
    description: The VM whose points to list, by UUID or, with an identity, by name. Without it, all VMs.
    type: str
  seal:
    description:
      - Also read every object of the listed VMs and compare it with the digest in its commit record. This needs no key.
      - What differs is in RV(findings).
    type: bool
    default: false
seealso:
  - module: guestark.xen.xen_vm_restore
"""

EXAMPLES = r"""
---
- name: List the restore points of web01
  guestark.xen.xen_backup_info:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    catalog_identities: [/etc/guestark/catalog.key]
    vm: web01
  register: backups

- name: Fail when the newest point is not good
  ansible.builtin.assert:
    that: backups.points[-1].trusted and not backups.points[-1].problem
"""

RETURN = r"""
points:
  description: The restore points, by VM, newest last.
  returned: success
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
    vm_name:
      description: Name the VM had. Returned when an identity opens the metadata.
      type: str
      sample: web01
    kind:
      description: V(full) or V(incremental).
      type: str
      sample: full
    reason:
      description: Why the point is a full one. Returned where an identity opens the metadata of such a point.
      type: str
      sample: it is the VM's first restore point
    changes_by:
      description: How an incremental point found what changed, V(cbt) or V(digest). Returned where an identity opens its metadata.
      type: str
      sample: digest
    changes_reason:
      description: Why everything was read although the pool was to track what changes. Returned where that was so.
      type: str
      sample: No network of the pool is for NBD
    started:
      description: Moment from which the point's age counts, RFC 3339.
      type: str
      sample: "2026-11-23T01:00:00Z"
    committed:
      description: Moment at which the point became valid, RFC 3339.
      type: str
      sample: "2026-11-23T01:07:12Z"
    trusted:
      description: Whether an allowed signer vouches for it.
      type: bool
      sample: true
    signer:
      description: Who vouches for it.
      type: str
      sample: mover
    problem:
      description: Why it does not count, or V(null).
      type: str
      sample: null
    holds:
      description: Reasons for which no policy removes it.
      type: list
      elements: str
      sample: [before-upgrade]
    marked:
      description: Whether a prune run marked it for removal.
      type: bool
      sample: false
    method:
      description: How the VM was brought to the moment. Returned when an identity opens the metadata.
      type: str
      sample: normal
    consistency:
      description: What the point guarantees. Returned when an identity opens the metadata.
      type: str
      sample: crash
    degraded:
      description: Why the point is less than what was asked for. Returned when it is.
      type: str
      sample: "The pool's licence does not allow checkpoints."
    down_seconds:
      description: How long the guest was off for the snapshot. Returned when it was.
      type: float
      sample: 21.5
    frozen_seconds:
      description: How long the guest, or its file systems, stood still. Returned when they did.
      type: float
      sample: 1.4
    excluded:
      description: Disks that are not in the point, each with C(uuid), C(name) and C(reason). Returned when there are any.
      type: list
      elements: dict
    group:
      description: Name of the group of VMs that were frozen together. Returned when there is one.
      type: str
      sample: shop
    skew_seconds:
      description: How far apart the moments of the group's snapshots are. Returned when there is a group.
      type: float
      sample: 0.4
    virtual_bytes:
      description: Size of the VM's disks. Returned when an identity opens the metadata.
      type: int
      sample: 21474836480
    stored_bytes:
      description: Size of the point's data in the repository. Returned when an identity opens the metadata.
      type: int
      sample: 1073741824
    read_bytes:
      description: Bytes of disk that the backup read. Returned when an identity opens the metadata.
      type: int
      sample: 2147483648
    seconds:
      description: How long the backup took. Returned when an identity opens the metadata.
      type: float
      sample: 61.4
findings:
  description: Objects that are missing or not what was written.
  returned: when O(seal=true)
  type: list
  elements: dict
  sample: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import describe_point, find_uuids
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS
from ansible_collections.guestark.xen.plugins.module_utils.repository.marks import read_holds, read_marks
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import verify_sealed
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store


def run(module: AnsibleModule) -> dict[str, Any]:
    """List the points and, if asked, verify them."""
    options = module.params
    identities, signers = arguments.identities(options), arguments.signers(options)
    repository = Repository.open(open_store(options["repository"], options["storage_options"]))
    uuids = find_uuids(repository, options["vm"], identities)
    records, found = [], []
    for uuid in uuids:
        points, holds = repository.points(uuid, signers), read_holds(repository.store, uuid)
        marked = {point for mark in read_marks(repository.store, uuid) for point in mark.points}
        for one in points:
            point = describe_point(repository, one, identities)
            point.update({name: results.rfc3339(point[name]) for name in ("started", "committed")})
            found.append({**point, "holds": holds.get(one.point, []), "marked": one.point in marked})
        records += points
    if not options["seal"]:
        return {"points": found}
    return {"points": found, "findings": [finding._asdict() for finding in verify_sealed(repository, records)]}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.repository(required=True), **arguments.catalog(),
            "vm": {"type": "str"},
            "seal": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard")
    try:
        result = run(module)
    except PROBLEMS as error:
        results.fail(module, error)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
