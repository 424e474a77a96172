# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated pools, keys, and the ways in which a VM is backed up and restored: with stock tools and with the modules."""
from __future__ import annotations

import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Run, fill, measure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from simulator_fixture import start_simulator  # noqa: E402

GIB = 1 << 30
MIB = 1 << 20
MB = 10**6
NULL = "OpaqueRef:NULL"
LARGE = "9GiB"


class Bench:
    """The pools, the keys and both ways of doing things. Everything lies in ``folder``."""

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder = folder
        tree = folder / "tree"
        fill(tree, int(gib * GIB))
        image = folder / "disk.img"
        size = f"{int(gib * 1.25 * 1024)}M"
        mke2fs = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "mke2fs"
        subprocess.run([mke2fs, "-q", "-t", "ext4", "-d", str(tree), str(image), size], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)
        self.simulator = start_simulator(self.world(image, size), folder)
        self.keys()

    @staticmethod
    def world(image: Path, size: str) -> dict[str, Any]:
        """A pool with the VM, and one to restore it to."""
        def pool(host: str, **more: Any) -> dict[str, Any]:
            return {"release": "8.3", "users": {"root": {"password": "secret"}}, "hosts": [host],
                    "networks": {"LAN": {"purpose": "nbd"}}, "srs": {"Storage": {"type": "ext", "size": "100GiB"}}, **more}
        disk = {"size": size.replace("M", "MiB"), "image": str(image)}
        small = {"size": "256MiB", "files": {"/data": {"random": {"seed": 1, "size": "100MiB"}}}}
        vms = {"files": {"disks": [disk]}, "small": {"disks": [small]}, "large": {"disks": [{"size": LARGE}]}}
        return {"pools": {"production": pool("alpha", vms=vms), "recovery": pool("beta")}}

    def keys(self) -> None:
        """A data key, a catalog key and a signing key."""
        for kind in ("data", "catalog", "signing"):
            self.module("xen_backup_key", {"path": str(self.folder / f"{kind}.key"), "type": kind})
        public = (self.folder / "data.key").read_text().split("public key: ")[1].split()[0]
        self.recipient = public
        line = (self.folder / "signing.key.pub").read_text().split()
        (self.folder / "signers").write_text(f"guestark {line[0]} {line[1]}\n")

    @contextmanager
    def session(self, pool: str) -> Iterator[Any]:
        """Calls of a pool: ``with bench.session("recovery") as call: call("VM.get_all")``."""
        described = self.simulator.ready["pools"][pool]
        context = ssl.create_default_context(cafile=self.simulator.ready["ca"])
        with xmlrpc.client.ServerProxy(described["members"][0], context=context) as proxy:
            session = proxy.session.login_with_password(described["username"], described["password"])["Value"]

            def call(name: str, *arguments: Any) -> Any:
                answer: dict[str, Any] = {}
                for _try in range(100):  # a host lets go of disks a moment after a transfer
                    answer = getattr(proxy, name)(session, *arguments)
                    if "VDI_IN_USE" not in answer.get("ErrorDescription", ()):
                        break
                    time.sleep(0.1)
                if answer["Status"] != "Success":
                    raise SystemExit(f"{name}: {answer['ErrorDescription']}")
                return answer["Value"]
            call.session = session  # type: ignore[attr-defined]
            try:
                yield call
            finally:
                proxy.session.logout(session)

    def module(self, name: str, options: dict[str, Any]) -> Run:
        """Run a module as its process alone, as AnsiballZ does on the mover."""
        arguments = self.folder / "arguments.json"
        arguments.touch(0o600)
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        command = [sys.executable, "-m", f"ansible_collections.guestark.xen.plugins.modules.{name}", str(arguments)]
        return measure(command, {"PYTHONPATH": str(ROOT / ".build/dev")})

    def connection(self, pool: str) -> dict[str, Any]:
        """Connection options of a pool."""
        described = self.simulator.ready["pools"][pool]
        return {"hostname": described["members"], "username": described["username"], "password": described["password"],
                "ca_path": self.simulator.ready["ca"]}

    def shell(self, pipe: str, pool: str, query: str, **environment: str) -> Run:
        """Run a pipe in which $CURL stands for curl, told by a file what to talk to."""
        config = self.folder / "curl.conf"
        config.touch(0o600)
        member = self.simulator.ready["pools"][pool]["members"][0]
        config.write_text(f'url = "{member}{query}"\ncacert = "{self.simulator.ready["ca"]}"\nsilent\nshow-error\nfail\n')
        script = f"set -euo pipefail; cd {shlex.quote(str(self.folder))}; {pipe}"
        return measure(["bash", "-c", script], {"CURL": "curl --config curl.conf", **environment})

    def export(self, pipe: str, **environment: str) -> Run:
        """Export a snapshot of the running VM into a pipe; $CURL begins it."""
        with self.session("production") as call:
            (vm,) = call("VM.get_by_name_label", "files")
            snapshot = call("VM.snapshot", vm, "bench")
            query = f"/export?session_id={call.session}&ref={snapshot}"
            run = self.shell(pipe, "production", query, **environment)
            self.destroy(call, snapshot)
        return run

    def backup_with_tools(self) -> Run:
        """Export the VM with stock tools, to a file."""
        return self.export(f"$CURL | zstd -q -T2 -1 | age -r {self.recipient} > tools.xva.zst.age")

    def write(self, vm: str, offset: int, length: int, seed: int) -> None:
        """Let the guest write random bytes on its first disk."""
        body = {"disk": 0, "offset": offset, "random": {"seed": seed, "bytes": length}}
        self.simulator.control("POST", f"/vms/production/{vm}/write", body)

    def forget(self) -> None:
        """Begin a new repository."""
        shutil.rmtree(self.folder / "repository", ignore_errors=True)

    def backup_with_module(self, vm: str = "files", **how: Any) -> Run:
        """Make a full restore point."""
        self.forget()
        return self.again_with_module(vm, **how)

    def again_with_module(self, vm: str = "files", **how: Any) -> Run:
        """Make a restore point, an incremental one where there is one before."""
        return self.module("xen_vm_export", {
            **self.connection("production"), "name": vm, "repository": str(self.folder / "repository"),
            "recipients": [self.recipient], "catalog_identities": [str(self.folder / "catalog.key")],
            "signing_key": str(self.folder / "signing.key"), **how})

    def restore_with_tools(self) -> Run:
        """Import what backup_with_tools wrote."""
        with self.session("recovery") as call:
            (sr,) = call("SR.get_by_name_label", "Storage")
            task = call("task.create", "bench", "")
            query = f"/import?session_id={call.session}&sr_id={sr}&task_id={task}"
            # importers refuse chunks and never say that they wait for a body
            upload = "$CURL --header Transfer-Encoding: --header Expect: -T -"
            run = self.shell(f"age -d -i data.key tools.xva.zst.age | zstd -q -d | {upload}", "recovery", query)
            self.settle(call, task)
        return run

    def restore_with_module(self) -> Run:
        """Restore the newest point of the VM."""
        run = self.module("xen_vm_restore", {
            **self.connection("recovery"), "vm": "files", "name": "restored", "repository": str(self.folder / "repository"),
            "identities": [str(self.folder / "data.key")], "allowed_signers": str(self.folder / "signers"), "sr": "Storage"})
        with self.session("recovery") as call:
            self.destroy(call, *call("VM.get_by_name_label", "restored"))
        return run

    def settle(self, call: Any, task: str) -> None:
        """See to it that an import went well, and take the VM away again."""
        for _wait in range(600):
            status = call("task.get_status", task)
            if status != "pending":
                break
            time.sleep(0.1)
        if status != "success":
            raise SystemExit(f"The import ended with {status}: {call('task.get_error_info', task)}")
        call("task.destroy", task)
        for vm in call("VM.get_by_name_label", "bench"):
            self.destroy(call, vm)

    @staticmethod
    def destroy(call: Any, vm: str) -> None:
        """Destroy a VM and its disks."""
        disks = [call("VBD.get_VDI", vbd) for vbd in call("VM.get_VBDs", vm)]
        call("VM.destroy", vm)
        for disk in disks:
            if disk != NULL:
                call("VDI.destroy", disk)
