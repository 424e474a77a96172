# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of connection() in plugins/module_utils/arguments.py."""

    DOCUMENTATION = r"""
options:
  hostname:
    description:
      - Addresses of the pool's hosts, as V(host), V(host:port) or V(https://host:port).
      - One is enough while that host is up, whichever of them is the coordinator. Given all, the pool is reached as long as one of them is.
      - The environment variable E(XENSERVER_HOST), with commas between addresses, is used when this is not set.
    type: list
    elements: str
    required: true
    aliases: [host, pool]
  username:
    description:
      - Account to log in with. What it must be allowed to do is in the notes of each module.
      - The environment variable E(XENSERVER_USER) is used when this is not set.
    type: str
    default: root
    aliases: [user, admin]
  password:
    description:
      - That account's password.
      - The environment variable E(XENSERVER_PASSWORD) is used when this is not set.
    type: str
    required: true
    aliases: [pass, pwd]
  validate_certs:
    description:
      - Verify the certificates of the hosts. Without it, anyone on the way can read the password and the guests' data.
      - The environment variable E(XENSERVER_VALIDATE_CERTS) is used when this is not set.
    type: bool
    default: true
  ca_path:
    description:
      - File with the certificates of the authorities to trust, in PEM format. Without it, those the system trusts.
      - The environment variable E(XENSERVER_CA_PATH) is used when this is not set.
    type: path
  fingerprint:
    description:
      - SHA-256 fingerprints of the hosts' certificates, in hexadecimal, with commas between several. A host whose certificate is among them is
        trusted whoever signed it; any other is refused.
      - The environment variable E(XENSERVER_FINGERPRINT) is used when this is not set.
    type: str
"""

    # Lets controller plugins take the same options from the environment.
    PLUGIN = r"""
options:
  hostname:
    env:
      - name: XENSERVER_HOST
  username:
    env:
      - name: XENSERVER_USER
  password:
    env:
      - name: XENSERVER_PASSWORD
  validate_certs:
    env:
      - name: XENSERVER_VALIDATE_CERTS
  ca_path:
    env:
      - name: XENSERVER_CA_PATH
  fingerprint:
    env:
      - name: XENSERVER_FINGERPRINT
"""
