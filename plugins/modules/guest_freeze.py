#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_freeze
short_description: Freeze the file systems of a guest, for a snapshot from outside
description:
  - Runs in a Linux guest. It runs hooks that bring applications to rest, writes what is dirty, and freezes file systems, so that a snapshot
    that the pool takes meanwhile holds consistent ones.
  - A process in the guest is started before anything is frozen and thaws everything after O(max_frozen) seconds, whatever happens to the
    controller, the network or the pool. Whether that was so is in the result of O(state=thawed).
  - Nothing that writes to a frozen file system goes on. The module keeps its own temporary files in memory, so that it can thaw a guest
    whose root file system is frozen; see the guide on guests.
author:
  - Guestark contributors (@guestark)
extends_documentation_fragment:
  - guestark.xen.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - O(state=thawed) changes nothing when nothing is frozen. O(state=frozen) refuses a guest that is frozen already.
options:
  state:
    description:
      - V(frozen) runs the hooks' first part and freezes.
      - V(thawed) thaws and runs the hooks' second part.
    type: str
    choices: [frozen, thawed]
    default: frozen
  mount_points:
    description: Mount points to freeze. Without any, all local file systems that can be frozen.
    type: list
    elements: path
    default: []
  max_frozen:
    description: Seconds after which the guest thaws by itself, 1 to 600.
    type: int
    default: 30
  hooks:
    description:
      - What brings applications to rest. When one fails before the freeze, nothing is frozen.
      - What comes after the thaw is run whatever happened.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description:
          - V(command) runs commands of your own.
          - V(postgresql) has PostgreSQL write a checkpoint, so that it starts quickly from the snapshot.
          - V(mariadb) holds the global read lock of MariaDB or MySQL as long as the guest is frozen.
        type: str
        choices: [command, postgresql, mariadb]
        required: true
      before:
        description: Program and arguments to run before the freeze, without a shell, with O(hooks[].kind=command).
        type: list
        elements: str
      after:
        description: Program and arguments to run after the thaw, without a shell, with O(hooks[].kind=command).
        type: list
        elements: str
      user:
        description: Operating system user to run C(psql) as. Without it, V(postgres).
        type: str
      port:
        description: Port of PostgreSQL. Without it, V(5432).
        type: int
      database:
        description: Database to log in to. Without it, V(postgres).
        type: str
      socket:
        description: Socket of MariaDB, or folder of PostgreSQL's socket.
        type: path
      defaults_file:
        description: File with the client's options for MariaDB, also user and password.
        type: path
  hook_timeout:
    description: Seconds that each part of each hook may take.
    type: int
    default: 30
  token:
    description: The freeze to end, as O(state=frozen) returned it. Another one is left alone.
    type: str
seealso:
  - module: guestark.xen.xen_vm_snapshot
  - module: guestark.xen.xen_vm_export
"""

EXAMPLES = r"""
---
- name: Freeze the guest
  guestark.xen.guest_freeze:
    max_frozen: 20
    hooks:
      - kind: postgresql
      - kind: command
        before: [systemctl, stop, importer]
        after: [systemctl, start, importer]
  become: true
  register: frozen

- name: Thaw it
  guestark.xen.guest_freeze:
    state: thawed
    token: "{{ frozen.freeze.token }}"
  become: true
  register: thawed

- name: See to it that it was frozen until now
  ansible.builtin.assert:
    that: thawed.freeze.intact
"""

RETURN = r"""
freeze:
  description: The freeze. With O(state=thawed), what became of it; not returned when nothing was frozen and nothing is known.
  returned: success
  type: dict
  contains:
    token:
      description: Names the freeze. Not returned in check mode.
      type: str
      sample: 4b1c2f3e-52a0-4f64-9e63-6b2d3c0f9a11
    mount_points:
      description: What was frozen, innermost first.
      type: list
      elements: str
      sample: [/var/lib/postgresql, /]
    since:
      description: When it began, RFC 3339. Not returned in check mode.
      type: str
      sample: "2026-11-23T01:00:00Z"
    consistency:
      description:
        - V(application) with hooks that held what they were to hold, V(filesystem) otherwise.
        - V(crash) when the guest was not frozen until it was asked to thaw.
      type: str
      sample: application
    frozen_seconds:
      description: How long it was frozen. Returned with O(state=thawed).
      type: float
      sample: 1.3
    intact:
      description: Whether everything was frozen until it was asked to thaw. Returned with O(state=thawed).
      type: bool
      sample: true
    released_by:
      description: Why it thawed, V(request), V(deadline), V(failure), V(signal) or V(recovery). Returned with O(state=thawed).
      type: str
      sample: request
    hooks:
      description: Names of the hooks that were run. Returned with O(state=thawed).
      type: list
      elements: str
      sample: [postgresql]
    warnings:
      description: What else went wrong, such as a hook after the thaw. Returned with O(state=thawed).
      type: list
      elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import results
from ansible_collections.guestark.xen.plugins.module_utils.guest import freezing
from ansible_collections.guestark.xen.plugins.module_utils.guest.errors import GuestError

HOOK = {
    "kind": {"type": "str", "choices": ["command", "postgresql", "mariadb"], "required": True},
    "before": {"type": "list", "elements": "str"},
    "after": {"type": "list", "elements": "str"},
    "user": {"type": "str"},
    "port": {"type": "int"},
    "database": {"type": "str"},
    "socket": {"type": "path"},
    "defaults_file": {"type": "path"},
}


def run(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Freeze or thaw. Raises GuestError."""
    if options["state"] == "frozen":
        if check_mode:
            found = [target.path for target in freezing.targets(options["mount_points"])]
            consistency = "application" if options["hooks"] else "filesystem"
            return {"changed": True, "freeze": {"mount_points": found, "consistency": consistency}}
        freeze = freezing.freeze(
            options["mount_points"], options["hooks"], options["max_frozen"], options["hook_timeout"]
        )
        return {"changed": True, "freeze": freeze}
    if check_mode:
        return {"changed": freezing.is_frozen()}
    changed, known = freezing.thaw(options["token"])
    return {"changed": changed, **({"freeze": known} if known else {})}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["frozen", "thawed"], "default": "frozen"},
            "mount_points": {"type": "list", "elements": "path", "default": []},
            "max_frozen": {"type": "int", "default": 30},
            "hooks": {"type": "list", "elements": "dict", "options": HOOK, "default": []},
            "hook_timeout": {"type": "int", "default": 30},
            "token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except (GuestError, OSError) as error:
        results.fail(module, error)
    for warning in result.get("freeze", {}).get("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
