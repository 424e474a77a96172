# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: what it writes, where it listens, how it ends."""

from __future__ import annotations

import copy
import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))
from simulator_fixture import RUN, ControlError, start_simulator  # noqa: E402

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


def test_a_used_state_folder_is_begun_anew_and_the_rest_of_it_left_alone(tmp_path):
    (tmp_path / "simulator-state").mkdir()
    (tmp_path / "simulator-state" / "letter").write_text("dear")
    for _turn in range(2):
        simulator = start_simulator(WORLD, tmp_path)
        uuid = simulator.ready["pools"]["one"]["vms"]["vm"]
        assert simulator.control("GET", "/state")["one"]["vms"] == {"vm": "Running"} and uuid
        simulator.stop()
        assert not (tmp_path / "ready.json").exists()  # nobody is to wait for what has ended
        assert (tmp_path / "simulator-state" / "letter").read_text() == "dear"


@pytest.fixture(name="refusal")
def fixture_refusal(tmp_path):
    def refusal(text: str, state: str = "state") -> str:
        (tmp_path / "world.yml").write_text(text)
        (tmp_path / "ready").write_text("stale")
        command = [RUN, "--config", tmp_path / "world.yml", "--state", tmp_path / state, "--ready", tmp_path / "ready"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, (tmp_path / "ready").exists()) == (2, "", False)
        assert "Traceback" not in done.stderr
        return done.stderr
    return refusal


@pytest.mark.parametrize("change, words", [
    ("[unclosed", ["world.yml", "line 1"]),
    ("just text", ["the description"]),
    (lambda world: world.update(pool={}), ["the description", "unknown key pool", "port"]),
    (lambda world: world.pop("pools"), ["the description", "pools is missing"]),
    (lambda world: world["pools"]["one"].pop("hosts"), ["pool one", "hosts is missing"]),
    (lambda world: world["pools"]["one"].update(release=9), ["pool one: release", "8.3"]),
    (lambda world: world["pools"]["one"]["vms"]["vm"].update(disk=[]), ["pool one, VM vm", "unknown key disk", "disks"]),
    (lambda world: world["pools"]["one"]["vms"]["vm"].update(networks=["WAN"]), ["VM vm: networks", "'WAN'", "LAN"]),
    (lambda world: world["pools"]["one"]["vms"]["vm"]["disks"][0].update(size="1 elephant"), ["disk 0", "no size"]),
    (lambda world: world["pools"]["one"]["vms"]["vm"]["disks"][0].update(image="no.img"), ["disk 0", "no image", "no.img"]),
    (lambda world: world["pools"]["two"]["srs"]["disks"].update(host="z"), ["pool two", "storage repository disks: host"]),
])
def test_what_is_wrong_with_a_description_is_told_in_a_line(refusal, change, words):
    world = copy.deepcopy(WORLD)
    if callable(change):
        change(world)
    said = refusal(json.dumps(world) if callable(change) else change)
    assert all(word in said for word in words), said


def test_a_folder_of_somebody_else_is_left_alone(refusal, tmp_path):
    (tmp_path / "mine" / "one").mkdir(parents=True)
    (tmp_path / "mine" / "one" / "letter").write_text("dear")
    assert "holds one of somebody else" in refusal(json.dumps(WORLD), "mine")
    assert (tmp_path / "mine" / "one" / "letter").read_text() == "dear"


@pytest.mark.parametrize("method, path, body, status, words", [
    ("GET", "/disks/one/00000000-0000-4000-8000-000000000000", None, 404, "no disk"),
    ("GET", "/disks/three/x", None, 404, "no pool three"),
    ("POST", "/hosts/one/z/kill", {}, 404, "no host z"),
    ("POST", "/hosts/one/a/paint", {}, 400, "cannot paint"),
    ("POST", "/vms/one/nobody/write", {}, 404, "no VM nobody"),
    ("POST", "/vms/one/vm/write", {"hex": "00"}, 400, "lacks 'offset'"),
    ("POST", "/faults", {}, 400, "lacks 'fault'"),
    ("POST", "/faults", [1], 400, ""),
    ("DELETE", "/state", None, 404, "no such request"),
])
def test_control_requests_that_cannot_be_carried_out(served, method, path, body, status, words):
    with pytest.raises(ControlError) as refused:
        served.control(method, path, body)
    assert refused.value.status == status and words in str(refused.value)


@pytest.fixture(name="served", scope="module")
def fixture_served(tmp_path_factory):
    simulator = start_simulator(WORLD, tmp_path_factory.mktemp("served"))
    yield simulator
    simulator.stop()


def test_a_port_that_is_named_is_the_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    simulator = start_simulator(WORLD | {"port": port}, tmp_path)
    try:
        assert {urlsplit(url).port for url in simulator.ready["pools"]["one"]["members"]} == {port}
    finally:
        simulator.stop()
