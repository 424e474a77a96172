# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup and restore of VMs, the collection's modules beside stock tools, restic and borg, in one run on the same data.

Backup:  curl | zstd -T2 -1 | age      beside  xen_vm_export, the first time (full) and again (incremental)
Restore: age -d | zstd -d | curl -T -  beside  xen_vm_restore

All talk to the same simulated pools over TLS and take turns. What counts of a module is its whole process, from start to
exit: snapshot, export, signing, fsync, clean-up. A MB is 10^6 bytes of disk that are not zero.
"""
from __future__ import annotations

import argparse
import os
import shutil
import statistics
from pathlib import Path

import tables
from measure import Run, written_bytes
from pools import MB, ROOT, Bench


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


def rounds(bench: Bench, count: int) -> tuple[dict[str, list[Run]], dict[str, int]]:
    """Back up and restore by turns; what ran, and what the full backups take."""
    results: dict[str, list[Run]] = {}
    for number in range(count):
        for verb, sides in (("backup", ("tools", "module")), ("again", ("module",)), ("restore", ("tools", "module"))):
            for side in sides:
                run = getattr(bench, f"{verb}_with_{side}")()
                results.setdefault(f"{verb}, {side}", []).append(run)
                said = f"{run.wall:.1f} s, CPU {run.cpu:.1f} s, {run.memory:.0f} MiB"
                print(f"round {number + 1}: {verb}, {side}: {said}", flush=True)
    files = {"tools": [bench.folder / "tools.xva.zst.age"], "module": bench.folder.glob("repository/vm/*/*/*-000001-*")}
    return results, {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.1, help="file-system data, in GiB (default 2.1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".build/bench", help="where to work; needs about 8 times the data")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    bench = Bench(options.folder.resolve(), options.gib)
    size = written_bytes(bench.folder / "disk.img")
    try:
        results, stored = rounds(bench, options.rounds)
        print("\n" + report(size, results, stored), flush=True)
        print("\n" + tables.second_backups(bench, size), flush=True)
        for table in (tables.tracked, tables.amplification, tables.deep_chains, tables.fixed_cost, tables.downtimes):
            print("\n" + table(bench), flush=True)
    finally:
        bench.simulator.stop()
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
