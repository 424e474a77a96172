# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real S3 server for tests, SeaweedFS: a process of its own on 127.0.0.1, stopped by its own id.

    from ansible_collections.guestark.xen.tests.s3_fixture import start_s3
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

WEED = Path(sys.executable).parent / "weed"
START_SECONDS = 60.0
KEY, SECRET = "tester", "the-secret-of-tester"
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
         "s3.port", "s3.port.grpc")
OPTIONS = ("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0",
           "-master.telemetry=false", "-volume.max=200", "-master.volumeSizeLimitMB=256")


class S3Server:
    """A running server. ``endpoint`` is its address, ``options`` the storage_options that reach it."""

    def __init__(self, process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
        self.process = process
        self.endpoint = endpoint
        self.log = log
        self.options = {"endpoint": endpoint, "region": "us-east-1", "access_key_id": KEY, "secret_access_key": SECRET,
                        "allow_http": True}

    def request(self, method: str, path: str, *headers: str, data: str | None = None) -> tuple[int, str]:
        """Send a signed request, e.g. ``request("GET", "bucket?uploads=")``; return the status and the body."""
        lines = [f'url = "{self.endpoint}/{path}"', f'request = "{method}"', "silent", f'user = "{KEY}:{SECRET}"',
                 'aws-sigv4 = "aws:amz:us-east-1:s3"', 'write-out = "\\n%{http_code}"', "max-time = 20"]
        if data is not None:
            headers += ("x-amz-content-sha256: " + hashlib.sha256(data.encode()).hexdigest(),)
            lines.append("data-binary = " + json.dumps(data))
        lines += [f'header = "{header}"' for header in headers]
        done = subprocess.run(["curl", "--config", "-"], input="\n".join(lines), capture_output=True, text=True, check=False)
        body, _newline, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def make_bucket(self, name: str, *headers: str) -> str:
        """Make a bucket and return its name."""
        deadline = time.monotonic() + START_SECONDS
        while (status := self.request("PUT", name, *headers)[0]) != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The server answers %s:\n%s" % (status, self.log.read_text()[-4000:]))
            time.sleep(0.2)
        return name

    def uploads(self, bucket: str) -> int:
        """How many uploads are neither finished nor aborted."""
        status, body = self.request("GET", f"{bucket}?uploads=")
        assert status == 200, body
        return body.count("<UploadId>")

    def stop(self) -> None:
        """End the process; what it holds is of no use any more."""
        self.process.kill()
        self.process.wait()


def start_s3(folder: Path) -> S3Server:
    """Start a server that keeps its data in ``folder``, with the bucket ``guestark``, and wait until it takes objects.

    Requests without a signature (``skip_signature``) may do all that the others may: a proxy can change them on their way.
    """
    config = folder / "s3.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    everybody = {"name": "anonymous", "actions": actions[1:]}
    config.write_text(json.dumps({"identities": [{"name": KEY, "credentials": credentials, "actions": actions}, everybody]}))
    (folder / "data").mkdir()
    with contextlib.ExitStack() as stack:  # all are held until all are known
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _port in PORTS]
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, held, strict=True)}
    command = [str(WEED), "server", f"-dir={folder / 'data'}", f"-s3.config={config}", *OPTIONS,
               *(f"-{name}={port}" for name, port in ports.items())]
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    server = S3Server(process, "http://127.0.0.1:%d" % ports["s3.port"], log)
    try:
        server.make_bucket("guestark")
    except BaseException:
        server.stop()
        raise
    return server
