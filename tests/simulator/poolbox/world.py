# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a YAML description to pools with complete records and disks with real file systems. README.md has the keys."""
from __future__ import annotations

import base64
import hashlib
import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import space
from .database import Database, DateTime
from .faults import FaultBook
from .lifecycle import guest_tools, update_allowed
from .model import NULL
from .pool import Account, Guest, Host, Pool, World
from .storage import Storage

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SM_FEATURES = (
    "SR_PROBE", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_RESIZE", "VDI_CLONE",
    "VDI_SNAPSHOT", "VDI_ACTIVATE", "VDI_DEACTIVATE", "VDI_UPDATE", "VDI_CONFIG_CBT", "VDI_RESET_ON_BOOT",
)
RESTRICTABLE = ("cbt", "checkpoint", "vtpm", "zstd_export")
WITHOUT_CBT = ("iso", "udev", "shm", "dummy", "hba", "iscsi", "linstor", "cephfs", "glusterfs", "moosefs")


def size_of(value: int | str) -> int:
    """Bytes of a number, or of text such as ``64GiB`` or ``10MiB+512``."""
    if isinstance(value, int):
        return value
    total = 0
    for part in value.split("+"):
        unit = next((name for name in UNITS if part.strip().endswith(name)), None)
        total += int(part.strip().removesuffix(unit)) * UNITS[unit] if unit else int(part)
    return total


