# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is told in one clear message before anything is touched."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module", autouse=True, name="backed_up")
def fixture_backed_up(site):
    site.export("database")
    other = site.folder / "other.key"
    site.one("xen_backup_key", path=str(other), type="data")
    (site.folder / "nonsense.key").write_text("nonsense\n")
    (site.folder / "a file").write_text("")


BACKUPS = {
    # what is wrong: (options, what the message says)
    "wrong password": ({"password": "wrong"}, ["127.0.0.", "password"]),
    "untrusted certificate": ({"ca_path": None}, ["127.0.0.", "certificate", "ca_path"]),
    "foreign fingerprint": ({"ca_path": None, "fingerprint": "00" * 32}, ["127.0.0.", "fingerprint"]),
    "nobody there": ({"hostname": ["127.0.0.99:9"]}, ["127.0.0.99:9"]),
    "unknown VM": ({"name": "nobody"}, ["'nobody'", "name"]),
    "unknown UUID": ({"name": None, "uuid": "00000000-0000-0000-0000-000000000000"}, ["00000000-0000"]),
    "unknown snapshot": ({"snapshot": "00000000-0000-0000-0000-000000000000"}, ["web", "00000000-0000"]),
    "not allowed": ({"username": "reader", "password": "reader"}, ["web", "role"]),
    "malformed recipient": ({"recipients": ["age1nonsense"]}, ["age1nonsense"]),
    "no recipient": ({"recipients": []}, ["nobody to encrypt to", "recipients"]),
    "malformed age": ({"max_age": "soon"}, ["max_age", "soon", "90m"]),
    "repository not writable": ({"repository": "/proc/nowhere"}, ["/proc/nowhere"]),
    "repository is a file": ({"repository": "{folder}/a file"}, ["a file"]),
    "no signing key": ({"signing_key": None}, ["signing_key", "xen_backup_key"]),
    "signing key missing": ({"signing_key": "/nonexistent"}, ["/nonexistent"]),
    "malformed signing key": ({"signing_key": "{folder}/nonsense.key"}, ["nonsense.key"]),
    "dest of no format": ({"repository": None, "dest": "/tmp/web.tar"}, [".xva.zst.age", "/tmp/web.tar"]),
    "dest nowhere": ({"repository": None, "dest": "/nonexistent/web.xva"}, ["/nonexistent", "web"]),
    "dest encrypted to nobody": ({"repository": None, "dest": "/tmp/web.xva.zst.age", "recipients": []}, ["recipients"]),
}
RESTORES = {
    "wrong password": ({"password": "wrong"}, ["127.0.0.", "password"]),
    "no such SR": ({"sr": "No such storage"}, ["'database'", "No such storage"]),
    "SR too small": ({"sr": "Small storage"}, ["'database'", "Small storage", "bytes free", "needed"]),
    "no counterpart of a network": ({"networks": {}}, ["'database'", "'Storage'", "networks"]),
    "unknown network": ({"networks": {"Storage": "Nowhere"}}, ["'database'", "'Nowhere'"]),
    "unknown point": ({"point": "20200101T000000Z-000001-000000000000"},
                      ["'database'", "no usable restore point", "xen_backup_info"]),
    "unknown VM": ({"vm": "nobody"}, ["'nobody'"]),
    "no identity": ({"identities": []}, ["'database'"]),
    "wrong identity": ({"vm": "{uuid}", "identities": ["{folder}/other.key"]}, ["{uuid}", "identit"]),
    "identity missing": ({"identities": ["/nonexistent"]}, ["/nonexistent"]),
    "malformed identity": ({"identities": ["{folder}/nonsense.key"]}, ["nonsense.key"]),
    "nobody is believed": ({"allowed_signers": None}, ["allowed_signers"]),
    "repository missing": ({"repository": "/nonexistent"}, ["/nonexistent"]),
    "file missing": ({"repository": None, "vm": None, "src": "/nonexistent.xva"}, ["/nonexistent.xva"]),
    "file of no format": ({"repository": None, "vm": None, "src": "{folder}/nonsense.key"}, ["nonsense.key"]),
}


CASES = [("back up", name) for name in BACKUPS] + [("restore", name) for name in RESTORES]


def filled(site, value):
    """The value with {folder} and {uuid} replaced."""
    text = json.dumps(value).replace("{folder}", str(site.folder)).replace("{uuid}", site.uuid("database"))
    return json.loads(text)


@pytest.fixture(scope="module", name="outcomes")
def fixture_outcomes(site):
    """What became of all cases, run one after the other; and what was there before and after."""
    before = (site.contents(), site.state("production"), site.state("recovery"))
    backups = [site.task("xen_vm_export", **site.export_options("web", **filled(site, options)))
               for options, _said in BACKUPS.values()]
    restores = [site.task("xen_vm_restore", **site.restore_options("database", **filled(site, options)))
                for options, _said in RESTORES.values()]
    results = site.run(*backups, *restores, fails=True)
    site.left_behind()
    after = (site.contents(), site.state("production"), site.state("recovery"))
    return dict(zip(CASES, results, strict=True)), before, after


@pytest.mark.parametrize("case", CASES, ids=": ".join)
def test_one_clear_message(site, outcomes, case):
    doing, name = case
    result = outcomes[0][case]
    for words in filled(site, (BACKUPS if doing == "back up" else RESTORES)[name][1]):
        assert words.lower() in result["msg"].lower()
    assert result["failure"]["message"] in result["msg"] and "\n" not in result["msg"]


def test_nothing_was_touched(outcomes):
    _results, before, after = outcomes
    assert before == after


def test_two_vms_of_one_name(site):
    with site.api("production") as call:
        (odd,) = call("VM.get_by_name_label", "odd")
        call("VM.set_name_label", odd, "web")
    try:
        result = site.export("web", fails=True)
        assert all(uuid in result["msg"] for uuid in (site.uuid("web"), site.uuid("odd")))
        assert site.export("", name=None, uuid=site.uuid("odd"))["changed"]
    finally:
        with site.api("production") as call:
            call("VM.set_name_label", odd, "odd")


def test_earlier_points_can_still_be_restored(site):
    assert site.info(seal=True)["findings"] == []
    assert site.restore("database")["changed"]
    assert site.disks("production", "database") == site.disks("recovery", "database")
