# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the progress of the module of the same name while it runs."""
from __future__ import annotations

from ansible_collections.guestark.xen.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """See the base class."""
