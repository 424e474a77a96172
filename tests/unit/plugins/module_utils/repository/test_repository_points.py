# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points: what is committed restores; what is not committed is not there; who may be believed."""
from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import threading

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.age.errors import NoMatchError
from ansible_collections.guestark.xen.plugins.module_utils.age.keys import X25519Identity
from ansible_collections.guestark.xen.plugins.module_utils.age.sshsig import AllowedSigners, SigningKey
from ansible_collections.guestark.xen.plugins.module_utils.repository import point_reader, segments
from ansible_collections.guestark.xen.plugins.module_utils.repository.errors import (
    NoSpace,
    PointDamaged,
    RepositoryError,
)
from ansible_collections.guestark.xen.plugins.module_utils.repository.layout import MOST_SEQ
from ansible_collections.guestark.xen.plugins.module_utils.repository.lease import Lease
from ansible_collections.guestark.xen.plugins.module_utils.repository.posix import PosixStore
from ansible_collections.guestark.xen.plugins.module_utils.repository.repository import Repository, WriterKeys
from ansible_collections.guestark.xen.plugins.module_utils.repository.units import encode_block
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.failpoints import (
    Failpoints,
    fail_with,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.repository.point_maker import (
    CATALOG,
    DATA,
    KEYS,
    OPEN_KEYS,
    SIGNERS,
    SIGNING,
    VM,
    back_up,
    blocks_of,
    disk,
    equal,
    files,
    make,
    restore,
    two_disks,
    write,
)
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xva.xva_maker import MIB, ova
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Disks(list):
    """Disks whose contents are not printed when a test fails."""

    def __repr__(self) -> str:
        return str([(one.label, len(one.image)) for one in self])


@st.composite
def some_disks(draw):
    """Up to three small disks of any size, with holes, zero blocks and noise."""
    found = Disks()
    for number in range(draw(st.integers(0, 3))):
        size = draw(st.one_of(st.integers(1, 3 * MIB), st.sampled_from([512, MIB, 2 * MIB, 2 * MIB + 512])))
        blocks = range(-(-size // MIB))
        filled = {block: draw(st.integers(1, 9)) for block in blocks if draw(st.booleans())}
        found.append(disk(number, size, filled))
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_disks(), st.booleans(), st.booleans())
def test_what_was_backed_up_comes_back(tmp_path, disks, encrypted, zeros):
    repository = make(tmp_path / "repository")
    record = back_up(repository, disks, KEYS if encrypted else OPEN_KEYS, zeros=zeros)
    found = repository.points(VM, SIGNERS)[-1]
    assert found == dataclasses.replace(record, trusted=True, signer="mover1") and not found.problem
    assert equal(restore(repository, found, [DATA] if encrypted else []), disks)
    assert all(name.endswith(".age") == encrypted for _digest, name in record.objects)


def test_a_full_keeps_no_needless_zeros_and_its_view_does_not_depend_on_them(tmp_path):
    repository = make(tmp_path / "repository")
    plain, with_zeros = (back_up(repository, two_disks(), zeros=zeros) for zeros in (False, True))
    metas = [repository.meta(record, [CATALOG]) for record in (plain, with_zeros)]
    views = [[one["digest_of_view"] for one in meta["disks"]] for meta in metas]
    assert views[0] == views[1] and len(set(views[0])) == 2
    assert [one["units_written"] for one in metas[1]["disks"]] == [4, 2]
    assert [one["zero_units"] for one in metas[1]["disks"]] == [1, 0]
    changed = back_up(repository, two_disks(seed=1))
    assert repository.meta(changed, [CATALOG])["disks"][0]["digest_of_view"] != views[0][0]


def test_nothing_is_left_out_behind_a_first_disk_of_less_than_a_block(tmp_path):
    repository = make(tmp_path / "repository")
    disks = [disk(0, 512, {0: b"boot"}), disk(1, 6 * MIB, {0: 1, 4: 2})]
    record = back_up(repository, disks)
    assert equal(restore(repository, record), disks)
    assert [one["units_written"] for one in repository.meta(record, [CATALOG])["disks"]] == [1, 6]
    other_way_round = [disk(0, 6 * MIB, {0: 1, 4: 2}), disk(1, 512, {0: b"boot"})]
    record = back_up(repository, other_way_round)
    assert equal(restore(repository, record), other_way_round)
    assert [one["units_written"] for one in repository.meta(record, [CATALOG])["disks"]] == [3, 1]


def test_a_point_of_many_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "MOST_PLAIN", 700_000)
    monkeypatch.setattr(segments.SegmentWriter.__init__, "__defaults__", (700_000,))
    monkeypatch.setattr(point_reader, "COALESCED", 600_000)
    repository = make(tmp_path / "repository")
    disks = [disk(0, 9 * MIB, {number: number + 1 for number in range(9)})]
    record = back_up(repository, disks)
    assert len(record.segments) == 9 and equal(restore(repository, record), disks)
    assert [one["name"] for one in repository.meta(record, [CATALOG])["segments"]] == record.segments


def test_metadata_is_what_was_given_and_what_was_found(tmp_path):
    repository = make(tmp_path / "repository")
    given_meta = {
        "vm": {"uuid": VM, "name_label": "wäb"}, "consistency": "crash", "warnings": ["a"], "schema": 99,
        "disks": [{"label": "Ref:1002", "vdi_uuid": "00000000-0000-4000-8000-0000000000ff", "tracked": True}],
    }
    record = back_up(repository, two_disks(), meta=given_meta)
    for identity in (CATALOG, DATA):
        meta = repository.meta(record, [identity])
        assert (meta["schema"], meta["vm"]["name_label"], meta["point"]) == (1, "wäb", record.point)
        assert [one["label"] for one in meta["disks"]] == ["Ref:1001", "Ref:1002"]
        assert meta["disks"][1]["vdi_uuid"].endswith("ff") and meta["disks"][1]["tracked"]
        assert [one["role"] for one in meta["recipients"]] == ["data", "catalog"]
    with repository.read_point(record, [DATA]) as reader:
        assert [one.vdi_uuid[-2:] for one in reader.disks] == ["00", "ff"] and reader.meta == meta
        assert [one.virtual_size for one in reader.disks] == [5 * MIB, 3 * MIB + 1536]
    with pytest.raises(ValueError, match="Ref:9"):
        back_up(repository, two_disks(), meta={"disks": [{"label": "Ref:9"}]})


def test_a_catalog_key_opens_no_block_and_a_strange_key_nothing(tmp_path):
    repository = make(tmp_path / "repository")
    record = back_up(repository, two_disks())
    with pytest.raises(NoMatchError):
        restore(repository, record, [CATALOG])
    for opening in (lambda key: repository.meta(record, [key]), lambda key: restore(repository, record, [key])):
        with pytest.raises(NoMatchError):
            opening(X25519Identity.generate())


def test_points_are_in_order_whatever_the_clock_said(tmp_path):
    repository = make(tmp_path / "repository")
    first, second, third = (back_up(repository, two_disks(seed)) for seed in range(3))
    assert [one.seq for one in repository.points()] == [1, 2, 3]
    assert [one.point for one in repository.points(VM)] == [first.point, second.point, third.point]
    assert repository.vm_uuids() == [VM] and repository.points("00000000-0000-4000-8000-000000000000") == []
    assert not any(one.trusted for one in repository.points(VM))


def test_two_writers_at_once_make_two_points(tmp_path):
    repository = make(tmp_path / "repository")
    begun, failures = threading.Barrier(2), []

    def run(seed: int) -> None:
        try:
            with Repository.open(PosixStore(repository.store.path)).new_point(VM, KEYS) as point:
                begun.wait(timeout=30)
                write(point, two_disks(seed))
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    points = repository.points(VM, SIGNERS)
    assert [one.seq for one in points] == [1, 1] and all(one.trusted for one in points)
    archives = [restore(repository, one) for one in points]
    assert sorted(equal(archive, two_disks(seed)) for archive in archives for seed in (10, 20)) == [0, 0, 1, 1]
    assert back_up(repository, two_disks()).seq == 2


def test_without_a_commit_nothing_is_left(tmp_path):
    repository = make(tmp_path / "repository")
    back_up(repository, two_disks())
    before = files(tmp_path)
    with repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(two_disks()))
    assert files(tmp_path) == before
    with pytest.raises(RuntimeError), repository.new_point(VM, KEYS) as point:
        write(point, two_disks())
        raise_from_the_caller()
    assert len(repository.points(VM)) == 2  # what was committed stays, whatever the caller's next step does


