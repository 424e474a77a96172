# Copyright (c) 2026 Guestark contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of progress while a module runs.

A module's output is read when it ends, so the module appends its progress to a private file, and the action plugin of
the same name shows the lines as they come: by a thread where the module runs on this machine, by polling the module
as an asynchronous job where it runs on another (a connection must not be used by two threads).
"""
from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import typing as t

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

LOOK_EVERY = 0.5  # seconds between looks at a local file
POLL_FIRST = 1  # seconds before the first look at a remote job; each later pause is twice as long
POLL_EVERY = 10  # seconds at most between looks; each costs a module run
LONGEST_JOB = 7 * 86400  # seconds a remote job may take
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(size: float) -> str:
    """A size in bytes for people: ``size_text(1536)`` is ``1.5 KiB``."""
    for unit in UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {UNITS[-1]}"


def line_text(line: str) -> str:
    """One report of the module (a JSON object) as a line for people; text that is no report comes back as it is."""
    try:
        report = json.loads(line)
        vm, phase, done, total = report["vm"], report["phase"], report["done"], report["total"]
    except (ValueError, KeyError, TypeError):
        return line
    if not total:
        return f"{vm}: {phase}"
    share = 100 * done / total
    pace = f"{size_text(report['rate'])}/s, {report['seconds']:.0f} s"
    return f"{vm}: {phase}, {share:.0f} % of {size_text(total)}, {pace}"


class _Tail(threading.Thread):
    """Shows what is appended to a local file until it is stopped."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._over = threading.Event()

    def run(self) -> None:
        with open(self._path, encoding="utf-8") as source:
            rest = ""
            while True:
                over = self._over.is_set()
                rest += source.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    display.display(line_text(line))
                if over:
                    return
                self._over.wait(LOOK_EVERY)

    def stop(self) -> None:
        self._over.set()
        self.join()


class ProgressAction(ActionBase):
    """Runs the module of the action's name and shows its progress."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        if result.get("skipped"):
            return result
        watched = not self._task.async_val and not self._task.args.get("progress_file")
        if not watched or self._task.check_mode:
            return self._module(task_vars, {}, self._task.async_val)
        if self._connection.transport == "local":
            return self._watch_local(task_vars)
        return self._watch_remote(task_vars)

    def _module(
        self, task_vars: dict[str, t.Any] | None, more: dict[str, t.Any], wrap_async: t.Any
    ) -> dict[str, t.Any]:
        return self._execute_module(
            module_args={**self._task.args, **more}, task_vars=task_vars, wrap_async=bool(wrap_async)
        )

    def _watch_local(self, task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        descriptor, path = tempfile.mkstemp(prefix="guestark-progress-", dir=C.DEFAULT_LOCAL_TMP)
        os.close(descriptor)
        tail = _Tail(path)
        tail.start()
        try:
            return self._module(task_vars, {"progress_file": path}, False)
        finally:
            tail.stop()
            os.unlink(path)

    def _watch_remote(self, task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        made = self._low_level_execute_command("umask 077 && mktemp /tmp/guestark-progress-XXXXXXXX")
        path = made.get("stdout", "").strip()
        if made.get("rc") or not path.startswith("/tmp/guestark-progress-"):
            return self._module(task_vars, {}, False)
        self._task.async_val = LONGEST_JOB
        try:
            return self._poll(task_vars, self._module(task_vars, {"progress_file": path}, True), path)
        finally:
            self._task.async_val = 0
            self._low_level_execute_command(f"rm -f {path}")

    def _poll(self, task_vars: dict[str, t.Any] | None, job: dict[str, t.Any], path: str) -> dict[str, t.Any]:
        if "ansible_job_id" not in job:
            return job
        folder = self.get_shell_option("async_dir", "~/.ansible_async")
        status_args = {"jid": job["ansible_job_id"], "_async_dir": folder}
        shown = 0
        pause = POLL_FIRST
        while True:
            time.sleep(pause)
            pause = min(2 * pause, POLL_EVERY)
            status = self._status(task_vars, status_args)
            lines = self._low_level_execute_command(f"tail -n +{shown + 1} {path}").get("stdout_lines", [])
            for line in lines:
                display.display(line_text(line))
            shown += len(lines)
            if status.get("finished") or (status.get("failed") and "ansible_job_id" not in status):
                self._status(task_vars, {**status_args, "mode": "cleanup"})
                status.pop("ansible_job_id", None)
                return status

    def _status(self, task_vars: dict[str, t.Any] | None, args: dict[str, t.Any]) -> dict[str, t.Any]:
        async_val, self._task.async_val = self._task.async_val, 0
        try:
            return self._execute_module(
                module_name="ansible.legacy.async_status", module_args=args, task_vars=task_vars, wrap_async=False
            )
        finally:
            self._task.async_val = async_val
