# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traps of transfers: tasks nobody made, results as they are read, and what is never answered."""

from __future__ import annotations

import importlib
import json
import time
from typing import Any

import pytest
from poolbox.cli import IMPLEMENTATIONS


@pytest.fixture(name="archive")
def fixture_archive(lab: Any) -> bytes:
    return bytes(lab.get("/export", ref=lab.refs["web"]).body)


@pytest.mark.trap(4)
def test_an_import_without_a_task_tells_nobody_what_it_made(lab: Any, archive: bytes) -> None:
    before = set(lab.db.refs("task"))
    answer = lab.put("/import", archive, finish=False)
    assert (answer.status, answer.body) == (200, b"")
    assert len(lab.db.find("VM", name_label="web")) == 2
    deadline = time.monotonic() + 10
    while set(lab.db.refs("task")) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(lab.db.refs("task")) == before


@pytest.mark.trap(5)
def test_the_result_of_an_import_is_xml_to_a_client_that_speaks_json(lab: Any, archive: bytes) -> None:
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    task = lab.task()
    lab.put("/import", archive, task_id=task)
    (vm,) = lab.result(task)
    connection = lab.connect()
    call = {"jsonrpc": "2.0", "id": 1, "method": "task.get_result", "params": [lab.session, task]}
    connection.request("POST", "/jsonrpc", json.dumps(call))
    found = json.loads(connection.getresponse().read())["result"]
    assert found == f"<value><array><data><value>{vm}</value></data></array></value>"
    connection.close()


@pytest.mark.trap(8)
@pytest.mark.parametrize("path", ["/import", "/import_raw_vdi"])
def test_who_expects_to_be_told_to_continue_is_not(lab: Any, path: str) -> None:
    connection = lab.connect()
    query = {"sr_id": lab.refs["nfs"]} if path == "/import" else {"vdi": lab.refs["data"]}
    connection.putrequest("PUT", lab.target(path, query))
    connection.putheader("Content-Length", "1024")
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    connection.close()
