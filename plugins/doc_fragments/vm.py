# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of vm() in plugins/module_utils/arguments.py."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - Name of the VM. Templates and snapshots never match, and several VMs of this name are an error.
      - Exactly one of O(name) and O(uuid) is required.
    type: str
    aliases: [name_label]
  uuid:
    description:
      - UUID of the VM.
      - Exactly one of O(name) and O(uuid) is required.
    type: str
"""
