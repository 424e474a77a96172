# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site for the integration tests: two simulated pools over TLS, keys, a repository, and the real Ansible."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(TESTS))
import guest_fixture  # noqa: E402
from simulator_fixture import start_simulator  # noqa: E402

SETTINGS = {
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "dev"), "ANSIBLE_LOCALHOST_WARNING": "false",
    "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false", "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    "ANSIBLE_INVENTORY_ENABLED": "guestark.xen.pool", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORKS": "2",
    "ANSIBLE_PIPELINING": "true",
}
LEFTOVERS = ("tasks", "snapshots", "snapshot_vdis", "attached", "sessions")
PATIENCE = 30.0  # seconds until what is waited for has surely happened


def wait_until(happened: Any) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := happened()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert answer, "it did not happen"
    return answer


class Site:
    """What the tests of a module share. Backups go from the pool production, restores to the pool recovery."""

    settings = SETTINGS

    def __init__(self, folder: Path, config: Any) -> None:
        self.folder = folder
        self.simulator = start_simulator(config, folder)
        self.repository = folder / "repository"
        self.data_key, self.signing_key, self.signers = folder / "data.key", folder / "signing.key", folder / "signers"
        data, signing = self.run(
            self.task("xen_backup_key", path=str(self.data_key), type="data"),
            self.task("xen_backup_key", path=str(self.signing_key), type="signing"),
        )
        self.recipient = data["recipient"]
        self.signers.write_text(signing["allowed_signer"] + "\n")

    # Ansible

    def task(self, name: str, /, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """A task for run(); an option that is None is left out."""
        given = {key: value for key, value in options.items() if value is not None}
        return {"name": name, f"guestark.xen.{name}": given, "check_mode": check_mode, "ignore_errors": True}

    def run(self, *tasks: dict[str, Any], fails: bool | None = False) -> list[dict[str, Any]]:
        """Run tasks by ansible-playbook, each whatever became of the ones before; return their results.

        With None for ``fails`` they may end either way.
        """
        results = self.folder / "results.json"
        names = [f"result_{number}" for number in range(len(tasks))]
        gather = {"name": "Results", "ansible.builtin.copy": {
            "content": "{{ [%s] | to_json }}" % ", ".join(names), "dest": str(results), "mode": "0600"}}
        numbered = [{**task, "register": name} for task, name in zip(tasks, names, strict=True)]
        play = self.folder / "tasks.yml"
        play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [*numbered, gather]}]))
        output = self.playbook(str(play))
        found = json.loads(results.read_text())
        results.unlink()
        for result in found:
            assert result.get("failed", False) is fails or fails is None, output
            # a failure of ours, no exception that nobody caught
            assert ("failure" in result) is result.get("failed", False), result
        return found

    def one(self, name: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Run one module by ansible-playbook and return its result."""
        return self.run(self.task(name, **options), fails=fails)[0]

    def ad_hoc(self, name: str, /, fails: bool = False, check: bool = False, **options: Any) -> dict[str, Any]:
        """Run one module by `ansible localhost -m` and return its result."""
        done = subprocess.run([*self.command(name, **options), *(["--check"] if check else [])], env=os.environ | SETTINGS,
                              capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("> {") + 2:])[0]

    def command(self, name: str, /, **options: Any) -> list[str]:
        """The command that runs a module of the collection."""
        return [str(BIN / "ansible"), "localhost", "-m", f"guestark.xen.{name}", "-a", json.dumps(options)]

    def playbook(self, *arguments: str, fails: bool | None = False, **environment: str) -> str:
        """Run a playbook and return its output; with None for ``fails`` it may end either way."""
        settings = SETTINGS | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml"} | environment
        done = subprocess.run([str(BIN / "ansible-playbook"), *arguments], env=os.environ | settings,
                              capture_output=True, text=True, timeout=180, check=False)
        assert fails is None or (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    # options of modules

    def pool(self, name: str) -> dict[str, Any]:
        """The connection options of a pool."""
        described = self.simulator.ready["pools"][name]
        return {"hostname": described["members"], "password": described["password"], "ca_path": self.simulator.ready["ca"]}

    def export_options(self, vm: str, /, **options: Any) -> dict[str, Any]:
        """Options of xen_vm_export that make a restore point."""
        keys = {"repository": str(self.repository), "recipients": [self.recipient], "signing_key": str(self.signing_key)}
        return self.pool("production") | keys | {"name": vm} | options

    def restore_options(self, vm: str, /, **options: Any) -> dict[str, Any]:
        """Options of xen_vm_restore that take a restore point to the recovery pool."""
        source = {"repository": str(self.repository), "vm": vm, "identities": [str(self.data_key)],
                  "allowed_signers": str(self.signers), "networks": {"Storage": "Recovery LAN"}}
        return self.pool("recovery") | source | options

    def export(self, vm: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Back a VM up to the repository."""
        return self.one("xen_vm_export", fails, **self.export_options(vm, **options))

    def restore(self, vm: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Restore a VM from the repository to the recovery pool."""
        return self.one("xen_vm_restore", fails, **self.restore_options(vm, **options))

    def info(self, **options: Any) -> dict[str, Any]:
        """What xen_backup_info says of the repository."""
        return self.one("xen_backup_info", repository=str(self.repository), allowed_signers=str(self.signers), **options)

    # what is there

    def uuid(self, vm: str) -> str:
        """UUID of a VM of the production pool."""
        return str(self.simulator.ready["pools"]["production"]["vms"][vm])

    def point_names(self, vm: str | None = None) -> list[str]:
        """Names of the committed points, of one VM or of all, read from the file system."""
        return sorted(path.stem for path in self.repository.glob(f"vm/{self.uuid(vm) if vm else '*'}/pt/*.sum"))

    def contents(self) -> dict[str, str]:
        """Every file of the repository and its SHA-256."""
        files = (path for path in self.repository.rglob("*") if path.is_file())
        return {str(path.relative_to(self.repository)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def state(self, pool: str = "production") -> dict[str, Any]:
        """What the simulator says of a pool."""
        return dict(self.simulator.control("GET", "/state")[pool])

    def left_behind(self, pool: str = "production") -> dict[str, Any]:
        """What is there that should not be; a host lets go of disks a moment after an export has ended."""
        left: dict[str, Any] = {}
        for _wait in range(100):
            state = self.state(pool)
            left = {name: state[name] for name in LEFTOVERS if state[name]}
            if not left:
                break
            time.sleep(0.05)
        return left

    @contextmanager
    def api(self, pool: str) -> Iterator[Any]:
        """Calls of a pool: ``with site.api("recovery") as call: call("VM.get_all")``."""
        described = self.simulator.ready["pools"][pool]
        context = ssl.create_default_context(cafile=self.simulator.ready["ca"])
        address = self.state(pool)["hosts"][self.state(pool)["coordinator"]]["url"]
        with xmlrpc.client.ServerProxy(address, context=context) as proxy:
            session = proxy.session.login_with_password("root", described["password"])["Value"]

            def call(name: str, *arguments: Any) -> Any:
                answer = getattr(proxy, name)(session, *arguments)
                assert answer["Status"] == "Success", answer
                return answer["Value"]

            try:
                yield call
            finally:
                proxy.session.logout(session)

    def disks(self, pool: str, vm: str) -> list[str]:
        """SHA-256 of a VM's disks, in their order."""
        with self.api(pool) as call:
            (ref,) = call("VM.get_by_name_label", vm)
            vbds = [call("VBD.get_record", vbd) for vbd in call("VM.get_VBDs", ref)]
            disks = sorted((int(vbd["userdevice"]), call("VDI.get_uuid", vbd["VDI"])) for vbd in vbds if vbd["type"] == "Disk")
        return [hashlib.sha256(self.simulator.control("GET", f"/disks/{pool}/{uuid}")).hexdigest() for _number, uuid in disks]

    def fault(self, kind: str, /, **fault: Any) -> None:
        """Have the next transfer of a kind, or the next call of a name, go wrong."""
        match = {"call": kind} if "." in kind else {"kind": kind}
        self.simulator.control("POST", "/faults", {"match": match, "fault": fault})

    def empty(self, pool: str) -> None:
        """Destroy all VMs and disks of a pool."""
        with self.api(pool) as call:
            for ref, vm in call("VM.get_all_records").items():
                if not (vm["is_a_template"] or vm["is_control_domain"]):
                    if vm["power_state"] != "Halted":
                        call("VM.hard_shutdown", ref)
                    call("VM.destroy", ref)
            wait_until(lambda: not self.state(pool)["attached"])  # the control domain lets go a moment later
            for ref in call("VDI.get_all"):
                call("VDI.destroy", ref)


@pytest.fixture(scope="module", name="make_guest")
def fixture_make_guest():
    """Make guests with real file systems; where a machine cannot mount one, the test is skipped and says so."""
    made: list[guest_fixture.Guest] = []

    def make(name: str, address: str, size: int) -> guest_fixture.Guest:
        try:
            made.append(guest_fixture.Guest(name, address, size))
        except guest_fixture.CannotMount as error:
            pytest.skip(str(error))
        return made[-1]

    yield make
    for guest in made:
        guest.stop()


@pytest.fixture(scope="module", name="config")
def fixture_config():
    """The pools of a module's tests; a module may have others."""
    return TESTS / "simulator" / "examples" / "test.yml"


@pytest.fixture(scope="module", name="site")
def fixture_site(tmp_path_factory, config):
    site = Site(tmp_path_factory.mktemp("site"), config)
    yield site
    site.simulator.stop()


@pytest.fixture(autouse=True)
def fixture_clean(site):
    """Take faults back after each test, and see to it that none leaves anything on a pool."""
    yield
    site.simulator.control("DELETE", "/faults")
    assert (site.left_behind("production"), site.left_behind("recovery")) == ({}, {})


@pytest.fixture(name="wait_until", scope="session")
def fixture_wait_until():
    return wait_until
