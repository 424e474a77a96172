# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.guestark.xen.plugins.module_utils import arguments


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("HOST", "USER", "PASSWORD", "VALIDATE_CERTS", "CA_PATH", "FINGERPRINT"):
        monkeypatch.delenv("XENSERVER_" + name, raising=False)


def validate(spec, **options):
    result = ArgumentSpecValidator(spec).validate(options)
    assert not result.error_messages, result.error_messages
    return result.validated_parameters


def errors(spec, rules, **options):
    return ArgumentSpecValidator(spec, **rules).validate(options).error_messages


def test_connection_defaults_are_safe():
    options = validate(arguments.connection(), hostname="xen1", password="p")
    assert options["hostname"] == ["xen1"]
    assert options["username"] == "root"
    assert options["validate_certs"] is True
    assert options["ca_path"] is None and options["fingerprint"] is None


@pytest.mark.parametrize("host", ["hostname", "host", "pool"])
@pytest.mark.parametrize("user", ["username", "user", "admin"])
@pytest.mark.parametrize("word", ["password", "pass", "pwd"])
def test_connection_has_the_established_aliases(host, user, word):
    options = validate(arguments.connection(), **{host: ["a", "b"], user: "u", word: "p"})
    assert (options["hostname"], options["username"], options["password"]) == (["a", "b"], "u", "p")


def test_connection_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("XENSERVER_HOST", "xen1,xen2:8443")
    monkeypatch.setenv("XENSERVER_USER", "backup")
    monkeypatch.setenv("XENSERVER_PASSWORD", "from environment")
    monkeypatch.setenv("XENSERVER_VALIDATE_CERTS", "no")
    monkeypatch.setenv("XENSERVER_CA_PATH", "/etc/ca.pem")
    monkeypatch.setenv("XENSERVER_FINGERPRINT", "ab" * 32)
    assert validate(arguments.connection()) == {
        "hostname": ["xen1", "xen2:8443"],
        "username": "backup",
        "password": "from environment",
        "validate_certs": False,
        "ca_path": "/etc/ca.pem",
        "fingerprint": "ab" * 32,
    }


def test_options_outrank_the_environment(monkeypatch):
    monkeypatch.setenv("XENSERVER_HOST", "elsewhere")
    monkeypatch.setenv("XENSERVER_USER", "somebody")
    options = validate(arguments.connection(), hostname=["xen1"], username="backup", password="p")
    assert (options["hostname"], options["username"]) == (["xen1"], "backup")


def test_connection_without_host_or_password_is_refused():
    messages = errors(arguments.connection(), {})
    assert messages == ["missing required arguments: hostname, password"]


def test_password_is_kept_out_of_logs():
    assert arguments.connection()["password"]["no_log"] is True


@pytest.mark.parametrize("options", [{}, {"name": "web01", "uuid": "u"}])
def test_a_vm_has_exactly_one_designation(options):
    rules = dict(arguments.VM_RULES)
    assert errors(arguments.vm(), rules, **options)


def test_a_vm_is_found_by_the_word_xapi_uses():
    assert validate(arguments.vm(), name_label="web01")["name"] == "web01"


def test_encryption_is_on_unless_refused():
    assert validate(arguments.writing())["encryption"] == "age"
    assert errors(arguments.writing(), {}, encryption="gpg")


def test_repository_specs_compose():
    spec = {**arguments.repository(required=True), **arguments.reading(), **arguments.catalog(), **arguments.transfer()}
    options = validate(spec, repository="~/points", identities="a,b", catalog_identity=["c"])
    assert options["repository"].endswith("/points") and "~" not in options["repository"]
    assert options["identities"] == ["a", "b"]
    assert options["catalog_identities"] == ["c"]
    assert options["stall_timeout"] == 300
    assert errors(spec, {}) == ["missing required arguments: repository"]
