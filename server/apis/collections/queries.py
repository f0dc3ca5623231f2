"""The query of a list: filters, sort, page and fields, from a URL (contracts/collections.md, "Reading many")."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ....storage import Filter, InvalidQuery, Query
from ...errors import InvalidParameters, Problem
from .records import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ....storage import Collection, Operator, Storage
    from ....storage.records import FieldType, Value

MAX_LIMIT = 1000
_AT_ONCE = 100
"""Records that are read from the store at a time."""
_PAGE_BYTES = 8 << 20
"""Documents after which a page ends."""
_DEFAULT_LIMIT = 100
_OPERATORS: Mapping[str, Operator] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "in": "in"}
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_WHAT: Mapping[FieldType, str] = {
    "integer": "an integer within 64 bits",
    "double": "a number that a double can hold",
    "boolean": "true or false",
    "text": "a text without U+0000",
}


class Listing(NamedTuple):
    """What is to be listed. ``fields``: the members of each record that are wanted; None: all."""

    query: Query
    fields: tuple[str, ...] | None


def read_query(collection: Collection, parameters: Iterable[tuple[str, str]]) -> Listing:
    """The listing that the parameters of a URL ask for; of a repeated name the last counts.

    Raises `InvalidParameters` with everything that is wrong.
    """
    given = dict(parameters)
    problems: list[Problem] = []
    limit = _limit(given.pop("limit", ""), problems)
    cursor = given.pop("cursor", "") or None
    fields = tuple(given.pop("fields", "").split(",")) if given.get("fields") else None
    given.pop("fields", None)
    sort = tuple(name for name in given.pop("sort", "").split(",") if name)
    problems += [
        _not_indexed(collection, "sort", name.removeprefix("-"))
        for name in sort
        if not _is_indexed(collection, name.removeprefix("-"))
    ]
    filters = [found for name, text in given.items() if (found := _filter(collection, name, text, problems))]
    if not problems:
        try:
            return Listing(Query(collection, tuple(filters), sort, limit, cursor), fields)
        except InvalidQuery:
            problems.append(Problem(("cursor",), "must be a `next` of this list, in the same order"))
    raise InvalidParameters(problems=problems)


async def read_page(storage: Storage, listing: Listing) -> tuple[list[bytes], str | None, int]:
    """The records as they are answered, the cursor of the page that follows, and the store's version.

    A page of large records has fewer than were asked for. Where it took several looks, the version is the first's:
    what was written meanwhile is among the changes since.
    """
    query, records = listing.query, list[bytes]()
    version, size, wanted = None, 0, query.limit or _DEFAULT_LIMIT
    while True:
        page = await storage.find(replace(query, limit=min(_AT_ONCE, wanted - len(records))))
        version = page.version if version is None else version
        records += [shown(record, listing.fields) for record in page.records]
        size += sum(len(record.document) for record in page.records)
        if page.next is None or len(records) >= wanted or size >= _PAGE_BYTES:
            return records, page.next, version
        query = replace(query, after=page.next)


def _limit(text: str, problems: list[Problem]) -> int:
    if not text:
        return _DEFAULT_LIMIT
    if _INTEGER.fullmatch(text) and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    problems.append(Problem(("limit",), f"must be an integer from 1 to {MAX_LIMIT}"))
    return _DEFAULT_LIMIT


def _filter(collection: Collection, name: str, text: str, problems: list[Problem]) -> Filter | None:
    """The filter of a parameter ``field`` or ``field__operator``."""
    field = name
    operator: Operator = "=="
    if not _is_indexed(collection, name):
        field, _, suffix = name.rpartition("__")
        if suffix not in _OPERATORS or not _is_indexed(collection, field):
            problems.append(_not_indexed(collection, name, field if suffix in _OPERATORS else name))
            return None
        operator = _OPERATORS[suffix]
    type_ = "text" if field == "id" else collection.by_name[field].type
    try:
        if operator == "in":
            return Filter(field, "in", tuple([_value(type_, item) for item in text.split(",")]))
        return Filter(field, operator, _value(type_, text))
    except ValueError:
        listed = " (a comma between each)" if operator == "in" else ""
        problems.append(Problem((name,), f"must be {_WHAT[type_]}{listed}"))
        return None


def _is_indexed(collection: Collection, name: str) -> bool:
    return name == "id" or name in collection.by_name


def _not_indexed(collection: Collection, parameter: str, name: str) -> Problem:
    indexed = ", ".join(["id", *collection.by_name])
    return Problem((parameter,), f"{name} is not indexed; these are: {indexed}")


def _value(type_: FieldType, text: str) -> Value:
    """A value as the schema's type reads it; raises ValueError."""
    match type_:
        case "integer":
            if _INTEGER.fullmatch(text) and -(2**63) <= (number := int(text)) < 2**63:
                return number
        case "double":
            if _NUMBER.fullmatch(text) and abs(double := float(text)) != float("inf"):
                return double
        case "boolean":
            if text in ("true", "false"):
                return text == "true"
        case _:
            if "\0" not in text:
                return text
    raise ValueError(text)
