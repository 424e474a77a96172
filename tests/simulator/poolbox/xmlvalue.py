# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""XML-RPC values as XAPI writes them: integers and strings without a type, booleans, doubles and dates with one."""
from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from .database import DateTime

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Int32(int):
    """An integer that is written as ``<i4>``."""


def escape(text: str) -> str:
    """Text inside an element; characters that XML cannot hold are dropped."""
    text = ILLEGAL.sub("", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def to_xml(value: Any) -> str:
    """A ``<value>`` element."""
    return f"<value>{_content(value)}</value>"


def _content(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"<boolean>{int(value)}</boolean>"
    if isinstance(value, Int32):
        return f"<i4>{int(value)}</i4>"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"<double>{value:.16g}</double>"
    if isinstance(value, DateTime):
        return f"<dateTime.iso8601>{value}</dateTime.iso8601>"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        members = "".join(
            f"<member><name>{escape(str(key))}</name>{to_xml(item)}</member>" for key, item in value.items()
        )
        return f"<struct>{members}</struct>"
    return f"<array><data>{''.join(map(to_xml, value))}</data></array>"


def from_element(element: ET.Element) -> Any:
    """The value of a ``<value>`` element. Raises ValueError."""
    children = list(element)
    if not children:
        return element.text or ""
    child = children[0]
    text = child.text or ""
    kinds = {
        "string": str, "int": int, "i4": int, "i8": int, "double": float, "dateTime.iso8601": DateTime,
        "boolean": lambda raw: raw.strip() == "1", "nil": lambda raw: None,
    }
    if child.tag in kinds:
        return kinds[child.tag](text)
    if child.tag == "array":
        return [from_element(item) for item in child.findall("data/value")]
    if child.tag == "struct":
        return {member.findtext("name") or "": from_element(member.find("value")) for member in child.findall("member")}
    raise ValueError(f"unknown XML-RPC type {child.tag}")


def parse_call(body: str) -> tuple[str, list[Any]]:
    """The method's name and parameters of a ``methodCall``. Raises ValueError."""
    if "<!DOCTYPE" in body[:4096] or "<!ENTITY" in body:
        raise ValueError("document types are not accepted")
    try:
        root = ET.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", body))  # whose encoding was dealt with
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
    name = root.findtext("methodName")
    if root.tag != "methodCall" or not name:
        raise ValueError("this is no methodCall")
    return name.strip(), [from_element(item) for item in root.findall("params/param/value")]
