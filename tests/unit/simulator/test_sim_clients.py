# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients nobody here wrote, against the simulator: XenAPI, npm's xen-api, community.general and curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
BUILD = TESTS.parent / ".build" / "clients"
BIN = Path(sys.executable).parent
sys.path.insert(0, str(TESTS))
from simulator_fixture import start_simulator  # noqa: E402

SCRIPT = """
import { createClient } from 'xen-api'
const [url, user, password] = process.argv.slice(2)
const xapi = createClient({ url, auth: { user, password }, watchEvents: true })
await xapi.connect()
await xapi.objectsFetched
const vm = Object.values(xapi.objects.all).find(one => one.$type === 'VM' && one.name_label === 'database')
const ref = await xapi.callAsync('VM.snapshot', vm.$ref, 'by xen-api')
await xapi.barrier(ref)
const snapshot = xapi.getObject(ref)
const answer = await xapi.getResource('/export/', { query: { ref, use_compression: 'false' } })
let bytes = 0
for await (const piece of answer.body) bytes += piece.length
await xapi.callAsync('VM.destroy', ref)
await xapi.disconnect()
console.log(JSON.stringify({ name: snapshot.name_label, of: snapshot.snapshot_of === vm.$ref, bytes }))
"""


@pytest.fixture(scope="module", name="simulator")
def fixture_simulator(tmp_path_factory):
    simulator = start_simulator(TESTS / "simulator" / "examples" / "test.yml", tmp_path_factory.mktemp("clients"))
    yield simulator
    simulator.stop()


@pytest.fixture(name="production")
def fixture_production(simulator):
    return simulator.ready["pools"]["production"]


@pytest.fixture(name="environment")
def fixture_environment(simulator):
    ca = simulator.ready["ca"]
    return os.environ | {"SSL_CERT_FILE": ca, "NODE_EXTRA_CA_CERTS": ca}


def test_python_xenapi(production, environment):
    pytest.importorskip("XenAPI", reason="the package XenAPI is not installed")
    code = """
import sys, time, XenAPI
first, supporter = sys.argv[1:]
session = XenAPI.Session(supporter)
try:
    session.xenapi.login_with_password("root", "secret", "1.0", "test")
except XenAPI.Failure as error:
    assert error.details == ["HOST_IS_SLAVE", "127.0.0.11"], error.details
session = XenAPI.Session(first)
session.xenapi.login_with_password("root", "secret", "1.0", "test")
(vm,) = session.xenapi.VM.get_by_name_label("web")
assert session.xenapi.VM.get_record(vm)["power_state"] == "Running"
task = session.xenapi.Async.VM.snapshot(vm, "by XenAPI")
while session.xenapi.task.get_status(task) == "pending":
    time.sleep(0.05)
snapshot = session.xenapi.task.get_result(task).removeprefix("<value>").removesuffix("</value>")
assert session.xenapi.VM.get_is_a_snapshot(snapshot)
session.xenapi.VM.destroy(snapshot)
session.xenapi.session.logout()
print("done")
"""
    command = [sys.executable, "-c", code, *production["members"][:2]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_npm_xen_api(production, environment):
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("npm or node is not installed")
    folder = BUILD / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "xen-api").is_dir():
        install = subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "xen-api"], cwd=folder,
                                 capture_output=True, text=True, timeout=300, check=False)
        if install.returncode:
            pytest.skip(f"npm could not install xen-api: {install.stderr[-200:]}")
    (folder / "client.mjs").write_text(SCRIPT)
    command = ["node", "client.mjs", production["members"][0], "root", "secret"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["name"], outcome["of"]) == ("by xen-api", True)
    assert outcome["bytes"] > 19 << 20


def collection() -> Path:
    """community.general, out of the package `ansible`; kept from run to run."""
    target = BUILD / "collections"
    part = "ansible_collections/community/general/"
    if not (target / part).is_dir():
        with_pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", BUILD, "ansible"]
        done = subprocess.run(with_pip, capture_output=True, text=True, timeout=300, check=False)
        wheels = sorted(BUILD.glob("ansible-*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"the package ansible could not be downloaded: {done.stderr[-200:]}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(target, [name for name in wheel.namelist() if name.startswith(part)])
        wheels[-1].unlink()
    return target


@pytest.mark.parametrize("module, arguments, expected", [
    ("xenserver_guest_info", {"name": "database"}, {"changed": False}),
    ("xenserver_guest_powerstate", {"name": "local", "state": "restarted"}, {"changed": True}),
    ("xenserver_guest", {
        "name": "made", "template": "Other install media", "disks": [{"size_mb": 64, "sr": "Shared storage"}],
        "networks": [{"name": "LAN"}], "hardware": {"num_cpus": 2, "memory_mb": 1024},
    }, {"changed": True}),
])
def test_community_general(production, environment, module, arguments, expected):
    pytest.importorskip("XenAPI", reason="the package XenAPI is not installed")
    connection = {"hostname": production["members"][0], "username": "root", "password": "secret"}
    command = [BIN / "ansible", "localhost", "-m", f"community.general.{module}", "-a", json.dumps(connection | arguments)]
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(collection()), "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false"}
    done = subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout[done.stdout.index("{"):])
    assert result["changed"] is expected["changed"]
    assert result["instance"]["name"] == arguments["name"]


def test_curl_exports_what_tar_reads(simulator, production, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    target = tmp_path / "odd.xva"
    url = f"{production['members'][0]}/export?uuid={production['vms']['odd']}"
    command = ["curl", "--silent", "--fail", "--location-trusted", "--cacert", simulator.ready["ca"], "--user", "root:secret"]
    subprocess.run([*command, "--output", target, url], check=True, timeout=60)
    with tarfile.open(target) as archive:
        names = archive.getnames()
    assert names[0] == "ova.xml"
    assert any(name.endswith("/00000000.xxhash") for name in names)
    for _wait in range(100):
        if not simulator.control("GET", "/state")["production"]["attached"]:
            break
        time.sleep(0.05)
    assert not simulator.control("GET", "/state")["production"]["attached"]
