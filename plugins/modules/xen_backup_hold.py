#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_hold
short_description: Keep a restore point from being pruned
description:
  - Puts a hold on a restore point, or ends it. No policy removes a point that is held, for whatever reason.
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
    description: The VM, by UUID or, with an identity, by name.
    type: str
    required: true
  point:
    description: The point, by its name, or V(latest) for the newest that can be restored.
    type: str
    default: latest
  reason:
    description:
      - Why it is held. Holds of several reasons on one point are independent.
      - Lower-case letters, digits and hyphens. V(restore-) at its beginning is reserved for restores under way.
    type: str
    required: true
  state:
    description: Whether there shall be such a hold.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: guestark.xen.xen_backup_prune
"""

EXAMPLES = r"""
---
- name: Keep the state before the upgrade
  guestark.xen.xen_backup_hold:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    vm: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    reason: before-upgrade
"""

RETURN = r"""
point:
  description: Name of the point.
  returned: success
  type: str
  sample: 20261123T010000Z-000042-9f3c2a7be1d0
holds:
  description: The reasons for which the point is held now.
  returned: success
  type: list
  elements: str
  sample: [before-upgrade]
"""

from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import choose_point
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, EngineError
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import ObjectExists
from ansible_collections.guestark.xen.plugins.module_utils.repository.layout import hold_name
from ansible_collections.guestark.xen.plugins.module_utils.repository.marks import RESTORE, hold, read_holds, release
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store


def run(module: AnsibleModule) -> dict[str, Any]:
    """Put or end the hold."""
    options, reason = module.params, module.params["reason"]
    repository = Repository.open(open_store(options["repository"], options["storage_options"]))
    record = choose_point(
        repository, options["vm"], options["point"], arguments.signers(options), arguments.identities(options)
    )
    try:
        hold_name(record.point, reason)
    except ValueError as error:
        raise EngineError("%s." % error, "Choose another reason.") from error
    if reason.startswith(RESTORE):
        raise EngineError("Reasons that begin with %r are those of restores under way." % RESTORE, "Choose another reason.")
    held = read_holds(repository.store, record.vm_uuid).get(record.point, [])
    changed = (reason in held) != (options["state"] == "present")
    if changed and not module.check_mode:
        if options["state"] == "absent":
            release(repository.store, record.vm_uuid, record.point, reason)
        else:
            with suppress(ObjectExists):  # another run was quicker
                hold(repository.store, record.vm_uuid, record.point, reason)
    after = set(held) | {reason} if options["state"] == "present" else set(held) - {reason}
    return {"changed": changed, "point": str(record.point), "holds": sorted(after)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.repository(required=True), **arguments.catalog(),
            "allowed_signers": {"type": "path", "required": True},
            "vm": {"type": "str", "required": True},
            "point": {"type": "str", "default": "latest"},
            "reason": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard")
    try:
        result = run(module)
    except PROBLEMS as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
