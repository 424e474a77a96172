# Copyright (c) 2026 Guestark contributors
# SPDX-License-Identifier: BSD-2-Clause
"""Values as ova.xml spells them: one XML-RPC value, read and written without losing how a scalar was spelled.

XAPI leaves strings and integers untyped (ocaml-rpc: src/lib/xmlrpc.ml), so ``str`` is what most values are.
"""
from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Union
from xml.parsers import expat

from .errors import XvaError

MAX_DEPTH = 64  # of elements; XAPI's records need about 20
_SCALARS = frozenset(("int", "i4", "i8", "double", "dateTime.iso8601", "base64", "string", "boolean"))
_CHILDREN = {
    "": frozenset(("value",)),
    "value": _SCALARS | {"nil", "array", "struct"},
    "array": frozenset(("data",)),
    "data": frozenset(("value",)),
    "struct": frozenset(("member",)),
    "member": frozenset(("name", "value")),
}
_NO_CHILDREN: frozenset[str] = frozenset()
_WITH_TEXT = _SCALARS | {"value", "name"}
_BLANK = " \t\r\n"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# a bare carriage return would be read as a line feed
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"})


class Scalar(str):
    """A scalar with a type of its own, as text: ``tag`` is int, i4, i8, double, dateTime.iso8601 or base64."""

    tag: str

    def __new__(cls, text: str, tag: str) -> Scalar:
        scalar = super().__new__(cls, text)
        scalar.tag = tag
        return scalar

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.tag


# None, bool, str (untyped or <string>), Scalar, list of values, dict from str to values in their order
Value = Union[None, bool, str, List[Any], Dict[str, Any]]


def parse_value(xml: bytes) -> Value:
    """Return the value that a document holds. Raises XvaError for everything but one well-formed value.

    Documents with a document type are refused: nothing else in XML makes a short document long.
    """
    builder = _Builder()
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise XvaError("ova.xml is not well-formed XML: %s" % error) from error
    return builder.result


def render_value(value: Value) -> bytes:
    """Return the document that holds ``value``, spelled as XAPI spells it, without an XML declaration.

    Raises XvaError for text that XML cannot hold.
    """
    parts: list[str] = []
    _render(value, parts)
    return "".join(parts).encode("utf-8")


class _Element:
    """An element under way: its text so far, the values of its children, its name if it is a member."""

    __slots__ = ("tag", "texts", "values", "name")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.texts: list[str] = []
        self.values: list[Any] = []  # of a struct: pairs of name and value
        self.name: Optional[str] = None


class _Builder:
    """Builds the value while the parser goes, and stops at the first thing that is no part of XML-RPC."""

    def __init__(self) -> None:
        self.result: Value = None
        self._open = [_Element("")]

    def doctype(self, *_declaration: object) -> None:
        raise XvaError("ova.xml has a document type, which no XVA has")

    def start(self, tag: str, _attributes: object) -> None:
        parent = self._open[-1]
        if tag not in _CHILDREN.get(parent.tag, _NO_CHILDREN) or len(self._open) > MAX_DEPTH:
            raise XvaError("ova.xml is no XML-RPC value: unexpected <%.40s>" % tag)
        if parent.values and parent.tag in ("value", "array"):
            raise XvaError("ova.xml is no XML-RPC value: a second <%s> in one <%s>" % (tag, parent.tag))
        self._open.append(_Element(tag))

    def text(self, text: str) -> None:
        element = self._open[-1]
        if element.tag in _WITH_TEXT:
            element.texts.append(text)
        elif text.strip(_BLANK):
            raise XvaError("ova.xml is no XML-RPC value: unexpected text in <%s>" % element.tag)

    def end(self, tag: str) -> None:
        element = self._open.pop()
        parent = self._open[-1]
        if tag == "name":
            if parent.name is not None:
                raise XvaError("ova.xml is no XML-RPC value: a second <name> in one <member>")
            parent.name = "".join(element.texts)
        elif tag == "member":
            if element.name is None or len(element.values) != 1:
                raise XvaError("ova.xml is no XML-RPC value: a <member> needs one <name> and one <value>")
            parent.values.append((element.name, element.values[0]))
        else:
            parent.values.append(_finished(element))
        if not parent.tag:
            self.result = parent.values[0]


def _finished(element: _Element) -> Any:
    tag = element.tag
    if tag == "nil":
        return None
    if tag == "data":
        return element.values
    if tag == "array":
        return element.values[0] if element.values else []
    if tag == "struct":
        struct = dict(element.values)
        if len(struct) != len(element.values):
            raise XvaError("ova.xml is no XML-RPC value: two members of a <struct> have the same name")
        return struct
    text = "".join(element.texts)
    if tag == "value" and element.values:
        if text.strip(_BLANK):
            raise XvaError("ova.xml is no XML-RPC value: text beside a typed value")
        return element.values[0]
    if tag == "boolean":
        if text not in ("0", "1"):
            raise XvaError("ova.xml is no XML-RPC value: a boolean is %.40r" % text)
        return text == "1"
    return text if tag in ("value", "string") else Scalar(text, tag)


def _render(value: Value, parts: list[str]) -> None:
    if value is None:
        parts.append("<value><nil/></value>")
    elif isinstance(value, bool):
        parts.append("<value><boolean>%d</boolean></value>" % value)
    elif isinstance(value, Scalar):
        parts.append("<value><%s>%s</%s></value>" % (value.tag, _escaped(value), value.tag))
    elif isinstance(value, str):
        parts.append("<value>%s</value>" % _escaped(value))
    elif isinstance(value, list):
        parts.append("<value><array><data>")
        for item in value:
            _render(item, parts)
        parts.append("</data></array></value>")
    else:
        parts.append("<value><struct>")
        for name, item in value.items():
            parts.append("<member><name>%s</name>" % _escaped(name))
            _render(item, parts)
            parts.append("</member>")
        parts.append("</struct></value>")


def _escaped(text: str) -> str:
    if _NOT_XML.search(text):
        raise XvaError("ova.xml cannot hold the text %.80r" % text)
    return text.translate(_ESCAPES)
