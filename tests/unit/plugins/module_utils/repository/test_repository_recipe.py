# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository's own restore-xva.sh, run by the stock tools, rebuilds what was backed up and nothing else."""
from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import tarfile

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import X25519Identity
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import SigningKey
from ansible_collections.guestark.xen.plugins.module_utils.repository import layout, record, segments
from ansible_collections.guestark.xen.plugins.module_utils.repository.segments import SegmentWriter
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import (
    encode_block,
    encode_end,
    encode_ova,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    DATA,
    KEYS,
    OPEN_KEYS,
    SIGNING,
    VM,
    back_up,
    disk,
    equal,
    make,
    two_disks,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, ova, pack

TOOLS = ("sh", "ssh-keygen", "sha256sum", "age", "zstd", "tar")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason="needs " + ", ".join(tool for tool in TOOLS if not shutil.which(tool))
)


class Scene:
    """A repository, the two files its owner keeps elsewhere, and the script run as the guide says."""

    def __init__(self, path) -> None:
        self.path = path
        self.root = path / "repository"
        self.repository = make(self.root)
        self.folder = self.root / "vm" / VM
        self.out = path / "out.xva"
        (path / "identity").write_text("# created: today\n%s\n" % DATA.to_string())
        (path / "signers").write_text("mover1,mover1.example.org %s\n" % SIGNING.public_line("mover1"))

    def sum_of(self, point) -> str:
        return "vm/%s/pt/%s.sum" % (VM, point)

    def run(self, point, identity="identity", signers="signers") -> subprocess.CompletedProcess:
        identity = identity if identity == "-" else str(self.path / identity)
        command = ["sh", "restore-xva.sh", identity, str(self.path / signers), self.sum_of(point), "../out.xva"]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False, timeout=120)

    def restored(self, point, disks, **options) -> bool:
        result = self.run(point, **options)
        assert result.returncode == 0, result.stderr
        archive = self.out.read_bytes()
        self.out.unlink()
        return equal(archive, disks)

    def refused(self, point, said: str, **options) -> None:
        before = sorted(self.path.iterdir())
        result = self.run(point, **options)
        assert result.returncode != 0 and said in result.stderr, result.stderr
        assert sorted(self.path.iterdir()) == before

    def layer(self, below, disks, blocks, kind="incremental", members=None):
        """Commit a layer over the point ``below``, as the format describes it; ``members`` replaces its content."""
        point = layout.new_point_id(below.started, below.seq + 1)

        def name(number):
            return "vm/%s/%s" % (VM, layout.segment_name(point, number, True))

        writer = SegmentWriter(self.repository.store, name, [DATA.recipient()])
        if members is None:
            writer.put(encode_ova(ova(disks)))
            for label, number, data in blocks:
                writer.put(encode_block(label, number, data).frame)
            writer.put(encode_end())
        else:
            writer.put(subprocess.run(["zstd", "-c"], input=members, capture_output=True, check=True).stdout)
        own = [(one.sha256.hex(), one.name.partition(VM + "/")[2]) for one in writer.finish()]
        small = []
        for small_name in (layout.index_name(point, True), layout.meta_name(point, True)):
            self.repository.store.put("vm/%s/%s" % (VM, small_name), small_name.encode())
            small.append((hashlib.sha256(small_name.encode()).hexdigest(), small_name))
        older = [[one for one in below.objects if one[1].startswith(start)] for start in ("seg/", "idx/")]
        objects = (*older[0], *own, *older[1], *small) if kind == "incremental" else (*own, *small)
        committed = dataclasses.replace(
            below, point=point, parent=below.point, seq=point.seq, started=point.moment, kind=kind,
            objects=tuple(objects),
        )
        self.commit(committed)
        return committed

    def commit(self, committed, key=SIGNING) -> None:
        text = record.render(committed)
        path = self.root / self.sum_of(committed.point)
        path.write_bytes(text)
        path.with_name(path.name + ".sig").write_bytes(record.sign(text, key))


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path)


def test_the_script_is_clean(scene):
    subprocess.run(["sh", "-n", "restore-xva.sh"], cwd=scene.root, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "restore-xva.sh"], cwd=scene.root, check=True)


@pytest.mark.parametrize("keys, identity", [(KEYS, "identity"), (OPEN_KEYS, "-")], ids=["age", "none"])
def test_a_point_restores_with_stock_tools_alone(scene, keys, identity):
    older, newer = back_up(scene.repository, two_disks(), keys), back_up(scene.repository, two_disks(9), keys)
    assert scene.restored(older.point, two_disks(), identity=identity)
    assert scene.restored(newer.point, two_disks(9), identity=identity)


