#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_compact
short_description: Put the layers of restore points together
description:
  - Makes a synthetic full point of a VM's newest one when that has many layers, from what the repository holds and without the pool. The next
    backups build on it, so that no VM has to be read whole again because its chain became long.
  - The synthetic point has the moment, the content and the consistency of the one whose place it takes. It comes to exist only after all of
    it was read back and compared with what the layers give.
  - It needs a data identity, so it runs where points are restored, and not on the mover. No block is compressed again.
  - Nothing is removed. M(guestark.xen.xen_backup_prune) no longer counts a point that a synthetic one replaced, and removes it together
    with the layers that no other point needs.
  - A backup of the same VM waits meanwhile.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography and zstandard on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.repository
  - guestark.xen.repository.writing
  - guestark.xen.repository.reading
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
  recipients:
    description:
      - Public keys to encrypt the synthetic point to. One of O(identities) has to belong to one of them, since what is written is read back.
      - The next backup builds on the synthetic point only when its own recipients are among these. Give the mover's O(catalog_recipients) too,
        since it has to open the index.
  signing_key:
    required: true
  vm:
    description: The VM whose newest point to look at, by UUID or, with an identity, by name. Without it, all VMs.
    type: str
  layers:
    description: Put the point together when it has at least this many layers. Backups begin anew after 30.
    type: int
    default: 20
  progress_file:
    description: File that the progress is appended to. Set by the action plugin, which shows it while the task runs.
    type: path
seealso:
  - module: guestark.xen.xen_backup_prune
  - module: guestark.xen.xen_backup_verify
"""

EXAMPLES = r"""
---
- name: Keep chains short, where the data key is
  guestark.xen.xen_backup_compact:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    identities: [/etc/guestark/data.key]
    recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]
    catalog_recipients: [age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg]
    signing_key: /etc/guestark/keeper.key
"""

RETURN = r"""
points:
  description: The points that were put together; in check mode, those that would be.
  returned: always
  type: list
  elements: dict
  contains:
    vm_uuid:
      description: UUID of the VM.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    replaced:
      description: Name of the point whose layers were put together.
      type: str
      sample: 20261123T010000Z-000042-9f3c2a7be1d0
    layers:
      description: How many layers it has.
      type: int
      sample: 20
    point:
      description: Name of the synthetic point. Not in check mode.
      type: str
      sample: 20261123T010000Z-000042-0a1b2c3d4e5f
    stored_bytes:
      description: Bytes that it takes in the repository. Not in check mode.
      type: int
      sample: 1073741824
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import find_uuids
from ansible_collections.guestark.xen.plugins.module_utils.engine.compact import CompactOrder, compact, find_layered
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, EngineError
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store


def run(module: AnsibleModule) -> tuple[list[dict[str, Any]], list[Exception]]:
    """Look at VM by VM; what is wrong with one does not keep the others. Returns (points, errors)."""
    options = module.params
    keys, signers = arguments.writer_keys(options), arguments.signers(options)
    order = CompactOrder(options["layers"], arguments.identities(options))
    repository = Repository.open(open_store(options["repository"], options["storage_options"]))
    progress = Progress("repository", options["progress_file"])
    points: list[dict[str, Any]] = []
    errors: list[Exception] = []
    for uuid in find_uuids(repository, options["vm"], order.identities):
        try:
            if module.check_mode:
                found = find_layered(repository, uuid, signers, order.layers)
                if found:
                    points.append({"vm_uuid": uuid, "replaced": str(found.point), "layers": len(found.indexes)})
                continue
            done = compact(repository, uuid, keys, signers, order, progress)
        except PROBLEMS as error:
            errors.append(EngineError("The newest point of VM %s was not put together: %s" % (uuid, error)))
            continue
        if done:
            points.append({
                "vm_uuid": uuid, "replaced": str(done.replaced.point), "layers": done.layers,
                "point": str(done.record.point), "stored_bytes": done.stored_bytes,
            })
    return points, errors


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.repository(required=True), **arguments.reading(), **arguments.catalog(), **arguments.writing(),
            "signing_key": {"type": "path", "required": True, "no_log": False},
            "vm": {"type": "str"},
            "layers": {"type": "int", "default": 20},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard")
    results.unwind_on_signals()
    try:
        points, errors = run(module)
    except PROBLEMS as error:
        results.fail(module, error)
    outcome = {"changed": bool(points), "points": points}
    if errors:
        results.fail(module, errors[0] if len(errors) == 1 else EngineError(" ".join(map(str, errors))), **outcome)
    module.exit_json(**outcome)


if __name__ == "__main__":
    main()
