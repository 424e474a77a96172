# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of repository(), writing(), reading() and catalog() in plugins/module_utils/arguments.py."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Where the restore points are. A directory on a local or a mounted file system, or a place in an object store.
      - V(s3://bucket/prefix) is Amazon S3 or a store that speaks its language, V(az://container/prefix) is Azure Blob Storage and
        V(gs://bucket/prefix) is Google Cloud Storage. The bucket must exist.
    type: path
  storage_options:
    description:
      - How an object store is reached, by the names that the library obstore has for it, such as C(endpoint), C(region), C(access_key_id) and
        C(secret_access_key) of S3, C(account_name) and C(account_key) of Azure, C(service_account) of Google.
      - What is not given comes from the environment (E(AWS_ACCESS_KEY_ID), E(AZURE_STORAGE_ACCOUNT_NAME), E(GOOGLE_SERVICE_ACCOUNT) and
        the like), or from the role of the machine.
      - An endpoint without TLS is used only with C(allow_http=true); C(root_certificate) is the PEM text of a CA to trust besides the system's.
      - All values are kept out of results and logs.
      - Of no meaning for a directory.
    type: dict
  allowed_signers:
    description:
      - File that lists whose restore points are believed, one principal and public key a line, as C(ssh-keygen) calls it.
      - A point that none of them signed counts as none.
    type: path
"""

    WRITING = r"""
options:
  recipients:
    description:
      - Public keys to encrypt everything to, as C(age-keygen) and M(guestark.xen.xen_backup_key) print them (V(age1...)).
      - Any one of the identities that belong to them opens the backup; without them nothing does.
      - Required unless O(encryption=none).
    type: list
    elements: str
    default: []
  catalog_recipients:
    description: Public keys to which indexes and metadata are encrypted too, and not one block of a guest.
    type: list
    elements: str
    default: []
  signing_key:
    description:
      - File with the Ed25519 private key that vouches for new restore points, in OpenSSH's format without a passphrase, as C(ssh-keygen) and
        M(guestark.xen.xen_backup_key) write it.
      - A point counts only when it is signed, so it is required with O(repository).
    type: path
  encryption:
    description: How new restore points are encrypted. V(none) leaves guests' data readable to whoever can read the repository.
    type: str
    choices: [age, none]
    default: age
"""

    READING = r"""
options:
  identities:
    description:
      - Files with identities (private keys) that open what was encrypted to one of them, as C(age-keygen) and
        M(guestark.xen.xen_backup_key) write them.
      - None is needed for what is not encrypted.
    type: list
    elements: path
    default: []
"""

    CATALOG = r"""
options:
  catalog_identities:
    description:
      - Files with identities (private keys) that open the points' metadata. A catalog identity is enough, a data identity does it too.
      - Without one that fits, only what the signed commit records say of a point is known, and whether its objects are there; with one,
        also whether they have the right length.
      - A new point can only be an incremental one where an identity opens the metadata and indexes of the earlier ones.
    type: list
    elements: path
    default: []
    aliases: [catalog_identity]
"""
