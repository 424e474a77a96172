#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_verify
short_description: Verify restore points
description:
  - Reads restore points as they lie in the repository and fails when one of them is not what was backed up. The error names the points,
    and RV(findings) the disks and the ranges of bytes that are lost.
  - Points that no allowed signer vouches for are findings too.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography and zstandard on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.repository
  - guestark.xen.repository.reading
  - guestark.xen.repository.catalog
  - guestark.xen.attributes
  - guestark.xen.attributes.info
options:
  repository:
    required: true
  allowed_signers:
    required: true
  vm:
    description: The VM whose points to verify, by UUID or, with an identity, by name. Without it, all VMs.
    type: str
  point:
    description:
      - The point to verify, by its name, or V(latest) for the newest of each VM.
      - V(all) verifies all points of the VMs.
    type: str
    default: all
  level:
    description:
      - V(sealed) compares every object with the digest in the signed commit record. It needs no key and finds everything that became
        of the objects since.
      - V(structure) needs a catalog identity. It proves that the indexes of all layers give, block for block, what was backed up.
      - V(content) needs a data identity. Beyond V(structure) it decrypts and decompresses every block that a restore would send, and
        compares it with its digest.
    type: str
    choices: [sealed, structure, content]
    default: sealed
  part:
    description:
      - Read only one part of the data, such as V(3/28) for the third of 28; all parts together are everything. Commit records, indexes and
        metadata are always read whole.
      - Parts are of segments with O(level=sealed), and of blocks with O(level=content).
    type: str
    default: 1/1
  progress_file:
    description: File that the progress is appended to. Set by the action plugin, which shows it while the task runs.
    type: path
seealso:
  - module: guestark.xen.xen_backup_info
  - module: guestark.xen.xen_vm_restore
"""

EXAMPLES = r"""
---
- name: See that every object of the repository is what was written
  guestark.xen.xen_backup_verify:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers

- name: Read every object once in four weeks
  guestark.xen.xen_backup_verify:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    part: "{{ now().timetuple().tm_yday % 28 + 1 }}/28"

- name: Open every block of the newest point of web01
  guestark.xen.xen_backup_verify:
    repository: /srv/backup
    allowed_signers: /etc/guestark/allowed_signers
    identities: [/etc/guestark/data.key]
    vm: web01
    point: latest
    level: content
"""

RETURN = r"""
verified:
  description: Names of the points that were verified, the damaged ones among them.
  returned: always
  type: list
  elements: str
  sample: [20261123T010000Z-000042-9f3c2a7be1d0]
findings:
  description:
    - What is wrong, each with C(vm_uuid), C(point) and C(problem).
    - C(name) is the object's, below the VM's folder, or empty. One of the
      repository's own files has no VM and no point. C(disk) is the name of a disk that is not whole, or empty, and C(ranges) what
      is lost of it, as pairs of offset and length in bytes.
  returned: always
  type: list
  elements: dict
  sample: []
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import LATEST, find_uuids
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, EngineError
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.engine.verify import LEVELS, Damage, verify
from ansible_collections.guestark.xen.plugins.module_utils.repository.record import PointRecord
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.sealed import Part
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store


def chosen(module: AnsibleModule, repository: Repository, identities: list[Any]) -> list[PointRecord]:
    """The points that the options name. EngineError when there is none."""
    wanted, signers = module.params["point"], arguments.signers(module.params)
    found = []
    for uuid in find_uuids(repository, module.params["vm"], identities):
        points = repository.points(uuid, signers)
        found += points[-1:] if wanted == LATEST else [one for one in points if wanted in ("all", one.point)]
    if not found:
        raise EngineError("There is no restore point to verify.", "Check the names of the VM and of the point.")
    return found


def run(module: AnsibleModule) -> dict[str, Any]:
    """Verify the points."""
    try:
        part = Part.parse(module.params["part"])
    except ValueError as error:
        raise EngineError("part: %s." % error) from error
    identities = arguments.identities(module.params)
    repository = Repository.open(open_store(module.params["repository"], module.params["storage_options"]))
    records = chosen(module, repository, identities)
    progress = Progress("repository", module.params["progress_file"])
    found = list(verify(repository, records, module.params["level"], identities, progress, part))
    return {"verified": [str(one.point) for one in records], "findings": [asdict(one) for one in found], "found": found}


def told(found: list[Damage]) -> str:
    """The findings as an error."""
    files = [one for one in found if not one.point]
    if files:
        return (
            "The repository's own file %s is damaged: %s. Bring it back from another copy of the repository, or from one that "
            "the same release of the collection made.%s" % (files[0].name, files[0].problem, " There is more." * (len(found) > 1))
        )
    points = sorted({(one.vm_uuid, one.point) for one in found})
    first = "; ".join("%s of VM %s: %s" % (one.point, one.vm_uuid, one.problem) for one in found[:3])
    return (
        "%d of the restore points cannot be relied on: %s%s. Restore from other points or from another copy of the repository. "
        "The next backup of a VM takes what it needs again." % (len(points), first, "; ..." if len(found) > 3 else "")
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.repository(required=True), **arguments.reading(), **arguments.catalog(),
            "allowed_signers": {"type": "path", "required": True},
            "vm": {"type": "str"},
            "point": {"type": "str", "default": "all"},
            "level": {"type": "str", "choices": list(LEVELS), "default": "sealed"},
            "part": {"type": "str", "default": "1/1"},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard")
    try:
        result = run(module)
    except PROBLEMS as error:
        results.fail(module, error)
    found = result.pop("found")
    if found:
        results.fail(module, EngineError(told(found)), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
