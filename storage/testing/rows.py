"""Records to query, and what a query finds among them by the words of the contract."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cmp_to_key
from typing import Any

import pytest

from ..base import Storage
from ..queries import Filter, Query
from ..records import Collection, Value
from ..writes import Put
from .contract import ids

BOTH = pytest.mark.parametrize("kind", ["items", "indexed"])
"""Whether fields have an index changes no answer."""

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

ROWS: dict[str, dict[str, object]] = {
    "h": {"n": 1, "t": "b", "b": True, "d": 0.5, "at": "2025-01-01T00:00:00Z"},
    "a": {"n": 3, "t": "a", "b": False, "d": -0.5, "at": "2025-01-01T00:00:00Z"},
    "d": {"n": 1, "t": "c", "b": True, "d": None},
    "i": {"t": "b", "b": None, "d": 0.5, "at": "2024-01-01T00:00:00Z"},
    "c": {"n": 2, "t": "B", "b": False},
    "b": {},
    "g": {"n": 3, "b": True, "d": 1e308, "at": "2026-01-01T00:00:00Z"},
    "f": {"n": None, "t": "a", "d": -0.5},
    "e": {"n": 1, "t": "b", "b": True, "d": 0, "at": None},
    "j": {"n": 2**63 - 1, "t": "", "b": True, "d": -1e308, "at": "0001-01-01T00:00:00Z"},
}
"""Ties, values that are missing or null, in an order of ids that no field has."""


def rows_of(collection: Collection) -> list[Put]:
    return [Put(collection, id, dict(document)) for id, document in ROWS.items()]


def value_of(write: Put, name: str) -> Value:
    return write.id if name == "id" else write.values[list(write.collection.by_name).index(name)]


def ordered(rows: Iterable[Put], sort: Sequence[str]) -> list[Put]:
    """By the words of the contract: missing values below every other, ties by id."""

    def compare(a: Put, b: Put) -> int:
        for name in (*sort, "id"):
            x, y = ((v is not None, v) for v in (value_of(a, name.lstrip("-")), value_of(b, name.lstrip("-"))))
            if x != y:
                return (-1 if x < y else 1) * (-1 if name.startswith("-") else 1)
        return 0

    return sorted(rows, key=cmp_to_key(compare))


def matches(write: Put, where: Sequence[Filter]) -> bool:
    for name, op, operand in where:
        value = value_of(write, name)
        if op == "in":
            assert isinstance(operand, tuple)
            if value not in operand:
                return False
        elif op == "==":
            if value != operand:
                return False
        elif value is None or not COMPARE[op](value, operand):
            return False
    return True


async def pages(storage: Storage, query: Query) -> list[list[str]]:
    """The ids on each page, by cursor."""
    found = [await storage.find(query)]
    while found[-1].next is not None:
        found.append(await storage.find(Query(query.collection, query.where, query.sort, query.limit, found[-1].next)))
    return [ids(page.records) for page in found]
