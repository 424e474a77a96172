# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chapter of the demonstration: incremental points over a full one, pruned, and the middle one restored."""
from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from stage import DEMO, Simulator, digests, disks_of, lose, play, title, write_file

VMS = {"web01": "cbt", "db01": "digest"}
NETWORKS = {"Storage": "Recovery LAN"}
_POINT = re.compile(r"^ *(\w+) +new point +(\S+)", re.MULTILINE)


@dataclass
class Chapter:
    """Where the points go: ``protect`` and ``where``, arguments of ansible-playbook; ``place``, in words."""

    simulator: Simulator
    place: str
    protect: list[str]
    where: list[str]

    def back_up(self, kinds: dict[str, str]) -> dict[str, str]:
        """Back the VMs up; each point has to be made as ``kinds`` says. Return the points' names."""
        output = play(self.production, *self.protect, "-e", "guestark_group=tag_gold", "-e", "guestark_max_age=0s")
        for name, kind in kinds.items():
            if not re.search(rf"{name} +new point .*{kind}, ", output):
                raise SystemExit(f"The point of {name} is not {kind}.")
        return dict(_POINT.findall(output))

    @property
    def production(self) -> dict[str, Any]:
        """The pool that is protected."""
        return dict(self.simulator.ready["pools"]["production"])

    def write(self, path: str, content: bytes) -> None:
        """Let the guests write a file."""
        for name in VMS:
            write_file(self.simulator, name, path, content)

    def show(self, full: bool) -> None:
        """The chapter; with ``full``, there is no point yet."""
        names = " and ".join(VMS)
        if full:
            title(f"{names}, into {self.place}: full points")
            self.back_up(dict.fromkeys(VMS, "full"))
        layered = {name: f"incremental by {how}" for name, how in VMS.items()}
        title(f"{names}, into {self.place}: their guests write 3 MiB each; the points hold what changed")
        self.write("/middle", random.Random(self.place).randbytes(3 << 20))
        middle = {name: digests(self.simulator, "production", name) for name in VMS}
        points = self.back_up(layered)
        title("They write again; the points are layers over layers")
        self.write("/late", f"after the middle point, {self.place}\n".encode())
        self.back_up(layered)
        title("The full points are pruned: what younger points need of them stays")
        rules = {"guestark_retention": {"keep_last": 2}, "retention_min_age": "0s", "retention_grace": "0s"}
        pruned = play(self.production, "guestark.xen.retention", *self.where, "-e", json.dumps(rules))
        if " 0 were removed" in pruned:
            raise SystemExit("Nothing was pruned.")
        title("The middle points are restored, and compared with what the disks held then")
        for name in VMS:
            self.restore(name, points[name], middle[name])

    def restore(self, name: str, point: str, expected: list[str]) -> None:
        """Restore a point to the recovery pool, compare its disks, and remove the VM again."""
        recovery = self.simulator.ready["pools"]["recovery"]
        wish = {"restore_vm": name, "restore_point": point, "restore_name": f"{name}-middle", "restore_networks": NETWORKS,
                "restore_pool_members": recovery["members"], "guestark_identities": [str(DEMO / "keys/data.key")]}
        play(recovery, "guestark.xen.restore", *self.where, "-e", json.dumps(wish))
        if digests(self.simulator, "recovery", f"{name}-middle") != expected:
            raise SystemExit(f"The middle point of {name} is not what its disks held.")
        count = len(disks_of(self.simulator, "recovery", f"{name}-middle"))
        print(f"{name}: point {point} gave back {count} disk{'s' * (count > 1)}, equal byte for byte.")
        lose(self.simulator, "recovery", f"{name}-middle")
