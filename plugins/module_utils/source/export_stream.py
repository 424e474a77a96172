# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Blocks of a VM as XAPI's ``/export`` handler sends them: everything that is not zero, in one HTTP stream."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from ..xapi.client import PoolClient
from ..xapi.transfers import Export, export_vm
from ..xva.ova import Ova
from ..xva.reader import Block, XvaReader, gapless


class ExportStream:
    """An export under way: ``ova`` is its description; ``blocks()`` may be walked once and is checked to the end.

    ``checksum_kind``: that of the last block that came.
    """

    def __init__(self, transfer: Export, reader: XvaReader) -> None:
        self._transfer = transfer
        self._reader = reader
        self.ova: Ova = reader.ova
        self.checksum_kind = "sha1"

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; the last one is followed by the check that every disk is complete.

        A block's own checksum is not verified here but by the worker that takes it (it costs a core).
        When all blocks came, the task is awaited: only its status says that the export is whole.
        """
        for block in gapless(self.ova.disks, self._reader.blocks()):
            self.checksum_kind = block.checksum_kind
            yield block
        self._transfer.finish()


@contextmanager
def open_export(
    client: PoolClient, ref: str, stall_timeout: float, subject: str, memory: bool = False
) -> Iterator[ExportStream]:
    """Export the halted VM or snapshot ``ref`` uncompressed (the mover compresses, on all its cores).

    ``memory``: a suspended one with its memory, so that it is suspended again where it is imported.
    """
    with export_vm(
        client, ref, stall_timeout=stall_timeout, subject="VM %s" % subject, preserve_power_state=memory
    ) as transfer:
        yield ExportStream(transfer, XvaReader(transfer, verify=False))
