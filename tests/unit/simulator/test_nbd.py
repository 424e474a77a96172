# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""NBD: where a disk is served, byte for byte what a server says, and clients nobody here wrote."""

from __future__ import annotations

import importlib
import json
import random
import socket
import ssl
import struct
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from poolbox import rpc
from poolbox.cli import IMPLEMENTATIONS
from poolbox.config import ConfigError, read
from poolbox.control import Control
from poolbox.errors import ApiError
from poolbox.nbd_server import NbdServer
from poolbox.pool import World
from poolbox.world import load_world

MIB = 1 << 20
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT = 1, 2, 3, 5, 6, 7, 8, 10
ACK, ERR_UNSUP, ERR_POLICY, ERR_TLS_REQD = 1, 0x80000001, 0x80000002, 0x80000005
READ, WRITE, DISC, FLUSH, TRIM = range(5)
EINVAL = 22


class Client:
    """One connection, byte by byte."""

    def __init__(self, info: dict[str, Any], flags: int = 1) -> None:
        self.info = info
        self.socket: socket.socket = socket.create_connection((info["address"], info["port"]), 10)
        self.greeting = self.take(18)
        self.socket.sendall(struct.pack(">I", flags))

    def take(self, count: int) -> bytes:
        """So many bytes, or as many as come before the end."""
        data = bytearray()
        while len(data) < count and (piece := self.socket.recv(count - len(data))):
            data += piece
        return bytes(data)

    def option(self, number: int, data: bytes = b"", answer: int = 20) -> bytes:
        """Send an option; what came back."""
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        return self.take(answer)

    def secure(self) -> Client:
        """Begin TLS, believing only the certificate of the record."""
        assert self.option(STARTTLS) == reply(STARTTLS, ACK)
        context = ssl.create_default_context(cadata=self.info["cert"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.socket = context.wrap_socket(self.socket, server_hostname=self.info["subject"])
        return self

    def export(self, name: str | None = None) -> bytes:
        """Open a disk."""
        return self.option(EXPORT_NAME, (name or self.info["exportname"]).encode(), 134)

    def ask(self, offset: int, length: int, command: int = READ, handle: int = 7) -> None:
        """Send a request."""
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, handle, offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """The data of a request that has to succeed."""
        self.ask(offset, length)
        assert self.take(16) == struct.pack(">IIQ", 0x67446698, 0, 7)
        return self.take(length)

    def refused(self, number: int) -> bool:
        """Whether the next reply is this error, and the last."""
        return self.take(17) == struct.pack(">IIQ", 0x67446698, number, 7)


def reply(option: int, kind: int) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, 0)


@pytest.fixture(name="lab")
def fixture_lab(make_lab, authority):
    for name in IMPLEMENTATIONS:
        importlib.import_module(f"poolbox.{name}")
    lab = make_lab("8.3")
    for host in lab.pool.hosts:
        lab.db.create("PIF", host=host.ref, network=lab.refs["network"], IP=host.address, currently_attached=True)
        host.nbd = NbdServer(lab.pool, host, authority.issue(f"{host.name}.lab", host.address))
        host.nbd.start()
    call(lab, "network.add_purpose", lab.refs["network"], "nbd")
    yield lab
    for host in lab.pool.hosts:
        host.nbd.stop()


def call(lab: Any, name: str, *params: Any) -> Any:
    return rpc.call(lab.pool, lab.pool.hosts[0], name, [lab.session, *params])


def error(lab: Any, name: str, *params: Any) -> list[str]:
    with pytest.raises(ApiError) as caught:
        call(lab, name, *params)
    return caught.value.description


def info(lab: Any, disk: str = "system", host: int = 0) -> dict[str, Any]:
    return call(lab, "VDI.get_nbd_info", lab.refs[disk])[host]


def opened(lab: Any, disk: str = "system") -> Client:
    client = Client(info(lab, disk)).secure()
    assert len(client.export()) == 134
    return client


def insecure(lab: Any) -> None:
    call(lab, "network.remove_purpose", lab.refs["network"], "nbd")
    call(lab, "network.add_purpose", lab.refs["network"], "insecure_nbd")


def eventually(check: Any) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.trap(27)
def test_where_a_disk_is_served(lab):
    db, system = lab.db, lab.refs["system"]
    found = call(lab, "VDI.get_nbd_info", system)
    assert [one["address"] for one in found] == ["127.0.0.1", "127.0.0.2"]
    for host, one in zip(lab.pool.hosts, found, strict=True):
        assert set(one) == {"exportname", "address", "port", "cert", "subject"}
        assert one["exportname"] == f"/{db.field('VDI', system, 'uuid')}?session_id={lab.session}"
        assert one["port"] == host.nbd.port and isinstance(one["port"], int)
        assert one["cert"].startswith("-----BEGIN CERTIFICATE-----") and "PRIVATE" not in one["cert"]
        names = x509.load_pem_x509_certificate(one["cert"].encode()).extensions.get_extension_for_class(
            x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        assert [one["subject"]] == names == [f"{host.name}.lab"]
        assert Client(one).secure().socket.getpeercert(True) == ssl.PEM_cert_to_DER_cert(one["cert"])
    lab.disk("here", MIB, sr="local")
    assert [one["address"] for one in call(lab, "VDI.get_nbd_info", lab.refs["here"])] == ["127.0.0.1"]
    db.set("PIF", first := db.find("PIF", IP="127.0.0.1")[0], IPv6=["fd00::1/64"])
    assert [one["address"] for one in call(lab, "VDI.get_nbd_info", system)] == ["127.0.0.1", "fd00::1", "127.0.0.2"]
    db.set("PIF", first, currently_attached=False)
    assert [one["address"] for one in call(lab, "VDI.get_nbd_info", system)] == ["127.0.0.2"]
    call(lab, "network.remove_purpose", lab.refs["network"], "nbd")
    assert call(lab, "VDI.get_nbd_info", system) == []
    with socket.create_connection(("127.0.0.1", lab.pool.hosts[0].nbd.port), 10) as connection:
        assert connection.recv(1) == b""


def test_a_pool_has_nbd_with_tls_or_without(lab):
    network, other = lab.refs["network"], call(lab, "network.create", {"name_label": "other", "other_config": {}})
    for one in (network, other):
        refused = error(lab, "network.add_purpose", one, "insecure_nbd")
        assert refused == ["NETWORK_INCOMPATIBLE_PURPOSES", "insecure_nbd", "nbd"]
    for _unused in range(2):
        call(lab, "network.add_purpose", other, "nbd")
        assert call(lab, "network.get_purpose", other) == ["nbd"]
    for one in (network, network, other):
        call(lab, "network.remove_purpose", one, "nbd")
    call(lab, "network.add_purpose", other, "insecure_nbd")
    assert error(lab, "network.add_purpose", network, "nbd") == ["NETWORK_INCOMPATIBLE_PURPOSES", "nbd", "insecure_nbd"]
    lab.db.set("network", network, purpose=["nbd"])  # as no pool should be
    lab.db.set("PIF", lab.db.find("PIF", IP="127.0.0.1")[0], network=other)
    with socket.create_connection(("127.0.0.1", lab.pool.hosts[0].nbd.port), 10) as connection:
        assert connection.recv(1) == b""


@pytest.mark.trap(27)
def test_nothing_is_said_before_tls(lab):
    client = Client(info(lab))
    assert client.greeting == b"NBDMAGICIHAVEOPT\x00\x01"
    for option in (LIST, GO, INFO, STRUCTURED_REPLY, SET_META_CONTEXT):
        assert client.option(option) == reply(option, ERR_TLS_REQD)
    client.secure()
    for option in (GO, INFO, STRUCTURED_REPLY, SET_META_CONTEXT, 99):
        assert client.option(option, b"some data") == reply(option, ERR_UNSUP)
    assert client.option(LIST) == reply(LIST, ERR_POLICY)
    assert client.export() == struct.pack(">QH", 5 * MIB + 512, 3) + bytes(124)
    assert client.read(0, 512) == lab.content(lab.refs["system"])[:512]
    assert Client(info(lab)).export() == b""
    assert Client(info(lab)).option(ABORT) == b""
    with pytest.raises(ssl.SSLError):
        Client(info(lab) | {"subject": "another.host"}).secure()


def test_without_tls(lab):
    insecure(lab)
    client = Client(info(lab))
    assert client.option(STARTTLS) == reply(STARTTLS, ERR_POLICY)
    assert client.option(LIST) == reply(LIST, ERR_POLICY)
    assert client.option(GO) == reply(GO, ERR_UNSUP)
    client.export()
    assert client.read(512, 1024) == lab.content(lab.refs["system"])[512:1536]


def test_what_cannot_be_opened_ends_the_connection(lab):
    where, uuid = info(lab), lab.db.field("VDI", lab.refs["system"], "uuid")
    lab.disk("here", MIB, sr="local")
    call(lab, "VDI.enable_cbt", lab.refs["data"])
    gone, used = call(lab, "VDI.snapshot", lab.refs["data"]), lab.disk("used", MIB)
    call(lab, "VDI.data_destroy", gone)
    lab.db.create("VBD", VM=lab.vm("running", power_state="Running"), VDI=used, mode="RW", currently_attached=True)
    names = [f"/{uuid}", f"/{uuid}?session_id=OpaqueRef:none", f"/none?session_id={lab.session}", "", "/", "\udcff"]
    names += [f"/{lab.db.field('VDI', vdi, 'uuid')}?session_id={lab.session}" for vdi in (gone, used)]
    for name in names:
        data = name.encode(errors="surrogateescape")
        assert Client(where).secure().option(EXPORT_NAME, data, 134) == b"", name
    local = info(lab, "here")
    assert Client(info(lab, host=1)).secure().export(local["exportname"]) == b""
    assert len(Client(local).secure().export()) == 134
    assert len(Client(where).secure().export()) == 134
    call(lab, "session.logout")
    assert Client(where).secure().export() == b""


@pytest.mark.trap(27)
def test_requests_are_answered_in_order_and_errors_are_the_end(lab):
    content = random.Random(1).randbytes(3 * MIB)
    lab.disk("large", 40 * MIB, (MIB + 4096, content))
    whole = lab.content(lab.refs["large"])
    client = opened(lab, "large")
    for offset, length in ((0, 512), (MIB, 4 * MIB), (40 * MIB - 512, 512), (3 * MIB - 512, 32 * MIB), (512, 0)):
        assert client.read(offset, length) == whole[offset:offset + length]
    for number in range(20):
        client.ask(number * 4096, 4096, handle=number)
    for number in range(20):
        assert client.take(16) == struct.pack(">IIQ", 0x67446698, 0, number)
        assert client.take(4096) == whole[number * 4096:(number + 1) * 4096]
    client.ask(0, 0, DISC)
    assert client.take(1) == b""
    for offset, length, command in (
        (1, 512, READ), (0, 511, READ), (40 * MIB, 512, READ), (0, 32 * MIB + 512, READ), (0, 512, WRITE),
        (0, 0, FLUSH), (0, 512, TRIM), (0, 512, 99),
    ):
        client = opened(lab, "large")
        client.ask(offset, length, command)
        assert client.refused(EINVAL), (offset, length, command)
    assert lab.content(lab.refs["large"]) == whole


@pytest.mark.trap(27)
def test_a_host_has_sixteen_connections(lab):
    clients = [Client(info(lab)) for _unused in range(16)]
    with socket.create_connection(("127.0.0.1", info(lab)["port"]), 10) as connection:
        assert connection.recv(1) == b""
    assert Client(info(lab, host=1)).greeting
    clients.pop().socket.close()
    eventually(lambda: Client(info(lab)).greeting)


@pytest.mark.trap(24, 37)
def test_a_connection_holds_the_disk_through_the_control_domain(lab):
    call(lab, "VDI.enable_cbt", lab.refs["system"])
    lab.refs["older"], lab.refs["newer"] = (call(lab, "VDI.snapshot", lab.refs["system"]) for _unused in range(2))
    clients = [opened(lab, name) for name in ("older", "newer", "newer")]
    dom0 = lab.db.field("host", lab.pool.hosts[0].ref, "control_domain")
    for name, count in (("older", 1), ("newer", 2)):
        vbds = [lab.db.get("VBD", vbd) for vbd in lab.db.field("VDI", lab.refs[name], "VBDs")]
        held = [(vbd["VM"], vbd["mode"], vbd["currently_attached"]) for vbd in vbds]
        assert held == [(dom0, "RO", True)] * count
    for client in clients:
        client.ask(0, 0, DISC)
        assert client.take(1) == b""
    assert error(lab, "VDI.destroy", lab.refs["newer"]) == ["VDI_IN_USE", lab.refs["newer"], "destroy"]
    call(lab, "VDI.data_destroy", lab.refs["older"])  # which waits
    eventually(lambda: not lab.db.field("VDI", lab.refs["newer"], "VBDs"))
    call(lab, "VDI.destroy", lab.refs["newer"])


def test_faults(lab):
    faults, uuid = lab.pool.faults, lab.db.field("VDI", lab.refs["system"], "uuid")
    faults.add({"kind": "nbd", "vdi": uuid}, {"cut_at": 16 + 512 + 16 + 100})
    opened(lab, "data").read(0, 512)
    client = opened(lab)
    client.read(0, 512)
    client.ask(512, 512)
    assert len(client.take(528)) == 116
    faults.add({"kind": "nbd"}, {"cut_at": 0, "reset": True})
    client = opened(lab)
    client.ask(0, 512)
    with socket.socket(fileno=client.socket.detach()) as raw, pytest.raises(ConnectionResetError):
        raw.setblocking(True)
        raw.recv(1)
    faults.add({"kind": "nbd"}, {"errno": 5, "after": 528})
    client = opened(lab)
    client.read(0, 512)
    client.ask(0, 512)
    assert client.refused(5)
    faults.add({"kind": "nbd"}, {"stall_at": 100, "seconds": 0.3})
    client, began = opened(lab), time.monotonic()
    client.read(0, 4096)
    assert 0.3 <= time.monotonic() - began < 9
    faults.add({"kind": "nbd"}, {"stall_at": 0})
    client = opened(lab)
    client.ask(0, 512)
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.take(1)
    faults.add({"kind": "nbd_connect", "host": "host1"}, {"refuse": True})
    assert Client(info(lab, host=1)).greeting
    with socket.create_connection(("127.0.0.1", info(lab)["port"]), 10) as connection:
        assert connection.recv(1) == b""
    assert opened(lab).read(0, 512) and not faults.rules


def test_hosts_die_and_hang(lab):
    control = Control(World({"lab": lab.pool}, lab.pool.state_dir), lambda: None)
    where, client = info(lab), opened(lab)
    control.post(["hosts", "lab", "host2", "kill"], {})
    assert len(call(lab, "VDI.get_nbd_info", lab.refs["system"])) == 1
    control.post(["hosts", "lab", "host1", "hang"], {})
    client.ask(0, 512)
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.take(1)
    client.socket.settimeout(10)
    control.post(["hosts", "lab", "host1", "resume"], {})
    client = opened(lab)
    control.post(["hosts", "lab", "host1", "kill"], {})
    with pytest.raises(OSError):
        client.read(0, 512)
    with pytest.raises(ConnectionRefusedError):
        Client(where)
    control.post(["hosts", "lab", "host1", "start"], {})
    assert Client(where).secure().greeting  # on the port it had


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)


def address(where: dict[str, Any], folder: Path | None = None) -> str:
    """The address of an export as libnbd writes it."""
    scheme, query = ("nbds", f"?tls-certificates={folder}") if folder else ("nbd", "")
    return f"{scheme}://{where['address']}:{where['port']}/{quote(where['exportname'], safe='')}{query}"


@pytest.fixture(name="trusted")
def fixture_trusted(authority, tmp_path):
    """A folder of certificates as libnbd and qemu want it."""
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "ca-cert.pem").write_bytes(authority.path.read_bytes())
    return tmp_path / "trusted"


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_libnbd_copies_disks(lab, trusted, tmp_path, tls):
    chance = random.Random(2)
    lab.disk("large", 20 * MIB + 512, (0, chance.randbytes(9 * MIB)), (20 * MIB, b"tail"))
    if not tls:
        insecure(lab)
    where = address(info(lab, "large", host=1), trusted if tls else None)
    shown = run("nbdinfo", "--json", where)
    told = json.loads(shown.stdout)
    assert told["protocol"] == "newstyle-fixed" and told["TLS"] is tls and not told["structured"], shown.stderr
    (export,) = told["exports"]
    assert export["export-size"] == 20 * MIB + 512 and export["is_read_only"] and not export["can_multi_conn"]
    for size in ("262144", str(32 * MIB)):
        copied = run("nbdcopy", f"--request-size={size}", where, tmp_path / "copy")
        assert (copied.returncode, copied.stderr) == (0, "")
        assert (tmp_path / "copy").read_bytes() == lab.content(lab.refs["large"])
    assert run("nbdinfo", "--list", where).returncode != 0


