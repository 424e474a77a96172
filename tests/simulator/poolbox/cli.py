# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: serve the world of a YAML file until SIGTERM."""
from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from . import config, control
from .certificates import Authority
from .http_server import Listener
from .nbd_server import NbdServer
from .pool import Pool, World
from .world import load_world

# each registers its methods or handlers
IMPLEMENTATIONS = (
    "sessions", "events", "tasks_api", "lifecycle", "snapshots", "objects", "cbt", "nbd_api", "transfers", "metadata",
    "raw_vdi",
)


def common_port(addresses: list[str]) -> int:
    """A port that is free on every address: clients that follow an address keep the port they know."""
    for _attempt in range(100):
        with socket.create_server((addresses[0], 0)) as probe:
            port = probe.getsockname()[1]
        try:
            for address in addresses:
                socket.create_server((address, port)).close()
        except OSError:
            continue
        return int(port)
    raise OSError("no port is free on all hosts' addresses")


def member_list(world: World, pool: Pool) -> dict[str, object]:
    """A pool in the ready-file; the coordinator is its first member."""
    db, account = pool.db, next(iter(pool.accounts.values()))
    hosts = sorted(pool.hosts, key=lambda host: host.ref != pool.coordinator)
    vms = db.find("VM", is_a_template=False, is_a_snapshot=False, is_control_domain=False)
    return {
        "members": [host.url for host in hosts],
        "username": account.name,
        "password": account.password,
        "vms": {db.field("VM", ref, "name_label"): db.field("VM", ref, "uuid") for ref in vms},
        "srs": {db.field("SR", ref, "name_label"): db.field("SR", ref, "uuid") for ref in db.refs("SR")},
    }


def start(world: World, port: int | None) -> list[Listener | NbdServer]:
    """Make the certificates and listen for every host."""
    authority = Authority(world.state_dir / config.CERTIFICATES)
    world.ca_path = authority.path
    hosts = [(pool, host) for pool in world.pools.values() for host in pool.hosts]
    port = port or common_port([host.address for dummy, host in hosts])
    servers: list[Listener | NbdServer] = []
    for pool, host in hosts:
        host.port = host.port or port
        certificate = authority.issue(f"{host.name}.{pool.name}", host.address)
        host.listener, host.nbd = Listener(pool, host, certificate), NbdServer(pool, host, certificate)
        servers += host.servers
    for server in servers:
        server.start()
    return servers


def write_ready(path: Path, world: World) -> None:
    """Write the ready-file whole or not at all."""
    content = {
        "ca": str(world.ca_path),
        "control": world.control_url,
        "pools": {name: member_list(world, pool) for name, pool in world.pools.items()},
    }
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Serve simulated XenServer and XCP-ng pools.")
    parser.add_argument("--config", type=Path, required=True, help="YAML description of the pools")
    parser.add_argument("--state", type=Path, required=True, help="folder for disks and certificates")
    parser.add_argument("--ready", type=Path, required=True, help="file to write when all is served")
    options = parser.parse_args()
    for name in IMPLEMENTATIONS:
        importlib.import_module(f".{name}", __package__)
    options.ready.unlink(missing_ok=True)  # an earlier run's would mislead whoever waits for it
    try:
        description = config.read(options.config)
        config.prepare(options.state, description["pools"])
    except config.ConfigError as error:
        parser.exit(2, f"simulator: {error}\n")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *dummy: ended.set())
    world = load_world(description, options.config.resolve().parent, options.state.resolve())
    servers = start(world, description.get("port"))
    server = control.serve(world, ended.set)
    write_ready(options.ready, world)
    ended.wait()
    options.ready.unlink(missing_ok=True)
    server.shutdown()
    for one in servers:
        one.stop()
    sys.exit(0)


if __name__ == "__main__":
    main()
