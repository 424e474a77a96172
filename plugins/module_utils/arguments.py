# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Argument specifications that modules share; each function stands for the documentation fragment of its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import env_fallback

if TYPE_CHECKING:
    from .xapi.client import PoolClient

Spec = dict[str, dict[str, Any]]

# Rules that go with vm(): AnsibleModule(argument_spec={**connection(), **vm()}, **VM_RULES)
VM_RULES: dict[str, list[tuple[str, ...]]] = {
    "required_one_of": [("name", "uuid")],
    "mutually_exclusive": [("name", "uuid")],
}


def _from_environment(variable: str, **option: Any) -> dict[str, Any]:
    return {**option, "fallback": (env_fallback, [variable])}


def connection() -> Spec:
    """Fragment ``guestark.xen.connection``: the pool and how to log in to it."""
    return {
        "hostname": _from_environment(
            "XENSERVER_HOST", type="list", elements="str", required=True, aliases=["host", "pool"]
        ),
        "username": _from_environment("XENSERVER_USER", type="str", default="root", aliases=["user", "admin"]),
        "password": _from_environment(
            "XENSERVER_PASSWORD", type="str", required=True, no_log=True, aliases=["pass", "pwd"]
        ),
        "validate_certs": _from_environment("XENSERVER_VALIDATE_CERTS", type="bool", default=True),
        "ca_path": _from_environment("XENSERVER_CA_PATH", type="path"),
        "fingerprint": _from_environment("XENSERVER_FINGERPRINT", type="str"),
    }


def vm() -> Spec:
    """Fragment ``guestark.xen.vm``: one VM, by name or UUID. VM_RULES belong to it."""
    return {
        "name": {"type": "str", "aliases": ["name_label"]},
        "uuid": {"type": "str"},
    }


def repository(required: bool = False) -> Spec:
    """Fragment ``guestark.xen.repository``: where restore points live and whose are believed."""
    return {
        "repository": {"type": "path", "required": required},
        "allowed_signers": {"type": "path"},
    }


def writing() -> Spec:
    """Fragment ``guestark.xen.repository.writing``: to whom new points are encrypted and who vouches for them."""
    return {
        "recipients": {"type": "list", "elements": "str", "default": []},
        "catalog_recipients": {"type": "list", "elements": "str", "default": []},
        "signing_key": {"type": "path", "no_log": False},
        "encryption": {"type": "str", "choices": ["age", "none"], "default": "age"},
    }


def reading() -> Spec:
    """Fragment ``guestark.xen.repository.reading``: the identities that open the data."""
    return {"identities": {"type": "list", "elements": "path", "default": []}}


def catalog() -> Spec:
    """Fragment ``guestark.xen.repository.catalog``: the identities that open the points' metadata."""
    return {
        "catalog_identities": {"type": "list", "elements": "path", "default": [], "aliases": ["catalog_identity"]},
    }


def transfer() -> Spec:
    """Fragment ``guestark.xen.transfer``: patience and progress. ``progress_file`` is the action plugin's."""
    return {
        "stall_timeout": {"type": "int", "default": 300},
        "progress_file": {"type": "path"},
    }


def pool_client(options: dict[str, Any]) -> PoolClient:
    """The client that the options of connection() describe; it connects when it is entered."""
    from .xapi.client import PoolClient
    from .xapi.tls import TlsSettings

    tls = TlsSettings(
        validate=options["validate_certs"], ca_path=options["ca_path"], fingerprint=options["fingerprint"]
    )
    members = [member.strip() for member in options["hostname"]]
    return PoolClient(members, options["username"], options["password"], tls=tls)
