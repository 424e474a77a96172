# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A laboratory: one pool of two hosts, made in code, whose listeners really listen."""

from __future__ import annotations

import http.client
import importlib
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from poolbox.certificates import Authority
from poolbox.database import Database, DateTime
from poolbox.faults import FaultBook
from poolbox.http_server import Listener
from poolbox.pool import Account, Host, Pool
from poolbox.sessions import open_session
from poolbox.storage import Storage
from poolbox.world import add_driver
from poolbox.xmlvalue import from_element

MIB = 1 << 20
FINAL = ("success", "failure", "cancelled")


@dataclass
class Answer:
    """What came back: status, headers in lower case, body as far as it came, and whether the end was a clean one."""

    status: int
    version: int
    headers: dict[str, str]
    body: bytes
    clean: bool = True


@dataclass
class Lab:
    """The pool, refs by name, and a client that only knows HTTP."""

    pool: Pool
    session: str
    tls: ssl.SSLContext
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def db(self) -> Database:
        """The pool's database."""
        return self.pool.db

    def task(self) -> str:
        """A task as a client makes one."""
        return self.db.create("task", name_label="test", status="pending", type="<none/>", created=DateTime.now())

    def finished(self, task: str) -> dict[str, Any]:
        """The task's record once it is complete."""
        for _unused in range(400):
            record = self.db.get("task", task)
            if record["status"] in FINAL:
                return record
            time.sleep(0.025)
        raise AssertionError(f"the task is still {record['status']}")

    def result(self, task: str) -> Any:
        """The value of a task that has to succeed."""
        record = self.finished(task)
        assert record["status"] == "success", record["error_info"]
        return from_element(ElementTree.fromstring(record["result"])) if record["result"] else None

    def error(self, task: str) -> list[str]:
        """The error of a task that has to fail."""
        record = self.finished(task)
        assert record["status"] == "failure", record
        return list(record["error_info"])

    def connect(self, host: int = 0) -> http.client.HTTPSConnection:
        """A verified connection to a host."""
        where = self.pool.hosts[host]
        return http.client.HTTPSConnection(where.address, where.port, timeout=30, context=self.tls)

    def target(self, path: str, query: dict[str, Any]) -> str:
        """Path and query with the session in it; a value of None leaves a parameter out."""
        given = {"session_id": self.session} | query
        return f"{path}?{urllib.parse.urlencode({key: value for key, value in given.items() if value is not None})}"

    def get(self, path: str, host: int = 0, headers: dict[str, str] | None = None, **query: Any) -> Answer:
        """GET it all."""
        connection = self.connect(host)
        connection.request("GET", self.target(path, query), headers=headers or {})
        return read_answer(connection)

    def put(self, path: str, body: bytes, host: int = 0, length: bool | int = True, finish: bool = True,
            headers: dict[str, str] | None = None, **query: Any) -> Answer:
        """PUT a body; `length` False leaves Content-Length out, a number lies; `finish` closes our side after it."""
        connection = self.connect(host)
        connection.putrequest("PUT", self.target(path, query))
        if length is not False:
            connection.putheader("Content-Length", str(len(body) if length is True else length))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = None
        try:
            connection.send(body)
        except OSError:
            pass  # the server may have had enough
        if finish:
            answer = read_head(connection)
            connection.sock.close()
            return answer
        return read_answer(connection)

    def disk(self, name: str, size: int, *writes: tuple[int, bytes], sr: str = "nfs", **fields: Any) -> str:
        """Make a disk with content."""
        ref = self.db.create("VDI", name_label=name, SR=self.refs[sr], virtual_size=size, managed=True, **fields)
        uuid = self.db.field("VDI", ref, "uuid")
        self.db.set("VDI", ref, location=uuid)
        self.pool.storage.create(uuid, size)
        with self.pool.storage.open(uuid) as disk:
            for offset, data in writes:
                disk.pwrite(offset, data)
        self.refs[name] = ref
        return ref

    def content(self, vdi: str) -> bytes:
        """Every byte of a disk."""
        with self.pool.storage.open(self.db.field("VDI", vdi, "uuid")) as disk:
            return disk.pread(0, disk.size)

    def vm(self, name: str, *disks: str, **fields: Any) -> str:
        """Make a VM with disks, an empty CD drive and an interface."""
        fields = {"other_config": {"mac_seed": f"seed of {name}"}, "power_state": "Halted"} | fields
        ref = self.db.create("VM", name_label=name, metrics=self.db.create("VM_metrics"), **fields)
        for number, disk in enumerate(disks):
            place = {"userdevice": str(number), "bootable": number == 0}
            self.db.create("VBD", VM=ref, VDI=disk, type="Disk", mode="RW", **place)
        self.db.create("VBD", VM=ref, userdevice="3", type="CD", mode="RO", empty=True)
        self.db.create("VIF", VM=ref, network=self.refs["network"], device="0", MAC="02:00:00:00:00:01")
        self.refs[name] = ref
        return ref

    def disks_of(self, vm: str) -> list[str]:
        """VDIs of a VM's disks, in the order of their devices."""
        vbds = [self.db.get("VBD", vbd) for vbd in self.db.field("VM", vm, "VBDs")]
        return [vbd["VDI"] for vbd in sorted(vbds, key=lambda vbd: vbd["userdevice"]) if vbd["type"] == "Disk"]


