# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi.client import PoolClient
from ansible_collections.guestark.xen.plugins.module_utils.xapi.connection import Endpoint
from ansible_collections.guestark.xen.plugins.module_utils.xapi.errors import (
    CertificateUntrusted,
    ConnectionFailed,
    PoolError,
)
from ansible_collections.guestark.xen.plugins.module_utils.xapi.tls import TlsSettings

PASSWORD = "s3cret-Päss"


def log_in(host, tls):
    with PoolClient([host.address], "root", PASSWORD, tls=tls) as client:
        return client.coordinator


def test_an_authority_vouches(host, authority):
    assert log_in(host, TlsSettings(ca_path=str(authority.path))) == "https://" + host.address


def test_an_unknown_authority_does_not(host, stranger):
    with pytest.raises(CertificateUntrusted, match="not trusted.*fingerprint"):
        log_in(host, TlsSettings(ca_path=str(stranger.path)))
    assert host.asked == []


def test_the_systems_authorities_are_the_default(host):
    with pytest.raises(CertificateUntrusted):
        log_in(host, TlsSettings())
    assert host.asked == []


def test_a_certificate_for_another_name_does_not(authority, scripted):
    host = scripted(authority.issue("127.0.0.9")[0])
    with pytest.raises(CertificateUntrusted, match="127.0.0.1"):
        log_in(host, TlsSettings(ca_path=str(authority.path)))
    assert host.asked == []


def test_a_pinned_certificate_needs_no_authority_and_no_name(stranger, scripted):
    certificate, fingerprint = stranger.issue("elsewhere.example")
    colons = ":".join(fingerprint[i:i + 2] for i in range(0, 64, 2)).upper()
    for pin in (fingerprint, colons, "%s, %s" % ("0" * 64, fingerprint)):
        assert log_in(scripted(certificate), TlsSettings(fingerprint=pin))


@pytest.mark.parametrize("validate", [True, False])
def test_with_a_pin_nothing_else_counts(host, authority, validate):
    with pytest.raises(CertificateUntrusted, match="fingerprint [0-9a-f]{64}"):
        log_in(host, TlsSettings(validate=validate, ca_path=str(authority.path), fingerprint="0" * 64))
    assert host.asked == []


def test_without_validation_anybody_is_believed(host):
    assert log_in(host, TlsSettings(validate=False))


@pytest.mark.parametrize("pin", ["abc", "g" * 64, "0" * 63])
def test_a_malformed_fingerprint_is_refused_at_once(pin):
    with pytest.raises(CertificateUntrusted, match="64 hexadecimal digits"):
        TlsSettings(fingerprint=pin).context()


def test_unusable_authorities_are_refused_at_once(tmp_path):
    with pytest.raises(CertificateUntrusted, match="no-such-file"):
        TlsSettings(ca_path=str(tmp_path / "no-such-file")).context()
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(CertificateUntrusted, match="PEM"):
        TlsSettings(ca_path=str(tmp_path / "empty.pem")).context()


def test_a_host_that_speaks_no_tls(tmp_path):
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:
        def greet():
            peer, _address = server.accept()
            with peer:
                peer.sendall(b"220 hello\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        client = PoolClient(["127.0.0.1:%d" % server.getsockname()[1]], "root", PASSWORD)
        with pytest.raises(ConnectionFailed, match="TLS"):
            client.__enter__()
        thread.join()


@pytest.mark.parametrize(
    "text, endpoint",
    [
        ("xen1", Endpoint("xen1", 443)),
        ("xen1.example:8443", Endpoint("xen1.example", 8443)),
        ("https://xen1:8443", Endpoint("xen1", 8443)),
        ("https://xen1/", Endpoint("xen1", 443)),
        (" 10.0.0.1 ", Endpoint("10.0.0.1", 443)),
        ("fd00::1", Endpoint("fd00::1", 443)),
        ("[fd00::1]:8443", Endpoint("fd00::1", 8443)),
    ],
)
def test_addresses(text, endpoint):
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(endpoint.url) == endpoint


@pytest.mark.parametrize("text", ["", "http://xen1", "ftp://xen1", "xen1:port", "xen1:99999", "https://"])
def test_what_is_no_address(text):
    with pytest.raises(PoolError, match="not the address"):
        PoolClient([text], "root", PASSWORD)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(PoolError) as error:
        PoolClient(["https://root:hunter2@xen1"], "root", PASSWORD)
    assert "hunter2" not in str(error.value)


def test_the_default_port_can_be_another_hosts():
    assert Endpoint.parse("10.0.0.2", 8443) == Endpoint("10.0.0.2", 8443)