def raise_from_the_caller() -> None:
    raise RuntimeError("after the commit")


def test_an_error_at_any_step_leaves_the_old_state_or_the_new_point(fast_path):
    base = fast_path / "base"
    repository = make(base)
    disks = [disk(0, MIB, {0: 1})]
    back_up(repository, disks)
    before = files(base)
    with Failpoints(None) as seen, repository.new_point(VM, KEYS) as point:
        write(point, disks)
    assert seen.count > 100
    linked = max(at for at, name in enumerate(seen.calls) if name == "link")  # from here on the record can be seen
    for at in range(seen.count):
        shutil.rmtree(fast_path / "copy", ignore_errors=True)
        shutil.copytree(base, fast_path / "copy", ignore=lambda _path, names: [n for n in names if "-000002-" in n])
        copy = Repository.open(PosixStore(str(fast_path / "copy")))
        committed = False
        try:
            with Failpoints(fail_with(errno.ENOSPC), at), copy.new_point(VM, KEYS) as point:
                write(point, disks)
                committed = True
        except NoSpace:
            pass
        points = copy.points(VM, SIGNERS)
        assert [one.problem for one in points] == [None] * (1 + committed), (at, seen.calls[at])
        assert equal(restore(copy, points[-1]), disks)
        if not committed and at > linked:  # another point may rest on the objects by now: the VM's next run decides
            with Lease(copy.store, VM) as lease:
                copy.sweep(lease)
        if not committed:
            left = {name for name in files(fast_path / "copy") if name not in before}
            # only a removal that failed itself leaves something: a file that no record lists
            assert len(left) <= 1 and all(name.startswith(".tmp/") for name in left), (at, seen.calls[at], left)


