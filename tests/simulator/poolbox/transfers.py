# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /export and PUT /import: whole VMs as XVA archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from xml.etree import ElementTree

from . import space
from .api import Context, Request, handler
from .attach import attached, choose_host, sees, vm_srs
from .errors import ApiError
from .exchange import CLOSING_SECONDS, Exchange, vm_locked
from .ova_in import Importer, Options, open_document, streamed_disks
from .ova_out import Selection, make_ova
from .ova_out import streamed_disks as disks_to_send
from .tasks import TaskHandle
from .wire import Packer, Progress, Wire
from .xmlvalue import from_element
from .xva_in import Archive, DiskReceiver
from .xva_out import XvaWriter

END_BYTES = 1024
COMPRESSION = {"true": "gzip", "gzip": "gzip", "zstd": "zstd"}


@handler("GET", "/export")
def export(req: Request, ctx: Context) -> None:
    """Send one VM. HTTP/1.0, no length: only the task and the archive's end tell whether it is whole."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VM.export", "http/get_export")
    vm = exchange.vm()
    srs = vm_srs(ctx.pool, vm) if ctx.db.exists("VM", vm) else {vm}
    if not sees(ctx.pool, ctx.host, srs):
        try:
            exchange.redirect(choose_host(ctx.pool, srs))
        except ApiError as error:
            exchange.fail_task(error)
            req.close()
        return
    with exchange.task("VM.export") as task:
        task.progress(0.0)
        exchange.fault("export", vm=ctx.db.field("VM", vm, "uuid"))
        with vm_locked(ctx, vm, task, "export"):
            wire = exchange.answer("1.0", "application/octet-stream", "export.xva", task)
            _send(exchange, vm, wire, task)
            wire.end()


def _send(exchange: Exchange, vm: str, wire: Wire, task: TaskHandle) -> None:
    with _packed(exchange.req.query.get("use_compression", ""), wire) as write:
        selection = Selection(preserve_power_state=exchange.flag("preserve_power_state"))
        pool, host = exchange.ctx.pool, exchange.ctx.host
        table, ova = make_ova(pool.db, host.ref, [vm], selection)
        disks = disks_to_send(pool.db, vm, table)
        total = sum(pool.db.field("VDI", vdi, "virtual_size") for _unused, vdi in disks)
        writer = XvaWriter(write, exchange.style(), Progress(task, total))
        writer.ova(ova.to_xml())
        for label, vdi in disks:
            with attached(pool, host, vdi, "RO") as disk:
                writer.disk(label, disk)
        writer.end()


@contextmanager
def _packed(wanted: str, wire: Wire) -> Iterator[Callable[[bytes | memoryview], None]]:
    if wanted not in COMPRESSION:
        yield wire.write
        return
    packer = Packer(COMPRESSION[wanted], wire.write)
    yield packer.write
    packer.end()


@handler("PUT", "/import")
def import_vm(req: Request, ctx: Context) -> None:
    """Receive VMs into one SR. The 200 comes before the first byte is read; only the task tells what became of it."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VM.import", "http/put_import")
    sr = exchange.sr() or _default_sr(ctx)
    if not sees(ctx.pool, ctx.host, [sr]):
        exchange.redirect(choose_host(ctx.pool, [sr]))
        return
    with exchange.task("VM.import") as task:
        task.progress(0.0)
        _refuse(exchange, sr)
        fault = exchange.fault("import", sr=ctx.db.field("SR", sr, "uuid"))
        wire = exchange.answer("1.1", "application/octet-stream", None, task)
        options = Options(sr, restore=exchange.flag("restore"), force=exchange.flag("force"))
        archive = Archive(wire, exchange.length())
        vms = receive(ctx, archive, options, task, wire.end, fault.get("sr_full"))
        archive.settle()
        task.result(vms)
    _take_the_end(req)


def _take_the_end(req: Request) -> None:
    """Importers do not read the archive's last sectors; closing with something unread would be a reset to the client."""
    with suppress(OSError, ValueError):
        req.connection.settimeout(CLOSING_SECONDS)
        req.rfile.read(END_BYTES)


def _default_sr(ctx: Context) -> str:
    sr = str(ctx.db.field("pool", ctx.db.refs("pool")[0], "default_SR"))
    if not ctx.db.exists("SR", sr):
        raise ApiError("DEFAULT_SR_NOT_FOUND", sr)
    return sr


def _refuse(exchange: Exchange, sr: str) -> None:
    """What is refused after the task was taken over, but before anything is read."""
    db = exchange.ctx.db
    if "rolling_upgrade_in_progress" in db.field("pool", db.refs("pool")[0], "other_config"):
        exchange.head("1.1", 400)
        raise ApiError("NOT_SUPPORTED_DURING_UPGRADE")
    if db.field("SR", sr, "content_type") == "iso":
        exchange.head("1.1", 400)
        raise ApiError("SR_OPERATION_NOT_SUPPORTED")
    if exchange.header("transfer-encoding"):
        exchange.head("1.1", 403)
        raise ApiError("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED")


def receive(ctx: Context, archive: Archive, options: Options, task: TaskHandle, last: Callable[[], None],
            sr_full: bool | int | None = None) -> list[str]:
    """Read an archive into new VMs and disks; return the VMs. On failure nothing stays, unless forced.

    `last` is called when everything is read and may still fail it. `sr_full`: True when the SR is to have no room for
    disks, a number for that many bytes of content.
    """
    importer = Importer(ctx, task, options, open_document(ctx, archive.ova(), options))
    if sr_full is True:
        raise space.no_space()
    try:
        importer.make()
        task.mark("object_creation", "complete")
        if options.sr is not None:
            _receive_disks(ctx, archive, importer, options, task, sr_full)
        task.check()
        last()
    except (KeyError, ValueError, TypeError, AttributeError, ElementTree.ParseError) as error:
        importer.undo()
        raise ApiError("IMPORT_ERROR", repr(error)) from error
    except BaseException:
        importer.undo()
        raise
    finally:
        if options.sr is not None:
            space.refresh(ctx.pool, options.sr)
    return importer.finish()


def _receive_disks(ctx: Context, archive: Archive, importer: Importer, options: Options, task: TaskHandle,
                   limit: int | None) -> None:
    wanted = [(label, size) for label, size in streamed_disks(importer.ova) if label in importer.table]
    budget = space.budget(ctx.pool, str(options.sr), limit)
    progress = Progress(task, sum(size for _unused, size in wanted))
    checksums: dict[str, str] | None = {} if int(importer.ova.version.get("export_vsn", 0)) < 2 else None
    receiver = DiskReceiver(archive, options.force, progress, checksums)
    for label, size in sorted(wanted):
        with attached(ctx.pool, ctx.host, importer.table[label], "RW") as disk:
            receiver.receive_one(label, size, space.MeteredDisk(disk, budget))
    if checksums is not None:
        _check_table(archive, checksums, options.force)


def _check_table(archive: Archive, checksums: dict[str, str], force: bool) -> None:
    """Archives of export version 0 and 1 end with a table of all checksums."""
    table = from_element(ElementTree.fromstring(archive.read(archive.member().size)))
    if not force and any(table.get(name) != text for name, text in checksums.items()):
        raise ApiError("IMPORT_ERROR_SOME_CHECKSUMS_FAILED")
