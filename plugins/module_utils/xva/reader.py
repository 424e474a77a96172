# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Reads an XVA as a stream, as importers do (xen-api: ocaml/xapi/stream_vdi.ml), and trusts it less than they do."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Protocol

from .errors import XvaError
from .ova import MAX_OVA_BYTES, Ova, OvaDisk
from .tarfmt import FILE, PAX, SECTOR, Member, padding, parse_header, pax_keywords
from .writer import BLOCK, OVA_NAME, SUFFIX, verify_checksum, zero_checksum

MAX_PAX_BYTES = 65536
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}
_CHECKSUMS = (
    (SUFFIX["sha1"], "sha1", re.compile("[0-9a-f]{40}")),
    (SUFFIX["xxhash"], "xxhash", re.compile("[0-9A-F]{16}")),
)
_NUMBER = re.compile("[0-9]{8}")
_CHANGE_MEMBERS = ("path", "size", "GNU.sparse")  # keywords that would change what the next header says
_ERROR_PAGE = re.compile(rb"HTTP/1\.[01] [^\r\n]{1,60}")


class Source(Protocol):
    """What an archive is read from: a file, a socket's file, an export."""

    def readinto(self, buffer: Any) -> Optional[int]:
        """Fill ``buffer`` as far as there is something; 0 at the end."""


@dataclass(frozen=True)
class Block:
    """A block of a disk: ``data``, whole MiB from ``offset`` (bytes) on, less than 1 MiB at the end of the disk.

    ``data`` is nobody else's. ``checksum_kind``: ``sha1`` or ``xxhash``; ``checksum``: its hexadecimal digits.
    """

    label: str
    offset: int
    data: bytearray
    checksum_kind: str
    checksum: str


