# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
BUILD_INVENTORY = Path(__file__).with_name("build_inventory.py")


def vm(name, number=1, **facts):
    """What the client knows of a VM."""
    return {
        "uuid": f"{number:08x}-0000-4000-8000-000000000000",
        "name": name,
        "description": "",
        "power_state": "Running",
        "tags": [],
        "host": "xen1",
        "disks": [],
        **facts,
    }


@pytest.fixture
def build(tmp_path):
    """Build an inventory: build(pools, **source) -> hosts, groups, connections, error."""

    def run(there, /, environment=None, file_name="test.xen.yml", **source):
        (tmp_path / "vms.json").write_text(json.dumps(there))
        (tmp_path / file_name).write_text(yaml.safe_dump({"plugin": "guestark.xen.pool", **source}))
        command = [sys.executable, BUILD_INVENTORY, ROOT / ".build/dev", tmp_path / file_name, tmp_path / "vms.json"]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "XENSERVER_"))}
        env.update(environment or {}, ANSIBLE_INVENTORY_UNPARSED_FAILED="true", ANSIBLE_LOCALHOST_WARNING="false")
        finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert finished.returncode == 0, finished.stderr
        answer = json.loads(finished.stdout.splitlines()[-1])
        answer["error"] = " ".join(f"{answer['error'] or ''} {finished.stderr}".split())
        return answer

    return run


def one_pool(*vms):
    return {"xen1.example": {"name": "Production", "vms": list(vms)}}


ONE = {"hostname": ["xen1.example", "xen2.example"], "username": "backup", "password": "secret"}


def test_vms_are_hosts_with_their_facts(build):
    answer = build(one_pool(vm("web01", tags=["a"]), vm("db01", 2)), **ONE)
    assert set(answer["hosts"]) == {"web01", "db01"}
    web = answer["hosts"]["web01"]
    assert web["xen_uuid"] == "00000001-0000-4000-8000-000000000000"
    assert web["xen_tags"] == ["a"]
    assert web["xen_pool"] == "Production"
    assert web["xen_pool_members"] == ["xen1.example", "xen2.example"]
    assert "ansible_connection" not in web
    assert "secret" not in json.dumps(answer["hosts"])


def test_vms_are_grouped_by_what_an_operator_plans_with(build):
    disks = [{"sr": "Fast SSD"}, {"sr": "Fast SSD"}, {"sr": "nfs"}, {"sr": ""}]
    answer = build(
        one_pool(
            vm("web01", tags=["policy=gold", "dmz"], disks=disks),
            vm("old", 2, power_state="Halted", host=None),
        ),
        **ONE,
    )
    groups = {name: hosts for name, hosts in answer["groups"].items() if name not in ("all", "ungrouped")}
    assert groups == {
        "power_running": ["web01"],
        "power_halted": ["old"],
        "pool_Production": ["web01", "old"],
        "host_xen1": ["web01"],
        "tag_policy_gold": ["web01"],
        "tag_dmz": ["web01"],
        "sr_Fast_SSD": ["web01"],
        "sr_nfs": ["web01"],
    }


def test_vms_of_one_name_are_told_apart(build):
    answer = build(one_pool(vm("web01", 1), vm("web01", 2), vm("db01", 3), vm("", 4)), **ONE)
    assert set(answer["hosts"]) == {"web01_00000001", "web01_00000002", "db01", "_00000004"}


def test_a_query_does_not_change_what_a_host_is_called(build):
    answer = build(one_pool(vm("web01", 1), vm("web01", 2, tags=["x"])), query="[?contains(tags, 'x')]", **ONE)
    assert set(answer["hosts"]) == {"web01_00000002"}


def test_hosts_may_be_called_by_uuid(build):
    answer = build(one_pool(vm("web01")), host_name="uuid", **ONE)
    assert set(answer["hosts"]) == {"00000001-0000-4000-8000-000000000000"}


def test_two_vms_never_become_one_host(build):
    pools = {
        "a": {"name": "A", "vms": [vm("web01")]},
        "b": {"name": "B", "vms": [vm("web01")]},
    }
    answer = build(pools, pools=[{"hostname": "a"}, {"hostname": "b"}], password="p", host_name="uuid")
    assert "Several VMs would be the host 00000001-0000-4000-8000-000000000000" in answer["error"]
    assert not answer["hosts"]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [("[?", "is not valid JMESPath"), ("[].name", "must return VMs"), ("[0]", "must return VMs")],
)
def test_a_wrong_query_is_an_error(build, query, complaint):
    answer = build(one_pool(vm("web01")), query=query, **ONE)
    assert complaint in answer["error"]
    assert not answer["hosts"]


