# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real file systems frozen and thawed, by whom ever and whoever dies in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.guest import freezing, keeper, mounts
from ansible_collections.guestark.xen.plugins.module_utils.guest.errors import GuestError

SECONDS = 20.0


def until(happened):
    deadline = time.monotonic() + SECONDS
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert happened()


def is_frozen(path):
    """Whether it is frozen: freezing it once more is refused then."""
    if subprocess.run(["fsfreeze", "-f", path], capture_output=True, check=False).returncode:
        return True
    subprocess.run(["fsfreeze", "-u", path], check=True)
    return False


@pytest.fixture(scope="module", name="disks")
def fixture_disks():
    """Two mount points."""
    folder = Path(tempfile.mkdtemp(prefix="freezing-"))
    paths = []
    for name in ("outer", "inner"):
        image, path = folder / f"{name}.img", folder / name
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(image)], check=True)
        done = subprocess.run(["mount", "-o", "loop", str(image), str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine cannot mount a file system through a loop device: {done.stderr.strip()}")
        paths.append(str(path))
    yield paths
    for path in paths:
        subprocess.run(["umount", path], check=True)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True, name="state")
def fixture_state(disks, monkeypatch):
    """A folder for the state; in the end nothing is frozen and no keeper is there."""
    folder = tempfile.mkdtemp(prefix="keeper-", dir="/dev/shm")
    for module in (freezing, keeper):
        monkeypatch.setattr(module, "STATE", folder)
    yield Path(folder)
    until(lambda: not (Path(folder) / keeper.SOCKET).exists())
    assert [path for path in disks if is_frozen(path)] == []
    shutil.rmtree(folder)


def keeper_of(state):
    """The keeper's process: it holds the lock file open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            files = {os.readlink(one) for one in folder.iterdir()}
        except OSError:
            continue
        if str(state / keeper.LOCK) in files and int(folder.parent.name) != os.getpid():
            return int(folder.parent.name)
    raise AssertionError("there is no keeper")


def the_mount(path):
    return next(one for one in mounts.mounted(Path("/proc/self/mountinfo").read_text()) if one.path == path)


def freeze(disks, seconds=15, **hooks):
    return freezing.freeze(disks, [{"kind": "command", **hooks}] if hooks else [], seconds, 5)


def test_writing_waits_until_it_is_thawed(disks, state):
    frozen = freeze(disks)
    assert frozen["mount_points"] == [disks[1], disks[0]] and frozen["consistency"] == "filesystem"
    written = threading.Thread(target=(Path(disks[0]) / "file").write_text, args=("text",))
    written.start()
    written.join(0.5)
    assert written.is_alive()
    changed, result = freezing.thaw(frozen["token"])
    written.join(SECONDS)
    assert not written.is_alive()
    assert changed and result["intact"] and result["released_by"] == "request" and result["frozen_seconds"] >= 0.5
    assert freezing.thaw(frozen["token"]) == (False, result)
    assert freezing.thaw(None) == (False, None) and not freezing.is_frozen()


def test_it_thaws_by_itself(disks, state):
    frozen = freeze(disks, seconds=1)
    assert freezing.is_frozen()
    until(lambda: not freezing.is_frozen())
    changed, result = freezing.thaw(frozen["token"])
    assert not changed and (result["intact"], result["released_by"], result["consistency"]) == (False, "deadline", "crash")


def test_who_thawed_it_in_between_is_noticed(disks):
    frozen = freeze(disks)
    subprocess.run(["fsfreeze", "-u", disks[0]], check=True)
    _changed, result = freezing.thaw(frozen["token"])
    assert (result["intact"], result["consistency"], result["released_by"]) == (False, "crash", "request")


def test_what_somebody_else_froze_stays_frozen(disks):
    subprocess.run(["fsfreeze", "-f", disks[0]], check=True)
    with pytest.raises(GuestError, match="frozen already, by somebody else"):
        freeze(disks)
    until(lambda: not is_frozen(disks[1]))
    assert is_frozen(disks[0])
    subprocess.run(["fsfreeze", "-u", disks[0]], check=True)


def test_a_second_freeze_is_refused_and_so_is_another_token(disks):
    frozen = freeze(disks)
    with pytest.raises(GuestError, match="is frozen already, since"):
        freeze(disks)
    with pytest.raises(GuestError, match="Another freeze is being held"):
        freezing.thaw("another")
    assert freezing.thaw(frozen["token"])[1]["intact"]


def test_hooks_run_around_it_whatever_happens(disks, tmp_path):
    log = tmp_path / "log"
    says = {word: ["sh", "-c", f"echo {word} >> {log}"] for word in ("before", "after")}
    frozen = freeze(disks, seconds=1, **says)
    assert frozen["consistency"] == "application" and log.read_text() == "before\n"
    until(lambda: log.read_text() == "before\nafter\n")
    until(lambda: not freezing.is_frozen())


def test_a_hook_that_fails_freezes_nothing_and_is_released(disks, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(GuestError, match="no room. Nothing was frozen"):
        freeze(disks, before=["sh", "-c", "echo -n no room.; exit 1"], after=["touch", str(log)])
    until(log.exists)


def test_an_after_hook_that_fails_is_told(disks):
    frozen = freeze(disks, after=["sh", "-c", "echo it is gone; exit 2"])
    _changed, result = freezing.thaw(frozen["token"])
    assert result["intact"] and result["consistency"] == "application" and "it is gone" in result["warnings"][0]


@pytest.mark.parametrize("number, reason", [(signal.SIGTERM, "signal"), (signal.SIGKILL, "recovery")])
def test_a_keeper_that_is_ended(disks, state, number, reason):
    frozen = freeze(disks)
    os.kill(keeper_of(state), number)
    if number == signal.SIGTERM:
        until(lambda: not freezing.is_frozen())
    changed, result = freezing.thaw(frozen["token"])
    assert changed is (number == signal.SIGKILL)
    assert (result["intact"], result["consistency"], result["released_by"]) == (False, "crash", reason)
    (state / keeper.SOCKET).unlink(missing_ok=True)  # a keeper that was killed leaves its socket, which the next replaces


def test_a_freezer_that_dies_half_way(disks, state):
    child = os.fork()
    if child == 0:
        freeze_one = mounts.freeze

        def once(descriptor):
            freeze_one(descriptor)
            os._exit(1)

        mounts.freeze = once
        freeze(disks)
        os._exit(0)
    os.waitpid(child, 0)
    until((state / keeper.LAST).exists)
    result = json.loads((state / keeper.LAST).read_text())
    assert (result["released_by"], result["intact"]) == ("failure", False)


def test_a_keeper_that_fails_thaws(disks, state, monkeypatch):
    def fail(_keeper, _listener):
        time.sleep(0.5)
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr(keeper.Keeper, "_wait", fail)
    with pytest.raises(GuestError):
        freeze(disks)
    until((state / keeper.LAST).exists)
    result = json.loads((state / keeper.LAST).read_text())
    assert result["released_by"] == "failure" and "nobody thought of" in result["warnings"][0]


def test_a_freezer_that_is_late(disks, state):
    """What it freezes after the time was up is thawed too."""
    freeze_one = mounts.freeze

    def slowly(descriptor):
        time.sleep(0.8)
        freeze_one(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "freeze", slowly)
        with pytest.raises(GuestError, match="longer than max_frozen"):
            freeze(disks, seconds=1)


def test_what_was_not_come_to_is_not_thawed(disks):
    """Somebody else froze the one that is left; it is not ours, whyever the freeze ends before."""
    for path in disks:
        subprocess.run(["fsfreeze", "-f", path], check=True)
    with pytest.raises(GuestError, match="by somebody else"):
        freeze(disks)
    assert [is_frozen(path) for path in disks] == [True, True]
    subprocess.run(["fsfreeze", "-u", disks[1]], check=True)
    freeze_one = mounts.freeze

    def slowly(descriptor):
        time.sleep(1.5)
        freeze_one(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "freeze", slowly)
        with pytest.raises(GuestError, match="longer than max_frozen"):
            freeze(disks, seconds=1)
    assert is_frozen(disks[0])
    subprocess.run(["fsfreeze", "-u", disks[0]], check=True)


def test_a_keeper_that_fails_before_the_freeze_runs_what_comes_after(disks, tmp_path, monkeypatch):
    def fails(*_arguments):
        raise OSError("no space")

    monkeypatch.setattr(keeper, "write", fails)
    log = tmp_path / "log"
    with pytest.raises(GuestError, match="no space. Nothing was frozen"):
        freeze(disks, before=["true"], after=["touch", str(log)])
    until(log.exists)
    (Path(keeper.STATE) / keeper.SOCKET).unlink()


def test_who_connects_and_says_nothing_puts_nothing_off(disks, state):
    freeze(disks, seconds=1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(state / keeper.SOCKET))
        until(lambda: not freezing.is_frozen())
    assert json.loads((state / keeper.LAST).read_text())["frozen_seconds"] < keeper.ANSWER_SECONDS


def test_a_hook_may_leave_a_process_behind(disks):
    frozen = freeze(disks, before=["sh", "-c", "setsid sleep 8 & true"])
    assert freezing.thaw(frozen["token"])[1]["intact"]


def test_a_lock_that_was_lost_is_not_the_applications_moment(disks, tmp_path, monkeypatch):
    client = tmp_path / "mariadb"
    client.write_text("#!/bin/sh\nread -r line; echo guestark-locked; read -r line; exit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    frozen = freezing.freeze(disks, [{"kind": "mariadb"}], 15, 5)
    result = freezing.thaw(frozen["token"])[1]
    assert (result["intact"], result["consistency"]) == (True, "filesystem") and "has ended" in result["warnings"][0]


def test_a_mount_that_is_out_of_reach_is_left_out(disks):
    hidden = Path(disks[0]) / "hidden"
    hidden.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", disks[1], str(hidden)], check=True)
    try:
        mount = the_mount(str(hidden))
        assert mounts.within_reach(mount)
        subprocess.run(["mount", "-t", "tmpfs", "none", disks[0]], check=True)
        try:
            assert not mounts.within_reach(mount)
            assert str(hidden) not in [target.path for target in freezing.targets([])]
        finally:
            subprocess.run(["umount", disks[0]], check=True)
    finally:
        subprocess.run(["umount", str(hidden)], check=True)


@pytest.mark.parametrize("seconds", [0, 601])
def test_how_long_it_may_be_frozen_is_bounded(disks, seconds):
    with pytest.raises(GuestError, match="Choose 1 to 600"):
        freeze(disks, seconds=seconds)
