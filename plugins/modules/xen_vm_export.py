#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_vm_export
short_description: Back up a VM to a restore point or a file
description:
  - Protects one VM of a XenServer or XCP-ng pool in one call. It brings the VM to its moment by O(method), takes a snapshot, gives the
    guest back, streams the snapshot out of the pool, compresses and encrypts it while it streams, commits a restore point and removes
    the snapshot again.
  - The first restore point of a VM is a full one. The next ones store only what changed since the newest good one, as far as an identity
    of O(catalog_identities) opens it; the pool's disks are read whole to know what that is. A full one is made again after 30 layers, when
    recipients were added, when the VM came from another pool, and when earlier points are damaged; the task warns then and says why.
  - A restore point appears completely or not at all. When anything goes wrong, what was written is removed, the snapshot too, the guest
    is what it was before, and the task fails.
  - What a run that was killed left of the VM, a snapshot or a guest that is switched off, its next run sees to.
  - With O(max_age) the task describes a state, that a restore point younger than this exists, and changes nothing when it does.
  - With O(dest) the VM is exported to a plain file instead.
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography, zstandard and xxhash on the host that runs the module
  - obstore there too, where O(repository) is in an object store
extends_documentation_fragment:
  - guestark.xen.connection
  - guestark.xen.vm
  - guestark.xen.moment
  - guestark.xen.repository
  - guestark.xen.repository.writing
  - guestark.xen.repository.catalog
  - guestark.xen.transfer
  - guestark.xen.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - With O(max_age), a restore point that is young enough is left as it is. Without it, every run makes another one.
      - With O(dest), a file that exists is left as it is unless O(force=true).
options:
  change_tracking:
    description:
      - Let the pool note what changes on the VM's disks (changed block tracking), so that the next backup reads only that, over NBD.
      - It is switched on for the VM's disks and stays on. The snapshot's content is removed after the backup; what stays of it takes no
        space, and the next backup replaces it.
      - It takes storage that can do it, a licence that allows it, and a network with the purpose V(nbd). Where one of them lacks, or the
        storage lost track, everything is read and compared, with a warning that says why, and RV(point.changes_reason).
    type: bool
    default: false
  downtime:
    description:
      - How long O(method=offline) keeps the guest down.
      - V(snapshot) starts it as soon as a snapshot is taken, within seconds, whatever the size of its disks.
      - V(backup) exports the VM itself and starts it after that. It takes no space for a snapshot.
    type: str
    choices: [snapshot, backup]
    default: snapshot
  exclude_disks:
    description:
      - Disks to leave out, by name, UUID or position on the VM. Needs release 8.3 and O(method=normal) or O(method=offline).
      - Disks with C([NOBAK]) or C([NOSNAP]) in their name are left out where that is possible, and warned of where it is not.
    type: list
    elements: str
    default: []
  snapshot:
    description:
      - UUID of a snapshot of the VM that was made before, for example by M(guestark.xen.xen_vm_snapshot).
      - It is exported in place of a snapshot of its own and is left where it is. With O(change_tracking=true), one that was taken with an
        expiry is removed once the restore point is there, but for the log of what changes.
      - In check mode it need not exist yet.
    type: str
  freeze:
    description: What M(guestark.xen.guest_freeze) returned when it thawed the guest after O(snapshot) was taken.
    type: dict
    suboptions:
      consistency:
        description: What the freeze came to.
        type: str
        choices: [crash, filesystem, application]
        required: true
      frozen_seconds:
        description: How long the guest's file systems stood still.
        type: float
      degraded:
        description: Why it is less than what was asked for.
        type: str
        default: ""
      group:
        description: Name of the group of VMs that were frozen together.
        type: str
        default: ""
      skew_seconds:
        description: How far apart the moments of the group's snapshots are.
        type: float
  max_age:
    description:
      - Do nothing when a valid restore point younger than this exists.
      - A number with a unit, V(s), V(m), V(h), V(d) or V(w), for example V(90m) or V(1d12h).
      - A point's age counts from the moment its run began.
      - A point whose consistency is less than what is asked for does not count, unless O(fallback=true). To know it takes
        O(catalog_identities); without, points count only as long as O(consistency) is not given.
    type: str
  dest:
    description:
      - File to export the VM to, instead of a repository. Its name decides the format.
      - V(*.xva) is plain, V(*.xva.zst) compressed, and V(*.xva.zst.age) compressed and encrypted to O(recipients).
      - The file appears under this name only when it is complete.
    type: path
  force:
    description: Replace O(dest) when it exists.
    type: bool
    default: false