def test_only_the_documented_tools_are_used(scene, tmp_path):
    point = back_up(scene.repository, two_disks()).point
    posix = ("basename cat cp cut dirname find grep head mkdir mktemp mv rm sed sort").split()
    (tmp_path / "bin").mkdir()
    for tool in (*TOOLS, *posix):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    command = [
        shutil.which("sh"), "restore-xva.sh", "../identity", "../signers", scene.sum_of(point), str(scene.out)
    ]
    subprocess.run(command, cwd=scene.root, env={"PATH": str(tmp_path / "bin")}, check=True, capture_output=True)
    assert equal(scene.out.read_bytes(), two_disks())


def test_a_segment_opens_by_hand_into_a_tar(scene):
    (segment,) = back_up(scene.repository, two_disks()).segments
    command = "age -d -i %s %s | zstd -d | tar -tf -" % (scene.path / "identity", scene.folder / segment)
    listing = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.split()
    assert listing[0] == "ova.xml" and "Ref:1002/00000003.checksum" in listing


def test_a_point_of_many_segments_restores(scene, monkeypatch):
    monkeypatch.setattr(segments.SegmentWriter.__init__, "__defaults__", (700_000,))
    disks = [disk(0, 12 * MIB, {number: number + 1 for number in range(12)})]
    committed = back_up(scene.repository, disks)
    assert len(committed.segments) == 12 and scene.restored(committed.point, disks)


def test_layers_restore(scene):
    """What incrementals will be: data, data that became zero, a disk that grew, one added, one removed."""
    first = [disk(0, 2 * MIB + 512, {0: 1, 1: 2, 2: b"end"}), disk(1, MIB, {0: 4})]
    base = back_up(scene.repository, first)
    second = [disk(0, 4 * MIB + 512, {0: 1, 1: 2, 2: b"end", 3: 7})]
    grown = bytearray(second[0].image)
    grown[2 * MIB:3 * MIB] = first[0].image[2 * MIB:].ljust(MIB, b"\0")
    second[0].image = bytes(grown)
    label = second[0].label
    blocks = [(label, number, second[0].image[number * MIB:(number + 1) * MIB]) for number in (0, 2, 3, 4)]
    grew = scene.layer(base, second, blocks)
    zeroed = dataclasses.replace(second[0], image=bytes(MIB) + second[0].image[MIB:])
    third = [zeroed, disk(2, MIB + 512, {0: 8, 1: b"x"})]
    blocks = [(label, number, third[0].image[number * MIB:(number + 1) * MIB]) for number in (0, 4)]
    blocks += [("Ref:1003", number, third[1].image[number * MIB:(number + 1) * MIB]) for number in (0, 1)]
    last = scene.layer(grew, third, blocks)
    assert scene.restored(base.point, first)
    assert scene.restored(grew.point, second)
    assert scene.restored(last.point, third)
    # a layer in the middle is gone, or two have changed places
    middle = scene.folder / grew.segments[-1]
    shutil.move(middle, scene.path / "aside")
    scene.refused(last.point, "missing or damaged")
    shutil.copy(scene.folder / base.segments[0], middle)
    scene.refused(last.point, "missing or damaged")


def test_what_changed_is_refused(scene):
    committed = back_up(scene.repository, two_disks())
    other = back_up(scene.repository, two_disks(5))
    for name in (name for _digest, name in committed.objects):
        path = scene.folder / name
        whole = path.read_bytes()
        kind = name.partition("/")[0]
        (other_name,) = [one for _digest, one in other.objects if one.startswith(kind)]
        flipped = whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]
        for changed in (whole[:-1], whole + b"x", flipped, (scene.folder / other_name).read_bytes(), b""):
            path.write_bytes(changed)
            scene.refused(committed.point, "missing or damaged")
        path.unlink()
        scene.refused(committed.point, "missing or damaged")
        path.write_bytes(whole)
    assert scene.restored(committed.point, two_disks())


def test_who_knows_the_recipient_cannot_forge(scene):
    """An attacker with the public recipient writes a segment of his own and corrects the list."""
    committed = back_up(scene.repository, two_disks())
    forged = scene.layer(committed, two_disks(6), [], kind="full", members=pack([("ova.xml", b"<value/>")]))
    attacker = SigningKey.generate()
    scene.commit(forged, attacker)
    scene.refused(forged.point, "nobody among the allowed signers")
    (scene.folder / "pt" / ("%s.sum.sig" % forged.point)).unlink()
    scene.refused(forged.point, "nobody among the allowed signers")
    shutil.copy(
        scene.folder / "pt" / ("%s.sum.sig" % committed.point), scene.folder / "pt" / ("%s.sum.sig" % forged.point)
    )
    scene.refused(forged.point, "signature does not fit")
    # a signature of ours for another purpose
    text = (scene.root / scene.sum_of(forged.point)).read_bytes()
    (scene.folder / "pt" / ("%s.sum.sig" % forged.point)).write_bytes(SIGNING.sign(text, "file"))
    scene.refused(forged.point, "signature does not fit")


