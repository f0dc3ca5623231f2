"""JSON as Homeport takes, keeps and answers it (contracts/README.md, "JSON").

RFC 8259 in UTF-8. Integers stay exact whatever their size, other numbers keep the value of their double and
the sign of zero, of duplicate names the last counts. Refused: invalid UTF-8, lone surrogates, ``NaN`` and
``Infinity``, numbers that a double cannot hold, integers of more than 4,000 digits, nesting below 128 levels.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

MAX_DEPTH = 128
MAX_DIGITS = 4000

_BEYOND_MAX_DIGITS = 10**MAX_DIGITS
_LONG = 4096
_SHALLOW = 8
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"\\'))
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")

_decoder = msgspec.json.Decoder()
encode = msgspec.json.Encoder(decimal_format="number").encode
"""The bytes of a value of dicts, lists, strings, numbers (decimals too), booleans and None, without white space."""


class InvalidDocument(ValueError):
    """A text that is no JSON as this module describes it, or a document that its collection cannot index.

    ``field`` names the declared field at fault, and is None where the whole text is meant.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message if field is None else f"{field} {message}")
        self.message = message
        self.field = field


def decode(data: bytes) -> Any:
    """The value of a JSON text; raises `InvalidDocument` with a message fit for whoever sent it."""
    try:
        value = _decoder.decode(data)
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"is not UTF-8: byte {error.start} of a string") from error
    except RecursionError as error:
        raise InvalidDocument(f"is nested deeper than {MAX_DEPTH} levels") from error
    except msgspec.ValidationError as error:
        raise InvalidDocument("holds a number out of range") from error
    except msgspec.DecodeError as error:
        if _SURROGATE_ESCAPE.search(data):
            raise InvalidDocument("is not JSON, or holds half of a surrogate pair") from error
        raise InvalidDocument("is not JSON: " + str(error).removeprefix("JSON is malformed: ")) from error
    if _may_be_deep(data):
        _check_depth(value)
    if len(data) > MAX_DIGITS and _may_hold_long_number(data):
        _check_digits(value)
    return value


def decode_kept(data: bytes) -> Any:
    """`decode` of a document that a store keeps: what it refuses was refused when the document came."""
    return _decoder.decode(data)


def embedded(document: bytes | None) -> msgspec.Raw:
    """A document inside another JSON text, from which `extracted` gives it back to the byte; None is ``null``."""
    if document is None:
        return msgspec.Raw(b"null")
    if document[0] == b"{"[0] and document[-1] == b"}"[0]:
        return msgspec.Raw(document)
    # White space around a document would not come back from JSON; inside a string it does.
    return msgspec.Raw(encode(document.decode()))


def extracted(raw: msgspec.Raw) -> bytes | None:
    """The document that was `embedded`."""
    text = bytes(raw)
    if text == b"null":
        return None
    return text if text.startswith(b"{") else msgspec.json.decode(text, type=str).encode()


def _may_be_deep(data: bytes) -> bool:
    """Whether a JSON text may be nested too deep, told in less time than it takes to go through its value.

    A short one may if it has so many brackets. Of a long one brackets and quotes are kept: those of strings stand in
    pairs, and one that holds a bracket or an escape leaves something; then the innermost brackets go, level by level.
    """
    if len(data) < _LONG:
        return data.count(b"[") + data.count(b"{") > MAX_DEPTH
    rest = data.translate(_SQUARE, _NO_STRUCTURE).replace(b'""', b"")
    for _ in range(_SHALLOW):
        rest = rest.replace(b"[]", b"")
    return bool(rest)


def _may_hold_long_number(data: bytes) -> bool:
    """Whether there may be more digits in a row than a number may have: they would fill one of these parts."""
    part = MAX_DIGITS // 2
    return any(data[start : start + part].isdigit() for start in range(0, len(data), part))


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        # The types are compared, not asked for with isinstance: a large document has many values that are neither.
        level = [child for parent in level for child in _children(parent) if type(child) is dict or type(child) is list]
        if not level:
            return
    raise InvalidDocument(f"is nested deeper than {MAX_DEPTH} levels")


def _check_digits(value: object) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict | list):
            todo.extend(_children(item))
        elif isinstance(item, int) and abs(item) >= _BEYOND_MAX_DIGITS:
            raise InvalidDocument(f"holds an integer of more than {MAX_DIGITS} digits")


def _children(value: object) -> Iterable[Any]:
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()
