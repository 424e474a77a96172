# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated pools; and, for what a well-behaved pool never does, real TLS servers whose every answer a test decides."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
import time
import xmlrpc.client
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.xapi import inventory
from ansible_collections.guestark.xen.tests.simulator_fixture import start_simulator
from ansible_collections.guestark.xen.tests.unit.plugins.module_utils.xapi.lab import CONFIG, HOSTS, connect, remains, state
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

REF = "OpaqueRef:00000000-0000-4000-8000-000000000001"


class Drop(Exception):
    """Close the connection without an answer."""


class Refuse(Exception):
    """Answer Status=Failure with these strings."""


@dataclass
class Authority:
    """A certificate authority and what it signed."""

    folder: Path
    name: str
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self):
        self.certificate = self._sign(self.name, self.key, [], True)
        self.path = self.folder / f"{self.name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, str]:
        """A host's key and certificate in one file, and the certificate's SHA-256 fingerprint."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            names = [x509.IPAddress(ipaddress.ip_address(name))]
        except ValueError:
            names = [x509.DNSName(name)]
        certificate = self._sign(name, key, names, False)
        path = self.folder / f"{self.name}-{name}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path, certificate.fingerprint(hashes.SHA256()).hex()

    def _sign(self, name, key, names, ca):
        now = datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


class ScriptedHost:
    """An HTTPS host: ``calls`` answer methods, ``pages`` answer paths; what was asked is kept in ``asked``."""

    def __init__(self, certificate: Path) -> None:
        self.calls: dict[str, Callable[..., Any]] = {"session.login_with_password": lambda *_: REF}
        self.pages: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        self.secrets: list[str] = []
        self.hang_up = False  # end connections after an answer, without having said so
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                host.answer(self)

            def do_GET(self):
                self.close_connection = True
                path = self.path.partition("?")[0]
                host.asked.append(path)
                host.secrets.append(self.headers.get("Cookie", ""))
                host.pages[path](self)

            do_PUT = do_GET

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def get_request(self):
                sock, address = super().get_request()
                return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        params, method = xmlrpc.client.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.asked.append(method)
        try:
            answer = {"Status": "Success", "Value": self.calls[method](*params)}
        except KeyError:
            answer = {"Status": "Failure", "ErrorDescription": ["MESSAGE_METHOD_UNKNOWN", method]}
        except Refuse as refusal:
            answer = {"Status": "Failure", "ErrorDescription": list(refusal.args)}
        except Drop:
            request.close_connection = True
            return
        body = xmlrpc.client.dumps((answer,), methodresponse=True).encode()
        request.send_response(200)
        request.send_header("Content-Type", "text/xml")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = self.hang_up

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Tasks:
    """The tasks of a scripted pool, which knows no events."""

    def __init__(self, host):
        self.rows = {}
        self.calls = []
        host.calls.update({
            "task.create": self.create,
            "task.get_record": lambda _s, ref: self.row(ref),
            "task.get_status": lambda _s, ref: self.row(ref)["status"],
            "task.cancel": lambda _s, ref: self.note("cancel", ref),
            "task.set_status": lambda _s, ref, status: self.note("set", ref) or self.end(status),
            "task.destroy": lambda _s, ref: self.note("destroy", ref) or self.rows.pop(ref) and "",
        })

    def create(self, _session, label, description):
        self.label, self.description = label, description
        ref = "OpaqueRef:task-%d" % len(self.rows)
        self.rows[ref] = {"status": "pending", "progress": 0.0, "result": "", "error_info": []}
        return ref

    def row(self, ref):
        if ref not in self.rows:
            raise Refuse("HANDLE_INVALID", "task", ref)
        return self.rows[ref]

    def note(self, what, ref):
        self.calls.append(what)
        return "" if self.row(ref) else ""

    def end(self, status, result="", error=()):
        for row in self.rows.values():
            row.update(status=status, progress=1.0, result=result, error_info=list(error))
        return ""


@pytest.fixture
def tasks(host):
    return Tasks(host)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


@pytest.fixture
def stranger(tmp_path):
    return Authority(tmp_path, "stranger")


@pytest.fixture
def scripted():
    """Start hosts: scripted(certificate file) -> ScriptedHost."""
    hosts = []

    def start(certificate: Path) -> ScriptedHost:
        hosts.append(ScriptedHost(certificate))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


@pytest.fixture
def host(authority, scripted):
    """One host whose certificate the authority signed."""
    return scripted(authority.issue("127.0.0.1")[0])


@pytest.fixture
def refuse():
    return Refuse


@pytest.fixture
def drop():
    return Drop


@pytest.fixture(scope="session")
def simulator(tmp_path_factory):
    simulator = start_simulator(CONFIG, tmp_path_factory.mktemp("simulator"))
    yield simulator
    simulator.stop()


@pytest.fixture
def lab(simulator):
    """The pool whole again, whatever a test did to it; afterwards nothing may be left in it."""
    yield simulator
    simulator.control("DELETE", "/faults")
    for host in HOSTS:
        simulator.control("POST", "/hosts/lab/%s/resume" % host)
        if not state(simulator)["hosts"][host]["alive"]:
            simulator.control("POST", "/hosts/lab/%s/start" % host)
    if state(simulator)["coordinator"] != "one":
        simulator.control("POST", "/pools/lab/elect", {"host": "one"})
    if state(simulator)["vms"]["web01"] != "Running":  # its host was killed
        with connect(simulator) as client:
            client.call("VM.start", inventory.find_vm(client, name="web01")["ref"], False, False)
    nothing = ({}, [], 0, [])
    deadline = time.monotonic() + 10  # a pool lets go of things a little later
    while (left := remains(simulator)) != nothing and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == nothing


@pytest.fixture
def client(lab):
    with connect(lab) as client:
        yield client
    assert state(lab)["sessions"] == 0
