# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a request's body to a method and back: XML-RPC, JSON-RPC 1.0 and 2.0, and the rules all calls obey."""
from __future__ import annotations

import json
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from . import accessors, sessions, tasks
from .api import METHODS, Context
from .arguments import convert
from .errors import ApiError, Dropped
from .model import NULL, Method
from .pool import Account, Host, Pool
from .tasks import TaskHandle
from .xmlvalue import parse_call, to_xml

XML_HEAD = '<?xml version="1.0"?>'


class Unreadable(Exception):
    """The body is no call at all: the answer is an HTTP 500."""


def answer_xml(pool: Pool, host: Host, body: bytes) -> str:
    """The answer to an XML-RPC call."""
    text, legible = _decode(body)
    try:
        name, params = parse_call(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise Unreadable(str(error)) from error
    try:
        refuse_early(host, params if not legible else [])
        if name == "system.listMethods":  # the one answer without an envelope
            return _response(pool.db.model.method_names)
        return _response({"Status": "Success", "Value": call(pool, host, name, params)})
    except ApiError as error:
        return _response({"Status": "Failure", "ErrorDescription": error.description})


def _response(value: Any) -> str:
    return f"{XML_HEAD}<methodResponse><params><param>{to_xml(value)}</param></params></methodResponse>"


def answer_json(pool: Pool, host: Host, body: bytes) -> str:
    """The answer to a JSON-RPC call, in the version of the call."""
    text, legible = _decode(body)
    try:
        request = json.loads(text)
        name, params, number = request["method"], request.get("params", []), request["id"]
        second = request.get("jsonrpc") == "2.0"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(str(error)) from error
    if not isinstance(number, (int, str)) or isinstance(number, bool) or not isinstance(params, list):
        raise Unreadable("id must be a number or text, params an array")
    try:
        refuse_early(host, params if not legible else [])
    except ApiError as error:
        # refused before dispatch: always of this shape, whatever was asked
        return json.dumps({"jsonrpc": "2.0", "error": error.description, "id": 0})
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


def _decode(body: bytes) -> tuple[str, bool]:
    """The body as text, and whether it was UTF-8."""
    try:
        return body.decode(), True
    except UnicodeDecodeError:
        return body.decode(errors="replace"), False


def refuse_early(host: Host, damaged: list[Any]) -> None:
    """What is refused before the method is looked at: everything in an emergency, and what was no UTF-8."""
    if host.emergency:
        raise ApiError(host.emergency)
    for param in damaged:
        if "\ufffd" in str(param):
            raise ApiError("INVALID_VALUE", "Invalid UTF-8 string in parameter", str(param))


def _find(pool: Pool, name: str, asynchronous: bool) -> Method | None:
    model = pool.db.model
    if "." in name:
        return model.method(name)
    # Class_method is as good as Class.method, but not after Async.
    for cls in () if asynchronous else sorted(model.classes, key=len, reverse=True):
        if name.startswith(cls + "_"):
            return model.method(f"{cls}.{name[len(cls) + 1:]}")
    return None


def call(pool: Pool, host: Host, name: str, params: list[Any]) -> Any:
    """Check and carry out one call, in the order of the real server. Raises ApiError."""
    asynchronous = name.startswith("Async.")
    name = name.removeprefix("Async.")
    method = _find(pool, name, asynchronous)
    pool.count_call(method.full_name if method else name)
    fault = _take_fault(pool, host, method.full_name if method else name, params)
    if method is None:
        raise _unknown(pool, host, name, params)
    if not method.open:
        given = params[1:]
        _check_count(method, given, len(params) - 1)
        arguments = [] if method.removed else _arguments(pool, method, given)
        account = _check_session(pool, host, params[0])
    else:
        _check_count(method, params, len(params))
        arguments, account = _arguments(pool, method, params), None
    if method.removed:
        raise ApiError("MESSAGE_REMOVED")
    if asynchronous and not method.is_async:
        raise ApiError("Fault", f"No async mode for this operation (rpc: {method.full_name})")
    ctx = Context(pool, host, NULL if account is None else params[0])

    def work() -> Any:
        time.sleep(fault.get("delay", 0))
        if "error" in fault:
            raise ApiError(*fault["error"])
        if account is not None:
            sessions.require_role(account, method.roles, method.full_name)
        return _implementation(ctx, method)(ctx, *arguments)

    return _carry_out(ctx, method, work, asynchronous)


def _unknown(pool: Pool, host: Host, name: str, params: list[Any]) -> ApiError:
    """Why there is no such method: an extension might have that name, so those who may not call one are turned away."""
    if params:
        account = _check_session(pool, host, params[0])
        extension = pool.db.model.classes["host"].methods["call_extension"]
        sessions.require_role(account, extension.roles, extension.full_name)
    return ApiError("MESSAGE_METHOD_UNKNOWN", name)


def _check_session(pool: Pool, host: Host, session: Any) -> Account:
    account = sessions.check(pool, session)
    sessions.coordinator_only(pool, host)
    return account


def _check_count(method: Method, given: list[Any], count: int) -> None:
    if count < method.required or (len(given) > len(method.params) and not method.defaults):
        raise ApiError("MESSAGE_PARAMETER_COUNT_MISMATCH", method.full_name, str(method.required), str(count))


def _arguments(pool: Pool, method: Method, params: list[Any]) -> list[Any]:
    given = [convert(pool.db.model, kind, value) for (dummy, kind), value in zip(method.params, params)]
    return given + [method.defaults[name] for name, dummy in method.params[len(given):]]


def _implementation(ctx: Context, method: Method) -> Callable[..., Any]:
    function = METHODS.get(method.full_name) or accessors.find(ctx.db.model.classes[method.cls], method)
    if function is None:
        raise ApiError("NOT_IMPLEMENTED", method.full_name)
    return function


def _carry_out(ctx: Context, method: Method, work: Callable[[], Any], asynchronous: bool) -> Any:
    if not asynchronous:
        ctx.task = TaskHandle(ctx.db, f"DummyRef:|{uuid.uuid4()}|{method.full_name}")
        try:
            return work()
        except (ApiError, Dropped):
            raise
        except Exception as error:  # a mistake of the simulator
            traceback.print_exc()
            raise ApiError("INTERNAL_ERROR", repr(error)) from error
    ctx.task = tasks.new_task(ctx.db, ctx.host.ref, f"Async.{method.full_name}", "", ctx.session)
    tasks.run(ctx.task, work)
    return ctx.task.ref


def _take_fault(pool: Pool, host: Host, name: str, params: list[Any]) -> dict[str, Any]:
    """What is to go wrong with a call. Ends sessions and breaks the connection at once; the rest is for the work."""
    facts: dict[str, Any] = {"call": name, "pool": pool.name, "host": host.name}
    subject = params[1] if len(params) > 1 else None
    for cls in ("VM", "VDI", "SR"):
        if isinstance(subject, str) and pool.db.exists(cls, subject):
            facts[cls.lower()] = pool.db.field(cls, subject, "uuid")
    fault = pool.faults.take(**facts) or {}
    if fault.get("expire_session"):
        sessions.expire(pool)
    if fault.get("drop"):
        raise Dropped
    return fault
