"""Which records are meant, in which order, and a page of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .documents import InvalidDocument, decode, encode
from .errors import InvalidQuery
from .records import Collection, Field, FieldType, Record, Value, is_text

_MAX_PAGING = 2**53 - 1

Operator = Literal["==", "<", "<=", ">", ">=", "in"]


class Filter(NamedTuple):
    """A condition on ``id`` or a declared field; ``in`` takes a tuple.

    A missing value equals None and nothing else, and is in no range.
    """

    field: str
    op: Operator
    value: Value | tuple[Value, ...]


def starts_with(prefix: str) -> tuple[Filter, ...]:
    """The filters for ids that begin with a text that is not empty and ends below U+10FFFF."""
    last = ord(prefix[-1]) + 1
    after_surrogates = 0xE000 if last == 0xD800 else last
    return Filter("id", ">=", prefix), Filter("id", "<", prefix[:-1] + chr(after_surrogates))


@dataclass(frozen=True)
class Query:
    """Records of a collection, filtered, sorted, paged.

    ``sort``: field names, ``-`` in front for descending; a missing value sorts below every other; ties by id. Text
    sorts by code point. ``after``: a page's ``next``, for the page that follows, however the store has changed since.
    ``total``, ``rank``: whether the page is to say so. Raises `InvalidQuery`.
    """

    collection: Collection
    where: tuple[Filter, ...] = ()
    sort: tuple[str, ...] = ()
    limit: int | None = None
    after: str | None = None
    offset: int = 0
    total: bool = False
    rank: bool = False
    filters: tuple[Filter, ...] = field(init=False, compare=False)
    order: tuple[tuple[str, bool], ...] = field(init=False, compare=False)
    """Field and whether descending; ends with the id."""
    position: tuple[Value, ...] | None = field(init=False, compare=False)
    """The values of ``order`` after which the page begins."""

    def __post_init__(self) -> None:
        if (self.limit is not None and not 1 <= self.limit <= _MAX_PAGING) or not 0 <= self.offset <= _MAX_PAGING:
            raise InvalidQuery(f"limit must be 1 to {_MAX_PAGING} and offset 0 to {_MAX_PAGING}")
        if self.after is not None and self.offset:
            raise InvalidQuery("a page begins at a cursor or at an offset, not both")
        order: dict[str, bool] = {}
        for name in self.sort:
            order.setdefault(name.removeprefix("-"), name.startswith("-"))
            self._type(name.removeprefix("-"))
        order.setdefault("id", False)
        place = list(order).index("id") + 1
        set_ = object.__setattr__  # the dataclass is frozen for its users
        set_(self, "order", tuple(order.items())[:place])
        set_(self, "filters", tuple([self._filter(*condition) for condition in self.where]))
        set_(self, "position", None if self.after is None else self._position(self.after))

    def preceding(self, value: Value) -> tuple[tuple[int, tuple[Filter, ...]], ...]:
        """How many records come before one with this value of the first sort field: the sum of the counts of these
        filters, each times its factor."""
        name, descending = self.order[0]
        missing = (*self.filters, Filter(name, "==", None))
        if descending:
            if value is None:
                return (1, self.filters), (-1, missing)
            return ((1, (*self.filters, Filter(name, ">", value))),)
        if value is None:
            return ()
        return (1, missing), (1, (*self.filters, Filter(name, "<", value)))

    def cursor(self, values: Sequence[Value]) -> str:
        """The ``after`` of the page that follows a record with these values of ``order``."""
        return base64.urlsafe_b64encode(encode([self.order, list(values)])).rstrip(b"=").decode()

    def _position(self, cursor: str) -> tuple[Value, ...]:
        try:
            order, values = decode(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
            if [tuple(item) for item in order] == list(self.order) and len(values) == len(order):
                return tuple(self._operand(name, value) for (name, _), value in zip(self.order, values, strict=True))
        except (ValueError, TypeError) as error:
            raise InvalidQuery("the cursor is not one of this query's") from error
        raise InvalidQuery("the cursor is not one of this query's")

    def _type(self, name: str) -> FieldType:
        if name == "id":
            return "text"
        try:
            return self.collection.by_name[name].type
        except KeyError:
            declared = ", ".join(["id", *self.collection.by_name])
            raise InvalidQuery(f"{name} cannot be queried; these can: {declared}") from None

    def _filter(self, name: str, op: Operator, value: Any) -> Filter:
        if op == "in":
            return Filter(name, op, tuple([self._operand(name, item) for item in value]))
        if op not in ("==", "<", "<=", ">", ">="):
            raise InvalidQuery(f"{op} is no operator")
        if value is None and op != "==":
            raise InvalidQuery(f"{name} {op} null: a missing value is in no range")
        return Filter(name, op, self._operand(name, value))

    def _operand(self, name: str, value: object) -> Value:
        type_ = self._type(name)
        if type_ == "time" and isinstance(value, int):
            type_ = "integer"
        elif type_ == "integer" and isinstance(value, float):
            raise InvalidQuery(f"{name} must be an integer or null")
        try:
            operand = Field(name, type_).value(value)
        except InvalidDocument as error:
            raise InvalidQuery(str(error)) from error
        if isinstance(operand, str) and not is_text(operand):
            raise InvalidQuery(f"{name} holds half of a surrogate pair")
        return operand


@dataclass(frozen=True, slots=True)
class Page:
    """Records that a query found. ``next``: the cursor of the page that follows, None on the last. ``version``: the
    store's, of the same snapshot. ``total``: how many match in all. ``rank``: 1 + how many of them come before the
    page's first record by the first sort field alone (None on an empty page)."""

    records: tuple[Record, ...]
    next: str | None
    version: int
    total: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Tombstones:
    """For `Storage.purge`: what is remembered of deletions up to a version."""

    collection: Collection
    up_to: int
