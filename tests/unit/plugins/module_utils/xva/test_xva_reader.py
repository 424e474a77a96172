# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader gives the disks as they were, whatever XAPI did to the stream, and nothing that is not whole."""
from __future__ import annotations

import gzip
import io
import subprocess
import tracemalloc

import pytest
import zstandard
from ansible_collections.guestark.xen.plugins.module_utils.xva.errors import XvaError
from ansible_collections.guestark.xen.plugins.module_utils.xva.reader import XvaReader
from ansible_collections.guestark.xen.plugins.module_utils.xva.writer import verify_checksum
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import (
    END,
    ERROR_PAGE,
    MIB,
    Disk,
    Member,
    block,
    header,
    members_of,
    pack,
    v7_header,
)


def rebuild(archive: bytes, verify: bool = True) -> dict[str, bytes]:
    """Lay the blocks of an archive over zeros."""
    reader = XvaReader(io.BytesIO(archive), verify)
    images = {disk.label: bytearray(disk.virtual_size) for disk in reader.ova.disks}
    for found in reader.blocks():
        images[found.label][found.offset:found.offset + len(found.data)] = found.data
        assert verify_checksum(found.checksum_kind, found.checksum, found.data)
    return {label: bytes(image) for label, image in images.items()}


def problem(archive: bytes, verify: bool = True) -> XvaError:
    with pytest.raises(XvaError) as raised:
        rebuild(archive, verify)
    return raised.value


@pytest.fixture
def small() -> Disk:
    """2 MiB and 100 KiB: a full block, a zero one that is left out, a short one that needs padding."""
    return Disk("Ref:9", b"\x01" * MIB + bytes(MIB) + b"\x02" * 102399)


@pytest.mark.parametrize("style", ["v7", "ustar", "gnu", "pax"])
@pytest.mark.parametrize("kind", ["sha1", "xxhash"])
@pytest.mark.trap(12, 13)
def test_real_file_systems(ext4, dense, style, kind):
    disks = [Disk("Ref:9", ext4, kind), Disk("Ref:10", dense, kind)]
    archive = pack(members_of(disks), style)
    assert len(archive) < len(ext4) + len(dense)  # zeros were left out
    assert rebuild(archive) == {"Ref:9": ext4, "Ref:10": dense}


@pytest.mark.trap(12)
def test_each_member_may_have_its_own_kind_of_checksum(dense):
    members = members_of([Disk("Ref:9", dense)])
    members[3:5] = block("Ref:9", 1, members[3].data, "sha1")
    assert rebuild(pack(members)) == {"Ref:9": dense}


@pytest.mark.parametrize("empty", [{1}, {5}, {1, 2, 3}, {4, 9}, {8, 12, 13, 15}])
@pytest.mark.trap(11)
def test_empty_members_take_a_number_and_no_room(ext4, empty):
    members = members_of([Disk("Ref:9", ext4, empty=frozenset(empty))])
    assert sum(not member.data for member in members) == len(empty)
    assert rebuild(pack(members)) == {"Ref:9": ext4}
    assert rebuild(pack(members), verify=False) == {"Ref:9": ext4}


@pytest.mark.trap(11)
def test_an_empty_member_is_no_block_and_has_the_known_checksum(ext4):
    members = members_of([Disk("Ref:9", ext4, empty=frozenset({5}))])
    assert Member("Ref:9/00000005.xxhash", b"EF46DB3751D8E999") in members
    assert all(found.data for found in XvaReader(io.BytesIO(pack(members))).blocks())


@pytest.mark.parametrize("size", [512, 1000, MIB - 512, MIB, MIB + 512, 2 * MIB, 4 * MIB - 1])
@pytest.mark.parametrize("filling", [b"\0", b"\xaa"])
def test_sizes(size, filling):
    image = filling * size
    assert rebuild(pack(members_of([Disk("Ref:1", image)]))) == {"Ref:1": image}


def test_a_small_disk_before_a_sparse_one():
    disks = [Disk("Ref:1", b"config" * 100), Disk("Ref:2", b"a" * MIB + bytes(3 * MIB) + b"b" * MIB)]
    assert rebuild(pack(members_of(disks))) == {disk.label: disk.image for disk in disks}


