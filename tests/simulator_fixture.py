# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated pools for tests: a process of their own, started from a configuration, stopped by its own id.

    from ansible_collections.guestark.xen.tests.simulator_fixture import start_simulator
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parent / "simulator" / "run"
START_SECONDS = 60.0
STOP_SECONDS = 10.0


class ControlError(Exception):
    """The control interface refused; ``status`` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__("HTTP %d: %s" % (status, text))
        self.status = status


class Simulator:
    """Running pools. ``ready`` is what the simulator says of itself: addresses, credentials, CA, control URL."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any], log: Path) -> None:
        self.process = process
        self.ready = ready
        self.log = log
        self._stopped = False

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the control interface, e.g. ``control("POST", "/hosts/lab/host1/kill")``.

        JSON comes back parsed, anything else as bytes. Raises ControlError.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.ready["control"] + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content = response.read()
                kind = response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise ControlError(error.code, error.read().decode("utf-8", "replace")) from error
        return json.loads(content or b"null") if kind == "application/json" else content

    def stop(self) -> None:
        """End the process; a second time does nothing. Raises RuntimeError when it had ended by itself."""
        if self._stopped:
            return
        self._stopped = True
        if self.process.poll() is not None:
            raise RuntimeError("The simulator ended with %s:\n%s" % (self.process.returncode, self.log.read_text()[-4000:]))
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_simulator(config: dict[str, Any] | str | Path, tmp_path: Path) -> Simulator:
    """Start pools and wait until they answer.

    ``config``: a configuration file, or what would stand in one. State, log and ready-file go into ``tmp_path``.
    """
    if isinstance(config, dict):
        path = tmp_path / "simulator.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
    else:
        path = Path(config)
    ready, log = tmp_path / "ready.json", tmp_path / "simulator.log"
    ready.unlink(missing_ok=True)
    command = [RUN, "--config", path, "--state", tmp_path / "simulator-state", "--ready", ready]
    with log.open("ab") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
    deadline = time.monotonic() + START_SECONDS
    while not (ready.exists() and ready.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError("The simulator did not start:\n" + log.read_text()[-4000:])
        time.sleep(0.05)
    return Simulator(process, json.loads(ready.read_text()), log)
