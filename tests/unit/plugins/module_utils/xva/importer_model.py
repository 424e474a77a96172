# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of XAPI's importer, as its source has it (ocaml/xapi/stream_vdi.ml): the judge of archives we write."""
from __future__ import annotations

import hashlib
import io
import tarfile

import xxhash


class Refused(Exception):
    """XAPI would fail the import."""


def import_disks(archive: bytes, sizes: dict[str, int]) -> dict[str, bytes]:
    """Return label -> image of the disks with the given labels and sizes; raises Refused as XAPI would.

    Like the original it learns the length of skipped chunks once, from the first chunk of all, compares numbers as
    text, and stops at the last disk's end.
    """
    members = _members(archive)
    if next(members)[0] != "ova.xml":
        raise Refused("IMPORT_ERROR_UNEXPECTED_FILE")
    first_length = None
    images = {}
    for label in sorted(sizes, key=str.encode):
        image = bytearray(sizes[label])
        last, offset = "-1", 0
        while offset < sizes[label]:
            name, data = next(members, (None, b""))
            if name is None:
                raise Refused("IMPORT_ERROR_PREMATURE_EOF")
            first_length = len(data) if first_length is None else first_length
            number = name[len(label) + 1:]
            if not name.startswith(label) or number <= last:
                raise Refused(f"Invalid XVA file: {name} after {last} of {label}")
            offset += (int(number) - int(last) - 1) * first_length
            if offset + len(data) > len(image):
                raise Refused("VDI_IO_ERROR")
            image[offset:offset + len(data)] = data
            _check(name, data, *next(members, ("", b"")))
            last, offset = number, offset + len(data)
        images[label] = bytes(image)
    return images


def _check(name: str, data: bytes, checksum_name: str, text: bytes) -> None:
    expected = {
        name + ".checksum": hashlib.sha1(data).hexdigest(),
        name + ".xxhash": "%016X" % xxhash.xxh64_intdigest(data),
    }
    if expected.get(checksum_name) != text.decode():
        raise Refused(f"IMPORT_ERROR: checksum of {name}")


def _members(archive: bytes):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for info in tar:
            yield info.name, tar.extractfile(info).read()