def test_an_all_zero_disk_is_two_blocks():
    reader = XvaReader(io.BytesIO(pack(members_of([Disk("Ref:1", bytes(9 * MIB + 700))]))))
    assert [(found.offset, len(found.data)) for found in reader.blocks()] == [(0, MIB), (9 * MIB, 700)]


def test_newer_releases_send_zero_blocks_too():
    disk = Disk("Ref:1", bytes(3 * MIB))
    members = members_of([disk])[:1] + [
        member for number in range(3) for member in block("Ref:1", number, bytes(MIB))
    ]
    assert len(list(XvaReader(io.BytesIO(pack(members))).blocks())) == 3


@pytest.mark.trap(14)
def test_disks_come_in_the_order_of_the_bytes_of_their_labels():
    disks = [Disk(f"Ref:{n}", bytes([n]) * 700) for n in (9, 10, 190, 11, 2)]
    reader = XvaReader(io.BytesIO(pack(members_of(disks))))
    assert [disk.label for disk in reader.ova.disks] == ["Ref:10", "Ref:11", "Ref:190", "Ref:2", "Ref:9"]
    assert [found.label for found in reader.blocks()] == [disk.label for disk in reader.ova.disks]


def test_cds_and_iso_storage_are_not_in_the_stream_but_saved_memory_is():
    disks = [
        Disk("Ref:11", b"root" * 1000), Disk("Ref:12", b"cd" * 1000, vbd_type="CD"),
        Disk("Ref:13", b"iso" * 1000, content_type="iso"),
        Disk("Ref:14", b"ram" * MIB, vbd_type=None, vdi_type="suspend"),
        Disk("Ref:15", b"detached" * 1000, vbd_type=None),
    ]
    members = members_of(disks[:4])
    members[0] = members_of(disks)[0]
    assert rebuild(pack(members)) == {"Ref:11": disks[0].image, "Ref:14": disks[3].image}


def test_a_vm_without_disks():
    assert rebuild(pack(members_of([]))) == {}


def test_nothing_is_read_beyond_the_end(small):
    stream = io.BytesIO(pack(members_of([small])) + b"what follows")
    list(XvaReader(stream).blocks())
    assert stream.read() == b"what follows"


