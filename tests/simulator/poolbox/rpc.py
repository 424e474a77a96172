# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a request's body to a method and back: XML-RPC, JSON-RPC 1.0 and 2.0, and the rules all calls obey."""
from __future__ import annotations

import json
import time
import uuid
from typing import Any

from . import accessors, sessions, tasks
from .api import METHODS, Context
from .arguments import convert
from .errors import ApiError
from .model import NULL, Method
from .pool import Host, Pool
from .tasks import TaskHandle
from .xmlvalue import parse_call, to_xml

XML_HEAD = '<?xml version="1.0"?>'


class Unreadable(Exception):
    """The body is no call at all: the answer is an HTTP 500."""


class Dropped(Exception):
    """A fault wants the connection broken instead of an answer."""


def answer_xml(pool: Pool, host: Host, body: bytes) -> str:
    """The answer to an XML-RPC call."""
    try:
        name, params = parse_call(body)
    except (ValueError, AttributeError, TypeError) as error:
        raise Unreadable(str(error)) from error
    if name == "system.listMethods":
        return f"{XML_HEAD}<methodResponse><params><param>{to_xml(pool.db.model.method_names)}</param></params></methodResponse>"
    try:
        outcome = {"Status": "Success", "Value": call(pool, host, name, params)}
    except ApiError as error:
        outcome = {"Status": "Failure", "ErrorDescription": error.description}
    return f"{XML_HEAD}<methodResponse><params><param>{to_xml(outcome)}</param></params></methodResponse>"


def answer_json(pool: Pool, host: Host, body: bytes) -> str:
    """The answer to a JSON-RPC call, in the version of the call."""
    try:
        request = json.loads(body)
        name, params, number = request["method"], request.get("params", []), request["id"]
        second = request.get("jsonrpc") == "2.0"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(str(error)) from error
    if not isinstance(number, (int, str)) or isinstance(number, bool) or not isinstance(params, list):
        raise Unreadable("id must be a number or text, params an array")
    if host.emergency:
        # refused before dispatch: always of this shape, whatever was asked
        return json.dumps({"jsonrpc": "2.0", "error": [host.emergency], "id": 0})
    try:
        value = pool.db.model.method_names if name == "system.listMethods" else call(pool, host, name, params)
        value = "" if value is None else value
        answer = {"jsonrpc": "2.0", "result": value} if second else {"result": value, "error": None}
    except ApiError as error:
        if second:
            answer = {"jsonrpc": "2.0", "error": {"code": 1, "message": error.code, "data": error.params}}
        else:
            answer = {"result": None, "error": error.description}
    return json.dumps(answer | {"id": number})


def _find(pool: Pool, name: str) -> Method | None:
    model = pool.db.model
    if "." in name:
        return model.method(name)
    # Class_method is as good as Class.method
    for cls in sorted(model.classes, key=len, reverse=True):
        if name.startswith(cls + "_"):
            return model.method(f"{cls}.{name[len(cls) + 1:]}")
    return None


def call(pool: Pool, host: Host, name: str, params: list[Any]) -> Any:
    """Check and carry out one call. Raises ApiError."""
    sessions.refuse_if_not_coordinator(pool, host)
    asynchronous = name.startswith("Async.")
    method = _find(pool, name[6:] if asynchronous else name)
    _fault(pool, host, name[6:] if asynchronous else name, params)
    session = NULL
    if method is None or not method.open:
        if method is None and not (params and isinstance(params[0], str)):
            raise ApiError("MESSAGE_METHOD_UNKNOWN", name)
        session = params[0] if params else ""
        account = sessions.check(pool, session)
        if method is None:
            raise ApiError("MESSAGE_METHOD_UNKNOWN", name)
        params = params[1:]
        sessions.require_role(account, method.roles, method.full_name)
    if asynchronous and not method.is_async:
        raise ApiError("Fault", f"No async mode for this operation (rpc: {name})")
    if method.removed:
        raise ApiError("MESSAGE_REMOVED")
    return _carry_out(Context(pool, host, session), method, _arguments(pool, method, params), asynchronous)


def _arguments(pool: Pool, method: Method, params: list[Any]) -> list[Any]:
    if len(params) < method.required or (len(params) > len(method.params) and not method.defaults):
        raise ApiError("MESSAGE_PARAMETER_COUNT_MISMATCH", method.full_name, str(method.required), str(len(params)))
    given = [convert(pool.db.model, kind, value) for (dummy, kind), value in zip(method.params, params)]
    return given + [method.defaults[name] for name, dummy in method.params[len(given):]]


def _carry_out(ctx: Context, method: Method, arguments: list[Any], asynchronous: bool) -> Any:
    function = METHODS.get(method.full_name) or accessors.find(ctx.db.model.classes[method.cls], method)
    if function is None:
        raise ApiError("NOT_IMPLEMENTED", method.full_name)
    if not asynchronous:
        ctx.task = TaskHandle(ctx.db, f"DummyRef:|{uuid.uuid4()}|{method.full_name}")
        return function(ctx, *arguments)
    ctx.task = tasks.new_task(ctx.db, ctx.host.ref, f"Async.{method.full_name}", "", ctx.session)
    tasks.run(ctx.task, lambda: function(ctx, *arguments))
    return ctx.task.ref


def _fault(pool: Pool, host: Host, name: str, params: list[Any]) -> None:
    facts: dict[str, Any] = {"call": name, "pool": pool.name, "host": host.name}
    for param in params[1:2]:
        if isinstance(param, str) and pool.db.exists("VM", param):
            facts["vm"] = pool.db.field("VM", param, "uuid")
    fault = pool.faults.take(**facts)
    if not fault:
        return
    time.sleep(fault.get("delay", 0))
    if fault.get("expire_session"):
        for ref in pool.db.refs("session"):
            pool.db.destroy("session", ref)
    if fault.get("drop"):
        raise Dropped
    if "error" in fault:
        raise ApiError(*fault["error"])
