#!/usr/bin/python

# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_backup_key
short_description: Make the keys that protect backups
description:
  - Makes a key in a file, readable by its owner alone, unless it is there. A key that is there is never replaced.
  - The public half is returned, and written beside it with the ending C(.pub).
author:
  - Guestark contributors (@guestark)
requirements:
  - cryptography on the host that runs the module
extends_documentation_fragment:
  - guestark.xen.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  path:
    description: File of the private key. Its directory must exist.
    type: path
    required: true
  type:
    description:
      - V(data) is the recovery key. It opens everything; keep it offline, with whoever restores. A mover needs only its public half.
      - V(catalog) opens indexes and metadata, and not one block of a guest. A mover may hold it.
      - V(signing) vouches for restore points. Every mover has one of its own.
    type: str
    choices: [data, catalog, signing]
    required: true
  post_quantum:
    description:
      - Make a data or catalog key that a quantum computer is not believed to break either, ML-KEM-768 beside X25519.
      - This takes a recent release of cryptography wherever the key or its public half is used, and C(age) 1.3 for the repository's
        C(restore-xva.sh). Data and catalog keys must be of one kind.
    type: bool
    default: false
  principal:
    description: Name under which the holder of a signing key is known in RV(allowed_signer).
    type: str
    default: mover
"""

EXAMPLES = r"""
---
- name: Make the recovery key where it will be kept
  guestark.xen.xen_backup_key:
    path: /etc/guestark/data.key
    type: data
  register: data_key

- name: Make this mover's signing key
  guestark.xen.xen_backup_key:
    path: /etc/guestark/signing.key
    type: signing
    principal: mover1
  register: signing_key

- name: Say whose restore points are believed
  ansible.builtin.copy:
    content: "{{ signing_key.allowed_signer }}\n"
    dest: /etc/guestark/allowed_signers
    mode: "0644"
"""

RETURN = r"""
recipient:
  description: Public half of a data or catalog key, to encrypt to.
  returned: success, O(type=data) or O(type=catalog), unless in check mode it is yet to be made
  type: str
  sample: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
allowed_signer:
  description: Line for the file that lists allowed signers.
  returned: success, O(type=signing), unless in check mode it is yet to be made
  type: str
  sample: mover1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGkP2dUXv0vX7Ew6C5vG4kB1h0m6m6gYgU9b0l5z1w2n mover1
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.guestark.xen.plugins.module_utils import results
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import AgeError, KeyFormatError
from ansible_collections.guestark.xen.plugins.module_utils.age.files import make_identity, make_signing_key


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "type": {"type": "str", "choices": ["data", "catalog", "signing"], "required": True},
            "post_quantum": {"type": "bool", "default": False},
            "principal": {"type": "str", "default": "mover"},
        },
        supports_check_mode=True,
    )
    results.require_libraries(module, "cryptography")
    path, principal = module.params["path"], module.params["principal"]
    try:
        if module.params["type"] == "signing" and module.params["post_quantum"]:
            raise KeyFormatError("there is no post-quantum signing key", "Leave post_quantum out.")
        if module.check_mode and not os.path.exists(path):
            module.exit_json(changed=True)
        if module.params["type"] == "signing":
            line, changed = make_signing_key(path, principal)
            module.exit_json(changed=changed, allowed_signer="%s %s" % (principal, line))
        recipient, changed = make_identity(path, module.params["post_quantum"])
        module.exit_json(changed=changed, recipient=recipient)
    except AgeError as error:
        results.fail(module, error)


if __name__ == "__main__":
    main()
