# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Whom to trust: certificate authorities, or the fingerprints of the hosts' own certificates."""
from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass
from typing import Optional

from .errors import CertificateUntrusted

UNTRUSTED_REMEDY = (
    "Check that this is the right host; then give the certificate of its authority (ca_path), or this fingerprint."
)


@dataclass(frozen=True)
class TlsSettings:
    """How hosts prove who they are.

    ``ca_path`` is a PEM file with the authorities to trust (default: the system's). ``fingerprint`` holds the SHA-256
    of hosts' own certificates, in hexadecimal with or without colons, several with commas: with it nothing else
    counts, neither authority nor name nor date. Without ``validate`` (and without fingerprint) anybody is believed.
    """

    validate: bool = True
    ca_path: Optional[str] = None
    fingerprint: Optional[str] = None

    def context(self) -> ssl.SSLContext:
        """A client's TLS context. Raises CertificateUntrusted when the settings themselves are of no use."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.pins() or not self.validate:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca_path:
            try:
                context.load_verify_locations(cafile=self.ca_path)
            except OSError as error:
                raise CertificateUntrusted(
                    "The file of trusted authorities %s cannot be used: %s." % (self.ca_path, error.strerror or error),
                    "It has to hold certificates in PEM format.",
                ) from error
        else:
            context.load_default_certs()
        return context

    def pins(self) -> frozenset[str]:
        """The trusted fingerprints, in lower case without colons. Raises CertificateUntrusted for a malformed one."""
        pins = [pin.strip().replace(":", "").lower() for pin in (self.fingerprint or "").split(",") if pin.strip()]
        for pin in pins:
            if not re.fullmatch("[0-9a-f]{64}", pin):
                raise CertificateUntrusted(
                    "%r is not the SHA-256 fingerprint of a certificate." % pin,
                    "It has 64 hexadecimal digits: openssl x509 -noout -fingerprint -sha256 -in CERTIFICATE",
                )
        return frozenset(pins)

    def check_pin(self, sock: ssl.SSLSocket, host: str) -> None:
        """Raise CertificateUntrusted unless no fingerprint is demanded or the peer's leaf certificate has one of them.

        Has to be called right after the handshake, before anything is sent.
        """
        pins = self.pins()
        if not pins:
            return
        shown = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
        if shown not in pins:
            raise CertificateUntrusted(
                "The certificate of %s has the fingerprint %s, which is not among the trusted ones." % (host, shown),
                UNTRUSTED_REMEDY,
            )