seealso:
  - module: guestark.xen.xen_vm_restore
  - module: guestark.xen.xen_backup_info
  - module: guestark.xen.xen_backup_key
"""

EXAMPLES = r"""
---
- name: Have a restore point of web01 that is younger than four hours
  guestark.xen.xen_vm_export:
    hostname: [xen1.example.org, xen2.example.org]
    username: backup
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    repository: /srv/backup
    recipients:
      - age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
    signing_key: /etc/guestark/signing.key
    max_age: 4h
  register: protection

- name: Say where it is
  ansible.builtin.debug:
    msg: "{{ protection.point.point }}: {{ protection.point.stored_bytes }} bytes"

- name: Export web01 to an encrypted file
  guestark.xen.xen_vm_export:
    hostname: xen1.example.org
    password: "{{ xen_password }}"
    ca_path: /etc/guestark/pool-ca.pem
    name: web01
    dest: /srv/export/web01.xva.zst.age
    recipients:
      - age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
"""

RETURN = r"""
point:
  description: The restore point that was made, or the one that is young enough.
  returned: success, without O(dest); in check mode only when one is young enough
  type: dict
  contains:
    point:
      description: Name of the point; with the VM's UUID it names the point in every other module.
      type: str
      sample: 20261123T010000Z-000042-9f3c2a7be1d0
    vm_uuid:
      description: UUID of the VM.
      type: str
      sample: 7c6cf4dd-0c4b-4a51-8d3a-3f6d6ce05f3b
    vm_name:
      description: Name of the VM.
      type: str
      sample: web01
    kind:
      description: What was stored for the point, C(full) or C(incremental). To know what changed, everything is read.
      type: str
      sample: incremental
    reason:
      description: Why the point is a full one. Returned when this task made one.
      type: str
      sample: it is the VM's first restore point
    changes_by:
      description:
        - How an incremental point found what changed. V(cbt), by what the pool tracked; V(digest), by reading everything and comparing
          digests. Returned when this task made one.
      type: str
      sample: cbt
    changes_reason:
      description: Why everything was read despite O(change_tracking=true).
      type: str
      sample: No network of the pool is for NBD
    method:
      description: How the VM was brought to the moment. Returned when the point was made by this task.
      type: str
      sample: normal
    consistency:
      description: What the point guarantees. Returned when the point was made by this task.
      type: str
      sample: crash
    degraded:
      description: Why the point is less than what was asked for. Returned when it is.
      type: str
      sample: "The pool's licence does not allow checkpoints."
    down_seconds:
      description: How long the guest was off. Returned when it was.
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
    started:
      description: Moment from which the point's age counts, RFC 3339.
      type: str
      sample: "2026-11-23T01:00:00Z"
    committed:
      description: Moment at which the point became valid, RFC 3339.
      type: str
      sample: "2026-11-23T01:07:12Z"
    read_bytes:
      description: Bytes of disk that were read. Returned when the point was made by this task.
      type: int
      sample: 2147483648
    stored_bytes:
      description: Bytes that the point's data takes in the repository. Returned when the point was made by this task.
      type: int
      sample: 1073741824
    seconds:
      description: How long it took, snapshot to commit. Returned when the point was made by this task.
      type: float
      sample: 61.4
file:
  description: The file that was exported or found.
  returned: success, with O(dest)
  type: dict
  contains:
    path:
      description: Where it is.
      type: str
      sample: /srv/export/web01.xva.zst.age
    size:
      description: Its size in bytes.
      type: int
      sample: 1073741824
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import arguments, results
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import parse_recipient
from ansible_collections.guestark.xen.plugins.module_utils.engine.backup import (
    BackupOrder,
    BackupResult,
    back_up,
    find_recent,
)
from ansible_collections.guestark.xen.plugins.module_utils.engine.capture import Subject
from ansible_collections.guestark.xen.plugins.module_utils.engine.errors import PROBLEMS, EngineError
from ansible_collections.guestark.xen.plugins.module_utils.engine.file_export import export_file, format_of
from ansible_collections.guestark.xen.plugins.module_utils.engine.progress import Progress
from ansible_collections.guestark.xen.plugins.module_utils.repository.metadata import TOOL
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository
from ansible_collections.guestark.xen.plugins.module_utils.repository.stores import open_store
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.inventory import find_vm
from ansible_collections.guestark.xen.plugins.module_utils.xapi.moments import Moment, plan

FREEZE: dict[str, dict[str, Any]] = {
    "consistency": {"type": "str", "choices": ["crash", "filesystem", "application"], "required": True},
    "frozen_seconds": {"type": "float"},
    "degraded": {"type": "str", "default": ""},
    "group": {"type": "str", "default": ""},
    "skew_seconds": {"type": "float"},
}


