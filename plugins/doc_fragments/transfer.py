# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of transfer() in plugins/module_utils/arguments.py."""

    DOCUMENTATION = r"""
options:
  stall_timeout:
    description: Seconds without one byte moved after which the transfer is given up. There is no limit to how long it may take as a whole.
    type: int
    default: 300
  bandwidth_limit:
    description:
      - How many bytes a second may flow from or to the pool, such as V(50M); V(M) is 1048576. Without it, as many as come.
      - The limit is for this task. Tasks that run at the same time, on other VMs, have theirs each.
    type: str
  progress_file:
    description:
      - File to which lines of progress are appended while the data moves.
      - Set by the action plugin of the same name, which shows them; there is no need to set it.
    type: path
"""
