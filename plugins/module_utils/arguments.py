# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Argument specifications that modules share; each function stands for the documentation fragment of its name."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import env_fallback
from ansible.module_utils.common.text.formatters import human_to_bytes

if TYPE_CHECKING:
    from .age.sshsig import AllowedSigners
    from .repository.point_writer import WriterKeys
    from .xapi.client import PoolClient
    from .xapi.moments import Wish

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

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
        "storage_options": {"type": "dict", "no_log": True},
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


def moment() -> Spec:
    """Fragment ``guestark.xen.moment``: how the VM is brought to the moment of the backup."""
    from .xapi.moments import GRADES, METHODS

    return {
        "method": {"type": "str", "choices": list(METHODS), "default": "normal"},
        "consistency": {"type": "str", "choices": list(GRADES)},
        "fallback": {"type": "bool", "default": False},
        "shutdown_timeout": {"type": "int", "default": 300},
        "hard_shutdown": {"type": "bool", "default": False},
    }


def wish(options: dict[str, Any]) -> Wish:
    """What the options of moment() ask for."""
    from .xapi.moments import Wish

    return Wish(
        options["method"], options["consistency"], options["fallback"], options.get("downtime", "snapshot"),
        options["shutdown_timeout"], options["hard_shutdown"], options.get("exclude_disks") or (),
    )


def transfer() -> Spec:
    """Fragment ``guestark.xen.transfer``: patience and progress. ``progress_file`` is the action plugin's."""
    return {
        "stall_timeout": {"type": "int", "default": 300},
        "bandwidth_limit": {"type": "str"},
        "progress_file": {"type": "path"},
    }


def pool_client(options: dict[str, Any]) -> PoolClient:
    """The client that the options of connection() and transfer() describe; it connects when it is entered.

    Raises EngineError for a limit that is none.
    """
    from .xapi.client import PoolClient
    from .xapi.pace import Pace
    from .xapi.tls import TlsSettings

    tls = TlsSettings(
        validate=options["validate_certs"], ca_path=options["ca_path"], fingerprint=options["fingerprint"]
    )
    members = [_plain(member.strip()) for member in options["hostname"]]
    return PoolClient(members, _plain(options["username"]), _plain(options["password"]), tls=tls, pace=Pace(_limit(options)))


def _limit(options: dict[str, Any]) -> int | None:
    """Bytes a second, or None for no limit."""
    from .engine.errors import EngineError

    text = options.get("bandwidth_limit")
    if not text:
        return None
    try:
        found = int(human_to_bytes(text))
    except ValueError as error:
        raise EngineError("bandwidth_limit: %s" % error, "Give bytes a second, such as 50M.") from error
    if found <= 0:
        raise EngineError("bandwidth_limit: %r lets nothing through." % text, "Leave it out for no limit.")
    return found


def _plain(text: str) -> str:
    """The text as nothing but a str: what plugins are given may be a subclass, which cannot be sent in a call."""
    return "".join((text,))


def writer_keys(options: dict[str, Any]) -> WriterKeys:
    """The keys that the options of writing() and catalog() name.

    Raises AgeError naming the key that is no good, EngineError for none.
    """
    from .age.files import load_signing_key, recipients_of
    from .age.keys import parse_recipient
    from .engine.errors import EngineError
    from .repository.point_writer import WriterKeys

    encrypted = options["encryption"] == "age"
    if encrypted and not options["recipients"]:
        raise EngineError(
            "There is nobody to encrypt to.",
            "Give recipients, or say encryption: none to store the guests' data readable.",
        )
    if not options["signing_key"]:
        raise EngineError("There is no signing_key to vouch for restore points.", "Make one with xen_backup_key.")
    catalog_texts = list(options["catalog_recipients"])
    for path in options.get("catalog_identities", ()):
        catalog_texts += [text for text in recipients_of(path) if text not in catalog_texts]
    kinds = {text.strip().startswith("age1pq1") for text in [*options["recipients"], *catalog_texts]}
    if encrypted and len(kinds) == 2:
        raise EngineError(
            "Post-quantum recipients (age1pq1...) stand beside others, and would protect nothing that those do not.",
            "Use keys of one kind for data and catalog.",
        )
    return WriterKeys(
        [parse_recipient(text) for text in options["recipients"]] if encrypted else [],
        [parse_recipient(text) for text in catalog_texts] if encrypted else [],
        load_signing_key(options["signing_key"]),
        options["encryption"],
    )


def signers(options: dict[str, Any]) -> AllowedSigners | None:
    """Whose points are believed: allowed_signers and one's own signing_key; None when neither is given."""
    from .age.files import load_signers, load_signing_key
    from .age.sshsig import AllowedSigners

    found = AllowedSigners([])
    if options.get("allowed_signers"):
        found += load_signers(options["allowed_signers"])
    if options.get("signing_key"):
        found += AllowedSigners.of(load_signing_key(options["signing_key"]))
    return found if options.get("allowed_signers") or options.get("signing_key") else None


def identities(options: dict[str, Any]) -> list[Any]:
    """The identities in all files that the options name."""
    from .age.files import load_identities

    return load_identities([*options.get("identities", ()), *options.get("catalog_identities", ())])


def duration(text: str) -> timedelta:
    """A span such as ``90m`` or ``1d12h``. Raises ValueError."""
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        raise ValueError("%r is no span of time: expected numbers with s, m, h, d or w, such as 90m or 1d12h" % text)
    return sum((timedelta(**{UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