def test_a_full_repository_keeps_its_points(small_filesystem):
    repository = make(small_filesystem)
    disks = [disk(0, 4 * MIB, {0: 1, 3: 2})]
    record = back_up(repository, disks)
    before = files(small_filesystem)
    with pytest.raises(NoSpace, match="Make room"), repository.new_point(VM, KEYS) as point:
        write(point, [disk(0, 9 * MIB, {number: number + 5 for number in range(9)})])
    assert files(small_filesystem) == before and not list((small_filesystem / ".tmp").iterdir())
    assert [one.point for one in repository.points(VM, SIGNERS)] == [record.point]
    assert equal(restore(repository, record), disks)


def test_with_room_for_some_of_the_objects_only_there_is_no_point(small_filesystem):
    repository = make(small_filesystem)
    disks = [disk(0, MIB, {0: b"small"})]
    fitted = []
    for pages in range(12):
        before = files(small_filesystem)
        filler = small_filesystem / "filler"
        try:
            with repository.new_point(VM, KEYS) as point:
                point.put_ova(ova(disks))
                point.put_block("Ref:1001", 0, encode_block("Ref:1001", 0, disks[0].image))
                filler.write_bytes(bytes(repository.store.free_space() - pages * 4096))
                point.commit({})
            fitted.append(pages)
        except NoSpace:
            filler.unlink()
            assert files(small_filesystem) == before, pages
            continue
        filler.unlink()
        assert len(repository.points(VM, SIGNERS)) == len(fitted)
        assert equal(restore(repository, repository.points(VM, SIGNERS)[-1]), disks)
    assert fitted and fitted[0] > 2  # both outcomes were seen


@pytest.mark.parametrize("spoil", [
    lambda blocks: blocks[1:],
    lambda blocks: blocks[:-1],
    lambda blocks: [one for one in blocks if one[0] == "Ref:1002"],
    lambda blocks: [],
], ids=["no first block", "no last block", "a disk is missing", "no disk"])
def test_a_disk_that_is_not_complete_is_no_point(tmp_path, spoil):
    repository = make(tmp_path / "repository")
    before = files(tmp_path)
    with pytest.raises(PointDamaged, match="not complete"), repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(two_disks()))
        for label, number, data in spoil(list(blocks_of(two_disks()))):
            point.put_block(label, number, encode_block(label, number, data))
        point.commit({})
    assert files(tmp_path) == before and not repository.points()


