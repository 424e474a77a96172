# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /export_raw_vdi and PUT /import_raw_vdi: one disk as raw bytes, VHD or checksummed tar."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from contextlib import ExitStack

from . import space
from .api import Context, Request, handler
from .attach import attached, choose_host, sees
from .errors import ApiError
from .exchange import Exchange
from .objects import create_vdi
from .storage import Disk, Target
from .tasks import TaskHandle
from .vhd import BLOCK, MAX_SIZE, Parent, VhdError, VhdReader, write_vhd
from .wire import Progress, Wire
from .xva_in import DiskReceiver, PrematureEof, Source
from .xva_out import CHUNK, ZEROS, XvaWriter

CONTENT_TYPES = {"raw": "application/octet-stream", "vhd": "application/vhd", "tar": "application/x-tar"}
TAR_FOLDER = "vdi"
_RECORD = struct.Struct("<QI")


@handler("GET", "/export_raw_vdi")
def export_raw(req: Request, ctx: Context) -> None:
    """Send one disk. The headers go out before the disk is attached: errors come behind a 200."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VDI.export_raw", "http/get_export_raw_vdi")
    vdi = exchange.vdi("vdi")
    sr = ctx.db.field("VDI", vdi, "SR")
    if not sees(ctx.pool, ctx.host, [sr]):
        exchange.redirect(choose_host(ctx.pool, [sr]))
        return
    with exchange.task("Exporting raw VDI") as task:
        form = exchange.param("format", "raw").lower()
        if form not in CONTENT_TYPES:
            task.fail(ApiError("INTERNAL_ERROR", f"Unknown format {form}"))
            exchange.head("1.0", 404)
            return
        record = ctx.db.get("VDI", vdi)
        exchange.fault("export_raw_vdi", vdi=record["uuid"])
        wire = exchange.answer("1.1", CONTENT_TYPES[form], f"{record['uuid']}.{form}", task)
        if form == "vhd" and record["virtual_size"] > MAX_SIZE:
            raise ApiError("VDI_TOO_LARGE", vdi, str(MAX_SIZE))
        _send(exchange, vdi, form, wire, task)
        wire.end()


def _send(exchange: Exchange, vdi: str, form: str, wire: Wire, task: TaskHandle) -> None:
    ctx = exchange.ctx
    with ExitStack() as stack:
        disk = stack.enter_context(attached(ctx.pool, ctx.host, vdi, "RO"))
        progress = Progress(task, disk.size)
        base = exchange.vdi("base") if exchange.param("base") and form != "tar" else None
        extents: Iterable[tuple[int, int]] = disk.data_extents()
        if base is not None:
            stack.enter_context(attached(ctx.pool, ctx.host, base, "RO"))
            extents = ctx.pool.storage.changed(ctx.db.field("VDI", base, "uuid"), ctx.db.field("VDI", vdi, "uuid"))
        if form == "raw":
            _send_raw(wire, disk, extents, progress)
        elif form == "vhd":
            write_vhd(wire.write, disk, extents, None if base is None else _parent(ctx, base))
        else:
            writer = XvaWriter(wire.write, exchange.style(), progress)
            writer.disk(TAR_FOLDER, disk)
            writer.end()


def _parent(ctx: Context, base: str) -> Parent:
    """What the storage's own file of the base would be called; its id is not that of any exported file."""
    record = ctx.db.get("VDI", base)
    path = f"/run/sr-mount/{ctx.db.field('SR', record['SR'], 'uuid')}/{record['uuid']}.vhd"
    return Parent(uuid.uuid5(uuid.NAMESPACE_OID, record["uuid"]).bytes, path)


def _send_raw(wire: Wire, disk: Disk, extents: Iterable[tuple[int, int]], progress: Progress) -> None:
    """Send the whole disk; outside the extents zeros, even where a base holds other data."""
    buffer = memoryview(bytearray(CHUNK))
    position = 0

    def zeros(end: int) -> None:
        nonlocal position
        while position < end:
            wire.write(memoryview(ZEROS)[:end - position])
            position = min(end, position + CHUNK)
            progress(position)

    for start, length in extents:
        zeros(start)
        while position < start + length:
            view = buffer[:start + length - position]
            disk.read_into(position, view)
            wire.write(view)
            position += len(view)
            progress(position)
    zeros(disk.size)


