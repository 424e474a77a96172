# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of moment() in plugins/module_utils/arguments.py."""

    DOCUMENTATION = r"""
options:
  method:
    description:
      - How the VM is brought to the moment. Whatever happens, the guest is given back as it was.
      - V(normal) takes a snapshot of the disks while the guest runs, which reaches the consistency V(crash).
      - V(offline) shuts the guest down and starts it again, which reaches V(cold).
      - V(live_memory) saves the guest's memory with its disks and stops it as long as that takes, which reaches V(memory).
      - V(quiesced) has the guest's tools flush its file systems, which reaches V(filesystem). Pools from release 8.1 on no longer do
        this; freeze the guest with M(guestark.xen.guest_freeze) there, as the role P(guestark.xen.backup_quiesced#role) does.
      - A VM that is halted stays halted and reaches V(cold) by every method.
    type: str
    choices: [normal, quiesced, live_memory, offline]
    default: normal
  consistency:
    description:
      - The least consistency that will do. What cannot be reached is refused before the guest is touched.
      - V(cold) is good enough for V(application), V(application) for V(filesystem), and everything for V(crash).
      - Without it, what O(method) reaches.
    type: str
    choices: [crash, filesystem, application, memory, cold]
  fallback:
    description: Take less than asked for rather than nothing, by a snapshot of the running guest. The result says so, and why.
    type: bool
    default: false
  shutdown_timeout:
    description: Seconds that the guest is given to shut down, with O(method=offline).
    type: int
    default: 300
  hard_shutdown:
    description: Switch the guest off when it did not shut down in time. The consistency is V(crash) then.
    type: bool
    default: false
"""
