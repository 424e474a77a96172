# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control interface: plain HTTP and JSON on loopback, for tests and drills. README.md documents it."""
from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import cbt, clock, guest, ha, sessions, tasks
from .errors import ApiError
from .pool import Host, Pool, World
from .storage import Disk
from .world import guest_of

STEP = 1 << 20


class Wrong(Exception):
    """The request cannot be carried out as it stands."""


class Missing(Wrong):
    """It speaks of something that is not there."""


class Control:
    """What the interface can do. ``stop`` ends the simulator."""

    def __init__(self, world: World, stop: Callable[[], None]) -> None:
        self.world = world
        self._stop = stop

    def pool(self, name: str) -> Pool:
        """The pool of a name."""
        if name not in self.world.pools:
            raise Missing(f"there is no pool {name}")
        return self.world.pools[name]

    def host(self, pool: str, name: str) -> Host:
        """The host of a name."""
        for host in self.pool(pool).hosts:
            if host.name == name:
                return host
        raise Missing(f"pool {pool} has no host {name}")

    def post(self, path: list[str], body: dict[str, Any]) -> Any:
        """Carry out a POST."""
        if path[0] == "hosts" and len(path) == 4:
            return self._host(self.pool(path[1]), self.host(path[1], path[2]), path[3])
        if path[0] == "pools" and path[2:] == ["elect"]:
            pool = self.pool(path[1])
            ha.elect(pool, self.host(path[1], body["host"]))
            return {"coordinator": pool.host(pool.coordinator).name}
        if path == ["faults"]:
            return {
                self.pool(name).name: self.pool(name).faults.add(
                    body.get("match", {}), body["fault"], body.get("times", 1), body.get("after", 0)
                )
                for name in ([body["pool"]] if "pool" in body else self.world.pools)
            }
        if path[0] == "vms" and path[3:] == ["write"]:
            return self._write(self.pool(path[1]), path[2], body)
        if path[0] == "vms" and path[3:] == ["guest"]:
            pool = self.pool(path[1])
            pool.guests[self._uuid(pool, path[2])] = guest_of(body)
            return body
        if path[0] == "disks" and path[3:] == ["lose_log"]:
            cbt.lose_log(self.pool(path[1]), self.vdi(path[1], path[2]))
            return {"cbt_enabled": False}
        if path == ["sessions", "expire"]:
            return {name: sessions.expire(pool) for name, pool in self.world.pools.items()}
        if path == ["clock", "advance"]:
            return self._advance(float(body["seconds"]))
        if path == ["stop"]:
            self._stop()
            return {}
        raise Missing("no such request")

    def delete(self, path: list[str]) -> Any:
        """Carry out a DELETE."""
        if path != ["faults"]:
            raise Missing("no such request")
        for pool in self.world.pools.values():
            pool.faults.clear()
        return {}

    def get(self, path: list[str]) -> Any:
        """Carry out a GET."""
        if path == ["state"]:
            return {name: state(pool) for name, pool in self.world.pools.items()}
        if path == ["faults"]:
            return {
                name: [{"match": rule.match, "fault": rule.fault, "hits": rule.hits} for rule in pool.faults.rules]
                for name, pool in self.world.pools.items()
            }
        if path == ["calls"]:
            return {name: dict(pool.calls) for name, pool in self.world.pools.items()}
        raise Missing("no such request")

    def disk(self, pool: str, uuid: str) -> Disk:
        """A disk, open for reading."""
        self.vdi(pool, uuid)
        storage = self.pool(pool).storage
        if uuid not in storage:
            raise Missing(f"the content of disk {uuid} is gone")
        return storage.open(uuid)

    def vdi(self, pool: str, uuid: str) -> str:
        """The ref of a disk's UUID."""
        refs = self.pool(pool).db.find("VDI", uuid=uuid)
        if not refs:
            raise Missing(f"pool {pool} has no disk {uuid}")
        return refs[0]

    def _advance(self, seconds: float) -> Any:
        clock.advance(seconds)
        for pool in self.world.pools.values():
            tasks.collect(pool.db)
        return {"now": clock.now().strftime(clock.FORMAT)}

    def _host(self, pool: Pool, host: Host, action: str) -> Any:
        listener = host.listener
        if action == "kill":
            host.alive = False
            for server in host.servers:
                server.stop()
            ha.kill_effects(pool, host)
        elif action == "start":
            host.alive = True
            for server in host.servers:
                server.start()
            ha.start_effects(pool, host)
        elif action == "hang":
            listener.hang()
        elif action == "resume":
            listener.resume()
        else:
            raise Wrong(f"a host cannot {action}")
        with pool.db.lock:
            pool.db.changed.notify_all()
        return {"host": host.name, "alive": host.alive}

    def _uuid(self, pool: Pool, vm: str) -> str:
        """The UUID of a VM that is named by it, or by its name."""
        refs = pool.db.find("VM", uuid=vm) or pool.db.find("VM", name_label=vm, is_a_snapshot=False)
        if not refs:
            raise Missing(f"there is no VM {vm}")
        return str(pool.db.field("VM", refs[0], "uuid"))

    def _write(self, pool: Pool, vm: str, body: dict[str, Any]) -> Any:
        uuid, disk = self._uuid(pool, vm), int(body.get("disk", 0))
        if "file" in body:
            content = base64.b64decode(body["content_base64"])
            guest.write_file(pool, uuid, disk, body["file"], content)
            return {"written": len(content)}
        if "hex" in body:
            data = bytes.fromhex(body["hex"])
        elif "base64" in body:
            data = base64.b64decode(body["base64"])
        else:
            data = random.Random(body["random"]["seed"]).randbytes(int(body["random"]["bytes"]))
        guest.write(pool, uuid, disk, int(body["offset"]), data)
        return {"written": len(data)}


