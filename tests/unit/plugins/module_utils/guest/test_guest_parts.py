# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file systems are frozen, and hooks."""

from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.guest import hooks, mounts
from ansible_collections.guestark.xen.plugins.module_utils.guest.errors import GuestError

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/xvda1 rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:22 / /run rw - tmpfs tmpfs rw
25 22 8:2 / /var rw,relatime - xfs /dev/xvda2 rw
26 25 8:3 / /var/lib/my\\040data rw - ext4 /dev/xvdb rw
27 22 8:3 /sub /srv/bound rw - ext4 /dev/xvdb rw
28 22 8:4 / /media ro,relatime - ext4 /dev/xvdc ro
29 22 0:40 / /net rw - nfs4 server:/export rw
30 22 8:5 / /locked rw - ext4 /dev/xvdd ro
broken line
"""


@pytest.fixture(name="found")
def fixture_found():
    return mounts.mounted(MOUNTINFO)


def test_all_that_can_be_frozen_each_once_and_innermost_first(found):
    assert [mount.path for mount in mounts.chosen(found, [])] == ["/var/lib/my data", "/var", "/"]


def test_listed_ones_in_the_same_order(found):
    assert [mount.path for mount in mounts.chosen(found, ["/", "/var/"])] == ["/var", "/"]


@pytest.mark.parametrize(("path", "reason"), [
    ("/home", "Nothing is mounted on /home"), ("/run", "type tmpfs"), ("/media", "read-only"), ("/locked", "read-only"),
    ("/net", "type nfs4"),
])
def test_what_cannot_be_frozen_is_refused(found, path, reason):
    with pytest.raises(GuestError, match=reason):
        mounts.chosen(found, ["/", path])


def test_a_machine_without_any(found):
    with pytest.raises(GuestError, match="no file system"):
        mounts.chosen([mount for mount in found if mount.kind == "tmpfs"], [])


def test_commands_before_and_after(tmp_path):
    hook = hooks.hook_of({"kind": "command", "before": ["touch", f"{tmp_path}/a"], "after": ["rm", f"{tmp_path}/a"]})
    hook.prepare(10)
    assert (tmp_path / "a").exists()
    hook.release(10)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("command", "said"), [
    (["sh", "-c", "echo no room; exit 4"], "status 4: no room"), (["/nowhere/at/all"], "cannot be run"),
    (["sleep", "60"], "did not end within 0.2 s"),
])
def test_a_command_that_fails(command, said):
    with pytest.raises(GuestError, match=said):
        hooks.hook_of({"kind": "command", "before": command}).prepare(0.2)


def test_a_command_hook_without_a_command():
    with pytest.raises(GuestError, match="needs before or after"):
        hooks.hook_of({"kind": "command"})


def test_a_program_that_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(hooks.glob, "glob", lambda pattern: [])
    for kind in ("postgresql", "mariadb"):
        with pytest.raises(GuestError, match="is not installed"):
            hooks.hook_of({"kind": kind})


CLIENT = """\
#!/bin/sh
# answers as the client does: a SELECT's text on a line of its own
while read -r line; do
    echo "$line" >> {folder}/statements
    case $line in
        *{refused}*) echo "ERROR 1045: access denied"; exit 1;;
        *SELECT*) echo "guestark-locked";;
    esac
done
echo closed >> {folder}/statements
"""


def client(tmp_path, monkeypatch, refused="nothing"):
    program = tmp_path / "mariadb"
    program.write_text(CLIENT.format(folder=tmp_path, refused=refused))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return hooks.hook_of({"kind": "mariadb", "defaults_file": "/etc/guestark/my.cnf"})


def test_the_lock_of_mariadb_lasts_as_long_as_its_session(tmp_path, monkeypatch):
    hook = client(tmp_path, monkeypatch)
    hook.prepare(10)
    assert (tmp_path / "statements").read_text().splitlines() == ["FLUSH TABLES WITH READ LOCK; SELECT 'guestark-locked';"]
    hook.release(10)
    assert (tmp_path / "statements").read_text().splitlines()[1:] == ["UNLOCK TABLES; SELECT 'guestark-locked';", "closed"]
    hook.release(10)  # released already


def test_a_lock_that_is_refused(tmp_path, monkeypatch):
    hook = client(tmp_path, monkeypatch, refused="FLUSH")
    with pytest.raises(GuestError, match="access denied"):
        hook.prepare(10)


def test_a_session_that_ended_before(tmp_path, monkeypatch):
    hook = client(tmp_path, monkeypatch, refused="UNLOCK")
    hook.prepare(10)
    with pytest.raises(GuestError, match="has ended"):
        hook.release(10)