@pytest.mark.parametrize("label, number, length", [
    ("Ref:1001", 0, MIB), ("Ref:1001", 5, MIB), ("Ref:1001", 2, MIB - 1), ("Ref:1002", 3, MIB), ("Ref:1003", 0, MIB),
])
def test_a_block_that_has_no_place_is_refused(tmp_path, label, number, length):
    repository = make(tmp_path / "repository")
    with repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(two_disks()))
        first = [one for one in blocks_of(two_disks()) if label != "Ref:1002" or one[0] == "Ref:1001"][:5]
        for one, at, data in first if label == "Ref:1002" else first[:2]:
            point.put_block(one, at, encode_block(one, at, data))
        with pytest.raises((ValueError, KeyError)):
            point.put_block(label, number, encode_block(label, number, bytes(length)))
    assert not repository.points()


def test_no_block_may_be_missing_when_the_first_disk_is_short(tmp_path):
    repository = make(tmp_path / "repository")
    with repository.new_point(VM, KEYS) as point:
        disks = [disk(0, 1536, {0: 1}), disk(1, 3 * MIB, {0: 2, 2: 3})]
        point.put_ova(ova(disks))
        point.put_block("Ref:1001", 0, encode_block("Ref:1001", 0, disks[0].image))
        point.put_block("Ref:1002", 0, encode_block("Ref:1002", 0, disks[1].image[:MIB]))
        with pytest.raises(ValueError, match="no place"):
            point.put_block("Ref:1002", 2, encode_block("Ref:1002", 2, disks[1].image[2 * MIB:]))


def test_a_disk_does_not_come_twice(tmp_path):
    repository = make(tmp_path / "repository")
    with repository.new_point(VM, KEYS) as point:
        point.put_ova(ova(two_disks()))
        for label, number, data in blocks_of(two_disks()):
            point.put_block(label, number, encode_block(label, number, data))
        with pytest.raises(ValueError, match="second time"):
            point.put_block("Ref:1001", 0, encode_block("Ref:1001", 0, bytes(MIB)))
        with pytest.raises(ValueError, match="one description"):
            point.put_ova(ova(two_disks()))


def test_who_signed_decides_what_counts(tmp_path):
    repository = make(tmp_path / "repository")
    stranger = SigningKey.generate()
    back_up(repository, two_disks())
    back_up(repository, two_disks(1), dataclasses.replace(KEYS, signing_key=stranger))
    found = repository.points(VM, SIGNERS)
    assert [(one.trusted, one.signer) for one in found] == [(True, "mover1"), (False, None)]
    assert "not among the allowed signers" in found[1].problem and found[1].kind == "full"
    with pytest.raises(PointDamaged, match="allowed signers"):
        restore(repository, found[1])
    both = AllowedSigners.parse("a %s\nb %s\n" % (SIGNING.public_line(), stranger.public_line()))
    assert [one.signer for one in repository.points(VM, both)] == ["a", "b"]
    # a stranger's number does not push ours aside
    with repository.new_point(VM, KEYS, signers=SIGNERS) as point:
        assert point.point.seq == 2
        write(point, two_disks())


def test_absurd_numbers_of_a_stranger_do_not_stop_us(tmp_path):
    repository = make(tmp_path / "repository")
    folder = tmp_path / "repository/vm" / VM / "pt"
    folder.mkdir(parents=True)
    (folder / ("20261123T010000Z-%06d-9f3c2a7be1d0.sum" % MOST_SEQ)).write_bytes(b"anything")
    with pytest.raises(RepositoryError, match="allowed signers"):
        repository.new_point(VM, KEYS)
    with repository.new_point(VM, KEYS, signers=SIGNERS) as point:
        assert write(point, two_disks()).seq == 1
    (unreadable,) = [one for one in repository.points(VM, SIGNERS) if one.problem]
    assert (unreadable.kind, unreadable.seq, unreadable.objects) == ("unknown", MOST_SEQ, ())