def test_a_list_under_another_name_is_refused(scene):
    older, newer = back_up(scene.repository, two_disks()), back_up(scene.repository, two_disks(5))
    for end in (".sum", ".sum.sig"):
        shutil.copy(scene.folder / "pt" / (older.point + end), scene.folder / "pt" / (newer.point + end))
    scene.refused(newer.point, "list of another point")
    other = scene.root / "vm/00000000-0000-4000-8000-000000000000"
    shutil.move(scene.folder, other)
    command = ["sh", "restore-xva.sh", "../identity", "../signers", str(other / "pt" / (older.point + ".sum")), "../o"]
    result = subprocess.run(command, cwd=scene.root, capture_output=True, text=True, check=False)
    assert result.returncode and "list of another VM" in result.stderr


@pytest.mark.parametrize("change", [
    lambda text: text.replace("# end 3\n", ""),
    lambda text: text.replace("# end 3", "# end 4"),
    lambda text: text.replace("seg/", "seg/../seg/"),
    lambda text: text.replace("  seg/", "  /etc/../seg/"),
    lambda text: text + "%s  ../../../repository.json\n" % ("0" * 64),
    lambda text: text[: text.index("# mover")],
])
def test_a_list_that_is_not_in_order_is_refused_even_when_signed(scene, change):
    committed = back_up(scene.repository, two_disks())
    path = scene.root / scene.sum_of(committed.point)
    text = change(path.read_text()).encode()
    assert text != path.read_bytes()
    path.write_bytes(text)
    path.with_name(path.name + ".sig").write_bytes(record.sign(text, SIGNING))
    scene.refused(committed.point, "the list ")


def test_the_wrong_key_opens_nothing(scene):
    committed = back_up(scene.repository, two_disks())
    (scene.path / "catalog").write_text(CATALOG.to_string() + "\n")
    (scene.path / "strange").write_text(X25519Identity.generate().to_string() + "\n")
    for identity in ("catalog", "strange", "-"):
        scene.refused(committed.point, "cannot be decrypted", identity=identity)
    scene.refused(committed.point, "cannot read", identity="none")
    (scene.path / "nobody").write_text("")
    scene.refused(committed.point, "nobody among", signers="nobody")
    scene.out.write_text("precious")
    scene.refused(committed.point, "exists")
    assert scene.out.read_text() == "precious"


def hostile(name: str, kind: bytes, target: str = "") -> bytes:
    """An archive with one strange member before a disk's block."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        description = tarfile.TarInfo("ova.xml")
        description.size = 8
        tar.addfile(description, io.BytesIO(b"<value/>"))
        strange = tarfile.TarInfo(name)
        strange.type, strange.linkname = kind, target
        tar.addfile(strange)
        block = tarfile.TarInfo("Ref:1001/00000000")
        block.size = 4
        tar.addfile(block, io.BytesIO(b"evil"))
    return out.getvalue()


@pytest.mark.parametrize("name, kind, target", [
    ("../evil", tarfile.REGTYPE, ""), ("Ref:1001/../../evil", tarfile.REGTYPE, ""), ("/tmp/evil", tarfile.REGTYPE, ""),
    ("Ref:1001", tarfile.SYMTYPE, "/"), ("Ref:1001", tarfile.SYMTYPE, ".."),
    ("Ref:1001/00000001", tarfile.SYMTYPE, "/etc/passwd"), ("Ref:1001/00000001", tarfile.LNKTYPE, "/etc/passwd"),
    ("Ref:1001/00000001", tarfile.FIFOTYPE, ""),
    ("notes.txt", tarfile.REGTYPE, ""), ("-evil", tarfile.REGTYPE, ""), ("Ref:1001/00000001\nx", tarfile.REGTYPE, ""),
])
def test_members_that_lead_elsewhere_are_refused_even_when_signed(scene, name, kind, target):
    committed = back_up(scene.repository, two_disks())
    members = hostile(name, kind, target)
    outside = sorted(scene.path.parent.iterdir())
    single = scene.layer(committed, two_disks(), [], kind="full", members=members)
    scene.refused(single.point, "restore-xva: ")
    layered = scene.layer(committed, two_disks(), [], members=members)
    scene.refused(layered.point, "restore-xva: ")
    assert sorted(scene.path.parent.iterdir()) == outside
