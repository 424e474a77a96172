# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods every class has for its records and fields, straight from the data model."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .api import Context
from .errors import ApiError
from .model import Class, Method

Implementation = Callable[..., Any]


def find(cls: Class, method: Method) -> Implementation | None:
    """The implementation of a generic method, or None when it is not generic."""
    name = cls.name
    whole = {
        "get_record": lambda ctx, ref: ctx.db.get(name, ref),
        "get_by_uuid": lambda ctx, uuid: ctx.db.by_uuid(name, uuid),
        "get_by_name_label": lambda ctx, label: ctx.db.find(name, name_label=label),
        "get_all": lambda ctx: ctx.db.refs(name),
        "get_all_records": _all_records(name),
    }
    if method.name in whole:
        return whole[method.name]
    match = re.match("(get|set|add_to|remove_from|add|remove)_(.+)", method.name)
    # a getter or setter with parameters of its own is no accessor
    arity = {"get": 1, "set": 2, "add_to": 3, "remove_from": 2, "add": 2, "remove": 2}
    if not match or match[2] not in cls.fields or len(method.params) != arity[match[1]]:
        return None
    return ACCESSORS[match[1]](name, match[2])


def _all_records(cls: str) -> Implementation:
    def get_all_records(ctx: Context) -> dict[str, Any]:
        with ctx.db.lock:
            return {ref: ctx.db.get(cls, ref) for ref in ctx.db.refs(cls)}

    return get_all_records


def _getter(cls: str, field: str) -> Implementation:
    return lambda ctx, ref: ctx.db.field(cls, ref, field)


def _setter(cls: str, field: str) -> Implementation:
    return lambda ctx, ref, value: ctx.db.set(cls, ref, **{field: value})


def _adder_to_map(cls: str, field: str) -> Implementation:
    def add_to(ctx: Context, ref: str, key: str, value: Any) -> None:
        with ctx.db.lock:
            entries = ctx.db.field(cls, ref, field)
            if key in entries:
                raise ApiError("MAP_DUPLICATE_KEY", cls, field, ref, key)
            ctx.db.set(cls, ref, **{field: entries | {key: value}})

    return add_to


def _remover_from_map(cls: str, field: str) -> Implementation:
    def remove_from(ctx: Context, ref: str, key: str) -> None:
        with ctx.db.lock:
            entries = ctx.db.field(cls, ref, field)
            entries.pop(key, None)
            ctx.db.set(cls, ref, **{field: entries})

    return remove_from


def _adder(cls: str, field: str) -> Implementation:
    def add(ctx: Context, ref: str, value: Any) -> None:
        with ctx.db.lock:
            entries = ctx.db.field(cls, ref, field)
            if value not in entries:
                ctx.db.set(cls, ref, **{field: [*entries, value]})

    return add


def _remover(cls: str, field: str) -> Implementation:
    def remove(ctx: Context, ref: str, value: Any) -> None:
        with ctx.db.lock:
            ctx.db.set(cls, ref, **{field: [entry for entry in ctx.db.field(cls, ref, field) if entry != value]})

    return remove


ACCESSORS = {
    "get": _getter, "set": _setter, "add_to": _adder_to_map, "remove_from": _remover_from_map, "add": _adder,
    "remove": _remover,
}