def state(pool: Pool) -> dict[str, Any]:
    """What is there: for tests that nothing is left behind."""
    db = pool.db
    dom0s = set(db.find("VM", is_control_domain=True))
    return {
        "coordinator": pool.host(pool.coordinator).name,
        "hosts": {host.name: {"alive": host.alive, "url": host.url} for host in pool.hosts},
        "sessions": db.count("session"),
        "tasks": {ref: db.field("task", ref, "status") for ref in db.refs("task")},
        "snapshots": [db.field("VM", ref, "name_label") for ref in db.find("VM", is_a_snapshot=True)],
        "snapshot_vdis": len(db.find("VDI", is_a_snapshot=True)) - len(db.find("VDI", type="cbt_metadata")),
        "cbt_logs": len(db.find("VDI", type="cbt_metadata")),
        "vdis": len(db.refs("VDI")),
        "attached": [ref for ref in db.refs("VBD") if db.field("VBD", ref, "VM") in dom0s],
        "vms": {
            db.field("VM", ref, "name_label"): db.field("VM", ref, "power_state")
            for ref in db.find("VM", is_a_snapshot=False, is_a_template=False, is_control_domain=False)
        },
    }


class Handler(BaseHTTPRequestHandler):
    """Turns HTTP into calls of Control."""

    control: Control
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """A GET: JSON, or the bytes of a disk."""
        path = self.path.strip("/").split("/")
        if path[0] == "disks" and len(path) == 3:
            self._disk(path[1], path[2])
        else:
            self._answer(lambda: self.control.get(path))

    def do_POST(self) -> None:
        """A POST with a JSON body, which may be empty."""
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(lambda: self.control.post(self.path.strip("/").split("/"), json.loads(raw or b"{}")))

    def do_DELETE(self) -> None:
        """A DELETE."""
        self._answer(lambda: self.control.delete(self.path.strip("/").split("/")))

    def _answer(self, work: Callable[[], Any]) -> None:
        try:
            status, value = 200, work()
        except Missing as error:
            status, value = 404, {"error": str(error)}
        except Wrong as error:
            status, value = 400, {"error": str(error)}
        except KeyError as error:
            status, value = 400, {"error": f"the request lacks {error}"}
        except (ApiError, OSError, ValueError, TypeError, AttributeError, IndexError) as error:
            status, value = 400, {"error": f"{type(error).__name__}: {error}"}
        self._send(status, value)

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _disk(self, pool: str, uuid: str) -> None:
        try:
            opened = self.control.disk(pool, uuid)
        except Missing as error:
            self._send(404, {"error": str(error)})
            return
        with opened as disk:
            self.send_response(200)
            self.send_header("content-length", str(disk.size))
            self.end_headers()
            for offset in range(0, disk.size, STEP):
                self.wfile.write(disk.pread(offset, min(STEP, disk.size - offset)))


def serve(world: World, stop: Callable[[], None]) -> ThreadingHTTPServer:
    """Start the interface on a free port of 127.0.0.1 and note its address in the world."""
    handler = type("BoundHandler", (Handler,), {"control": Control(world, stop)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    world.control_url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True, name="control").start()
    return server
