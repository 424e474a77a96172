# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Saved memory of a VM that is to be restored: whether a pool's hosts could resume it, and doing without it.

Facts from xen-api: ocaml/xapi/cpuid_helpers.ml (a host's features must hold those the VM was booted with).
"""
from __future__ import annotations

import re
from typing import Any, Mapping

from ..xapi.client import PoolClient
from ..xva.ova import Ova
from ..xva.writer import BLOCK
from .errors import EngineError


def check_resumable(client: PoolClient, ova: Ova, name: str) -> None:
    """Raise EngineError when no host of the pool could resume the VM: its release or its CPU is older or other."""
    flags = ova.vm.get("last_boot_CPU_flags") or {}
    reasons = []
    for host in client.call("host.get_all_records").values():
        reason = _unfit(host, ova.product_version, flags)
        if not reason:
            return
        reasons.append("%s %s" % (host["name_label"], reason))
    raise EngineError(
        "Could not restore VM %r with its memory: no host of the pool can resume it: %s." % (name, "; ".join(reasons)),
        "Restore it without its memory (memory: discard), or to a pool with such hosts.",
    )


def discard(ova: Ova, name: str) -> None:
    """Make the archive one of a VM that is switched off. Raises EngineError where importers would misplace its blocks."""
    ova.forget_memory()
    sizes = [disk.virtual_size for disk in ova.disks if disk.virtual_size]
    if sizes and sizes[0] < BLOCK < max(sizes):
        raise EngineError(
            "Could not restore VM %r without its memory: its first disk is smaller than 1 MiB, and importers take the "
            "length of the first block for that of all." % name, "Restore it with its memory.",
        )


def _unfit(host: Mapping[str, Any], version: str, flags: Mapping[str, Any]) -> str:
    if not host["enabled"]:
        return "is disabled"
    ours = host["software_version"].get("product_version", "")
    if version and ours and _numbers(ours) < _numbers(version):
        return "runs release %s, older than %s" % (ours, version)
    info = host["cpu_info"]
    vendor, features = flags.get("vendor", ""), flags.get("features", "")
    if vendor and info.get("vendor") and info["vendor"] != vendor:
        return "has a CPU of %s, not %s" % (info["vendor"], vendor)
    offered = info.get("features_hvm") or info.get("features", "")
    if features and offered and not _holds(offered, features):
        return "lacks features of the CPU it was booted on"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall("[0-9]+", version)[:2]]


def _holds(offered: str, wanted: str) -> bool:
    """Whether a set of CPU features, words of hexadecimal digits joined by dashes, holds another one."""
    try:
        ours, theirs = ([int(word, 16) for word in text.split("-")] for text in (offered, wanted))
    except ValueError:
        return True  # a form we do not know; the host will tell
    return all(word & ~(ours[place] if place < len(ours) else 0) == 0 for place, word in enumerate(theirs))