def stable_uuid(*names: str) -> str:
    """The same UUID for the same names in every run."""
    digest = hashlib.sha256("/".join(names).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def load_world(config: dict[str, Any], base: Path, state_dir: Path) -> World:
    """Build what the configuration describes; paths in it are relative to ``base``."""
    addresses = (f"127.0.0.{number}" for number in itertools.count(11))
    pools = {}
    for name, described in config["pools"].items():
        builder = Builder(name, described, base, state_dir / name)
        builder.build(addresses)
        pools[name] = builder.pool
    return World(pools, state_dir)


@dataclass
class Builder:
    """Builds one pool."""

    name: str
    config: dict[str, Any]
    base: Path
    state: Path

    def build(self, addresses: Iterator[str]) -> None:
        """Make everything, in the order in which records refer to each other."""
        self.db = Database(str(self.config.get("release", "8.3")))
        storage = Storage(self.state / "disks")
        accounts = {
            user: Account(user, str(one["password"]), one.get("role", "pool-admin"))
            for user, one in self.config.get("users", {"root": {"password": "secret"}}).items()
        }
        self.pool = Pool(self.name, self.db, storage, [], NULL, FaultBook(), accounts, self.state)
        self.pool.nbd_lag = float(self.config.get("nbd_lag", self.pool.nbd_lag))
        self.networks = {name: self._network(name, one or {}) for name, one in self.config["networks"].items()}
        for host in self.config["hosts"]:
            self._host(host, next(addresses))
        self.pool.coordinator = self.pool.hosts[0].ref
        self.srs = {name: self._sr(name, one) for name, one in self.config["srs"].items()}
        default = self.srs[next(iter(self.config["srs"]))]
        restricted = self.config.get("restrictions", [])
        self.db.create(
            "pool", name_label=self.name, uuid=stable_uuid(self.name, "pool"), master=self.pool.coordinator,
            default_SR=default, crash_dump_SR=default, cpu_info={"vendor": "GenuineIntel"},
            suspend_image_SR=self._suspend_sr(self.config.get("suspend_sr", next(iter(self.srs)))),
            restrictions={f"restrict_{one}": str(one in restricted).lower() for one in RESTRICTABLE},
        )
        self._template()
        for name, one in self.config.get("vms", {}).items():
            self._vm(name, one)
        for sr in self.srs.values():
            space.refresh(self.pool, sr)

    def _suspend_sr(self, name: str | None) -> str:
        return NULL if name is None else self.srs[name]

    def _network(self, name: str, one: dict[str, Any]) -> str:
        number = len(self.db.refs("network"))
        return self.db.create(
            "network", uuid=stable_uuid(self.name, "network", name), name_label=name, managed=True, MTU=1500,
            bridge=one.get("bridge", f"xenbr{number}"), default_locking_mode="unlocked",
            purpose=[one["purpose"]] if "purpose" in one else [],
        )

    def _host(self, name: str, address: str) -> None:
        db, release = self.db, self.pool.release
        metrics = db.create("host_metrics", live=True, memory_total=64 << 30, memory_free=48 << 30, last_updated=DateTime.now())
        software = {
            "product_version": release.product_version, "product_version_text": release.product_version,
            "product_version_text_short": release.product_version[:3], "platform_name": "XCP",
            "platform_version": release.platform_version, "product_brand": "XCP-ng", "build_number": release.product_version,
            "xapi": ".".join(release.package.split(".")[:2]), "xapi_build": release.package, "hostname": "localhost",
            "date": "2026-01-15", "dbv": "0.0.1", "xen": "4.17.5", "linux": "4.19.0+1", "network_backend": "openvswitch",
            "db_schema": release.db_schema,
        }
        ref = db.create(
            "host", uuid=stable_uuid(self.name, "host", name), name_label=name, hostname=name, address=address,
            enabled=True, metrics=metrics, software_version=software, edition="xcp-ng", API_version_major=release.api[0],
            API_version_minor=release.api[1], API_version_vendor="XenSource", license_params={"restrict_cbt": "false"},
            cpu_info={"cpu_count": "8", "vendor": "GenuineIntel", "modelname": "Simulated"},
            virtual_hardware_platform_versions=[0, 1, 2], capabilities=["xen-3.0-x86_64", "hvm-3.0-x86_64"],
            allowed_operations=["vm_migrate", "provision", "vm_resume", "evacuate", "vm_start"],
        )
        dom0 = db.create(
            "VM", name_label=f"Control domain on host: {name}", is_control_domain=True, power_state="Running",
            resident_on=ref, domid=0, domain_type="pv", memory_static_max=4 << 30, affinity=ref,
            metrics=db.create("VM_metrics", start_time=DateTime.now(), last_updated=DateTime.now()),
        )
        db.set("host", ref, control_domain=dom0)
        self.pool.hosts.append(Host(ref, name, address))
        for number, network in enumerate(self.networks.values()):
            served = number == 0 or bool(db.field("network", network, "purpose"))  # a host has no other address
            mac = f"02:00:00:00:{int(address.rsplit('.', 1)[1]):02x}:{number:02x}"
            db.create(
                "PIF", device=f"eth{number}", network=network, host=ref, MAC=mac, physical=True, VLAN=-1, MTU=1500,
                management=number == 0, IP=address if served else "", currently_attached=True,
                ip_configuration_mode="Static" if served else "None", managed=True, primary_address_type="IPv4",
                metrics=db.create("PIF_metrics", carrier=True, last_updated=DateTime.now()),
            )

    def _sr(self, name: str, one: dict[str, Any]) -> str:
        db, kind = self.db, one.get("type", "nfs")
        add_driver(db, kind)
        host = one.get("host")
        ref = db.create(
            "SR", uuid=stable_uuid(self.name, "SR", name), name_label=name, type=kind, shared=host is None,
            content_type="iso" if kind == "iso" else "user", physical_size=size_of(one.get("size", "1TiB")),
            allowed_operations=["scan", "update", "vdi_create", "vdi_destroy", "vdi_clone", "vdi_snapshot", "vdi_resize"],
        )
        for each in self.pool.hosts:
            if host in (None, each.name):
                db.create("PBD", host=each.ref, SR=ref, device_config={"location": name}, currently_attached=True)
        return ref

    def _template(self) -> None:
        self.db.create(
            "VM", name_label="Other install media", is_a_template=True, is_default_template=True, domain_type="hvm",
            HVM_boot_policy="BIOS order", HVM_boot_params={"order": "cdn"}, memory_static_max=2 << 30,
            VCPUs_max=1, VCPUs_at_startup=1, other_config={"default_template": "true", "mac_seed": stable_uuid("template")},
        )

    def _vm(self, name: str, one: dict[str, Any]) -> None:
        db = self.db
        uuid, state = stable_uuid(self.name, "VM", name), one.get("power_state", "Running")
        memory, cpus, uefi = size_of(one.get("memory", "1GiB")), int(one.get("vcpus", 2)), one.get("firmware") == "uefi"
        running = state in ("Running", "Paused")
        host = self.pool.hosts[int(uuid[:4], 16) % len(self.pool.hosts)].ref if running else NULL
        variables = base64.b64encode(random.Random(uuid).randbytes(512)).decode()
        vm = db.create(
            "VM", uuid=uuid, name_label=name, name_description=one.get("description", ""), tags=one.get("tags", []),
            power_state=state, resident_on=host, domid=int(uuid[:3], 16) + 1 if running else -1, domain_type="hvm",
            memory_static_max=memory, memory_dynamic_max=memory, memory_dynamic_min=memory, memory_static_min=memory // 2,
            memory_target=memory, VCPUs_max=cpus, VCPUs_at_startup=cpus, HVM_boot_policy="BIOS order",
            HVM_boot_params={"order": "cd", "firmware": "uefi" if uefi else "bios"},
            platform={"acpi": "1", "apic": "true", "nx": "true", "viridian": "true", "secureboot": str(uefi).lower()},
            NVRAM={"EFI-variables": variables} if uefi else {}, other_config={"mac_seed": stable_uuid(uuid, "seed")},
            actions_after_shutdown="destroy", actions_after_reboot="restart", actions_after_crash="restart",
            generation_id="1234567890123456789:987654321987654321", affinity=NULL,
            metrics=db.create(
                "VM_metrics", memory_actual=memory, VCPUs_number=cpus, start_time=DateTime.now(), hvm=True,
                last_updated=DateTime.now(), current_domain_type="hvm",
            ),
            guest_metrics=guest_tools(db) if running and one.get("tools", True) else NULL,
            suspend_SR=self._suspend_sr(one.get("suspend_sr")),
        )
        self._behave(vm, uuid, one)
        for number, network in enumerate(one.get("networks", [next(iter(self.networks))])):
            digits = hashlib.sha256(f"{uuid}/{number}".encode()).hexdigest()
            mac = ":".join(["0a", *(digits[place:place + 2] for place in range(0, 10, 2))])
            db.create(
                "VIF", device=str(number), network=self.networks[network], VM=vm, MAC=mac, MTU=1500,
                currently_attached=running, locking_mode="network_default", MAC_autogenerated=True,
            )
        db.create("VBD", VM=vm, VDI=NULL, userdevice="3", device="xvdd", type="CD", mode="RO", empty=True, unpluggable=True)
        for number, disk in enumerate(one.get("disks", [])):
            self._disk(vm, name, number, disk, running)
        update_allowed(db, vm)

    def _behave(self, vm: str, uuid: str, one: dict[str, Any]) -> None:
        """How the guest behaves, what its tools tell, and what is plugged into it."""
        db = self.db
        self.pool.guests[uuid] = guest_of(one.get("guest", {}))
        told, metrics = one.get("tools"), db.field("VM", vm, "guest_metrics")
        if isinstance(told, dict) and metrics != NULL:
            db.set("VM_guest_metrics", metrics, other=db.field("VM_guest_metrics", metrics, "other") | told)
        devices = one.get("devices", [])
        if "pci" in devices:
            host = self.pool.hosts[0].ref
            db.set("VM", vm, attached_PCIs=[db.create("PCI", host=host, pci_id="0000:00:02.0", class_name="VGA")])
        for cls, name in (("VUSB", "vusb"), ("VGPU", "vgpu"), ("VTPM", "vtpm")):
            if name in devices:
                db.create(cls, VM=vm)

    def _disk(self, vm: str, name: str, number: int, one: dict[str, Any], running: bool) -> None:
        db, size = self.db, size_of(one["size"])
        sr = self.srs[one.get("sr", next(iter(self.srs)))]
        uuid = stable_uuid(self.name, "VDI", name, str(number))
        self._fill(uuid, size, one)
        if "mirror" in one:
            self.pool.storage.mirror(uuid, self.base / one["mirror"])
        position = number if number < 3 else number + 1  # 3 is the CD drive's
        vdi = db.create(
            "VDI", uuid=uuid, name_label=one.get("name", f"{name} disk {number}"), SR=sr, virtual_size=size, type="user",
            location=uuid, managed=True, allowed_operations=["clone", "copy", "resize", "snapshot", "destroy"],
            physical_utilisation=self.pool.storage.allocated(uuid),
        )
        db.create(
            "VBD", VM=vm, VDI=vdi, userdevice=str(position), device=f"xvd{chr(97 + position)}", bootable=number == 0,
            mode="RW", type="Disk", currently_attached=running, unpluggable=number > 0, empty=False,
            other_config={"owner": ""},
        )

    def _fill(self, uuid: str, size: int, one: dict[str, Any]) -> None:
        storage = self.pool.storage
        if "image" in one:
            storage.adopt(uuid, self.base / one["image"], size)
        elif "tree" in one:
            storage.adopt_tree(uuid, self.base / one["tree"], size)
        elif "files" in one:
            tree = self.state / "trees" / uuid
            for path, content in one["files"].items():
                write_file(tree / path.lstrip("/"), content)
            storage.adopt_tree(uuid, tree, size)
            shutil.rmtree(tree)
        else:
            storage.create(uuid, size)


def add_driver(db: Database, kind: str) -> None:
    """The driver of a type of storage repositories, unless it is there."""
    if db.find("SM", type=kind):
        return
    features = [feature for feature in SM_FEATURES if feature != "VDI_CONFIG_CBT" or kind not in WITHOUT_CBT]
    db.create(
        "SM", name_label=kind.upper(), type=kind, vendor="Simulated", version="1.0", required_api_version="1.1",
        features={feature: 1 for feature in features}, capabilities=features,
    )


def guest_of(described: dict[str, Any]) -> Guest:
    """How a guest behaves, of its description. Raises ValueError or TypeError for what is no behaviour."""
    shutdown = described.get("shutdown", 0)
    unknown = set(described) - {"shutdown", "saving", "fails"}
    if unknown or described.get("fails", "") not in ("", "suspend", "resume"):
        raise ValueError(f"{described!r} is no behaviour of a guest")
    return Guest(
        None if shutdown == "never" else float(shutdown), float(described.get("saving", 0)), described.get("fails", "")
    )


def write_file(path: Path, content: str | dict[str, Any]) -> None:
    """Write a file of text, or of pseudo-random bytes: half of each is noise, half of it compresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
        return
    chance, left = random.Random(content["random"]["seed"]), size_of(content["random"]["size"])
    with path.open("wb") as sink:
        while left > 0:
            noise = chance.randbytes(32768)
            left -= sink.write((noise + noise.hex().encode())[:min(left, 98304)])
