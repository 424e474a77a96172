# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""What the library ``obstore`` says of a failed request, in words an administrator can act on.

Its own messages hold addresses, which may carry signatures: only the parts named here are repeated.
"""
from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Iterator, Optional

from .errors import NoSpace, ObjectExists, ObjectMissing, RepositoryError, Retained

_STATUS = re.compile(r"status code: (\d{3}[ \w]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>|DeleteObjects request failed for key [^:]*: ([^(]*) \(code")
_NO_ANSWER = re.compile(r"kind: (Connect|Timeout|Interrupted|Request|Decode|Unknown),")
_CAUSE = re.compile(r'(?:message|error): "([^"\\]*)"|: (UnknownIssuer|NotValidForName|Expired|InvalidContentType)\b')
_DENIED = ("AccessDenied", "AllAccessDisabled", "BlobImmutableDueToPolicy", "ObjectUnderActiveHold")
_FULL = ("QuotaExceeded", "StorageFull", "XMinioStorageFull", "InsufficientStorage")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_CREDENTIALS = "Check the credentials in storage_options or in the environment, and what they allow."


@contextmanager
def explaining(doing: str, name: str) -> Iterator[None]:
    """Turn any error of the library into a RepositoryError."""
    try:
        yield
    except RepositoryError:
        raise
    except Exception as error:  # its errors have no base that is not Exception: some are built-in ones
        raise explain(doing, name, error) from None  # what it says may hold secrets


def explain(doing: str, name: str, error: Exception) -> RepositoryError:
    """An error of the library as one of ours."""
    kind, text = type(error).__name__, str(error)
    code = _first(_CODE, text) or ""
    said = "Cannot %s %s: %s." % (doing, name, _reason(kind, text))
    if code in _NO_BUCKET:
        return RepositoryError(said, "Make the bucket, or correct its name and the endpoint.")
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(said, "Check that the repository's address is right.")
    if doing == "remove" and (code in _DENIED or (kind == "PermissionDeniedError" and not code)):
        return Retained(said, "It is under retention, or the credentials may not remove it; it stays.")
    if kind == "AlreadyExistsError" and code not in _DENIED:
        return ObjectExists(said)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or "status code: 403" in text:
        return RepositoryError(said, _CREDENTIALS)
    if code in _FULL or "status code: 507" in text:
        return NoSpace(said, "Make room or raise the quota; earlier restore points are untouched.")
    if "BadScheme" in text:
        return RepositoryError(said, "The endpoint begins with http: say allow_http in storage_options, or use https.")
    if _NO_ANSWER.search(text):
        return RepositoryError(said, "Check the endpoint, the network and the certificate; then run it again.")
    return RepositoryError(said, "Check the store and the storage_options.")


def is_unclear(error: Exception) -> bool:
    """Whether a request may have been carried out although it failed: it was sent, and no answer came."""
    found = _NO_ANSWER.search(str(error))
    return bool(found) and found[1] != "Connect"  # type: ignore[index]


def _reason(kind: str, text: str) -> str:
    status, code, message = (_first(pattern, text) for pattern in (_STATUS, _CODE, _MESSAGE))
    if status or code:
        return ", ".join(one.strip().rstrip(".") for one in (status, code, message) if one)
    unanswered = _first(_NO_ANSWER, text)
    if unanswered:
        cause = _first(_CAUSE, text)
        return "the store does not answer (%s)" % (cause or unanswered.lower())
    # what is left are complaints about the configuration and about answers that make no sense
    words = text.partition("\n")[0]
    return re.sub(r"https?://\S+", "(address)", words).rstrip(".") or kind


def _first(pattern: re.Pattern[str], text: str) -> Optional[str]:
    found = pattern.search(text)
    return next((one for one in found.groups() if one), None) if found else None
