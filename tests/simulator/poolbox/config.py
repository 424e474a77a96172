# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the description of the pools and says what is wrong with it, and where, before anything is made."""
from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .world import RESTRICTABLE, guest_of, size_of

RELEASES = ("8.0", "8.2", "8.3")
DEVICES = ("pci", "vusb", "vgpu", "vtpm")
ROLES = ("pool-admin", "pool-operator", "vm-power-admin", "vm-admin", "vm-operator", "read-only")
PURPOSES = ("nbd", "insecure_nbd")
STATES = ("Running", "Halted", "Paused", "Suspended")
MARK = ".simulated-pools"  # in a state folder: lists what beside it was made by this program
CERTIFICATES = "certificates"

# place: (required keys, optional keys)
KEYS: dict[str, tuple[set[str], set[str]]] = {
    "top": ({"pools"}, {"port"}),
    "pool": ({"hosts", "networks", "srs"}, {"release", "users", "vms", "restrictions", "suspend_sr", "nbd_lag"}),
    "user": ({"password"}, {"role"}),
    "network": (set(), {"bridge", "purpose"}),
    "sr": (set(), {"type", "size", "host"}),
    "vm": (set(), {
        "description", "tags", "power_state", "memory", "vcpus", "firmware", "networks", "disks", "guest", "tools",
        "devices", "suspend_sr",
    }),
    "disk": ({"size"}, {"sr", "name", "image", "tree", "files", "mirror"}),
}


class ConfigError(Exception):
    """The description cannot be used; the text names the place."""


def read(path: Path) -> dict[str, Any]:
    """The description in a YAML file. Raises ConfigError."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    _keys("the description", config, "top")
    for name, pool in _named("pools", config["pools"]).items():
        if "/" in str(name) or str(name) in ("", ".", "..", CERTIFICATES, MARK):
            raise ConfigError(f"pool {name}: that is no name for a pool")
        _pool(f"pool {name}", pool, path.resolve().parent)
    return dict(config)


def prepare(folder: Path, pools: Iterable[str]) -> None:
    """Make the state folder, without what an earlier run put there, and with nothing else touched.

    Raises ConfigError where something of somebody else has the name of a pool's folder.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in mark.read_text(encoding="utf-8").splitlines() if mark.exists() else ():
            shutil.rmtree(folder / name, ignore_errors=True)
        names = [CERTIFICATES, *pools]
        taken = [name for name in names if (folder / name).exists()]
        if taken:
            raise ConfigError(f"{folder} holds {', '.join(taken)} of somebody else: name another folder for --state")
        mark.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used for --state: {error}") from error


def _pool(place: str, pool: Any, base: Path) -> None:
    _keys(place, pool, "pool")
    hosts, networks, srs = pool["hosts"], _named(f"{place}: networks", pool["networks"]), _named(f"{place}: srs", pool["srs"])
    if not isinstance(hosts, list) or not hosts or not networks or not srs:
        raise ConfigError(f"{place}: needs a host, a network and a storage repository at least")
    _one_of(f"{place}: release", str(pool.get("release", "8.3")), RELEASES)
    for restriction in pool.get("restrictions", []):
        _one_of(f"{place}: restrictions", restriction, RESTRICTABLE)
    if not isinstance(pool.get("nbd_lag", 0), (int, float)):
        raise ConfigError(f"{place}: nbd_lag: {pool['nbd_lag']!r} is no number of seconds")
    if pool.get("suspend_sr") is not None:
        _one_of(f"{place}: suspend_sr", pool["suspend_sr"], srs)
    for name, user in _named(f"{place}: users", pool.get("users", {})).items():
        _keys(f"{place}, user {name}", user, "user")
        _one_of(f"{place}, user {name}: role", user.get("role", ROLES[0]), ROLES)
    for name, network in networks.items():
        _keys(f"{place}, network {name}", network or {}, "network")
        if network and "purpose" in network:
            _one_of(f"{place}, network {name}: purpose", network["purpose"], PURPOSES)
    for name, sr in srs.items():
        _keys(f"{place}, storage repository {name}", sr, "sr")
        _size(f"{place}, storage repository {name}", sr.get("size", 0))
        if "host" in sr:
            _one_of(f"{place}, storage repository {name}: host", sr["host"], hosts)
    for name, vm in _named(f"{place}: vms", pool.get("vms", {})).items():
        _vm(f"{place}, VM {name}", vm, networks, srs, base)


def _vm(place: str, vm: Any, networks: dict[str, Any], srs: dict[str, Any], base: Path) -> None:
    _keys(place, vm, "vm")
    _one_of(f"{place}: power_state", vm.get("power_state", STATES[0]), STATES)
    _size(f"{place}: memory", vm.get("memory", 0))
    for device in vm.get("devices", []):
        _one_of(f"{place}: devices", device, DEVICES)
    if "suspend_sr" in vm:
        _one_of(f"{place}: suspend_sr", vm["suspend_sr"], srs)
    try:
        guest_of(vm.get("guest", {}))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{place}: guest: {vm['guest']!r} is no behaviour of a guest") from error
    for network in vm.get("networks", []):
        _one_of(f"{place}: networks", network, networks)
    for number, disk in enumerate(vm.get("disks", [])):
        where = f"{place}, disk {number}"
        _keys(where, disk, "disk")
        _size(where, disk["size"])
        if "sr" in disk:
            _one_of(f"{where}: sr", disk["sr"], srs)
        for kind, there in (("image", Path.is_file), ("tree", Path.is_dir), ("mirror", Path.is_file)):
            if kind in disk and not there(base / str(disk[kind])):
                raise ConfigError(f"{where}: there is no {kind} {base / str(disk[kind])}")


def _named(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected names with what they stand for, not {value!r}")
    return value


def _keys(place: str, value: Any, kind: str) -> None:
    required, optional = KEYS[kind]
    given = set(_named(place, value))
    if given - required - optional:
        known = ", ".join(sorted(required | optional))
        raise ConfigError(f"{place}: unknown key {', '.join(sorted(map(str, given - required - optional)))} (known: {known})")
    if required - given:
        raise ConfigError(f"{place}: {', '.join(sorted(required - given))} is missing")


def _one_of(place: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{place}: {value!r} is none of {', '.join(map(str, known))}")


def _size(place: str, value: Any) -> None:
    try:
        size_of(value)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place}: {value!r} is no size") from error