class Dribble(io.RawIOBase):
    """Gives what it has in uneven pieces, as sockets do."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)
        self._turn = 0

    def readinto(self, buffer) -> int:
        self._turn += 1
        count = min(len(buffer), len(self._rest), (1, 511, 7000, 65536)[self._turn % 4])
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def test_pieces_of_any_size(ext4):
    reader = XvaReader(Dribble(pack(members_of([Disk("Ref:9", ext4)]))))
    assert sum(len(found.data) for found in reader.blocks()) > 3 * MIB


def test_blocks_share_no_memory(dense):
    first, second = list(XvaReader(io.BytesIO(pack(members_of([Disk("Ref:9", dense)])))).blocks())[:2]
    before = bytes(second.data)
    first.data[:] = bytes(MIB)
    assert second.data == before


class Endless(io.RawIOBase):
    """A disk of ones, as large as wanted, made while it is read."""

    def __init__(self, blocks: int) -> None:
        template = Disk("Ref:9", b"\x01" * MIB)
        self._head = pack(members_of([Disk("Ref:9", b"")]), end=b"").replace(
            b"<name>virtual_size</name><value>0<", b"<name>virtual_size</name><value>%012d<" % (blocks * MIB)
        )
        size = len(self._head.partition(b"<value>")[2].rstrip(b"\0")) + len(b"<value>")
        self._head = v7_header("ova.xml", size) + self._head[512:512 + size] + bytes(-size % 512)
        self._parts = self._make(blocks, template.image)
        self._rest = memoryview(b"")

    def _make(self, blocks, data):
        yield self._head
        for number in range(blocks):
            yield pack(block("Ref:9", number, data), end=b"")
        yield END

    def readinto(self, buffer) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._parts, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def test_memory_does_not_grow_with_the_disk():
    tracemalloc.start()
    try:
        count = sum(1 for _found in XvaReader(Endless(64)).blocks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 64
    assert peak < 8 * MIB  # of which the test's own source takes three


# What is not whole


def _cuts(members: list[Member]) -> list[int]:
    """Positions around every border: headers, contents, padding, checksums, the end."""
    borders, at = {0}, 0
    for _name, data in members:
        for step in (512, len(data), -len(data) % 512):
            borders.add(at + step // 2)
            at += step
            borders.add(at)
    borders |= {at + 512, at + 1024}
    return sorted(cut for border in borders for cut in (border - 1, border, border + 1) if 0 <= cut < at + 1024)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("tail", [b"", ERROR_PAGE], ids=["cut", "error page"])
@pytest.mark.trap(19)
def test_cut_anywhere(small, tail, verify):
    members = members_of([small])
    archive = pack(members)
    cuts = _cuts(members)
    disk_begins = len(pack(members[:1], end=b""))
    disk_ends = len(archive) - len(END) - (512 - len(members[-1].data))  # the rest is padding
    assert len(cuts) > 40
    for cut in cuts:
        error = problem(archive[:cut] + tail, verify)
        if disk_begins < cut < disk_ends:
            assert error.disk == "Ref:9", cut
            assert str(error).startswith("disk Ref:9: "), cut
            assert "of the 2199551 bytes of 'disk 0'" in str(error), cut


@pytest.mark.trap(2)
def test_an_error_page_is_recognised_where_headers_are_expected(small):
    members = members_of([small])
    error = problem(pack(members[:3], end=ERROR_PAGE))
    assert str(error) == (
        "disk Ref:9: the host broke the archive off with the error page 'HTTP/1.1 500 Internal Error', after %d bytes "
        "of the archive, at byte 1048576 of the 2199551 bytes of 'disk 0'" % len(pack(members[:3], end=ERROR_PAGE))
    )


@pytest.mark.trap(2)
def test_an_error_page_instead_of_an_archive():
    assert "the error page 'HTTP/1.1 500 Internal Error'" in str(problem(ERROR_PAGE + bytes(2000)))


def test_an_error_page_in_the_middle_of_a_block(small):
    archive = pack(members_of([small])[:2], end=b"")
    error = problem(archive[:-300000] + ERROR_PAGE)
    assert "HTTP/1.1 500 Internal Error" in str(error) and "at byte 0 of" in str(error)


@pytest.mark.parametrize("end", [b"", bytes(511), bytes(512), bytes(1023), bytes(512) + b"x" * 512])
@pytest.mark.trap(2, 19)
def test_two_zero_blocks_are_demanded(small, end):
    problem(pack(members_of([small]), end=end))


@pytest.mark.trap(19)
def test_a_disk_that_is_left_out_is_missed(small, dense):
    members = members_of([small, Disk("Ref:1", dense)])
    without_first = [m for m in members if not m.name.startswith("Ref:1/")]
    assert problem(pack(without_first)).disk == "Ref:1"
    without_last = [m for m in members if not m.name.startswith("Ref:9/")]
    error = problem(pack(without_last))
    assert error.disk == "Ref:9" and "yet the end of the archive follows" in str(error)


def edited(edit) -> bytes:
    """Ref:9 of five dense blocks and a short one; members 1 and 2 are its first block and that one's checksum."""
    image = b"".join(bytes([n + 1]) * MIB for n in range(5)) + b"end" * 100
    return pack(edit(members_of([Disk("Ref:9", image)])))


def renumbered(members: list[Member], by: int) -> list[Member]:
    return [
        Member(f"{name[:6]}{int(name[6:14]) + by:08d}{name[14:]}", data) for name, data in members
    ]


