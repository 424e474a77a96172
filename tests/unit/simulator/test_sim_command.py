# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: what it writes, where it listens, how it ends."""

from __future__ import annotations

import signal
import socket
import ssl
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))
from simulator_fixture import RUN, start_simulator  # noqa: E402

WORLD = {
    "pools": {
        name: {"hosts": hosts, "networks": {"LAN": {}}, "srs": {"disks": {"size": "1GiB"}},
               "users": {"root": {"password": "x"}}, "vms": {"vm": {"disks": [{"size": "1MiB"}]}}}
        for name, hosts in (("one", ["a", "b"]), ("two", ["c"]))
    },
}


def test_the_command_can_be_run():
    assert RUN.stat().st_mode & stat.S_IXUSR


def test_the_ready_file(tmp_path):
    simulator = start_simulator(WORLD, tmp_path)
    try:
        ready = simulator.ready
        assert set(ready) == {"ca", "control", "pools"} and set(ready["pools"]) == {"one", "two"}
        assert Path(ready["ca"]).is_file() and urlsplit(ready["control"]).hostname == "127.0.0.1"
        one = ready["pools"]["one"]
        assert set(one) == {"members", "username", "password", "vms", "srs"}
        assert (one["username"], one["password"], set(one["vms"]), set(one["srs"])) == ("root", "x", {"vm"}, {"disks"})
        members = [urlsplit(url) for pool in ready["pools"].values() for url in pool["members"]]
        assert [member.hostname for member in members] == ["127.0.0.11", "127.0.0.12", "127.0.0.13"]
        # clients that follow an address keep the port they know
        assert len({member.port for member in members}) == 1
        tls = ssl.create_default_context(cafile=ready["ca"])
        for member in members:
            with socket.create_connection((member.hostname, member.port), 10) as raw:
                tls.wrap_socket(raw, server_hostname=member.hostname).close()
        assert not list(tmp_path.glob("ready.json?*"))  # what it was written to first
    finally:
        simulator.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_good_order(tmp_path, number):
    simulator = start_simulator(WORLD, tmp_path)
    simulator.process.send_signal(number)
    assert simulator.process.wait(20) == 0
    member = urlsplit(simulator.ready["pools"]["one"]["members"][0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((member.hostname, member.port), 5)


def test_a_port_that_is_named_is_the_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    simulator = start_simulator(WORLD | {"port": port}, tmp_path)
    try:
        assert {urlsplit(url).port for url in simulator.ready["pools"]["one"]["members"]} == {port}
    finally:
        simulator.stop()
