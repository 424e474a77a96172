# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which networks disks may be read over by NBD, and where. Source: xapi_network.ml and xapi_vdi.ml."""
from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .api import Context, method
from .attach import sees
from .cbt import assert_has_data
from .errors import ApiError
from .pool import Host

EXCLUSIVE = {"nbd": "insecure_nbd", "insecure_nbd": "nbd"}


@method("network.add_purpose")
def add_purpose(ctx: Context, network: str, value: str) -> None:
    """Add one; a pool has NBD with TLS or without, not both."""
    db = ctx.db
    with db.lock:
        purpose = db.field("network", network, "purpose")
        if value in purpose:
            return
        other = EXCLUSIVE.get(value)
        if any(other in db.field("network", one, "purpose") for one in db.refs("network")):
            raise ApiError("NETWORK_INCOMPATIBLE_PURPOSES", value, str(other))
        db.set("network", network, purpose=[*purpose, value])


@method("VDI.get_nbd_info")
def get_nbd_info(ctx: Context, vdi: str) -> list[dict[str, Any]]:
    """An entry for every host that sees the disk and every address of it on a network that is for NBD."""
    db = ctx.db
    uuid, sr = db.field("VDI", vdi, "uuid"), db.field("VDI", vdi, "SR")
    assert_has_data(db, vdi)
    name = f"/{uuid}?session_id={ctx.session}"
    return [
        {"exportname": name, "address": address, "port": host.nbd.port, **_identity(host)}
        for host in ctx.pool.hosts if host.alive and host.nbd and sees(ctx.pool, host, [sr])
        for address in _addresses(ctx, host)
    ]


def _addresses(ctx: Context, host: Host) -> list[str]:
    """IPv4 first."""
    db = ctx.db
    pifs = [db.get("PIF", pif) for pif in db.field("host", host.ref, "PIFs")]
    up = [pif for pif in pifs if pif["currently_attached"]]
    fit = [pif for pif in up if EXCLUSIVE.keys() & db.field("network", pif["network"], "purpose")]
    old = [pif["IP"] for pif in fit if pif["IP"]]
    return old + [address.partition("/")[0] for pif in fit for address in pif["IPv6"] if address]


def _identity(host: Host) -> dict[str, str]:
    """A host's certificate, without its key, and a name that is in it."""
    certificate = x509.load_pem_x509_certificate(host.nbd.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    subject = names.get_values_for_type(x509.DNSName)[0]
    return {"cert": certificate.public_bytes(serialization.Encoding.PEM).decode(), "subject": subject}
