# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup and restore of one VM, the collection's modules beside a pipe of stock tools, in one run on the same data.

Backup:  curl | zstd -T2 -1 | age      beside  xen_vm_export, the first time (full) and again (incremental)
Restore: age -d | zstd -d | curl -T -  beside  xen_vm_restore

Both sides talk to the same simulated pools over TLS and take turns. What counts of a module is its whole process, from
start to exit: snapshot, export, signing, fsync, clean-up. A MB is 10^6 bytes of disk that are not zero.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import ssl
import statistics
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from simulator_fixture import start_simulator  # noqa: E402

GIB = 1 << 30
MB = 10**6
SOURCES = ("/usr", sys.base_prefix)  # real files; taken again under another name until there are enough
NULL = "OpaqueRef:NULL"
EXTENT = 64 << 10
SCATTERED = 200


@dataclass(frozen=True)
class Run:
    """One process tree: wall clock and CPU in seconds, the largest process's resident memory in MiB, and what it said."""

    wall: float
    cpu: float
    memory: float
    output: bytes = b""


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end. SystemExit with what it said when it fails."""
    began = time.monotonic()
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _pid, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{output.decode(errors='replace')[-4000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def fill(folder: Path, wanted: int) -> None:
    """Copy real files until there are ``wanted`` bytes of them."""
    total = turn = 0
    while total < wanted:
        before = total
        for source in SOURCES:
            for place, folders, names in os.walk(source):
                folders.sort()
                for name in sorted(names):
                    path = Path(place, name)
                    if path.is_symlink() or not path.is_file():
                        continue
                    target = folder / f"{turn}{place}" / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                    total += path.stat().st_size
                    if total >= wanted:
                        return
        if total == before:
            raise SystemExit(f"There are no files in {', '.join(SOURCES)}.")
        turn += 1


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
            return {"release": "8.3", "users": {"root": {"password": "secret"}}, "hosts": [host], "networks": {"LAN": {}},
                    "srs": {"Storage": {"type": "ext", "size": "100GiB"}}, **more}
        disk = {"size": size.replace("M", "MiB"), "image": str(image)}
        small = {"size": "256MiB", "files": {"/data": {"random": {"seed": 1, "size": "100MiB"}}}}
        vms = {"files": {"disks": [disk]}, "small": {"disks": [small]}}
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

    def shell(self, pipe: str, pool: str, query: str) -> Run:
        """Run a pipe in which $CURL stands for curl, told by a file what to talk to."""
        config = self.folder / "curl.conf"
        config.touch(0o600)
        member = self.simulator.ready["pools"][pool]["members"][0]
        config.write_text(f'url = "{member}{query}"\ncacert = "{self.simulator.ready["ca"]}"\nsilent\nshow-error\nfail\n')
        script = f"set -euo pipefail; cd {shlex.quote(str(self.folder))}; {pipe}"
        return measure(["bash", "-c", script], {"CURL": "curl --config curl.conf"})

    def backup_with_tools(self) -> Run:
        """Export the running VM's snapshot with stock tools, to a file."""
        with self.session("production") as call:
            (vm,) = call("VM.get_by_name_label", "files")
            snapshot = call("VM.snapshot", vm, "bench")
            query = f"/export?session_id={call.session}&ref={snapshot}"
            run = self.shell(f"$CURL | zstd -q -T2 -1 | age -r {self.recipient} > tools.xva.zst.age", "production", query)
            self.destroy(call, snapshot)
        return run

    def backup_with_module(self, vm: str = "files", **how: str) -> Run:
        """Make a full restore point."""
        shutil.rmtree(self.folder / "repository", ignore_errors=True)
        return self.again_with_module(vm, **how)

    def again_with_module(self, vm: str = "files", **how: str) -> Run:
        """Make a restore point, an incremental one where there is one before."""
        return self.module("xen_vm_export", {
            **self.connection("production"), "name": vm, "repository": str(self.folder / "repository"),
            "recipients": [self.recipient], "catalog_identities": [str(self.folder / "catalog.key")],
            "signing_key": str(self.folder / "signing.key"), **how})

    def amplification(self) -> str:
        """What an incremental point stores for each byte that changed: nothing, then scattered writes of 64 KiB; a table."""
        chance = random.Random(SCATTERED)
        extents = self.folder.joinpath("disk.img").stat().st_size // EXTENT
        lines = [f"{'incremental':24}{'changed MB':>12}{'stored MB':>12}{'ratio':>8}{'wall s':>8}"]
        for writes in (0, SCATTERED):
            for number in chance.sample(range(extents), writes):
                body = {"disk": 0, "offset": number * EXTENT, "random": {"seed": number, "bytes": EXTENT}}
                self.simulator.control("POST", "/vms/production/files/write", body)
            run = self.again_with_module()
            point = json.loads(run.output)["point"]
            if point["kind"] != "incremental":
                raise SystemExit(f"The point is {point['kind']}: {point['reason']}")
            changed, stored = writes * EXTENT, point["stored_bytes"]
            ratio = f"{stored / changed:8.1f}" if changed else f"{'-':>8}"
            lines.append(f"{f'{writes} writes':24}{changed / MB:12.2f}{stored / MB:12.2f}{ratio}{run.wall:8.1f}")
        return "\n".join(lines)

    def downtimes(self) -> str:
        """How long the method offline keeps the guest down, for both VMs and both ways; a table."""
        lines = [f"{'offline':24}{'read MB':>10}{'seconds':>10}{'down s':>10}"]
        for downtime in ("snapshot", "backup"):
            for vm in ("small", "files"):
                run = self.backup_with_module(vm, method="offline", downtime=downtime)
                point = json.loads(run.output)["point"]
                figures = f"{point['read_bytes'] / MB:10.0f}{run.wall:10.1f}{point['down_seconds']:10.2f}"
                lines.append(f"{'downtime: ' + downtime:24}{figures}")
        return "\n".join(lines)

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
        """Restore the point that backup_with_module made."""
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


