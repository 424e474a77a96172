# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Condense XAPI's machine-readable data model to what the simulator needs: names, types, modes, defaults, releases.

Usage: build.py XENAPI_JSON > model.json
"""
from __future__ import annotations

import json
import sys

MODES = {"RO/runtime": "RO", "RO/constructor": "C", "RW": "RW"}


def first(item: dict, *transitions: str) -> str | None:
    """The release in which one of the transitions happened first."""
    return next((step["release"] for step in item["lifecycle"]["transitions"] if step["transition"] in transitions), None)


def field(item: dict) -> list:
    """Type, mode, default (None: there is none), release it came with."""
    return [item["type"], MODES[item["qualifier"]], item.get("default"), first(item, "published", "prototyped")]


def method(item: dict) -> dict:
    """Parameters without the session, result, roles, releases."""
    params = [[param["name"], param["type"]] for param in item["params"]]
    session = bool(params) and params[0][1] == "session ref" and params[0][0] == "session_id"
    out = {"params": params[session:], "result": item["result"][0], "roles": item["roles"]}
    out["since"] = first(item, "published", "prototyped")
    if not session:
        out["open"] = True
    if item.get("implicit"):
        out["implicit"] = True
    removed = first(item, "removed")
    if removed:
        out["removed"] = removed
    return out


def main() -> None:
    """Write the model to standard output, a class a line."""
    with open(sys.argv[1], encoding="utf-8") as source:
        classes = json.load(source)
    lines = []
    for item in classes:
        condensed = {
            "since": first(item, "published", "prototyped"),
            "fields": {one["name"]: field(one) for one in item["fields"]},
            "methods": {one["name"]: method(one) for one in item["messages"]},
            "enums": {one["name"]: [value["name"] for value in one["values"]] for one in item["enums"]},
        }
        lines.append(json.dumps(item["name"]) + ": " + json.dumps(condensed, separators=(",", ":")))
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
