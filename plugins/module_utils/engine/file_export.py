# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Exports one VM to a plain file: .xva, .xva.zst or .xva.zst.age."""
from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, Iterator, Sequence

from ..age.stream import AgeWriter
from ..repository.units import encode_end, encode_ova
from ..source.export_stream import ExportStream, open_export
from ..xapi.client import PoolClient
from ..xva.reader import Block
from ..xva.writer import BLOCK, END, block_unit, ova_unit
from .archive import check_block
from .backup import BackupOrder
from .blocks import all_blocks
from .capture import source_of
from .description import canonical_labels, description_of
from .errors import EngineError, naming
from .pipeline import ordered
from .progress import Progress

PLAIN, COMPRESSED, ENCRYPTED = ".xva", ".xva.zst", ".xva.zst.age"


def format_of(path: str) -> str:
    """Which of the three formats a file's name stands for. Raises EngineError."""
    for ending in (PLAIN, COMPRESSED, ENCRYPTED):
        if path.endswith(ending):
            return ending
    raise EngineError(
        "%s does not tell the format by its name." % path,
        "Let it end in %s, %s or %s." % (PLAIN, COMPRESSED, ENCRYPTED),
    )


def export_file(
    client: PoolClient, path: str, recipients: Sequence[Any], order: BackupOrder, progress: Progress
) -> list[str]:
    """Export a VM to a file that appears only when it is complete; return warnings. Raises EngineError."""
    ending, warnings = format_of(path), []  # type: ignore[var-annotated]
    if ending == ENCRYPTED and not recipients:
        raise EngineError("%s is to be encrypted, but to nobody." % path, "Give recipients.")
    vm = order.subject.vm
    with naming("export", vm["name_label"]), ExitStack() as stack:
        sink = stack.enter_context(_appearing(path))
        source = stack.enter_context(source_of(client, order.subject, "file", progress, warnings))
        opened = open_export(client, source.ref, order.stall_timeout, vm["name_label"], source.memory)
        stream = stack.enter_context(opened)
        progress.phase("export")
        out: Any = AgeWriter(sink, recipients) if ending == ENCRYPTED else sink
        for data in _plain(stream, vm, progress) if ending == PLAIN else _compressed(stream, vm, progress):
            out.write(data)
        if ending == ENCRYPTED:
            out.close()
    return warnings + (["Degraded: %s" % source.moment.degraded] if source.moment.degraded else [])


def _compressed(stream: ExportStream, vm: dict[str, Any], progress: Progress) -> Iterator[bytes]:
    labels = canonical_labels(stream.ova)
    yield encode_ova(description_of(stream.ova, labels, vm))
    for out in all_blocks(stream, labels, progress):
        yield out.unit.frame
    yield encode_end()


def _plain(stream: ExportStream, vm: dict[str, Any], progress: Progress) -> Iterator[bytes]:
    labels = canonical_labels(stream.ova)

    def unit_of(block: Block) -> bytes:
        check_block(block)
        return block_unit(labels[block.label], block.offset // BLOCK, block.data, block.checksum_kind, block.checksum)

    yield ova_unit(description_of(stream.ova, labels, vm))
    yield from ordered(stream.blocks(), unit_of)
    yield END


@contextmanager
def _appearing(path: str) -> Iterator[BinaryIO]:
    """A file that has its name only when the block ended well and its bytes are on the disk."""
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=".guestark-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb", buffering=BLOCK) as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