def written_bytes(image: Path) -> int:
    """Bytes of an image in MiB that are not all zero: what an export carries."""
    total, zero = 0, bytes(1 << 20)
    with image.open("rb") as file:
        while block := file.read(1 << 20):
            total += len(block) if block != zero[:len(block)] else 0
    return total


def report(size: int, results: dict[str, list[Run]], stored: dict[str, int]) -> str:
    """A table of medians, and the ratios of module to tools."""
    lines = [f"{size / MB:.0f} MB of file-system data, {os.cpu_count()} cores, {len(results['backup, tools'])} rounds, medians",
             f"{'':18}{'wall s':>8}{'MB/s':>8}{'CPU s':>8}{'MB/CPU-s':>10}{'peak MiB':>10}"]
    speed: dict[str, tuple[float, float]] = {}
    for name, runs in results.items():
        wall, cpu = (statistics.median(getattr(run, field) for run in runs) for field in ("wall", "cpu"))
        speed[name] = size / MB / wall, size / MB / cpu
        peak = max(run.memory for run in runs)
        lines.append(f"{name:18}{wall:8.1f}{speed[name][0]:8.0f}{cpu:8.1f}{speed[name][1]:10.0f}{peak:10.0f}")
    for verb, side in (("backup", "backup"), ("again", "backup"), ("restore", "restore")):
        tools, ours = speed[f"{side}, tools"], speed[f"{verb}, module"]
        lines.append(f"{verb}: module / tools = {ours[0] / tools[0]:.2f} in MB/s, {ours[1] / tools[1]:.2f} in MB per CPU-second")
    lines.append("stored: " + ", ".join(f"{name} {length / MB:.0f} MB" for name, length in stored.items()))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.1, help="file-system data, in GiB (default 2.1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".build/bench", help="where to work; needs about 5 times the data")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    bench = Bench(options.folder.resolve(), options.gib)
    results: dict[str, list[Run]] = {}
    try:
        for number in range(options.rounds):
            for verb, sides in (("backup", ("tools", "module")), ("again", ("module",)), ("restore", ("tools", "module"))):
                for side in sides:
                    run = getattr(bench, f"{verb}_with_{side}")()
                    results.setdefault(f"{verb}, {side}", []).append(run)
                    said = f"{run.wall:.1f} s, CPU {run.cpu:.1f} s, {run.memory:.0f} MiB"
                    print(f"round {number + 1}: {verb}, {side}: {said}", flush=True)
        files = {"tools": [bench.folder / "tools.xva.zst.age"], "module": bench.folder.glob("repository/vm/*/*/*-000001-*")}
        stored = {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}
        tables = (bench.amplification(), bench.downtimes())
    finally:
        bench.simulator.stop()
    print(*tables, sep="\n\n", end="\n\n")
    print(report(written_bytes(bench.folder / "disk.img"), results, stored))
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
