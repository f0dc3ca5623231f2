"""Collections, and the records in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from .documents import InvalidDocument, decode_kept
from .times import parse_time

MAX_ID_BYTES = 2048
ABSENT = 0
"""As ``if_version``: the record must not exist."""

Value = str | int | float | bool | None
"""What a declared field holds: a time as microseconds since the epoch; None where the document has none."""
FieldType = Literal["integer", "text", "boolean", "double", "time"]

_INT64 = range(-(2**63), 2**63)
_COLLECTION_NAME = re.compile(r"(?!homeport|sqlite_)[a-z][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level member of a collection's documents that may be filtered, sorted by, or must be unique.

    Every declared field can be filtered and sorted by; one that is ``indexed`` (or ``unique``) without a scan, for some
    20 microseconds a write. A ``time`` is an RFC 3339 text in the document and microseconds since the epoch in queries.
    """

    name: str
    type: FieldType
    indexed: bool = False
    unique: bool = False

    def value(self, raw: object) -> Value:
        """The indexed value of a document's member; raises `InvalidDocument` where it cannot be indexed."""
        if raw is None:
            return None
        match self.type:
            case "text":
                if isinstance(raw, str):
                    if "\0" in raw:
                        raise InvalidDocument("must not contain U+0000", self.name)
                    return raw
            case "boolean":
                if isinstance(raw, bool):
                    return raw
            case "time":
                if isinstance(raw, str):
                    try:
                        return parse_time(raw)
                    except ValueError as error:
                        raise InvalidDocument(str(error), self.name) from error
            case "integer":
                if isinstance(raw, float) and raw.is_integer():
                    raw = int(raw)
                if isinstance(raw, int) and not isinstance(raw, bool):
                    if raw not in _INT64:
                        raise InvalidDocument("must be an integer within 64 bits", self.name)
                    return raw
            case "double":
                if isinstance(raw, int | float) and not isinstance(raw, bool):
                    try:
                        return float(raw)
                    except OverflowError as error:
                        raise InvalidDocument("must be a number that a double can hold", self.name) from error
        raise InvalidDocument(f"must be {'an' if self.type == 'integer' else 'a'} {self.type} or null", self.name)


@dataclass(frozen=True)
class Collection:
    """A set of records that one API owns, declared once.

    ``name``: lower-case letters, digits, ``_``, ``-`` and ``.``, at most 63, first a letter; ``homeport…`` and
    ``sqlite_…`` are taken. ``tombstones``: whether a
    deletion is remembered for `Storage.changes`. ``layout``: how the file back end keeps it, as ``lines`` of one file
    or as one file a record (``files``, for small collections that other tools read).
    """

    name: str
    fields: tuple[Field, ...] = ()
    tombstones: bool = False
    layout: Literal["lines", "files"] = "lines"

    def __post_init__(self) -> None:
        if not _COLLECTION_NAME.fullmatch(self.name):
            raise ValueError(
                f"collection name {self.name!r}: lower-case letters, digits, '_', '-' and '.', at most 63, no homeport…"
            )
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names) or "id" in names:
            raise ValueError(f"collection {self.name}: a field is declared twice, or is called 'id'")
        if not all(name and name[0] != "-" and "\0" not in name and is_text(name) for name in names):
            raise ValueError(f"collection {self.name}: a field needs a name, without U+0000 and not first '-'")

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def unique(self) -> tuple[tuple[int, str], ...]:
        """Place and name of the unique fields."""
        return tuple((place, field.name) for place, field in enumerate(self.fields) if field.unique)

    def values(self, document: Mapping[str, Any], *, strict: bool = True) -> tuple[Value, ...]:
        """The values of the declared fields, in order; not ``strict``: None for one that cannot be indexed."""
        try:
            return tuple([field.value(document.get(field.name)) for field in self.fields])
        except InvalidDocument:
            if strict:
                raise
            return tuple([self._lenient(field, document) for field in self.fields])

    @staticmethod
    def _lenient(field: Field, document: Mapping[str, Any]) -> Value:
        try:
            return field.value(document.get(field.name))
        except InvalidDocument:
            return None


def is_text(text: str) -> bool:
    """Whether a text is free of lone surrogates, that is: has an encoding."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_id(id: str) -> None:
    """Raises `InvalidDocument` unless an id is 1 to 2,048 bytes of UTF-8 without U+0000."""
    if id.isascii() and 0 < len(id) <= MAX_ID_BYTES and "\0" not in id:
        return
    if not is_text(id):
        raise InvalidDocument("holds half of a surrogate pair", "id")
    if not 0 < len(id.encode()) <= MAX_ID_BYTES or "\0" in id:
        raise InvalidDocument(f"must be 1 to {MAX_ID_BYTES} bytes without U+0000", "id")


class Record(NamedTuple):
    id: str
    version: int
    document: bytes

    def decode(self) -> Any:
        """The document as a dict."""
        return decode_kept(self.document)


class Change(NamedTuple):
    """A record as a version left it; ``document`` is None where it was deleted."""

    collection: str
    id: str
    version: int
    document: bytes | None

    @property
    def deleted(self) -> bool:
        return self.document is None

    @property
    def size(self) -> int:
        """Bytes of the document."""
        return 0 if self.document is None else len(self.document)

    @property
    def change(self) -> Change:
        """Itself: what a store publishes may also be something that becomes a change."""
        return self


class Floor(NamedTuple):
    """Deletions in a collection up to this version are not remembered."""

    collection: str
    version: int

    @property
    def size(self) -> int:
        """Bytes of a document, of which it has none."""
        return 0


@dataclass(frozen=True, slots=True)
class Changes:
    """A page of what changed: in order of version, each record once.

    ``version``: the cursor for the next call. ``more``: whether that call will find something now. ``store_version``:
    the store's. ``floor``: deletions up to it are not remembered.
    """

    changes: tuple[Change, ...]
    version: int
    more: bool
    store_version: int
    floor: int