def order_of(module: AnsibleModule, client: PoolClient) -> BackupOrder:
    """What the options ask for. Raises a PoolError for a VM that is not there, EngineError for a malformed max_age."""
    options = module.params
    try:
        max_age = arguments.duration(options["max_age"]) if options["max_age"] else None
    except ValueError as error:
        raise EngineError("max_age: %s." % error) from error
    vm = find_vm(client, name=options["name"], uuid=options["uuid"])
    frozen = Moment("quiesced", **options["freeze"]) if options["freeze"] else None
    subject = Subject(vm, arguments.wish(options), options["snapshot"], frozen, TOOL)
    return BackupOrder(
        subject, max_age, options["stall_timeout"], arguments.identities(options), options["change_tracking"]
    )


def described(vm: dict[str, Any], result: BackupResult) -> dict[str, Any]:
    """The restore point as the module returns it."""
    record, meta = result.record, result.meta
    point = {
        "point": str(record.point), "vm_uuid": record.vm_uuid, "vm_name": vm["name_label"], "kind": record.kind,
        "started": results.rfc3339(record.started), "committed": results.rfc3339(record.committed),
    }
    if meta:
        stats = meta["stats"]
        point.update(
            read_bytes=stats["read_bytes"], stored_bytes=result.stored_bytes, seconds=stats["seconds"],
            **{name: meta[name] for name in ("reason", "changes_by", "changes_reason") if name in meta},
            **(result.moment.facts() if result.moment else {}),
        )
    return point


def warn_of(module: AnsibleModule, client: PoolClient, order: BackupOrder) -> None:
    """See that the wish can be met, without touching the VM, and warn of what is less. Raises a PoolError."""
    if not order.subject.snapshot_uuid:
        planned = plan(client, order.subject.vm, order.subject.wish)
        for warning in planned.all_warnings:
            module.warn(warning)


def to_repository(module: AnsibleModule) -> dict[str, Any]:
    """Make or find a restore point."""
    options = module.params
    keys, signers = arguments.writer_keys(options), arguments.signers(options)
    store = open_store(options["repository"], options["storage_options"])
    with arguments.pool_client(options) as client:
        order = order_of(module, client)
        if module.check_mode:
            there = store.exists("repository.json")
            recent = find_recent(Repository.open(store), order, signers) if there else None
            if recent is None:
                warn_of(module, client, order)
                return {"changed": True}
            return {"changed": False, "point": described(order.subject.vm, BackupResult(False, recent))}
        repository = Repository.create_or_open(store)
        progress = Progress(order.subject.vm["name_label"], options["progress_file"])
        result = back_up(client, repository, keys, signers, order, progress)
    for warning in result.warnings:
        module.warn(warning)
    return {"changed": result.changed, "point": described(order.subject.vm, result)}


def to_file(module: AnsibleModule) -> dict[str, Any]:
    """Export to a file, unless it is there."""
    options = module.params
    path = options["dest"]
    format_of(path)
    recipients = [parse_recipient(text) for text in options["recipients"]]
    changed = options["force"] or not os.path.exists(path)
    if changed:
        with arguments.pool_client(options) as client:
            order = order_of(module, client)
            if not module.check_mode:
                progress = Progress(order.subject.vm["name_label"], options["progress_file"])
                for warning in export_file(client, path, recipients, order, progress):
                    module.warn(warning)
    size = os.path.getsize(path) if os.path.exists(path) else 0
    return {"changed": changed, "file": {"path": path, "size": size}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **arguments.connection(), **arguments.vm(), **arguments.repository(), **arguments.writing(),
            **arguments.catalog(), **arguments.transfer(), **arguments.moment(),
            "downtime": {"type": "str", "choices": ["snapshot", "backup"], "default": "snapshot"},
            "exclude_disks": {"type": "list", "elements": "str", "default": []},
            "snapshot": {"type": "str"},
            "freeze": {"type": "dict", "options": FREEZE},
            "max_age": {"type": "str"},
            "change_tracking": {"type": "bool", "default": False},
            "dest": {"type": "path"},
            "force": {"type": "bool", "default": False},
        },
        required_one_of=[*arguments.VM_RULES["required_one_of"], ("repository", "dest")],
        required_by={"freeze": ["snapshot"]},
        mutually_exclusive=[*arguments.VM_RULES["mutually_exclusive"], ("repository", "dest"), ("dest", "max_age")],
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography", "zstandard", "xxhash")
    results.unwind_on_signals()
    try:
        result = to_repository(module) if module.params["repository"] else to_file(module)
    except PROBLEMS as error:
        results.fail(module, error)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