class XvaReader:
    """Reads an uncompressed archive from ``fileobj`` in one pass, one block at a time.

    The description, ``ova``, is read at once. ``verify=False`` leaves the blocks' checksums to the caller. Raises
    XvaError for everything that is not whole and in order, and whatever ``fileobj`` raises.
    """

    def __init__(self, fileobj: Source, verify: bool = True) -> None:
        self._readinto = fileobj.readinto
        self._verify = verify
        self._read = 0
        self._disk: Optional[OvaDisk] = None
        self._offset = 0  # on the disk
        member = self._next_member()
        if member is None or member.name != OVA_NAME:
            raise self._error("the archive begins with %s instead of ova.xml" % _quoted(member))
        if member.size > MAX_OVA_BYTES:
            raise self._error("ova.xml has %d bytes, more than the %d that are borne" % (member.size, MAX_OVA_BYTES))
        self.ova = Ova.parse(bytes(self._content(member.size)))

    def blocks(self) -> Iterator[Block]:
        """Yield every block in the stream, disk by disk; what is not yielded is zero. To be walked once.

        When the last one came, each disk was complete (its last block was there, and all lengths fit) and the archive
        had its proper end. Nothing is read beyond that.
        """
        for disk in self.ova.disks:
            self._disk, self._offset = disk, 0
            yield from self._blocks_of(disk)
        self._disk = None
        for _sector in range(2):
            member = self._next_member()
            if member is not None:
                raise self._error("%s follows the last disk" % _quoted(member))

    def _blocks_of(self, disk: OvaDisk) -> Iterator[Block]:
        """Follow the numbers: each one skipped is 1 MiB of zeros, but one with an empty member is nothing at all.

        XAPI sends empty members to keep the connection alive; from then on numbers are ahead of offsets.
        """
        last = -1
        while self._offset < disk.virtual_size:
            member, number = self._next_numbered(disk.label, last)
            offset = self._offset + (number - last - 1) * BLOCK
            expected = min(BLOCK, disk.virtual_size - offset)
            if expected <= 0 or (member.size != expected and (member.size or not number)):
                raise self._error("%s has %d bytes, which do not fit in" % (_quoted(member), member.size))
            data = self._content(member.size)
            kind, checksum = self._checksum_of(member)
            if (self._verify or not data) and not verify_checksum(kind, checksum, data):
                raise self._error("%s is damaged: it does not fit its checksum" % _quoted(member))
            last, self._offset = number, offset + len(data)
            if data:
                yield Block(disk.label, offset, data, kind, checksum)

    def _next_numbered(self, label: str, last: int) -> tuple[Member, int]:
        member = self._next_member()
        prefix, _slash, digits = member.name.partition("/") if member else ("", "", "")
        if member is None or prefix != label or not _NUMBER.fullmatch(digits):
            raise self._error("the disk is not complete, yet %s follows" % _quoted(member))
        number = int(digits)
        if number <= last or (last < 0 and number):
            raise self._error("%s is out of order" % _quoted(member))
        return member, number

    def _checksum_of(self, data: Member) -> tuple[str, str]:
        member = self._next_member()
        for suffix, kind, digits in _CHECKSUMS:
            if member and member.name == data.name + suffix and member.size <= SECTOR:
                text = self._content(member.size).decode("latin-1")
                if digits.fullmatch(text):
                    return kind, text
        raise self._error("%s has no checksum, but %s follows" % (_quoted(data), _quoted(member)))

    def _next_member(self) -> Optional[Member]:
        """Read the next header of a file, past extended ones that change nothing; None for a sector of zeros."""
        while True:
            sector = self._take(SECTOR)
            try:
                member = parse_header(sector)
            except XvaError as error:
                raise self._error(self._explained(sector, error.message)) from None
            if member is None or member.kind in FILE:
                return member
            if member.kind not in PAX or member.size > MAX_PAX_BYTES:
                raise self._error("%s is no regular file" % _quoted(member))
            if any(keyword.startswith(_CHANGE_MEMBERS) for keyword in pax_keywords(self._content(member.size))):
                raise self._error("an extended header changes the name, the size or the layout of the next member")

    def _explained(self, sector: bytearray, problem: str) -> str:
        page = _ERROR_PAGE.search(sector)
        if page:
            return "the host broke the archive off with the error page %r" % page[0].decode("latin-1")
        for magic, name in _COMPRESSED.items():
            if sector.startswith(magic) and self._read <= SECTOR:
                return "the archive is compressed with %s: decompress it first" % name
        return problem

    def _content(self, size: int) -> bytearray:
        padded = size + padding(size)
        content = self._take(padded)
        if padded != size:
            del content[size:]
        return content

    def _take(self, size: int) -> bytearray:
        """Read exactly ``size`` bytes into a buffer of their own."""
        buffer = bytearray(size)
        filled = self._readinto(buffer) or 0
        if filled < size:
            with memoryview(buffer) as view:
                more = filled
                while more and filled < size:
                    more = self._readinto(view[filled:]) or 0
                    filled += more
        self._read += filled
        if filled < size:
            raise self._error(self._explained(buffer[:filled][-4096:], "the archive ends too early"))
        return buffer

    def _error(self, problem: str) -> XvaError:
        where = "after %d bytes of the archive" % self._read
        if self._disk is None:
            return XvaError("%s, %s" % (problem, where))
        return XvaError(
            "%s, %s, at byte %d of the %d bytes of %r"
            % (problem, where, self._offset, self._disk.virtual_size, self._disk.name_label), disk=self._disk.label,
        )


def gapless(disks: list[OvaDisk], blocks: Iterator[Block]) -> Iterator[Block]:
    """Put zero blocks where ``blocks`` has none, for an archive in which none may be left out; else change nothing.

    ``disks`` and ``blocks`` are those of a reader. Importers take the length of an archive's first block for the length
    of every block left out (xen-api: stream_vdi.ml): that goes wrong where the first disk is shorter than 1 MiB.
    """
    sizes = [disk.virtual_size for disk in disks if disk.virtual_size]
    if not sizes or sizes[0] >= BLOCK:
        yield from blocks
        return
    at: tuple[str, int] = ("", 0)
    for block in blocks:
        start = at[1] if at[0] == block.label else 0
        for offset in range(start, block.offset, BLOCK):
            yield Block(block.label, offset, bytearray(BLOCK), block.checksum_kind, zero_checksum(block.checksum_kind))
        at = block.label, block.offset + BLOCK
        yield block


def _quoted(member: Optional[Member]) -> str:
    return "the end of the archive" if member is None else "%r" % member.name[:80]
