# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /export_metadata and PUT /import_metadata: ova.xml alone, of VMs whose disks stay where they are."""

from __future__ import annotations

from contextlib import ExitStack

from .api import Context, Request, handler
from .errors import ApiError
from .exchange import Exchange, vm_locked
from .ova_in import Options
from .ova_out import Selection, make_ova
from .transfers import receive
from .v7tar import END, header, padding
from .xva_in import Archive

DEVICES = ("vif", "vbd", "vgpu", "vtpm")


@handler("GET", "/export_metadata")
def export_metadata(req: Request, ctx: Context) -> None:
    """Send the records of one VM, or of all, in whatever state they are. The answer's length is known."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VM.export_metadata", "http/get_export_metadata")
    with exchange.task("VM.export_metadata") as task:
        try:
            vms = _all_vms(exchange) if exchange.flag("all") else [exchange.vm()]
            with ExitStack() as locks:
                for vm in vms:
                    if not ctx.db.field("VM", vm, "is_control_domain"):
                        locks.enter_context(vm_locked(ctx, vm, task, "metadata_export"))
                body = _archive(exchange, vms)
        except ApiError:
            req.send(b"HTTP/1.1 500 internal error\r\ncontent-length: 0\r\n\r\n")
            raise
        wire = exchange.answer("1.0", "application/octet-stream", "export.xva", task, length=len(body))
        wire.write(body)


def _archive(exchange: Exchange, vms: list[str]) -> bytes:
    excluded = [kind for kind in exchange.param("excluded_device_types").lower().split(",") if kind]
    for kind in excluded:
        if kind not in DEVICES:
            raise ApiError("INTERNAL_ERROR", f"Type '{kind}' not one of [{'; '.join(DEVICES)}]")
    selection = Selection(True, exchange.flag("export_snapshots", True), excluded)
    document = make_ova(exchange.ctx.db, exchange.ctx.host.ref, vms, selection)[1].to_xml()
    style = exchange.style()
    head = header("ova.xml", len(document), style.mode, style.mtime)
    return head + document + bytes(padding(len(document))) + END


def _all_vms(exchange: Exchange) -> list[str]:
    """Every VM but the default templates; control domains unless the request leaves them out."""
    db = exchange.ctx.db
    dom0s = exchange.flag("include_dom0", True)
    records = ((vm, db.get("VM", vm)) for vm in db.refs("VM"))
    return [vm for vm, record in records
            if not record["is_default_template"] and (dom0s or not record["is_control_domain"])]


@handler("PUT", "/import_metadata")
def import_metadata(req: Request, ctx: Context) -> None:
    """Make VMs whose disks this pool has already, found by the request's mapping or by their location."""
    exchange = Exchange(req, ctx)
    exchange.authorize("VM.metadata_import", "http/put_import_metadata")
    with exchange.task("VM.metadata_import") as task:
        wire = exchange.answer("1.1", "application/octet-stream", None, task)
        options = Options(
            None, restore=exchange.flag("restore"), force=exchange.flag("force"), dry_run=exchange.flag("dry_run"),
            vdi_map={key[4:]: value for key, value in req.query.items() if key.startswith("vdi:") and len(key) > 4},
        )
        archive = Archive(wire, exchange.length())
        task.result(receive(ctx, archive, options, task, wire.end))
        archive.settle()