@pytest.mark.parametrize("edit", [
    lambda m: m[:3] + m[5:7] + m[3:5] + m[7:],                   # two blocks swapped
    lambda m: m[:5] + m[3:5] + m[5:],                            # a block twice
    lambda m: m[:1] + m[3:],                                     # the first block missing
    lambda m: m[:-2],                                            # the last block missing
    lambda m: m[:4] + m[5:],                                     # a checksum missing
    lambda m: m[:3] + [m[4], m[3]] + m[5:],                      # a checksum before its block
    lambda m: m[:4] + [Member("Ref:9/00000002.xxhash", m[4].data)] + m[5:],
    lambda m: m[:4] + [Member("Ref:9/00000001.md5", m[4].data)] + m[5:],
    lambda m: m[:4] + [Member(m[4].name, m[4].data.lower())] + m[5:],
    lambda m: m[:4] + [Member(m[4].name, m[4].data + b"\n")] + m[5:],
    lambda m: m[:4] + [Member(m[4].name, b"")] + m[5:],
    lambda m: m[:4] + [Member(m[4].name, b"0" * 4096)] + m[5:],
    lambda m: m[:3] + block("Ref:8", 1, m[3].data) + m[5:],      # a prefix of no disk
    lambda m: m[:3] + block("Ref:90", 1, m[3].data) + m[5:],     # a prefix that begins like the disk's
    lambda m: m + block("Ref:9", 6, b"more"),                    # a block after the end
    lambda m: m + block("Ref:99", 0, b"more"),                   # a disk too much
    lambda m: m[:-2] + block("Ref:9", 6, m[-2].data),            # the last block too far
    lambda m: m[:-2] + block("Ref:9", 5, m[-2].data + b"x"),     # the last block too long
    lambda m: m[:-2] + block("Ref:9", 5, m[-2].data[:-1]),       # the last block too short
    lambda m: m[:3] + block("Ref:9", 1, m[3].data[:-512]) + m[5:],
    lambda m: m[:3] + block("Ref:9", 1, m[3].data + bytes(512)) + m[5:],
    lambda m: m[:1] + block("Ref:9", 0, b"") + m[3:],            # an empty member instead of the first block
    lambda m: m[:1] + block("Ref:9", 0, b"") + renumbered(m[1:], 1),  # likewise, and all goes on
    lambda m: m + block("Ref:9", 6, b""),                        # an empty member after the last block
    lambda m: m[:-2] + block("Ref:9", 6, b""),                   # an empty member beyond the end, no last block
    lambda m: m[:3] + [Member("Ref:9/100000001", m[3].data), Member("Ref:9/100000001.xxhash", m[4].data)] + m[5:],
    lambda m: m[:3] + [Member("Ref:9/0000001", m[3].data), Member("Ref:9/0000001.xxhash", m[4].data)] + m[5:],
    lambda m: m[:3] + [Member("Ref:9/+0000001", m[3].data), Member("Ref:9/+0000001.xxhash", m[4].data)] + m[5:],
    lambda m: m[:3] + [Member("README", b"unknown")] + m[3:],
    lambda m: m[:1] + m[:1] + m[1:],                             # ova.xml twice
    lambda m: m[1:] + m[:1],                                     # ova.xml last
    lambda m: m[1:],
    lambda m: [Member("./ova.xml", m[0].data)] + m[1:],
    lambda m: [],
])
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_out_of_order_is_refused(edit, verify):
    problem(edited(edit), verify)


@pytest.mark.trap(19)
def test_a_missing_block_in_the_middle_looks_like_zeros():
    """Nothing in the format tells it from a block that was zero: this is why points have an index of their own."""
    archive = edited(lambda m: m[:3] + m[5:])
    assert rebuild(archive)["Ref:9"][MIB:2 * MIB] == bytes(MIB)


@pytest.mark.parametrize("kind", ["sha1", "xxhash"])
@pytest.mark.trap(2)
def test_a_wrong_checksum(dense, kind):
    members = members_of([Disk("Ref:9", dense, kind)])
    members[3] = Member(members[3].name, members[3].data[:-1] + b"?")
    error = problem(pack(members))
    assert str(error).startswith("disk Ref:9: 'Ref:9/00000001' is damaged: it does not fit its checksum, after ")
    blocks = list(XvaReader(io.BytesIO(pack(members)), verify=False).blocks())
    assert [verify_checksum(b.checksum_kind, b.checksum, b.data) for b in blocks] == [True, False, True, True]


def test_a_wrong_checksum_of_an_empty_member_is_seen_by_nobody_else(ext4):
    members = members_of([Disk("Ref:9", ext4, empty=frozenset({5}))])
    at = [member.name for member in members].index("Ref:9/00000005.xxhash")
    members[at] = Member(members[at].name, b"0" * 16)
    problem(pack(members), verify=False)


