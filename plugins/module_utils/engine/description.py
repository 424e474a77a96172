# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""The description of a VM in archives that the engine writes."""
from __future__ import annotations

from typing import Any

from ..xapi.snapshots import PREFIX
from ..xva.ova import Ova

FIRST_LABEL = 1001  # labels of equal width: their byte order, which importers demand, is then their numeric order
READABLE_BY_ALL = (1, 20)  # archives of this version are imported by every release
# what a snapshot's record lacks of the VM's
LOST_IN_SNAPSHOTS = (
    "uuid", "name_label", "name_description", "blocked_operations", "order", "start_delay", "shutdown_delay",
    "ha_restart_priority",
)


def canonical_labels(ova: Ova) -> dict[str, str]:
    """Map the disks' labels, in the order of the stream, to ``Ref:1001``, ``Ref:1002``, ..."""
    return {disk.label: "Ref:%d" % (FIRST_LABEL + position) for position, disk in enumerate(ova.disks)}


def description_of(exported: Ova, labels: dict[str, str], vm: dict[str, Any]) -> bytes:
    """The archive's ``ova.xml``: a VM again, not the snapshot that was exported, and one that every release imports.

    ``vm``: the record of the VM itself.
    """
    ova = exported.canonical(labels)
    ova.set_vm(is_a_template=False, **{name: vm[name] for name in LOST_IN_SNAPSHOTS if name in vm})
    config = ova.vm.get("other_config")
    if isinstance(config, dict):  # our marks and notes are about this pool and this run
        ova.vm["other_config"] = {name: value for name, value in config.items() if not name.startswith(PREFIX)}
    ova.set_version(*READABLE_BY_ALL)
    return ova.to_bytes()
