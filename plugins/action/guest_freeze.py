# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the module of the same name without a file on a file system that may be frozen."""
from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

MEMORY = "/dev/shm"  # a file system in memory, which every Linux has
# temporary files of Ansible's wrapper go there too, and Python compiles nothing into its library
ENVIRONMENT = {"TMPDIR": MEMORY, "PYTHONDONTWRITEBYTECODE": "1"}


class ActionModule(ActionBase):
    """See the module."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        if result.get("skipped"):
            return result
        self._connection._shell.set_option("remote_tmp", MEMORY)
        for terminal in ("use_tty", "pty"):  # sshd records a session with a terminal in /var/log, which may be frozen
            if self._connection.has_option(terminal):
                self._connection.set_option(terminal, False)
        self._task.environment = [*(self._task.environment or []), ENVIRONMENT]
        return self._execute_module(task_vars=task_vars)