def test_every_damaged_byte_of_a_header_is_noticed(small):
    archive = bytearray(pack(members_of([small])))
    start = archive.index(b"Ref:9/00000000\0")
    for at in range(start, start + 512):
        before = archive[at]
        archive[at] ^= 0x15
        with pytest.raises(XvaError):
            rebuild(bytes(archive), verify=False)
        archive[at] = before


@pytest.mark.parametrize("compress, name", [(gzip.compress, "gzip"), (zstandard.compress, "zstd")])
def test_compressed_archives_are_named(small, compress, name):
    assert "compressed with %s" % name in str(problem(compress(pack(members_of([small])))))


@pytest.mark.parametrize("size", [2 * 16 * MIB, 8 ** 11 - 1])
def test_a_header_that_claims_much_costs_nothing(size):
    extended = bytearray(v7_header("extended", size))
    extended[154:157] = b"\0 x"
    extended[148:154] = b"%06o" % (sum(extended) - sum(extended[148:156]) + 8 * 32)
    disk = [Disk("Ref:9", b"\x01" * 1000)]
    description, data, _checksum = members_of(disk)
    tracemalloc.start()
    try:
        problem(v7_header("ova.xml", size) + bytes(4096))
        problem(bytes(extended) + bytes(4096))
        problem(pack([description], end=b"") + v7_header("Ref:9/00000000", size) + bytes(4096))
        problem(pack([description, data], end=b"") + v7_header("Ref:9/00000000.xxhash", size) + bytes(4096))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB


def test_a_name_in_two_fields(small):
    """POSIX lets ustar split a name; GNU's header has other things in that place."""
    archive = pack(members_of([small]), "ustar")
    plain = header("Ref:9/00000000", MIB, "ustar")
    split = bytearray(header("00000000", MIB, "ustar"))
    split[345:350] = b"Ref:9"
    split[148:154] = b"%06o" % (sum(split) - sum(split[148:156]) + 8 * 32)
    assert plain in archive
    assert rebuild(archive.replace(plain, bytes(split))) == {"Ref:9": small.image}
    split[257:265] = b"ustar  \0"
    split[148:154] = b"%06o" % (sum(split) - sum(split[148:156]) + 8 * 32)
    assert "'00000000' follows" in str(problem(archive.replace(plain, bytes(split))))


def test_links_directories_and_sparse_members_are_refused(small, tmp_path):
    (tmp_path / "ova.xml").write_bytes(members_of([small])[0].data)
    (tmp_path / "Ref:9").mkdir()
    for member in members_of([small])[1:]:
        (tmp_path / member.name).write_bytes(member.data)
    (tmp_path / "Ref:9" / "00000000").write_bytes(b"\x01" + bytes(MIB - 2) + b"\x01")
    names = ["ova.xml", "Ref:9"]
    whole = subprocess.run(["tar", "-cf", "-", *names], cwd=tmp_path, capture_output=True, check=True).stdout
    assert "'Ref:9/' is no regular file" in str(problem(whole))
    subprocess.run(["fallocate", "--dig-holes", "Ref:9/00000000"], cwd=tmp_path, check=True)
    names = ["ova.xml", *sorted(member.name for member in members_of([small])[1:])]
    for style in ("gnu", "pax"):
        command = ["tar", f"--format={style}", "--sparse", "-cf", "-", *names]
        sparse = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
        assert "no regular file" in str(problem(sparse)) or "extended header changes" in str(problem(sparse))


@pytest.mark.parametrize("style", ["v7", "ustar", "gnu", "oldgnu", "pax"])
@pytest.mark.trap(13)
def test_archives_made_with_tar(ext4, tmp_path, style):
    members = members_of([Disk("Ref:9", ext4)])
    (tmp_path / "Ref:9").mkdir()
    for member in members:
        (tmp_path / member.name).write_bytes(member.data)
    command = ["tar", f"--format={style}", "-cf", "-", *(member.name for member in members)]
    archive = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert rebuild(archive) == {"Ref:9": ext4}