def test_qemu_wants_a_list_that_it_does_not_get(lab, trusted):
    """Where there is no GO it asks for the list before it opens a disk, and takes no refusal."""
    where = info(lab)
    image = f"driver=nbd,server.type=inet,server.host={where['address']},server.port={where['port']},tls-creds=tls"
    told = run("qemu-img", "info", "--object", f"tls-creds-x509,id=tls,endpoint=client,dir={trusted}",
               "--image-opts", f"{image},export={where['exportname']}")
    assert told.returncode != 0 and "option 3 (list)" in told.stderr


def test_a_described_network_can_be_for_nbd(tmp_path):
    description = {"pools": {"one": {
        "hosts": ["a"], "networks": {"LAN": {}, "Storage": {"purpose": "nbd"}, "Other": {}}, "srs": {"disks": {}}, "nbd_lag": 3,
    }}}
    (tmp_path / "world.yml").write_text(json.dumps(description))
    pool = load_world(read(tmp_path / "world.yml"), tmp_path, tmp_path / "state").pools["one"]
    (network,) = pool.db.find("network", name_label="Storage")
    assert pool.db.field("network", network, "purpose") == ["nbd"] and pool.nbd_lag == 3
    assert [pool.db.field("PIF", pif, "IP") for pif in pool.db.refs("PIF")] == ["127.0.0.11", "127.0.0.11", ""]
    for place, value in (("networks", {"LAN": {"purpose": "disks"}}), ("nbd_lag", "long")):
        broken = {"pools": {"one": description["pools"]["one"] | {place: value}}}
        (tmp_path / "world.yml").write_text(json.dumps(broken))
        with pytest.raises(ConfigError):
            read(tmp_path / "world.yml")
