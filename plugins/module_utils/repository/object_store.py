# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""A store in a bucket of an object store: Amazon S3 and what speaks its language, Azure Blob, Google Cloud Storage."""
from __future__ import annotations

import os
import re
import secrets
import tempfile
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import Any, BinaryIO, Mapping, Optional, Sequence

from .errors import ObjectExists, ObjectMissing, RepositoryError, Retained
from .layout import TEMPORARY, parts
from .object_errors import explain, explaining, is_unclear
from .object_streams import ObjectStoreFile, ObjectStoreWriter
from .posix import Scratch, reporting
from .store import MOST_READ

# scheme -> the library's class, and its word for a bucket
KINDS = {"s3": ("S3Store", "bucket"), "az": ("AzureStore", "container_name"), "gs": ("GCSStore", "bucket")}

_ADDRESS = re.compile(r"(s3|az|gs)://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.*))?", re.ASCII)
# the first error of a request comes after this at the latest, plus one more timeout
_PATIENCE = {
    "max_retries": 6, "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
}
# a part has to get through in this time: 5 MiB, two of them at once
_TIMEOUTS = {"timeout": "120s", "connect_timeout": "10s"}
_ATTEMPTS = 3


class ObjectStore:
    """Objects in a bucket, below a prefix: ``s3://bucket/prefix``, ``az://container/prefix``, ``gs://bucket/prefix``.

    ``options`` are those of the library ``obstore`` for the kind of store; what they leave out comes from the
    environment. Every method raises RepositoryError (NoSpace, ObjectExists, ObjectMissing, Retained where they fit).
    An object is visible when its last request has been answered, and durable then.
    """

    def __init__(self, address: str, options: Optional[Mapping[str, Any]] = None) -> None:
        self.path = address.rstrip("/")
        scheme, bucket, prefix = _parsed(self.path)
        kind, word = KINDS[scheme]
        try:
            self._library = import_module("obstore")
            make = getattr(import_module("obstore.store"), kind)
        except ImportError as error:
            raise RepositoryError(
                "The library obstore, which %s needs, is missing." % self.path,
                "Run on the host that runs the module: pip install obstore.",
            ) from error
        config = {**_TIMEOUTS, **({"checksum_algorithm": "sha256"} if kind == "S3Store" else {})}
        config.update((name, _text(value)) for name, value in (options or {}).items() if value is not None)
        with explaining("use", self.path):
            self._bucket = make(**{word: bucket}, prefix=prefix, config=config, retry_config=_PATIENCE)

    def make_root(self) -> None:
        """Nothing: a prefix needs no making, and buckets are the administrator's."""

    def create(self, name: str) -> ObjectStoreWriter:
        """Begin a new object; nobody sees it before its ``commit()``."""
        return ObjectStoreWriter(self, self._library, self._bucket, _checked(name))

    def put(self, name: str, data: bytes) -> None:
        """Create a small object. ObjectExists when there is another one of that name.

        One of the same content is our own, written by a request whose answer was lost.
        """
        problem: Optional[RepositoryError] = None
        for _attempt in range(_ATTEMPTS):
            try:
                return self._create(name, data)
            except Exception as error:
                problem = explain("write", name, error)
                if not (isinstance(problem, ObjectExists) or is_unclear(error)):
                    raise problem from None
            with suppress(ObjectMissing):  # then it was not carried out, or lost against one that failed
                if self.read(name) == data:
                    return None
                raise ObjectExists("Cannot write %s: it exists." % name)
        raise problem or RepositoryError("Cannot write %s." % name)

    def replace(self, name: str, data: bytes) -> None:
        """Put ``data`` in the place of an object, atomically. For leases, which may be lost."""
        path = _checked(name)
        with explaining("replace", name):
            self._library.put(self._bucket, path, data, use_multipart=False)

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading, seekable and unbuffered."""
        return ObjectStoreFile(self._library, self._bucket, name, self.size(name))  # type: ignore[return-value]

    def read(self, name: str) -> bytes:
        """The whole of a small object, at most 64 MiB."""
        path = _checked(name)
        with explaining("read", name):
            found = self._library.get(self._bucket, path)
            if found.meta["size"] > MOST_READ:
                raise RepositoryError("%s is larger than anything that belongs there." % name)
            return bytes(found.bytes())

    def list(self, folder: str) -> Sequence[str]:
        """Names of the objects directly in ``folder`` (ends with ``/``), sorted; empty when there is no such folder."""
        found = (one["path"] for one in self._entries(folder)["objects"])
        return sorted(path for path in found if path.startswith(folder))  # some list a marker for the folder itself

    def folders(self, folder: str) -> Sequence[str]:
        """Names (last part only) of the folders directly in ``folder``, sorted."""
        return sorted(path.rpartition("/")[2] for path in self._entries(folder)["common_prefixes"])

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        try:
            self._head(name)
        except ObjectMissing:
            return False
        return True

    def size(self, name: str) -> int:
        """Length of an object in bytes."""
        return int(self._head(name)["size"])

    def modified(self, name: str) -> float:
        """When an object was last written, by the store's own clock: compare with ``now()`` only."""
        return float(self._head(name)["last_modified"].timestamp())

    def now(self) -> float:
        """What the store's own clock says."""
        name = TEMPORARY + "now.%s" % secrets.token_hex(6)
        self.replace(name, b"")
        found = self.modified(name)
        self._tidy(name)
        return found

    def remove(self, name: str) -> None:
        """Remove an object, or do nothing when there is none. Only ever for what no committed point lists.

        Retained when the store refuses. A bucket with versions keeps the object behind a marker.
        """
        path = _checked(name)
        with suppress(ObjectMissing), explaining("remove", name):
            self._library.delete(self._bucket, path)

    def free_space(self) -> int:
        """Bytes that can still be written: no object store tells, and nothing is known to end."""
        return 1 << 62

    def scratch(self) -> Scratch:
        """A nameless temporary file on this machine; it is gone when closed, or when its process is."""
        with reporting("write", tempfile.gettempdir()):
            file, path = tempfile.mkstemp(prefix="guestark-")
            os.unlink(path)
            return Scratch(file)

    def probe(self) -> None:
        """Try what everything here rests on. RepositoryError for a store that does not do as it is told."""
        name = TEMPORARY + "probe.%s-Z" % secrets.token_hex(6)  # in both cases: names of points have them too
        first = secrets.token_bytes(64)
        self.put(name, first)
        try:
            self._probe_create(name)
            if self.read(name) != first:
                raise self._refused("does not return what was written", "writes that others can read at once")
            self._probe_range(name, first)
            if name not in self.list(TEMPORARY):
                raise self._refused(
                    "does not list what was written under its name", "listings that show every object at once, as it was named"
                )
        except RepositoryError:
            with suppress(RepositoryError):  # what was found first is told
                self.remove(name)
            raise
        self._tidy(name)

    def _probe_create(self, name: str) -> None:
        try:
            self._create(name, b"second")
        except Exception as error:
            problem = explain("write", name, error)
            if not isinstance(problem, ObjectExists):
                raise problem from None
        else:
            raise self._refused("lets an object replace another unasked", "conditional writes (If-None-Match)")

    def _probe_range(self, name: str, first: bytes) -> None:
        try:
            found = bytes(self._library.get_range(self._bucket, name, start=7, length=20))
        except Exception as error:
            found = b""
            if "NotPartial" not in str(error):
                raise explain("read", name, error) from None
        if found != first[7:27]:
            raise self._refused("gives other bytes than those asked for", "range reads")

    def _refused(self, what: str, needed: str) -> RepositoryError:
        return RepositoryError("%s %s." % (self.path, what), "Use an object store that supports %s." % needed)

    def _create(self, name: str, data: bytes) -> None:
        self._library.put(self._bucket, _checked(name), data, mode="create", use_multipart=False)

    def _tidy(self, name: str) -> None:
        with suppress(Retained):  # whoever may remove nothing can still write backups
            self.remove(name)

    def _head(self, name: str) -> Any:
        path = _checked(name)
        with explaining("look at", name):
            return self._library.head(self._bucket, path)

    def _entries(self, folder: str) -> Any:
        path = _checked(folder.rstrip("/"))
        with explaining("list", folder):
            return self._library.list_with_delimiter(self._bucket, path)


def _parsed(address: str) -> tuple[str, str, Optional[str]]:
    """Scheme, bucket and prefix of an address."""
    found = _ADDRESS.fullmatch(address)
    with suppress(ValueError):
        if found:
            return found[1], found[2], "/".join(parts(found[3])) if found[3] else None
    raise RepositoryError("%s is no address of a bucket." % address, "Write it like s3://bucket/prefix.")


def _checked(name: str) -> str:
    """The name itself. ValueError when it is none."""
    return "/".join(parts(name))


def _text(value: Any) -> str:
    """An option as the library takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
