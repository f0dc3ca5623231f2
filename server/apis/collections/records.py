"""Documents as bytes: what is kept of one that came, and how it is shown.

A document is kept as it was sent, without a ``_meta`` of its own and with one of ours at its end, which says when it
was written. Nothing here decodes a value and encodes it again: numbers, the order of names, and white space inside
values stay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from ....storage.documents import InvalidDocument, decode, encode
from ....storage.times import format_time
from ...errors import InvalidBody, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ....storage.records import Record

META = "_meta"
_OURS = re.compile(rb',?"_meta":\{"updated_at":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"\}\}\Z')
_LONGEST_OURS = 64
"""Bytes that hold all of our ``_meta`` at the end of a document."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def members(document: bytes) -> dict[str, bytes]:
    """The top-level members of a document that is known to be a JSON object, each value as the bytes it came as; of
    duplicate names the last."""
    return {name: bytes(value) for name, value in _members.decode(document).items()}


def joined(parts: Mapping[str, bytes]) -> bytes:
    """The reverse of `members`."""
    return b"{" + b",".join([encode(name) + b":" + value for name, value in parts.items()]) + b"}"


def without_meta(body: bytes) -> bytes:
    """A JSON object as it was sent, without a member called ``_meta``."""
    if b'"_meta"' in body or b"\\u" in body:  # which may spell it
        parts = members(body)
        if parts.pop(META, None) is not None:
            return joined(parts)
    return body.strip()


def parse(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """A body that has to be a JSON object, without its ``_meta``, and its value. Raises `InvalidBody`."""
    if not body:
        raise InvalidBody(problems=[Problem((), "is required")])
    try:
        document = decode(body)
    except InvalidDocument as error:
        raise InvalidBody(problems=[Problem((), error.message)]) from error
    if not isinstance(document, dict):
        raise InvalidBody(problems=[Problem((), "must be an object", "type")])
    document.pop(META, None)
    return without_meta(body), document


def kept(body: bytes, now: int) -> bytes:
    """What is stored of a JSON object that was sent; ``now``: microseconds since the epoch."""
    document = without_meta(body)
    ours = b'"_meta":{"updated_at":"' + format_time(now).encode() + b'"}}'
    return document[:-1] + _comma(document) + ours


def shown(record: Record, fields: Iterable[str] | None = None) -> bytes:
    """A kept record as it is answered; with ``fields``, only these of its members."""
    before, after = shown_around(record.id, record.document, fields)
    return before + str(record.version).encode() + after


def shown_around(id: str, document: bytes, fields: Iterable[str] | None = None) -> tuple[bytes, bytes]:
    """What stands before and after the version, in a kept record as it is answered."""
    document, updated_at = _apart(document)
    if fields is not None:
        parts = members(document)
        document = joined({name: parts[name] for name in fields if name in parts})
    before = document[:-1] + _comma(document) + b'"_meta":{"id":' + encode(id) + b',"version":'
    return before, b',"updated_at":' + encode(updated_at) + b"}}"


def plain(document: bytes) -> bytes:
    """A kept document without our ``_meta``: as it was sent."""
    return _apart(document)[0]


def _comma(document: bytes) -> bytes:
    """What parts another member from those of an object."""
    return b"," if document[1:-1].strip() else b""


def _apart(document: bytes) -> tuple[bytes, str | None]:
    """A kept document without our ``_meta``, and when it was written."""
    tail = max(0, len(document) - _LONGEST_OURS)
    if ours := _OURS.search(document, tail):
        return document[: ours.start()] + b"}", ours[1].decode()
    parts = members(document)  # edited by a person, in the store's files
    meta = parts.pop(META, b"null")
    try:
        found = msgspec.json.decode(meta, type=_Meta | None)
    except msgspec.ValidationError:
        found = None
    return joined(parts), None if found is None else found.updated_at


class _Meta(msgspec.Struct):
    updated_at: str
