# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments of calls, brought to the types the data model says."""
from __future__ import annotations

import math
from typing import Any

from .database import DateTime
from .errors import ApiError
from .model import Model


def convert(model: Model, kind: str, value: Any) -> Any:
    """The value as the type: integers may come as text, floats as either. Raises INTERNAL_ERROR."""
    try:
        return _convert(model, kind, value)
    except (TypeError, ValueError) as error:
        raise ApiError("INTERNAL_ERROR", f"Rpc.Runtime_error({kind}: {error})") from error


def _convert(model: Model, kind: str, value: Any) -> Any:
    if kind.endswith(" set"):
        return [_convert(model, kind[:-4], item) for item in _is(list, value)]
    if kind.endswith(" map"):
        key_kind, dummy, value_kind = kind[1:-5].partition(" -> ")
        return {
            _convert(model, key_kind, key): _convert(model, value_kind, item) for key, item in _is(dict, value).items()
        }
    if kind.endswith(" record"):
        return _record(model, kind[:-7], _is(dict, value))
    if kind == "int":
        return int(_is((int, str), value)) if not isinstance(value, bool) else _is(str, value)
    if kind == "bool":
        return _is(bool, value)
    if kind == "float":
        number = float(_is((int, float, str), value))
        return number if math.isfinite(number) else 0.0
    if kind == "datetime":
        return DateTime(_is(str, value))
    return _is(str, value)


def _is(kinds: Any, value: Any) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def _record(model: Model, cls: str, value: dict[str, Any]) -> dict[str, Any]:
    if cls not in model.classes:
        return value
    fields = model.classes[cls].fields
    for name, field in fields.items():
        if field.mode != "RO" and field.default is None and name not in value:
            raise ApiError("INTERNAL_ERROR", f'Server_helpers.Dispatcher_FieldNotFound("{name}")')
    # what nobody may give is ignored, as where somebody creates an object from another one's whole record
    given = {name: item for name, item in value.items() if name in fields and fields[name].mode != "RO"}
    return {name: _convert(model, fields[name].type, item) for name, item in given.items()}
