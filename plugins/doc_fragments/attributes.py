# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What each attribute means; a module says how far it supports it."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and say what it would change without changing anything.
  diff_mode:
    description: Will show what changed or would change when in C(diff) mode.
  idempotent:
    description: Running it again, with nothing else changed in between, changes nothing.
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - It only reads.
  diff_mode:
    support: N/A
    details:
      - It only reads.
  idempotent:
    support: full
    details:
      - It only reads.
"""

    ACTIONGROUP_ALL = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/guestark.xen.all) in C(module_defaults) to set the connection options for this module.
    support: full
    membership:
      - guestark.xen.all
"""

    ACTIONGROUP_REPOSITORY = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/guestark.xen.repository) in C(module_defaults) to set where restore points live.
    support: full
    membership:
      - guestark.xen.repository
"""