def test_several_pools_share_what_they_do_not_say(build):
    pools = {
        "a": {"name": "A", "vms": [vm("web01")]},
        "b": {"name": "B", "vms": [vm("db01", 2)]},
    }
    answer = build(
        pools,
        environment={"B_PASSWORD": "for b"},
        username="backup",
        password="for all",
        validate_certs=False,
        pools=[
            {"hostname": "a"},
            {
                "hostname": ["b", "c"],
                "password": "{{ lookup('ansible.builtin.env', 'B_PASSWORD') }}",
                "validate_certs": "yes",
                "fingerprint": "ab" * 32,
            },
        ],
    )
    assert answer["connections"] == [
        {
            "hostname": ["a"],
            "username": "backup",
            "password": "for all",
            "validate_certs": False,
            "ca_path": None,
            "fingerprint": None,
        },
        {
            "hostname": ["b", "c"],
            "username": "backup",
            "password": "for b",
            "validate_certs": True,
            "ca_path": None,
            "fingerprint": "ab" * 32,
        },
    ]
    assert answer["groups"]["pool_A"] == ["web01"]
    assert answer["groups"]["pool_B"] == ["db01"]


def test_the_connection_comes_from_the_environment(build):
    environment = {
        "XENSERVER_HOST": "xen1.example,xen2.example",
        "XENSERVER_USER": "backup",
        "XENSERVER_PASSWORD": "no {{ template }}",
        "XENSERVER_CA_PATH": "/etc/ca.pem",
    }
    (options,) = build(one_pool(vm("web01")), environment=environment)["connections"]
    assert options["hostname"] == ["xen1.example", "xen2.example"]
    assert options["username"] == "backup"
    assert options["password"] == "no {{ template }}"
    assert options["ca_path"] == "/etc/ca.pem"
    assert options["validate_certs"] is True


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"hostname": "xen1.example"}, "missing required arguments: password"),
        ({"password": "p"}, "missing required arguments: hostname"),
        ({"password": "p", "pools": [{"hostname": "a", "port": 1}]}, "port"),
    ],
)
def test_an_incomplete_connection_is_an_error(build, source, complaint):
    answer = build(one_pool(vm("web01")), **source)
    assert complaint in answer["error"]
    assert not answer["connections"]


def test_a_pool_that_does_not_answer_fails_the_whole_source(build):
    pools = {"a": {"name": "A", "vms": [vm("web01")]}, "b": {"error": "Nobody answers."}}
    answer = build(pools, password="p", pools=[{"hostname": "a"}, {"hostname": "b"}])
    assert "No inventory from pool b: Nobody answers. Mend it." in answer["error"]
    assert not answer["hosts"]


def test_what_the_pool_says_is_never_a_template(build):
    evil = "{{ lookup('ansible.builtin.pipe', 'touch pwned') }}"
    answer = build(one_pool(vm("web01", description=evil, tags=[evil])), compose={"my_text": "xen_description"}, **ONE)
    host = answer["hosts"]["web01"]
    assert host["xen_description"] == evil
    assert host["xen_tags"] == [evil]
    assert host["my_text"] == evil


def test_constructed_variables_and_groups(build):
    answer = build(
        one_pool(vm("web01", tags=["policy=gold", "x"]), vm("db01", 2, memory=1 << 30)),
        compose={"my_size": "xen_memory | default(0)"},
        groups={"large": "xen_memory | default(0) >= 1073741824"},
        keyed_groups=[
            {"key": "xen_tags | select('match', 'policy=') | map('replace', 'policy=', '')", "prefix": "policy"},
        ],
        **ONE,
    )
    assert int(answer["hosts"]["db01"]["my_size"]) == 1 << 30
    assert answer["groups"]["large"] == ["db01"]
    assert answer["groups"]["policy_gold"] == ["web01"]


def test_hosts_can_be_worked_on_from_the_controller(build):
    host = build(one_pool(vm("web01")), local=True, **ONE)["hosts"]["web01"]
    assert host["ansible_connection"] == "local"
    assert host["ansible_python_interpreter"] == sys.executable


def test_a_cache_answers_in_the_pools_place(build, tmp_path):
    cache = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(tmp_path / "cache"),
        "cache_timeout": 3600,
    }
    first = build(one_pool(vm("web01", description="{{ 1 + 1 }}")), **cache, **ONE)
    second = build({"xen1.example": {"error": "Nobody answers."}}, **cache, **ONE)
    assert second["hosts"] == first["hosts"]
    assert second["groups"] == first["groups"]
    assert not second["connections"]
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("file_name", "ours"), [("xen.yml", True), ("a.xen.yaml", True), ("xen.json.yml", False)])
def test_only_files_of_its_name_are_its_sources(build, file_name, ours):
    answer = build(one_pool(vm("web01")), file_name=file_name, **ONE)
    assert bool(answer["hosts"]) is ours
