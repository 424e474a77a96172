# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What changed on a snapshot's disks since an earlier one, as the storage tracked it, and where to read it."""
from __future__ import annotations

import io
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Iterator, Mapping

from ..xapi.client import PoolClient
from ..xapi.errors import NotFound
from ..xapi.tracking import changed_since, nbd_info
from ..xapi.transfers import export_description
from ..xva.ova import Ova
from ..xva.reader import XvaReader
from .nbd import DiskReader, NbdExport

_NOT_ZERO = re.compile(rb"[^\0]")


@dataclass(frozen=True)
class TrackedDisk:
    """A disk of a snapshot: a bit for each 64 KiB that may have changed, and a reader of its content."""

    bitmap: bytes
    reader: DiskReader

    def touched(self) -> list[int]:
        """Offsets, in MiB and ascending, of the blocks in which anything may have changed."""
        return sorted({found.start() // 2 for found in _NOT_ZERO.finditer(self.bitmap)})  # two bytes are 1 MiB


@dataclass
class TrackedSource:
    """A snapshot's description and, by label in it, its disks."""

    ova: Ova
    disks: dict[str, TrackedDisk] = field(default_factory=dict)


@contextmanager
def open_tracked(
    client: PoolClient, ref: str, disks: Mapping[str, str], earlier: Mapping[str, str], stall_timeout: float, subject: str
) -> Iterator[TrackedSource]:
    """Open the snapshot ``ref``. ``disks``: UUID of each of its disks -> ref; ``earlier``: UUID of each -> UUID of that
    disk in the earlier snapshot.

    Everything that can be known to fail does so here. Raises PoolError.
    """
    archive = export_description(client, ref, stall_timeout, "VM %s" % subject)
    source = TrackedSource(XvaReader(io.BytesIO(archive), verify=False).ova)
    with ExitStack() as stack:
        for disk in source.ova.disks:
            if disk.vdi_uuid not in earlier:
                raise NotFound("Disk %s is not in the earlier restore point." % disk.name_label)
            vdi = disks[disk.vdi_uuid]
            bitmap = changed_since(client, earlier[disk.vdi_uuid], vdi, disk.virtual_size)
            exports = [
                NbdExport(one["address"], int(one["port"]), one["exportname"], one["cert"], one["subject"])
                for one in nbd_info(client, vdi)
            ]
            reader = stack.enter_context(DiskReader(exports, disk.virtual_size, stall_timeout, client.pace))
            source.disks[disk.label] = TrackedDisk(bitmap, reader)
        yield source