def read_head(connection: http.client.HTTPSConnection) -> Answer:
    """Status line and headers of the answer that has come."""
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, response.version, headers, b"")


def read_answer(connection: http.client.HTTPSConnection) -> Answer:
    """The whole answer, to the end of the connection, whatever the headers say of the body."""
    raw = bytearray()
    clean = True
    try:
        while not is_whole(raw) and (piece := connection.sock.recv(MIB)):
            raw += piece
    except OSError:
        clean = False
    connection.close()
    head, _unused, body = bytes(raw).partition(b"\r\n\r\n")
    if not head:
        return Answer(0, 0, {}, b"", clean)
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":")[::2] for line in lines)
    version, code = status.split()[:2]
    headers = {name.lower(): value.strip() for name, value in pairs}
    return Answer(int(code), 10 if version == "HTTP/1.0" else 11, headers, body, clean)


def is_whole(raw: bytearray) -> bool:
    """Whether an error page has come as far as its length says; what begins with a 200 goes on to the end."""
    head, end, body = bytes(raw[:4096]).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: ([1-9][0-9]*)", head)
    return bool(end and length and b" 200 " not in head[:13] and len(body) >= int(length[1]))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One certificate authority for all laboratories."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def make_lab(authority: Authority, tmp_path: Path) -> Iterator[Callable[[str], Lab]]:
    """Makes laboratories of a release; they close with the test."""
    for name in ("transfers", "metadata", "raw_vdi"):
        importlib.import_module(f"poolbox.{name}")
    labs: list[Lab] = []

    def make(release: str = "8.3") -> Lab:
        lab = build_lab(release, authority, tmp_path / f"disks{len(labs)}")
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        for host in lab.pool.hosts:
            if host.listener:
                host.listener.stop()


@pytest.fixture
def lab(make_lab: Callable[[str], Lab]) -> Lab:
    """A laboratory of release 8.3."""
    return make_lab("8.3")


def build_lab(release: str, authority: Authority, folder: Path) -> Lab:
    """Two hosts; the SR "nfs" is seen by both, "local" by the first only, "lost" by none; "iso" holds one image."""
    db = Database(release)
    package = db.model.release.package
    software = {"product_version": db.model.release.product_version, "product_brand": "XCP-ng", "hostname": "localhost",
                "build_number": "1", "date": "2026-01-01", "xapi": ".".join(package.split(".")[:2])}
    hosts = []
    for number in (1, 2):
        ref = db.create("host", name_label=f"host{number}", address=f"127.0.0.{number}", enabled=True,
                        software_version=software, metrics=db.create("host_metrics", live=True))
        dom0 = db.create("VM", name_label=f"dom0 of host{number}", is_control_domain=True, power_state="Running",
                         resident_on=ref)
        db.set("host", ref, control_domain=dom0)
        hosts.append(Host(ref, f"host{number}", f"127.0.0.{number}"))
    pool = Pool("lab", db, Storage(folder), hosts, hosts[0].ref, FaultBook(), {"root": Account("root", "secret")})
    refs = {"network": db.create("network", name_label="office", bridge="xenbr0")}
    for name, kind, seen_by in (("nfs", "nfs", hosts), ("local", "ext", hosts[:1]), ("lost", "ext", []),
                                ("thick", "lvm", hosts), ("iso", "iso", hosts)):
        refs[name] = db.create("SR", name_label=name, type=kind, physical_size=1 << 42, sm_config={},
                               content_type="iso" if kind == "iso" else "user")
        add_driver(db, kind)
        for host in seen_by:
            db.create("PBD", host=host.ref, SR=refs[name], currently_attached=True)
    db.create("pool", name_label="lab", master=hosts[0].ref, default_SR=refs["nfs"])
    for host in hosts:
        host.listener = Listener(pool, host, authority.issue(f"{host.name}.lab", host.address))
        host.listener.start()
    tls = ssl.create_default_context(cafile=authority.path)
    lab = Lab(pool, open_session(pool, hosts[0], pool.accounts["root"], "tests"), tls, refs)
    chance = random.Random(release)
    system = lab.disk("system", 5 * MIB + 512, (0, chance.randbytes(2 * MIB)), (5 * MIB, b"tail"))
    data = lab.disk("data", 3 * MIB, (2 * MIB + 10, b"only here"))
    lab.vm("web", system, data, tags=["gold"], NVRAM={"EFI-variables": "AAAA"})
    return lab
