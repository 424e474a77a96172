# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole path with real playbooks and modules, against simulated pools over TLS: back up, restore, and bad luck."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
BIN = Path(sys.executable).parent
sys.path.insert(0, str(TESTS))
from simulator_fixture import start_simulator  # noqa: E402

SETTINGS = {
    "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "dev"), "ANSIBLE_LOCALHOST_WARNING": "false",
    "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false", "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    "ANSIBLE_INVENTORY_ENABLED": "guestark.xen.pool", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORKS": "2",
}


class Site:
    """Two pools, keys and a repository, and Ansible to work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.simulator = start_simulator(TESTS / "simulator" / "examples" / "test.yml", folder)
        self.repository = folder / "repository"
        self.recipient = self.module("xen_backup_key", path=str(folder / "data.key"), type="data")["recipient"]
        signing = self.module("xen_backup_key", path=str(folder / "signing.key"), type="signing")
        (folder / "signers").write_text(signing["allowed_signer"] + "\n")

    def command(self, verb: str, /, **options: Any) -> list[str]:
        """The command that runs a module of the collection."""
        return [str(BIN / "ansible"), "localhost", "-m", f"guestark.xen.{verb}", "-a", json.dumps(options)]

    def module(self, verb: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Run a module and return its result."""
        command = self.command(verb, **options)
        done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        text = done.stdout[done.stdout.index("=> {") + 3:]
        return json.JSONDecoder().raw_decode(text)[0]

    def playbook(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        """Run a playbook and return its output."""
        command = [str(BIN / "ansible-playbook"), *arguments]
        done = subprocess.run(command, env=os.environ | SETTINGS | environment, capture_output=True, text=True, timeout=180,
                              check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout

    def pool(self, name: str) -> dict[str, Any]:
        """The connection options of a pool."""
        described = self.simulator.ready["pools"][name]
        return {"hostname": described["members"], "password": described["password"], "ca_path": self.simulator.ready["ca"]}

    def export(self, vm: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Back a VM up."""
        keys = {"repository": str(self.repository), "recipients": [self.recipient],
                "signing_key": str(self.folder / "signing.key")}
        return self.module("xen_vm_export", fails, **(self.pool("production") | keys | {"name": vm} | options))

    def restore(self, vm: str, /, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Restore a VM to the recovery pool."""
        source = {"repository": str(self.repository), "vm": vm, "identities": [str(self.folder / "data.key")],
                  "allowed_signers": str(self.folder / "signers"), "networks": {"Storage": "Recovery LAN"}}
        return self.module("xen_vm_restore", fails, **(self.pool("recovery") | source | options))

    def points(self) -> list[dict[str, Any]]:
        """The restore points that count."""
        found = self.module("xen_backup_info", repository=str(self.repository), allowed_signers=str(self.folder / "signers"))
        return [point for point in found["points"] if point["trusted"] and not point["problem"]]

    def fault(self, kind: str, **fault: Any) -> None:
        """Have the next transfer of a kind, or call of a name, go wrong."""
        match = {"call": kind} if "." in kind else {"kind": kind}
        self.simulator.control("POST", "/faults", {"match": match, "fault": fault})

    def left_behind(self, pool: str = "production") -> dict[str, Any]:
        """What is there that should not be; control domains let go of disks after a moment."""
        names = ("tasks", "snapshots", "snapshot_vdis", "attached", "sessions")
        for _wait in range(60):
            state = self.simulator.control("GET", "/state")[pool]
            left = {name: state[name] for name in names if state[name]}
            if not left:
                break
            time.sleep(0.05)
        return left

    def disks(self, pool: str, vm: str) -> list[str]:
        """SHA-256 of a VM's disks, in their order."""
        (facts,) = self.module("xen_vm_info", name=vm, **self.pool(pool))["vms"]
        return [
            hashlib.sha256(self.simulator.control("GET", f"/disks/{pool}/{disk['uuid']}")).hexdigest()
            for disk in facts["disks"]
        ]

    def remove_vms(self, pool: str) -> None:
        """Empty a pool."""
        described = self.simulator.ready["pools"][pool]
        context = ssl.create_default_context(cafile=self.simulator.ready["ca"])
        api = xmlrpc.client.ServerProxy(described["members"][0], context=context)
        session = api.session.login_with_password("root", described["password"])["Value"]
        for ref, vm in api.VM.get_all_records(session)["Value"].items():
            if not (vm["is_a_template"] or vm["is_control_domain"]):
                api.VM.hard_shutdown(session, ref)
                api.VM.destroy(session, ref)
        for ref in api.VDI.get_all(session)["Value"]:
            api.VDI.destroy(session, ref)
        api.session.logout(session)


@pytest.fixture(scope="module", name="site")
def fixture_site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.simulator.stop()


@pytest.fixture(autouse=True)
def fixture_no_faults(site):
    yield
    site.simulator.control("DELETE", "/faults")


def test_playbooks_back_up_all_and_change_nothing_twice(site):
    inventory = site.folder / "production.xen.yml"
    options = {"plugin": "guestark.xen.pool", "local": True, "ca_path": site.pool("production")["ca_path"],
               "hostname": site.pool("production")["hostname"]}
    inventory.write_text(json.dumps(options))
    protection = site.folder / "protection.yml"
    protection.write_text(json.dumps({
        "guestark_repository": str(site.repository), "guestark_recipients": [site.recipient],
        "guestark_signing_key": str(site.folder / "signing.key"), "guestark_max_age": "4h",
    }))
    environment = {"XENSERVER_PASSWORD": "secret", "XENSERVER_CA_PATH": options["ca_path"]}
    command = ["-i", str(inventory), "guestark.xen.backup", "-e", f"@{protection}"]
    first = site.playbook(*command, **environment)
    assert first.count("new point") == 5
    assert "web: export" in first  # progress
    assert len(site.points()) == 5
    again = site.playbook(*command, **environment)
    assert again.count("unchanged  ") == 5 and "new point" not in again
    assert len(site.points()) == 5
    assert site.left_behind() == {}
    nothing = site.playbook(*command, "-e", "guestark_group=tag_none", fails=True, **environment)
    assert "a run that protects nothing is no success" in nothing


def test_a_restored_vm_equals_its_source(site):
    plan = subprocess.run([*site.command("xen_vm_restore", **site.pool("recovery"), repository=str(site.repository),
                          vm="database", identities=[str(site.folder / "data.key")], networks={"Storage": "Recovery LAN"},
                          allowed_signers=str(site.folder / "signers")), "--check"], env=os.environ | SETTINGS, timeout=60,
                          capture_output=True, text=True, check=True)
    assert '"changed": true' in plan.stdout
    assert site.simulator.control("GET", "/state")["recovery"]["vdis"] == 0
    result = site.restore("database", start=True)
    assert result["changed"] and result["vm"]["power_state"] == "Running"
    assert site.restore("database", start=True)["changed"] is False
    before = site.module("xen_vm_info", name="database", **site.pool("production"))["vms"][0]
    after = site.module("xen_vm_info", name="database", **site.pool("recovery"))["vms"][0]
    assert site.disks("production", "database") == site.disks("recovery", "database")
    assert [one["mac"] for one in before["interfaces"]] == [one["mac"] for one in after["interfaces"]]
    assert [one["network"] for one in after["interfaces"]] == ["LAN", "Recovery LAN"]
    assert before["tags"] == after["tags"]
    assert site.left_behind("recovery") == {}


@pytest.mark.parametrize("vm", ["odd", "sparse"])
def test_odd_sizes_and_firmware_survive(site, vm):
    site.restore(vm)
    if vm == "odd":
        assert site.disks("production", vm) == site.disks("recovery", vm)
    before = site.module("xen_vm_info", name=vm, **site.pool("production"))["vms"][0]
    after = site.module("xen_vm_info", name=vm, **site.pool("recovery"))["vms"][0]
    assert [disk["size"] for disk in before["disks"]] == [disk["size"] for disk in after["disks"]]


def test_the_stock_recipe_rebuilds_what_a_pool_imports(site):
    missing = [name for name in ("age", "zstd", "ssh-keygen", "curl") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {missing}")
    site.remove_vms("recovery")
    (point,) = [one for one in site.points() if one["vm_uuid"] == site.simulator.ready["pools"]["production"]["vms"]["odd"]]
    folder = site.repository / "vm" / point["vm_uuid"]
    segment = folder / "seg" / f"{point['point']}-000.xva.zst.age"
    pipe = f"age -d -i {site.folder / 'data.key'} {segment} | zstd -d | tar -tf -"
    listing = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True, check=True).stdout
    assert listing.startswith("ova.xml\nRef:1001/00000000\n")
    target = site.folder / "odd.xva"
    recipe = ["sh", site.repository / "restore-xva.sh", site.folder / "data.key", site.folder / "signers",
              f"pt/{point['point']}.sum", target]
    subprocess.run([str(word) for word in recipe], cwd=folder, check=True, capture_output=True, timeout=60)
    described = site.simulator.ready["pools"]["recovery"]
    command = ["curl", "--silent", "--show-error", "--cacert", site.simulator.ready["ca"], "--user", "root:secret",
               "--header", "Expect:", "--upload-file", target, f"{described['members'][0]}/import"]
    done = subprocess.run([str(word) for word in command], timeout=60, check=False)
    assert done.returncode in (0, 56)  # the pool may close before it read the archive's end
    for _wait in range(100):
        if "odd" in site.simulator.control("GET", "/state")["recovery"]["vms"]:
            break
        time.sleep(0.05)
    assert site.disks("production", "odd") == site.disks("recovery", "odd")
    site.remove_vms("recovery")


@pytest.mark.parametrize("ending", ["xva", "xva.zst", "xva.zst.age"])
def test_exported_files_come_and_go(site, ending):
    path = site.folder / f"web.{ending}"
    options = site.pool("production") | {"name": "web", "dest": str(path), "recipients": [site.recipient]}
    assert site.module("xen_vm_export", **options)["changed"]
    assert site.module("xen_vm_export", **options)["changed"] is False
    assert path.stat().st_mode & 0o777 == 0o600
    result = site.module("xen_vm_restore", **site.pool("recovery"), src=str(path), name=f"from {ending}", macs="new",
                         identities=[str(site.folder / "data.key")])
    assert result["changed"] and result["restored_from"] == path.name
    assert site.disks("production", "web") == site.disks("recovery", f"from {ending}")
    assert site.left_behind() == site.left_behind("recovery") == {}


def test_snapshots_are_kept_and_removed(site):
    options = site.pool("production") | {"name": "web", "snapshot_name": "before"}
    assert site.module("xen_vm_snapshot", **options)["changed"]
    assert site.module("xen_vm_snapshot", **options)["changed"] is False
    site.export("web")  # a run of ours leaves the snapshots of others alone
    assert site.simulator.control("GET", "/state")["production"]["snapshots"] == ["before"]
    before = site.disks("production", "web")
    site.simulator.control("POST", "/vms/production/web/write", {"offset": 4096, "hex": "ff" * 512})
    assert site.disks("production", "web") != before
    assert site.module("xen_vm_snapshot", state="reverted", **options)["changed"]
    assert site.disks("production", "web") == before
    assert site.module("xen_vm_snapshot", state="absent", **options)["changed"]
    assert site.module("xen_vm_snapshot", state="absent", **options)["changed"] is False
    assert site.left_behind() == {}


@pytest.mark.parametrize("fault, expected", [
    (("export", {"cut_at": 3_000_000}), "database"),
    (("export", {"cut_at": 3_000_000, "reset": True}), "database"),
    (("export", {"corrupt_chunk": 3}), "checksum"),
    (("export", {"late_error": ["VDI_IO_ERROR", "Device I/O errors"], "after": 2_000_000}), "VDI_IO_ERROR"),
    (("export", {"late_error": ["VDI_IO_ERROR", "Device I/O errors"], "after": "end", "silent": True}), "VDI_IO_ERROR"),
    (("VM.snapshot", {"error": ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]}), "SR_BACKEND_FAILURE_44"),
])
def test_a_failed_backup_leaves_nothing(site, fault, expected):
    before = {point["point"] for point in site.points()}
    files = sorted(site.repository.rglob("*"))
    site.fault(fault[0], **fault[1])
    result = site.export("database", fails=True)
    assert "database" in result["msg"] and expected in result["msg"]
    assert result["failure"]["message"]
    assert {point["point"] for point in site.points()} == before
    assert [path for path in sorted(site.repository.rglob("*")) if path not in files] == []
    assert site.left_behind() == {}


@pytest.mark.parametrize("options, expected", [
    ({"password": "wrong"}, "SESSION_AUTHENTICATION_FAILED"),
    ({"ca_path": None}, "certificate"),
    ({"name": "nobody"}, "nobody"),
    ({"recipients": ["age1nonsense"]}, "age1nonsense"),
    ({"recipients": []}, "nobody to encrypt to"),
    ({"max_age": "soon"}, "soon"),
    ({"repository": "/proc/nowhere"}, "/proc/nowhere"),
    ({"signing_key": "/nonexistent"}, "/nonexistent"),
])
def test_bad_input_is_told_before_anything_is_touched(site, options, expected):
    result = site.export("web", fails=True, **options)
    assert expected.lower() in result["msg"].lower()
    assert site.left_behind() == {}


@pytest.mark.parametrize("options, expected", [
    ({"sr": "No such storage"}, "No such storage"),
    ({"sr": "Small storage"}, "bytes free"),
    ({"networks": {}}, "'Storage'"),
    ({"point": "20200101T000000Z-000001-000000000000"}, "no usable restore point"),
    ({"identities": []}, "database"),
])
def test_a_restore_that_cannot_work_touches_nothing(site, options, expected):
    result = site.restore("database", fails=True, **options)
    assert expected in result["msg"]
    assert site.left_behind("recovery") == {}


def test_a_wrong_key_opens_nothing(site):
    other = site.folder / "other.key"
    site.module("xen_backup_key", path=str(other), type="data")
    assert other.stat().st_mode & 0o777 == 0o600
    vm = site.simulator.ready["pools"]["production"]["vms"]["database"]
    result = site.restore(vm, fails=True, identities=[str(other)])
    assert "identit" in result["msg"]


def test_an_import_that_fails_half_way_leaves_nothing(site):
    site.remove_vms("recovery")
    site.fault("import", sr_full=3 << 20)
    result = site.restore("database", fails=True)
    assert "database" in result["msg"]
    assert site.left_behind("recovery") == {}
    state = site.simulator.control("GET", "/state")["recovery"]
    assert (state["vms"], state["vdis"]) == ({}, 0)
    assert site.restore("database")["changed"]


def test_a_killed_run_is_cleaned_up_by_the_next(site):
    before = {point["point"] for point in site.points()}
    site.fault("export", stall_at=2_000_000)
    options = site.pool("production") | {
        "name": "database", "repository": str(site.repository), "recipients": [site.recipient],
        "signing_key": str(site.folder / "signing.key"),
    }
    process = subprocess.Popen(site.command("xen_vm_export", **options), env=os.environ | SETTINGS,
                               stdout=subprocess.DEVNULL)
    for _wait in range(400):
        if site.simulator.control("GET", "/state")["production"]["attached"]:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    lease = site.repository / "lease" / site.simulator.ready["pools"]["production"]["vms"]["database"]
    os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)  # the module itself, not only what started it
    process.wait(60)
    assert site.simulator.control("GET", "/state")["production"]["snapshots"]
    assert {point["point"] for point in site.points()} == before
    site.simulator.control("DELETE", "/faults")
    assert site.export("database")["changed"]
    state = site.simulator.control("GET", "/state")["production"]
    assert (state["snapshots"], state["snapshot_vdis"]) == ([], 0)
    assert len(site.points()) == len(before) + 1


def test_points_are_listed_and_sealed(site):
    command = {"repository": str(site.repository), "allowed_signers": str(site.folder / "signers")}
    plain = site.module("xen_backup_info", seal=True, **command)
    assert plain["findings"] == [] and "vm_name" not in plain["points"][0]
    named = site.module("xen_backup_info", vm="web", catalog_identities=[str(site.folder / "data.key")], **command)
    assert {point["vm_name"] for point in named["points"]} == {"web"}
    stranger = site.folder / "strangers"
    stranger.write_text("")
    command["allowed_signers"] = str(stranger)
    assert not any(point["trusted"] for point in site.module("xen_backup_info", **command)["points"])


def test_a_new_coordinator_is_found(site):
    site.simulator.control("POST", "/hosts/production/alpha/kill")
    site.simulator.control("POST", "/pools/production/elect", {"host": "beta"})
    assert site.export("web")["changed"]
    assert urllib.request.urlopen(site.simulator.ready["control"] + "/state", timeout=10).status == 200
