# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes restore points and reads them back, as the engine does but in one thread."""
from __future__ import annotations

import hashlib
import random
from pathlib import Path

from ansible_collections.guestark.xen.plugins.module_utils.age.keys import X25519Identity
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import AllowedSigners, SigningKey
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository, WriterKeys
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import decode_block, encode_block, zero_digest
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import END, ova_unit
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.importer_model import import_disks
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, Disk, ova

VM = "5e0a9d0c-1111-4222-8333-aaaaaaaaaaaa"

DATA = X25519Identity.generate()
CATALOG = X25519Identity.generate()
SIGNING = SigningKey.generate()
SIGNERS = AllowedSigners.parse(SIGNING.public_line().join(("mover1 ", "\n")))
KEYS = WriterKeys([DATA.recipient()], [CATALOG.recipient()], SIGNING)
OPEN_KEYS = WriterKeys([], [], SIGNING, "none")


def disk(number: int, size: int, filled: dict[int, bytes | int]) -> Disk:
    """A disk of ``size`` bytes; ``filled`` maps a block's number to its content, or to a seed for noise."""
    image = bytearray(size)
    for block, content in filled.items():
        room = min(MIB, size - block * MIB)
        if isinstance(content, int):
            content = random.Random(content).randbytes(room // 2)
        image[block * MIB:block * MIB + len(content)] = content[:room]
    uuid = f"00000000-0000-4000-8000-{number:012d}"
    return Disk(f"Ref:{1001 + number}", bytes(image), checksum="sha1", extra={"uuid": uuid})


def two_disks(seed: int = 0) -> list[Disk]:
    """Two disks: holes, a zero first block, a zero block in the middle, a short last block."""
    return [
        disk(0, 5 * MIB, {1: seed + 1, 2: b"text " * 4000, 4: seed + 3}),
        disk(1, 3 * MIB + 1536, {0: seed + 4, 3: seed + 5}),
    ]


def blocks_of(disks: list[Disk], zeros: bool = False):
    """(label, number, data) of the blocks of an export; with ``zeros``, or when the first disk is short, of every block."""
    zeros = zeros or (bool(disks) and len(disks[0].image) < MIB)
    for one in disks:
        last = -(-len(one.image) // MIB) - 1
        for number in range(last + 1):
            data = one.image[number * MIB:(number + 1) * MIB]
            if zeros or number in (0, last) or any(data):
                yield one.label, number, data


def write(point, disks: list[Disk], meta: dict | None = None, zeros: bool = False):
    """Fill a point that was begun, and commit it."""
    point.put_ova(ova(disks))
    for label, number, data in blocks_of(disks, zeros):
        point.put_block(label, number, encode_block(label, number, data))
    return point.commit(meta or {"vm": {"uuid": VM, "name_label": "web01"}, "method": "normal"})


def back_up(repository: Repository, disks: list[Disk], keys: WriterKeys = KEYS, **options):
    """A new point of ``disks``."""
    with repository.new_point(VM, keys) as point:
        return write(point, disks, **options)


def write_layer(point, disks: list[Disk], base, order: list[str] | None = None):
    """Fill a point that was begun with what changed since ``base``, and commit it."""
    point.put_ova(ova(disks), base)
    for one in sorted(disks, key=lambda one: (order or []).index(one.label) if order else 0):
        held = next((list(base.blocks(known)) for known in base.disks if known.label == one.label), [])
        before = {found.record.number: found.record for found in held}
        now = {number: data for _label, number, data in blocks_of([one])}
        last = -(-len(one.image) // MIB) - 1
        for number in sorted({*before, *now}):
            data = now.get(number, bytes(min(MIB, len(one.image) - number * MIB)))
            unit = encode_block(one.label, number, data)
            old = before.get(number)
            grown = bool(old and old.short) and number != last
            if number in (0, last) or grown or unit.digest != (old.digest if old else zero_digest(len(data))):
                point.put_block(one.label, number, unit)
            elif not unit.zero:
                point.keep_block(one.label, number, unit.digest)
    return point.commit({"vm": {"uuid": VM, "name_label": "web01"}, "method": "normal"})


def lay(repository: Repository, record, disks: list[Disk], keys: WriterKeys = KEYS, order: list[str] | None = None):
    """A layer over a point; ``order``: the disks' labels as their blocks come."""
    with repository.layers(record, [CATALOG]) as base, repository.new_point(VM, keys) as point:
        return write_layer(point, disks, base, order)


def restore(repository: Repository, record, identities=(DATA,)) -> bytes:
    """The archive a restore would send, every digest compared."""
    with repository.read_point(record, list(identities)) as reader:
        parts = [ova_unit(reader.ova_xml)]
        for label, number, frame, digest in reader.frames():
            unit, found = decode_block(frame, label, number)
            assert found == digest
            parts.append(unit)
    return b"".join([*parts, END])


def equal(archive: bytes, disks: list[Disk]) -> bool:
    """Whether importing the archive gives exactly these disks."""
    return import_disks(archive, {one.label: len(one.image) for one in disks}) == {
        one.label: one.image for one in disks
    }


def make(path: Path) -> Repository:
    """A new repository."""
    return Repository.create_or_open(PosixStore(str(path)))


def files(root: Path) -> dict[str, str]:
    """Name -> SHA-256 of everything in a repository but empty folders."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*")) if path.is_file()
    }
