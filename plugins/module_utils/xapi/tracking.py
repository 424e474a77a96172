# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Changed block tracking: what a disk's storage noted of writes since an earlier snapshot (xen-api: xapi_vdi.ml, sm: VDI.py).

A snapshot's content goes after its backup (``data_destroy``); what stays of it takes no space and is the base of the next
comparison.
"""
from __future__ import annotations

import base64
import binascii
import time
from contextlib import suppress
from typing import Any, Collection, Mapping

from .client import PoolClient, pauses
from .errors import NotFound, PoolError, XapiError
from .inventory import disks_of
from .snapshots import BUSY, BUSY_SECONDS, METADATA, Mark, owner
from .tasks import call_async

FEATURE = "VDI_CONFIG_CBT"
GRANULE = 65536
MOST_BYTES = 4 << 40  # of all disks: a list of changes comes in one answer, which has to fit into a backup's memory


def track(client: PoolClient, vm: dict[str, Any]) -> None:
    """Have the writes to a VM's disks noted from now on, where they are not yet; it may run meanwhile.

    Raises PoolError that says why not. Either all disks can be tracked, or none is newly.
    """
    if sum(int(vdi["virtual_size"]) for _vbd, vdi in disks_of(client, vm).values()) > MOST_BYTES:
        raise NotFound("Its disks are larger than 4 TiB: the list of their changes would take too much memory.")
    untracked = [(ref, vdi) for ref, (_vbd, vdi) in disks_of(client, vm).items() if not vdi["cbt_enabled"]]
    if untracked:
        drivers = client.call("SM.get_all_records").values()
        able = {driver["type"] for driver in drivers if FEATURE in driver["features"]}
        for _vdi, record in untracked:
            sr = client.call("SR.get_record", record["SR"])
            if sr["type"] not in able:
                raise NotFound("Storage %s (%s) does not track changed blocks." % (sr["name_label"], sr["type"]))
    for vdi, record in untracked:
        call_async(client, "VDI.enable_cbt", vdi, subject="disk %s" % record["name_label"])


def changed_since(client: PoolClient, older_uuid: str, newer: str, size: int) -> bytes:
    """One bit for each 64 KiB of the disk ``newer`` (a ref) that may differ from the earlier snapshot, by UUID.

    ``size``: of the newer, in bytes. Raises PoolError when the storage does not know.
    """
    older = client.call("VDI.get_by_uuid", older_uuid)
    text = client.call("VDI.list_changed_blocks", older, newer, safe=True)
    try:
        bitmap = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise PoolError("The pool's list of changed blocks is malformed.") from error
    granules = -(-size // GRANULE)
    if len(bitmap) != -(-granules // 8):
        raise PoolError("The pool's list of changed blocks is for another size of disk.")
    return bitmap


def keep_log(client: PoolClient, vdi: str) -> None:
    """Destroy a snapshot disk's content and keep what was noted. Its VM has to be gone. Raises XapiError."""
    deadline = time.monotonic() + BUSY_SECONDS
    for pause in pauses():
        try:
            client.call("VDI.data_destroy", vdi, safe=True)  # asked twice, it has nothing to do
            return
        except XapiError as error:
            # the host lets go of a disk some time after an NBD connection has ended
            if error.code not in BUSY or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)


def forget(client: PoolClient, vm_uuid: str, points: Collection[str]) -> None:
    """Destroy what was kept of a VM's snapshots for these points, as far as it is there."""
    with suppress(PoolError):  # it takes no space, and the janitor finds it when it is old
        for vdi, record in client.call("VDI.get_all_records").items():
            mark = Mark.read(record)
            ours = mark and record["type"] == METADATA and owner(record) == vm_uuid
            if ours and mark.point in points:  # type: ignore[union-attr]
                client.call("VDI.destroy", vdi, safe=True)


def nbd_info(client: PoolClient, vdi: str) -> list[Mapping[str, Any]]:
    """Where a disk can be read over NBD: ``address``, ``port``, ``exportname``, ``cert`` and ``subject`` of each host.

    Raises NotFound when no network is there for it.
    """
    found = client.call("VDI.get_nbd_info", vdi)
    if not found:
        raise NotFound("No network of the pool is for NBD.", "Give one the purpose nbd: xe network-param-add param-name=purpose")
    return list(found)