def test_points_that_lack_something_say_so(tmp_path):
    repository = make(tmp_path / "repository")
    record = back_up(repository, two_disks())
    folder = tmp_path / "repository/vm" / VM
    for name in [name for _digest, name in record.objects]:
        (folder / name).rename(tmp_path / "aside")
        (found,) = repository.points(VM, SIGNERS)
        assert found.trusted and found.problem == "%s is missing" % name
        with pytest.raises(PointDamaged, match="is missing"):
            restore(repository, found)
        (tmp_path / "aside").rename(folder / name)
    (folder / ("pt/%s.sum.sig" % record.point)).unlink()
    (found,) = repository.points(VM, SIGNERS)
    assert not found.trusted and "signature is missing" in found.problem


def test_a_record_under_another_name_is_no_point(tmp_path):
    repository = make(tmp_path / "repository")
    record = back_up(repository, two_disks())
    folder = tmp_path / "repository/vm" / VM / "pt"
    other = record.point.replace("-000001-", "-000009-")
    for end in (".sum", ".sum.sig"):
        shutil.copy(folder / (record.point + end), folder / (other + end))
    elsewhere = tmp_path / "repository/vm/00000000-0000-4000-8000-000000000000"
    shutil.copytree(folder.parent, elsewhere)
    found = repository.points(None, SIGNERS)
    assert [one.problem for one in found if one.trusted] == [None]
    assert len(found) == 4 and sum("another point" in (one.problem or "") for one in found) == 3


def test_objects_that_changed_are_not_read(tmp_path):
    repository = make(tmp_path / "repository")
    record = back_up(repository, two_disks())
    other = back_up(repository, two_disks(5))
    folder = tmp_path / "repository/vm" / VM
    for name, others in ((record.meta, other.meta), (record.indexes[0], other.indexes[0])):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes((folder / others).read_bytes())
        with pytest.raises(PointDamaged, match="not what the commit record lists"):
            restore(repository, record)
        (folder / name).write_bytes(whole)


def test_a_repository_is_made_once(tmp_path):
    first = make(tmp_path / "repository")
    before = files(tmp_path)
    assert set(before) == {"repository/repository.json", "repository/RESTORE.md", "repository/restore-xva.sh"}
    again = make(tmp_path / "repository")
    assert (again.id, again.created) == (first.id, first.created) and files(tmp_path) == before
    assert Repository.open(PosixStore(str(tmp_path / "repository"))).id == first.id


@pytest.mark.parametrize("text, said", [
    (b"", "damaged"), (b"[]", "damaged"), (b"{}", "damaged"), (b'{"format": "other"}', "damaged"),
    ({"version": 2}, "version 2"), ({"requires": ["layers"]}, "layers"), ({"requires": None}, "damaged"),
    ({"format": "xvaset"}, "damaged"),
])
def test_a_repository_that_needs_more_is_refused(tmp_path, text, said):
    make(tmp_path)
    path = tmp_path / "repository.json"
    if isinstance(text, dict):
        text = json.dumps({**json.loads(path.read_text()), **text}).encode()
    path.write_bytes(text)
    with pytest.raises(RepositoryError, match=said):
        make(tmp_path)


def test_no_repository_is_made_where_points_lie_or_nothing_can_be_written(tmp_path):
    with pytest.raises(RepositoryError, match="There is no repository"):
        Repository.open(PosixStore(str(tmp_path)))
    (tmp_path / "vm/x").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="Bring that file back"):
        make(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "no/such/folder"):
        with pytest.raises(RepositoryError):
            make(path)


@pytest.mark.parametrize("arguments", [
    ([], [], SIGNING), ([], [CATALOG.recipient()], SIGNING), ([DATA.recipient()], [], SIGNING, "none"),
    ([DATA.recipient()], [], SIGNING, "gpg"),
])
def test_keys_that_do_not_fit_together_are_refused(arguments):
    with pytest.raises(ValueError):
        WriterKeys(*arguments)