@handler("PUT", "/import_raw_vdi")
def import_raw(req: Request, ctx: Context) -> None:
    """Receive the content of one disk. The 200 comes before the first byte is read."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VDI.import", "http/put_import_raw_vdi")
    vdi = exchange.vdi("vdi") if exchange.param("vdi") else None
    sr = ctx.db.field("VDI", vdi, "SR") if vdi else exchange.sr()
    if sr is None:
        exchange.fail_task(ApiError("VDI_MISSING"))
        exchange.head("1.1", 400)
        return
    if not sees(ctx.pool, ctx.host, [sr]):
        try:
            exchange.redirect(choose_host(ctx.pool, [sr]))
        except ApiError as error:
            exchange.fail_task(error)
            exchange.head("1.1", 400)
            raise
        return
    with exchange.task("Importing raw VDI") as task:
        _receive(exchange, vdi, sr, task)


def _receive(exchange: Exchange, vdi: str | None, sr: str, task: TaskHandle) -> None:
    ctx = exchange.ctx
    form = exchange.param("format", "raw").lower()
    problem, status = _objection(exchange, form, vdi)
    if problem:
        task.fail(ApiError("INTERNAL_ERROR", problem))
        exchange.head("1.0", status)
        return
    length = exchange.length()
    if vdi is None:
        vdi = create_vdi(ctx, {"name_label": "Imported VDI", "SR": sr, "virtual_size": length, "type": "user"})
    fault = exchange.fault("import_raw_vdi", vdi=ctx.db.field("VDI", vdi, "uuid"))
    wire = exchange.answer("1.1", "application/octet-stream", None, task)
    with attached(ctx.pool, ctx.host, vdi, "RW") as disk:
        if form != "raw" and not _zeroed(ctx, vdi):
            raise ApiError("VDI_IO_ERROR", "Device I/O errors")
        target = space.MeteredDisk(disk, space.budget(ctx.pool, sr, _limit(fault)))
        progress = Progress(task, length or disk.size)
        if form == "tar":
            DiskReceiver(Source(wire), False, progress).receive_one(TAR_FOLDER, disk.size, target)
        else:
            _fill_disk(exchange, wire, form, target, disk.size if length is None else length, progress)
    wire.end()
    space.refresh(ctx.pool, sr)
    task.result(vdi)


def _objection(exchange: Exchange, form: str, vdi: str | None) -> tuple[str, int]:
    """Why an upload is refused before its body, and with which status; ("", 0) when it is not."""
    if form not in CONTENT_TYPES:
        return f"Unknown format {form}", 404
    if form != "raw" and exchange.has("chunked"):
        return "Cannot handle chunked VHD", 404
    if exchange.header("transfer-encoding"):
        return f"Cannot handle encoding: {exchange.header('transfer-encoding')}", 404
    if vdi is None and form == "vhd":
        return "Importing a VHD directly into an SR not yet supported", 400
    if vdi is None and (form != "raw" or exchange.length() is None):
        return "Not enough info supplied to import", 400
    return "", 0


def _zeroed(ctx: Context, vdi: str) -> bool:
    """Whether a new disk there is known to be zeros: not so on LVM without VHD, nor on thick EqualLogic volumes."""
    record = ctx.db.get("VDI", vdi)
    sr = ctx.db.get("SR", record["SR"])
    if sr["type"] in ("lvm", "lvmoiscsi", "lvmohba"):
        return sr["sm_config"].get("use_vhd") == "true" and record["sm_config"].get("type") != "raw"
    return not (sr["type"] == "equal" and sr["sm_config"].get("allocation") == "thick")


def _limit(fault: dict[str, object]) -> int | None:
    limit = fault.get("sr_full")
    return 0 if limit is True else limit  # type: ignore[return-value]


def _fill_disk(exchange: Exchange, wire: Wire, form: str, target: Target, length: int, progress: Progress) -> None:
    """Raw, in the private framing or not, and VHD; whatever goes wrong is a device error, as from XAPI's helper."""
    source = Source(wire)
    try:
        if form == "vhd":
            VhdReader(source.fill, target).receive(exchange.length())
        elif exchange.has("chunked"):
            _receive_records(source, target)
        else:
            _receive_span(source, target, 0, length, progress)
    except (PrematureEof, VhdError, OSError, ValueError) as error:
        raise ApiError("VDI_IO_ERROR", "Device I/O errors") from error


def _receive_records(source: Source, target: Target) -> None:
    """Little-endian u64 offset, u32 length, data; a record of zeros ends it."""
    while True:
        offset, length = _RECORD.unpack(source.read(_RECORD.size))
        if offset == length == 0:
            return
        _receive_span(source, target, offset, length)


def _receive_span(source: Source, target: Target, offset: int, length: int, progress: Progress | None = None) -> None:
    buffer = memoryview(bytearray(min(BLOCK, length)))
    end = offset + length
    while offset < end:
        view = buffer[:end - offset]
        source.fill(view)
        target.pwrite(offset, view)
        offset += len(view)
        if progress:
            progress(offset)
