# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook of MariaDB with a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.guest.hooks import hook_of

SECONDS = 60.0


@pytest.fixture(name="server")
def fixture_server():
    """A server that listens on a socket only; the socket's path."""
    program = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("MariaDB is not installed")
    folder = tempfile.mkdtemp(prefix="mariadb-")
    subprocess.run(["chown", "mysql:", folder], check=True)
    data = ["--no-defaults", "--user=mysql", f"--datadir={folder}/data"]
    subprocess.run(["mariadb-install-db", *data, "--auth-root-authentication-method=socket"], check=True, capture_output=True)
    command = [program, *data, f"--socket={folder}/socket", "--skip-networking", f"--pid-file={folder}/pid"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + SECONDS
        while subprocess.run(client(folder, "select 1"), capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline and process.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield folder
        process.terminate()
    shutil.rmtree(folder)


def client(folder, statement):
    return ["mariadb", f"--socket={folder}/socket", "--batch", "--skip-column-names", "-e", statement]


def test_nothing_is_written_while_the_lock_is_held(server):
    subprocess.run(client(server, "create database shop; create table shop.orders (id int)"), check=True)
    hook = hook_of({"kind": "mariadb", "socket": f"{server}/socket"})
    hook.prepare(SECONDS)
    with subprocess.Popen(client(server, "insert into shop.orders values (1)")) as writer:
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(1)
        count = subprocess.run(client(server, "select count(*) from shop.orders"), capture_output=True, text=True, check=True)
        assert count.stdout.strip() == "0"
        hook.release(SECONDS)
        assert writer.wait(SECONDS) == 0
    count = subprocess.run(client(server, "select count(*) from shop.orders"), capture_output=True, text=True, check=True)
    assert count.stdout.strip() == "1"
