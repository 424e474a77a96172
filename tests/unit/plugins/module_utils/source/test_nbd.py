# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NBD client against servers nobody here wrote, over TLS, and against ones that answer anything."""

from __future__ import annotations

import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.guestark.xen.plugins.module_utils.source import nbd
from ansible_collections.guestark.xen.plugins.module_utils.source.nbd import DiskReader, NbdConnection, NbdError, NbdExport
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 1 << 20
SIZE = 5 * MIB + 512
NAME = "xen1.example.org"


def certificate_of(name: str, key, issuer: str, signer, authority: bool) -> bytes:
    now = datetime.now(timezone.utc)
    subject, by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer))
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .sign(signer, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def identity(folder) -> str:
    """Write keys and certificates as GnuTLS servers want them, and return the server's own certificate in PEM."""
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _one in range(2))
    folder.mkdir(parents=True, exist_ok=True)
    own = certificate_of(NAME, key, "authority", authority, False)
    (folder / "ca-cert.pem").write_bytes(certificate_of("authority", authority, "authority", authority, True))
    (folder / "server-cert.pem").write_bytes(own)
    (folder / "server-key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return own.decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


COMMANDS = {
    "nbdkit": lambda port, keys, image: [
        "nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", str(port), "--tls=require", f"--tls-certificates={keys}", "-e", "disk",
        "file", f"file={image}"],
    "qemu-nbd": lambda port, keys, image: [
        "qemu-nbd", "-r", "-f", "raw", "-t", "-e", "8", "-b", "127.0.0.1", "-p", str(port), "-x", "disk", "--object",
        f"tls-creds-x509,id=tls0,endpoint=server,dir={keys},verify-peer=no", "--tls-creds", "tls0", str(image)],
    "in clear": lambda port, keys, image: [
        "nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", str(port), "-e", "disk", "file", f"file={image}"],
}


@pytest.fixture(scope="module", name="image")
def fixture_image(tmp_path_factory):
    path = tmp_path_factory.mktemp("nbd") / "disk.img"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


@pytest.fixture(name="serve")
def fixture_serve(tmp_path, image):
    """Start a server by the name of its command and give its export; it is ended by its own pid."""
    running: list[subprocess.Popen] = []

    def serve(kind: str) -> NbdExport:
        command = COMMANDS[kind](free_port(), tmp_path / "keys", image)
        if not shutil.which(command[0]):
            pytest.skip(f"{command[0]} is not installed")
        certificate = identity(tmp_path / "keys")
        port = int(command[command.index("-p") + 1])
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _wait in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        return NbdExport("127.0.0.1", port, "disk", certificate, NAME)

    yield serve
    for process in running:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_a_disk_is_read_from_servers_nobody_here_wrote(serve, image, kind):
    export, content = serve(kind), image.read_bytes()
    connection = NbdConnection(export, 10)
    assert connection.size == SIZE
    assert connection.read(0, MIB) == content[:MIB]
    assert connection.read(5 * MIB, 512) == content[-512:]
    with pytest.raises(NbdError):
        connection.read(SIZE, 512)
    connection.close()
    places = [(offset, min(MIB, SIZE - offset)) for offset in range(0, SIZE, MIB)] * 6
    random.Random(1).shuffle(places)
    with DiskReader([export], SIZE, 10) as reader, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: reader.read(*one), places)) == [content[at:at + size] for at, size in places]


def test_nothing_is_read_without_tls_or_from_another_host(serve, tmp_path):
    clear = serve("in clear")
    with pytest.raises(NbdError, match="refuses TLS"):
        NbdConnection(clear, 10)
    right = serve("nbdkit")
    stranger = identity(tmp_path / "other")
    for wrong in (stranger, right.certificate):
        export = NbdExport(right.address, right.port, right.name, wrong, NAME if wrong == stranger else "xen2.example.org")
        with pytest.raises(NbdError, match="certificate is not the one"):
            NbdConnection(export, 10)


