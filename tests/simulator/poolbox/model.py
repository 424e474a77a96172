# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data model: which classes, fields and methods a release has."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

NULL = "OpaqueRef:NULL"
EPOCH = "19700101T00:00:00Z"
ROLES = ("pool-admin", "pool-operator", "vm-power-admin", "vm-admin", "vm-operator", "read-only")
NAMED_RELEASES = (
    "rio", "miami", "symc", "orlando", "orlando-update-1", "george", "midnight-ride", "cowley", "boston", "tampa",
    "clearwater", "vgpu-tech-preview", "vgpu-productisation", "clearwater-felton", "clearwater-whetstone", "creedence",
    "cream", "indigo", "dundee", "ely", "falcon", "inverness", "jura", "kolkata", "lima", "naples", "quebec",
    "stockholm",
)
# parameters that may be left out, and what they are then
PARAMETER_DEFAULTS: dict[str, dict[str, Any]] = {
    "session.login_with_password": {"version": "1.1", "originator": ""},
    "VM.snapshot": {"ignore_vdis": []},
    "VM.migrate_send": {"vgpu_map": {}},
    "VM.assert_can_migrate": {"vgpu_map": {}},
    "VDI.snapshot": {"driver_params": {}},
    "VDI.clone": {"driver_params": {}},
    "VDI.copy": {"sr": NULL, "base_vdi": NULL, "into_vdi": NULL},
    "SR.create": {"sm_config": {}},
}
# what no task can be made of; the published data model does not say it
NO_ASYNC_CLASSES = ("session", "event", "task", "data_source", "blob", "message")
NO_ASYNC = re.compile(
    "(add_to|remove_from|set)_NVRAM|backup_rrds|call_extension|(disable|enable)_external_auth|emergency_.*"
    "|(forget|get|query|record)_data_sources?(_archives)?|get_allowed_V(BD|IF)_devices|get_boot_record"
    "|get_by_permission.*|get_nbd_info|get_permissions.*|get_(server|server_local)time|get_supported_types"
    "|get_system_status_capabilities|ha_(compute|failover|prevent)_.*|list_methods|local_management_reconfigure"
    "|management_disable|(re)?set_cpu_features|set_HVM_(boot_policy|shadow_multiplier)|set_VCPUs_(at_startup|max)"
    "|set_domain_type|set_(ext|local)_auth_max_threads|set_ha_(always_run|restart_priority)|set_hostname_live"
    "|set_memory_(dynamic|static)_(max|min)|set_physical_size|set_protection_policy|set_read_only|set_sharable"
    "|set_snapshot_schedule|shutdown_agent|sync_data|test_archive_target"
)


@dataclass(frozen=True)
class Release:
    """A release as clients see it. ``package`` is the toolstack's version, ``api`` major and minor of the API.

    ``codename``: the newest of NAMED_RELEASES that it has.
    """

    name: str
    codename: str
    package: str
    api: tuple[int, int]
    product_version: str
    platform_version: str
    db_schema: str

    def has(self, since: str | None) -> bool:
        """Whether something that came with ``since`` is there."""
        if since is None or since in NAMED_RELEASES:
            return since is None or NAMED_RELEASES.index(since) <= NAMED_RELEASES.index(self.codename)
        numbers = re.fullmatch(r"(\d+)\.(\d+)\.\d+", since)
        ours = tuple(int(part) for part in self.package.split(".")[:2])
        return bool(numbers) and (int(numbers[1]), int(numbers[2])) <= ours or (since == "stockholm_psr" and ours > (2, 0))


RELEASES = {
    "8.0": Release("8.0", "naples", "1.160.1", (2, 13), "8.0.0", "3.0.0", "5.200"),
    "8.2": Release("8.2", "stockholm", "1.249.41", (2, 15), "8.2.1", "3.2.1", "5.603"),
    "8.3": Release("8.3", "stockholm", "24.19.2", (2, 21), "8.3.0", "3.4.0", "5.779"),
}


@dataclass(frozen=True)
class Field:
    """A field of a class: ``mode`` is RO, C (may be given to create) or RW; ``default`` is None where there is none."""

    name: str
    type: str
    mode: str
    default: str | None


@dataclass(frozen=True)
class Method:
    """A method; ``params`` are names and types without the session, ``open`` ones need no session."""

    cls: str
    name: str
    params: tuple[tuple[str, str], ...]
    result: str
    roles: tuple[str, ...]
    implicit: bool = False
    removed: bool = False
    open: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """``Class.method``"""
        return f"{self.cls}.{self.name}"

    @property
    def required(self) -> int:
        """How many parameters must be given."""
        return len(self.params) - len(self.defaults)

    @property
    def is_async(self) -> bool:
        """Whether ``Async.`` may stand before it."""
        made = not self.implicit or self.name in ("create", "destroy")
        return made and self.cls not in NO_ASYNC_CLASSES and not NO_ASYNC.fullmatch(self.name)


@dataclass(frozen=True)
class Class:
    """A class with its fields and methods."""

    name: str
    fields: dict[str, Field]
    methods: dict[str, Method]
    enums: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Model:
    """All of a release."""

    release: Release
    classes: dict[str, Class]

    def method(self, full_name: str) -> Method | None:
        """The method of ``Class.method``, or None."""
        cls, dummy, name = full_name.partition(".")
        return self.classes[cls].methods.get(name) if cls in self.classes else None

    @property
    def method_names(self) -> list[str]:
        """Every method's full name."""
        return [method.full_name for cls in self.classes.values() for method in cls.methods.values()]


def _class(name: str, raw: dict[str, Any], release: Release) -> Class:
    fields = {
        key: Field(key, kind, mode, default)
        for key, (kind, mode, default, since) in raw["fields"].items() if release.has(since)
    }
    methods = {}
    for key, item in raw["methods"].items():
        if not release.has(item["since"]):
            continue
        # methods made for a field come and go with it
        about = re.sub("^(get|set|add_to|remove_from|add|remove)_", "", key)
        if item.get("implicit") and about in raw["fields"] and about not in fields:
            continue
        defaults = dict(PARAMETER_DEFAULTS.get(f"{name}.{key}", {}))
        params = tuple((param, kind) for param, kind in item["params"])
        if f"{name}.{key}" == "VM.snapshot" and not release.has("21.4.0"):
            params, defaults = params[:2], {}
        methods[key] = Method(
            name, key, params, item["result"], tuple(item["roles"]), item.get("implicit", False),
            "removed" in item and release.has(item["removed"]), item.get("open", False), defaults,
        )
    return Class(name, fields, methods, {key: tuple(values) for key, values in raw["enums"].items()})


@lru_cache
def load(release: str) -> Model:
    """The model of one of RELEASES."""
    raw = json.loads((Path(__file__).parent / "model" / "model.json").read_text(encoding="utf-8"))
    found = RELEASES[release]
    return Model(found, {name: _class(name, item, found) for name, item in raw.items() if found.has(item["since"])})
