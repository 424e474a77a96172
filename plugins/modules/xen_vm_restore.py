#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_vm_restore
short_description: Restore a VM from a restore point or an exported file
description:
  - Brings a VM back, to the pool it came from or to another one, from a restore point of a repository or from a file that
    M(guestark.xen.xen_vm_export) or C(xe vm-export) wrote.
  - Everything that can be wrong is looked for before anything is touched, the storage's free space, the networks, the MAC addresses and
    the name among it.
  - Every block is authenticated and compared with its digest before it is sent. A restore that fails leaves nothing on the pool.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography, zstandard and xxhash on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.repository
  - guestark.xen.repository.reading
  - guestark.xen.transfer
  - guestark.xen.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - A VM of the wanted name that was restored from the same point is left as it is.
options:
  vm:
    description: The VM to bring back, by the UUID or the name it had when it was backed up. Required with O(repository).
    type: str
  point:
    description: The restore point, by its name or V(latest) for the newest one that is valid and signed by an allowed signer.
    type: str
    default: latest
  src:
    description: An exported file (V(*.xva), V(*.xva.zst) or V(*.xva.zst.age)) to restore from, instead of a repository.
    type: path
  name:
    description: Name of the restored VM. Without it, the name it had.
    type: str
  sr:
    description: Storage repository for its disks, by name or UUID. Without it, the pool's default one.
    type: str
  networks:
    description:
      - Which network of this pool (by name or UUID) stands for which network of the pool the VM came from (by name).
      - Networks of the same name need no entry. A network that has no counterpart is an error, never silently an isolated one.
    type: dict
    default: {}
  macs:
    description:
      - With V(keep) the virtual interfaces have the MAC addresses they had, which is refused while another VM of the pool uses one of them.
      - With V(new) they get new ones.
    type: str
    choices: [keep, new]
    default: keep
  memory:
    description:
      - What becomes of the memory in a point of consistency V(memory).
      - With V(keep) the VM is suspended and goes on when it is resumed, which needs hosts of the same CPU vendor, no older release and
        all CPU features that the guest was started with. This is looked at before anything is touched.
      - With V(discard) the VM is halted and starts as after a crash.
    type: str
    choices: [keep, discard]
    default: keep
  start:
    description: Start the VM when it is restored, or resume it.
    type: bool
    default: false
seealso:
  - module: guestark.xen.xen_vm_export
  - module: guestark.xen.xen_backup_info
"""

EXAMPLES = r"""
---
- name: Restore the newest point of web01 into the recovery pool
  guestark.xen.xen_vm_restore:
    hostname: recovery1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/recovery-ca.pem
    repository: /srv/backup
    identities: [/etc/guestark/data.key]
    allowed_signers: /etc/guestark/allowed_signers
    vm: web01
    sr: Recovery storage
    networks:
      Production LAN: Recovery LAN
    start: true
  register: recovery

- name: Restore an exported file beside the original
  guestark.xen.xen_vm_restore:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    src: /srv/export/web01.xva.zst.age
    identities: [/etc/guestark/data.key]
    name: web01-before-upgrade
    macs: new
"""

RETURN = r"""
vm:
  description: The restored VM.
  returned: success, unless in check mode it is yet to be restored
  type: dict
  contains:
    uuid:
      description: UUID of the restored VM.
      type: str
      sample: 0f6d5f0e-9c4c-4d1f-bd9a-2c8bb8a3f6f1
    name:
      description: Name of the restored VM.
      type: str
      sample: web01
    power_state:
      description: Its power state.
      type: str
      sample: Halted
restored_from:
  description: Name of the restore point or file.
  returned: success
  type: str
  sample: 20261123T010000Z-000042-9f3c2a7be1d0
sr:
  description: Name of the storage repository that holds its disks.
  returned: success
  type: str
  sample: Recovery storage
restored_bytes:
  description: Bytes of disk that were written.
  returned: changed
  type: int
  sample: 1073741824
seconds:
  description: How long it took.
  returned: changed
  type: float
  sample: 42.7
"""

import time
from contextlib import ExitStack
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.engine.archive import Archive, open_file, open_point
from ansible_collections.guestark.xen.plugins.module_utils.engine.catalog import choose_point
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, naming
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.engine.restore import RestoreOrder, plan, restore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import vm_summary


def open_archive(stack: ExitStack, options: dict[str, Any]) -> Archive:
    """Open what is to be restored."""
    identities = arguments.identities(options)
    if options["src"]:
        return stack.enter_context(open_file(options["src"], identities))
    repository = Repository.open(open_store(options["repository"], options["storage_options"]))
    record = choose_point(repository, options["vm"], options["point"], arguments.signers(options), identities)
    return stack.enter_context(open_point(repository, record, identities))


def run(module: AnsibleModule) -> dict[str, Any]:
    """Restore, unless the VM is there."""
    options, began = module.params, time.monotonic()
    order = RestoreOrder(
        options["name"], options["sr"], options["networks"], options["macs"], options["memory"], options["start"],
        options["stall_timeout"],
    )
    with ExitStack() as stack:
        with naming("restore", order.name or options["vm"] or options["src"]):
            archive = open_archive(stack, options)
        client = stack.enter_context(arguments.pool_client(options))
        found = plan(client, archive, order)
        result = {"changed": found.existing is None, "restored_from": archive.origin, "sr": found.sr_name}
        if found.existing:
            return {**result, "vm": vm_summary(client, found.existing)}
        if module.check_mode:
            return result
        ref = restore(client, archive, order, found, Progress(found.name, options["progress_file"]))
        seconds = round(time.monotonic() - began, 3)
        return {
            **result, "vm": vm_summary(client, ref), "restored_bytes": archive.stored_bytes, "seconds": seconds,
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.repository(), **arguments.reading(), **arguments.transfer(),
            "vm": {"type": "str"},
            "point": {"type": "str", "default": "latest"},
            "src": {"type": "path"},
            "name": {"type": "str"},
            "sr": {"type": "str"},
            "networks": {"type": "dict", "default": {}},
            "macs": {"type": "str", "choices": ["keep", "new"], "default": "keep"},
            "memory": {"type": "str", "choices": ["keep", "discard"], "default": "keep"},
            "start": {"type": "bool", "default": False},
        },
        required_one_of=[("repository", "src")],
        mutually_exclusive=[("repository", "src")],
        required_by={"repository": ["vm"]},
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard", "xxhash")
    results.unwind_on_signals()
    try:
        result = run(module)
    except (*PROBLEMS, OSError) as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