def test_a_disk_of_another_size_and_one_without_whole_sectors_are_refused(serve):
    export = serve("nbdkit")
    with pytest.raises(NbdError, match="%d bytes instead of %d" % (SIZE, SIZE + 512)):
        DiskReader([export], SIZE + 512, 10)
    with pytest.raises(NbdError, match="whole sectors"):
        DiskReader([export], SIZE + 1, 10)
    with pytest.raises(NbdError, match="no host"):
        DiskReader([], SIZE, 10)


def test_the_next_host_is_asked_where_one_does_not_answer(serve, image):
    export = serve("nbdkit")
    dead = NbdExport("127.0.0.1", free_port(), "disk", export.certificate, NAME)
    with DiskReader([dead, export], SIZE, 10) as reader:
        assert reader.read(MIB, 512) == image.read_bytes()[MIB:MIB + 512]
    with pytest.raises(NbdError, match=r"127\.0\.0\.1:%d failed: connection refused" % dead.port):
        DiskReader([dead], SIZE, 10)


class Scripted:
    """A server that sends what it was given, whatever it is asked, and hangs up."""

    def __init__(self, *parts: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.export = NbdExport("127.0.0.1", self.listener.getsockname()[1], "disk", "", NAME)
        self._parts = parts
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _peer = self.listener.accept()
        with sock:
            sock.settimeout(5)
            try:
                for part in self._parts:
                    sock.sendall(part)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except OSError:
                pass

    def __enter__(self) -> NbdExport:
        return self.export

    def __exit__(self, *exc_info) -> None:
        self._thread.join(10)
        self.listener.close()


GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1)
ACK = struct.pack(">QIII", 0x0003E889045565A9, 5, 1, 0)
SERVED = struct.pack(">QH", SIZE, 3) + bytes(124)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.integers(0, 4), noise=st.binary(max_size=200))
def test_whatever_a_server_says_is_an_answer_or_an_nbd_error(monkeypatch, before, noise):
    monkeypatch.setattr(nbd.NbdConnection, "_secure", lambda self, plain: (self._receive(bytearray(20)), plain)[1])
    reply = struct.pack(">IIQ", 0x67446698, 0, 1) + b"x" * 512
    parts = [GREETING, ACK, SERVED, reply][:before]
    with Scripted(*parts, noise) as export:
        try:
            connection = NbdConnection(export, 5)
        except NbdError:
            assert before < 3
            return
        try:
            data = connection.read(0, 512)
            assert data == b"x" * 512 if before == 4 else len(data) == 512
        except NbdError:
            assert before < 4
        finally:
            connection.close()


@pytest.mark.parametrize(("parts", "told"), [
    ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "no NBD server"),
    ((b"NBDMAGIC" + bytes.fromhex("0000420281861253") + bytes(200),), "no NBD server"),
    ((GREETING,), "closed the connection"),
    ((GREETING, struct.pack(">QIII", 0x0003E889045565A9, 5, 0x80000002, 0)), "refuses TLS"),
    ((GREETING, struct.pack(">QIII", 7, 5, 1, 0)), "something else than it was asked"),
    ((GREETING, ACK, b"no TLS at all"), "TLS failed"),
    ((), "closed the connection"),
])
def test_a_handshake_that_goes_wrong_says_how(tmp_path, parts, told):
    certificate = identity(tmp_path / "keys")
    with Scripted(*parts) as export, pytest.raises(NbdError, match=told):
        NbdConnection(NbdExport(export.address, export.port, "disk", certificate, NAME), 5)


def test_a_session_is_in_no_error(serve):
    export = serve("qemu-nbd")
    secret = NbdExport(export.address, export.port, "/uuid?session_id=OpaqueRef:secret", export.certificate, NAME)
    with pytest.raises(NbdError) as failed:
        DiskReader([secret], SIZE, 10)
    assert "secret" not in str(failed.value) and "secret" not in str(secret)
