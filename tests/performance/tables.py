# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured beside the rounds of backup and restore; every function returns a table as text."""
from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from measure import Run
from pools import GIB, LARGE, MB, MIB, Bench

EXTENT = 64 << 10
SCATTERED = 200
TURNS = 3
LAYERS = 30


def point_of(run: Run, kind: str = "incremental") -> dict[str, Any]:
    """The point that a run made; it has to be of that kind."""
    point: dict[str, Any] = json.loads(run.output)["point"]
    if point["kind"] != kind:
        raise SystemExit(f"The point is {point['kind']}: {point.get('reason')}")
    return point


def size_of(path: Path) -> int:
    """Bytes that a file or a folder takes."""
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


def second_backups(bench: Bench, size: int) -> str:
    """A backup when nothing or 1 % changed since the last one, by the module and by others; they take turns."""
    folder = bench.folder
    password = folder / "password"
    password.touch(0o600)
    password.write_text("of this run alone")
    secret = {"RESTIC_PASSWORD_FILE": str(password), "RESTIC_REPOSITORY": str(folder / "restic"),
              "RESTIC_CACHE_DIR": str(folder / "cache"), "BORG_PASSCOMMAND": f"cat {password}",
              "BORG_REPO": str(folder / "borg"), "BORG_BASE_DIR": str(folder / "cache")}
    ways: dict[str, Any] = {
        "curl, zstd, age": lambda _name: bench.backup_with_tools(),
        "module, by digest": lambda _name: bench.again_with_module(),
    }
    if shutil.which("restic"):
        bench.shell("restic init --quiet", "production", "", **secret)
        ways["restic backup --stdin"] = lambda _name: bench.export("$CURL | restic backup --quiet --stdin", **secret)
    if shutil.which("borg"):
        bench.shell("borg init --encryption repokey-blake2", "production", "", **secret)
        ways["borg create -"] = lambda name: bench.export(f"$CURL | borg create --compression zstd,1 ::{name} -", **secret)
    stored = {"curl, zstd, age": folder / "tools.xva.zst.age", "module, by digest": folder / "repository",
              "restic backup --stdin": folder / "restic", "borg create -": folder / "borg"}
    lines = [f"{'second backup':26}{'changed MB':>12}{'wall s':>8}{'MB/s':>8}{'x tools':>9}{'CPU s':>8}{'stored MB':>11}"
             f"{'peak MiB':>10}"]
    bench.forget()
    for name, way in ways.items():
        way(f"first-{name[:4]}")
    chance = random.Random(1)
    for percent in (0, 1):
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        grown = dict.fromkeys(ways, 0)
        changed = size * percent // 100 // MIB
        for turn in range(TURNS):
            for number in chance.sample(range(size // MIB), changed):
                bench.write("files", number * MIB, MIB, turn * 10**6 + number)
            for name, way in ways.items():
                before = size_of(stored[name]) if name != "curl, zstd, age" else 0
                runs[name].append(way(f"p{percent}-{turn}"))
                grown[name] = size_of(stored[name]) - before
        tools = min(run.wall for run in runs["curl, zstd, age"])
        for name, found in runs.items():
            best = min(found, key=lambda run: run.wall)
            peak = max(run.memory for run in found)
            lines.append(f"{name:26}{changed * MIB / MB:12.0f}{best.wall:8.1f}{size / MB / best.wall:8.0f}"
                         f"{tools / best.wall:9.2f}{best.cpu:8.1f}{grown[name] / MB:11.2f}{peak:10.0f}")
    missing = [name for name, tool in (("restic", "restic"), ("borg", "borg")) if not shutil.which(tool)]
    return "\n".join([*lines, *(f"{name} is not installed" for name in missing)])


def tracked(bench: Bench) -> str:
    """Incremental points by changed block tracking of a large disk, of which ever more changed."""
    lines = [f"{f'tracked, disk of {LARGE}':26}{'changed MB':>12}{'wall s':>8}{'read MB':>9}{'stored MB':>11}"
             f"{'stored/changed':>16}{'peak MiB':>10}"]
    blocks = int(LARGE.removesuffix("GiB")) * GIB // MIB
    chance = random.Random(2)
    bench.backup_with_module("large", change_tracking=True)
    for permille in (0, 1, 10, 100):
        changed = blocks * permille // 1000
        for number in chance.sample(range(blocks), changed):
            bench.write("large", number * MIB, MIB, permille * 10**6 + number)
        run = bench.again_with_module("large", change_tracking=True)
        point = point_of(run)
        if point["changes_by"] != "cbt":
            raise SystemExit(f"It was not tracked: {point['changes_reason']}")
        ratio = f"{point['stored_bytes'] / (changed * MIB):16.2f}" if changed else f"{'-':>16}"
        read, stored = point["read_bytes"] / MB, point["stored_bytes"] / MB
        lines.append(f"{f'{permille / 10:g} % changed':26}{changed * MIB / MB:12.0f}{run.wall:8.1f}{read:9.0f}{stored:11.1f}"
                     f"{ratio}{run.memory:10.0f}")
    return "\n".join(lines)


def amplification(bench: Bench) -> str:
    """What an incremental point stores for each byte that changed: nothing, then scattered writes of 64 KiB."""
    lines = [f"{'scattered writes':26}{'changed MB':>12}{'stored MB':>11}{'ratio':>8}{'wall s':>8}"]
    chance = random.Random(SCATTERED)
    extents = bench.folder.joinpath("disk.img").stat().st_size // EXTENT
    bench.backup_with_module(change_tracking=True)
    for how in ("digest", "cbt"):
        for writes in (0, SCATTERED):
            for number in chance.sample(range(extents), writes):
                bench.write("files", number * EXTENT, EXTENT, number)
            run = bench.again_with_module(change_tracking=how == "cbt")
            point = point_of(run)
            changed, stored = writes * EXTENT, point["stored_bytes"]
            ratio = f"{stored / changed:8.1f}" if changed else f"{'-':>8}"
            name = f"{writes} by {point['changes_by']}"
            lines.append(f"{name:26}{changed / MB:12.2f}{stored / MB:11.2f}{ratio}{run.wall:8.1f}")
        bench.again_with_module(change_tracking=True)  # so that there is a log of the newest point
    return "\n".join(lines)


def deep_chains(bench: Bench) -> str:
    """The restore of a point of many layers beside that of a full one with the same content."""
    lines = [f"{'restore':26}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}"]
    chance = random.Random(3)
    blocks = bench.folder.joinpath("disk.img").stat().st_size // MIB
    bench.backup_with_module(change_tracking=True)
    for layer in range(LAYERS - 1):
        for number in chance.sample(range(blocks), 16):
            bench.write("files", number * MIB, MIB, layer * 10**6 + number)
        point_of(bench.again_with_module(change_tracking=True))
    layered = [bench.restore_with_module() for _turn in range(TURNS)]
    bench.backup_with_module()
    full = [bench.restore_with_module() for _turn in range(TURNS)]
    for name, runs in ((f"{LAYERS} layers", layered), ("full", full)):
        best = min(runs, key=lambda run: run.wall)
        lines.append(f"{name:26}{best.wall:8.1f}{best.cpu:8.1f}{max(run.memory for run in runs):10.0f}")
    return "\n".join(lines)


def fixed_cost(bench: Bench) -> str:
    """An incremental point of a small VM in which nothing changed: the time of its module and the calls of the pool."""
    lines = [f"{'small, unchanged':26}{'wall s':>8}{'to commit s':>13}{'calls':>8}"]
    for how in ("digest", "cbt"):
        for _step in range(2):
            bench.again_with_module("small", change_tracking=how == "cbt")
        before = sum(bench.simulator.control("GET", "/calls")["production"].values())
        run = bench.again_with_module("small", change_tracking=how == "cbt")
        calls = sum(bench.simulator.control("GET", "/calls")["production"].values()) - before
        lines.append(f"{how:26}{run.wall:8.2f}{point_of(run)['seconds']:13.2f}{calls:8}")
    return "\n".join(lines)


def downtimes(bench: Bench) -> str:
    """How long the method offline keeps the guest down, for both VMs and both ways."""
    lines = [f"{'offline':26}{'read MB':>10}{'seconds':>10}{'down s':>10}"]
    for downtime in ("snapshot", "backup"):
        for vm in ("small", "files"):
            run = bench.backup_with_module(vm, method="offline", downtime=downtime)
            point = point_of(run, "full")
            figures = f"{point['read_bytes'] / MB:10.0f}{run.wall:10.1f}{point['down_seconds']:10.2f}"
            lines.append(f"{'downtime: ' + downtime:26}{figures}")
    return "\n".join(lines)
