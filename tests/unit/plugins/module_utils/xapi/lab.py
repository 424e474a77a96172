# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated pools for the client's tests, and what the tests ask of them."""

from __future__ import annotations

from ansible_collections.guestark.xen.plugins.module_utils.xapi import snapshots
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings

MIB = 1048576
MARK = snapshots.Mark("guestark 1.0.0", "run-1", "20261123T010000Z-000001-0123456789ab", "2026-11-24T01:00:00Z")
HOSTS = ["one", "two", "three"]


def disk(**more):
    return {"size": "24MiB", "files": {"/etc/hello": "hello", "/noise": {"random": {"seed": 7, "size": "6MiB"}}}, **more}


CONFIG = {
    "pools": {
        "lab": {
            "release": "8.3",
            "hosts": HOSTS,
            "users": {
                "root": {"password": "s3cret-Päss"},
                "backup": {"password": "b", "role": "vm-power-admin"},
                "operator": {"password": "o", "role": "vm-operator"},
            },
            "networks": {"lan": {}, "dmz": {}},
            "srs": {"shared": {"type": "nfs"}, "disks of two": {"type": "ext", "host": "two"}},
            "vms": {
                "web01": {"tags": ["gold"], "networks": ["lan", "dmz"], "disks": [disk(), {"size": "3MiB+512"}]},
                "local01": {"power_state": "Halted", "disks": [disk(sr="disks of two")]},
                "twin": {"power_state": "Halted", "disks": []},
            },
        },
        "old": {
            "release": "8.2",
            "hosts": ["single"],
            "networks": {"lan": {}},
            "srs": {"local": {"type": "ext"}},
            "vms": {"legacy": {"power_state": "Halted", "disks": [disk()]}, "served": {}},
        },
    }
}


def state(simulator, pool="lab"):
    return simulator.control("GET", "/state")[pool]


def remains(simulator):
    left = state(simulator)
    return left["tasks"], left["snapshots"], left["snapshot_vdis"], left["attached"]


def connect(simulator, pool="lab", user=None, members=None, patience=30.0, **tls):
    described = simulator.ready["pools"][pool]
    password = CONFIG["pools"][pool]["users"][user]["password"] if user else described["password"]
    return PoolClient(
        members or described["members"], user or described["username"], password,
        TlsSettings(**(tls or {"ca_path": simulator.ready["ca"]})), patience=patience,
    )


def fault(lab, kind, **fault):
    lab.control("POST", "/faults", {"pool": "lab", "match": {"path": "/" + kind}, "fault": fault})
