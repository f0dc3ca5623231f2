"""A table in memory: one collection's records and tombstones, with their indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby, islice
from typing import Any, NamedTuple, cast

from sortedcontainers import SortedDict, SortedList

from .documents import decode
from .errors import Conflict, Gone
from .queries import Filter, Page, Query
from .records import Change, Changes, Collection, Record, Value

IndexKey = tuple[Value, ...]
"""A value that sorts: nothing for a missing one, which comes first."""


class Row(NamedTuple):
    id: str
    version: int
    document: bytes
    values: tuple[Value, ...]


class Held(NamedTuple):
    """A table as it was."""

    collection: str
    floor: int
    rows: list[Row]
    tombstones: list[tuple[int, str]]


def _key(value: Value) -> IndexKey:
    return () if value is None else (value,)


class Table:
    """The records of one collection."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.rows: SortedDict[str, Row] = SortedDict()
        self.versions: SortedDict[int, str] = SortedDict()
        self.tombstones: SortedDict[int, str] = SortedDict()
        self.floor = 0
        self._buried: dict[str, int] = {}
        self._places = {field.name: place for place, field in enumerate(collection.fields)}
        self._indexes: dict[int, SortedList[tuple[IndexKey, str]]] = {
            place: SortedList() for place, field in enumerate(collection.fields) if field.indexed or field.unique
        }

    # Writing

    def put(self, row: Row) -> None:
        former = self.rows.get(row.id)
        if former is not None:
            del self.versions[former.version]
        elif row.id in self._buried:
            del self.tombstones[self._buried.pop(row.id)]
        self.rows[row.id] = row
        self.versions[row.version] = row.id
        for place, index in self._indexes.items():
            if former is None:
                index.add((_key(row.values[place]), row.id))
            elif former.values[place] != row.values[place]:
                index.remove((_key(former.values[place]), row.id))
                index.add((_key(row.values[place]), row.id))

    def fill(self, rows: Sequence[Row]) -> None:
        """Puts many rows into a table that has none: faster than one by one."""
        for row in rows if self._buried else ():
            if row.id in self._buried:
                del self.tombstones[self._buried.pop(row.id)]
        self.rows.update({row.id: row for row in rows})
        self.versions.update({row.version: row.id for row in rows})
        for place, index in self._indexes.items():
            index.update([(_key(row.values[place]), row.id) for row in rows])

    def delete(self, id: str, version: int) -> None:
        self._remove(id)
        if self.collection.tombstones:
            if id in self._buried:
                del self.tombstones[self._buried[id]]
            self._buried[id] = version
            self.tombstones[version] = id
        else:
            self.floor = max(self.floor, version)

    def forget(self, up_to: int, limit: int | None = None) -> int:
        """Drops the tombstones up to a version, or the oldest of them."""
        old = list(islice(self.tombstones.irange(maximum=up_to), limit))
        for version in old:
            del self._buried[self.tombstones.pop(version)]
        if old:
            self.floor = max(self.floor, old[-1])
        return len(old)

    def redeclared(self, collection: Collection) -> Table:
        """The same records under another declaration; raises `Conflict` where a value is not unique."""
        table = Table(collection)
        table.fill([Row(*row[:3], collection.values(decode(row.document), strict=False)) for row in self.rows.values()])
        table.floor = self.floor
        for version, id in self.tombstones.items():
            table.delete(id, version)
        table.check_unique()
        return table

    def check_unique(self) -> None:
        for place, name in self.collection.unique:
            for (key, _), (next_key, id) in zip(self._indexes[place], self._indexes[place][1:], strict=False):
                if key and key == next_key:
                    raise Conflict(0, self.collection.name, id, "unique", self.rows[id].version, name)

    def _remove(self, id: str) -> None:
        row = self.rows.pop(id, None)
        if row is not None:
            del self.versions[row.version]
            for place, index in self._indexes.items():
                index.remove((_key(row.values[place]), id))

    # Reading

    def holder(self, place: int, value: Value) -> str | None:
        index = self._indexes[place]
        at = index.bisect_left((_key(value), ""))
        if at < len(index) and index[at][0] == _key(value):
            return str(index[at][1])
        return None

    def find(self, query: Query, version: int) -> Page:
        end = None if query.limit is None else query.offset + query.limit + 1
        rows = list(islice(self._ordered(query), query.offset, end))
        following = None
        if query.limit is not None and len(rows) > query.limit:
            rows.pop()
            following = query.cursor([self._value(rows[-1], name) for name, _ in query.order])
        rank = None
        if query.rank and rows:
            before = query.preceding(self._value(rows[0], query.order[0][0]))
            rank = 1 + sum(factor * self.count(filters) for factor, filters in before)
        return Page(
            tuple([Record(*row[:3]) for row in rows]),
            following,
            version,
            self.count(query.filters) if query.total else None,
            rank,
        )

    def count(self, filters: Sequence[Filter]) -> int:
        if not filters:
            return len(self.rows)
        name = filters[0].field
        if self._walkable(name) and all(f.field == name and f.op != "in" for f in filters):
            first, last = self._slice(name, filters)
            return last - first
        return sum(1 for _ in self._matching(filters))

    def changes(self, after: int, limit: int, began: int, version: int) -> Changes:
        if after > version or (after and max(after, began) < self.floor):
            raise Gone(f"{self.collection.name}: changes after version {after} are not remembered")
        beyond = (index.irange(after, inclusive=(False, True)) for index in (self.versions, self.tombstones))
        page = list(islice(merge(*beyond), limit + 1))
        more = len(page) > limit
        changes = tuple([self._change(at) for at in page[:limit]])
        return Changes(changes, changes[-1].version if more else version, more, version, self.floor)

    def _change(self, version: int) -> Change:
        if id := self.versions.get(version):
            return Change(self.collection.name, id, version, self.rows[id].document)
        return Change(self.collection.name, self.tombstones[version], version, None)

    def held(self) -> Held:
        # The methods of dict itself, which a sorted dict is, whatever its stubs say: its own go through the keys in
        # order, six times as slowly.
        rows, tombstones = cast("dict[str, Row]", self.rows), cast("dict[int, str]", self.tombstones)
        return Held(self.collection.name, self.floor, list(dict.values(rows)), list(dict.items(tombstones)))

    # How a query is answered: one index is walked, and what it does not decide is filtered and sorted.

    def _ordered(self, query: Query) -> Iterator[Row]:
        """The rows that match, in order, from the cursor on."""
        (name, descending), *rest = query.order
        decisive = next((f for f in query.filters if self._walkable(f.field)), None)
        if not self._walkable(name) or (decisive and (decisive.field != name or decisive.op == "in")):
            rows = iter(self._sorted(self._matching(query.filters), query.order))
        else:
            bounds = [f for f in query.filters if f.field == name and f.op != "in"]
            matches = self._matcher([f for f in query.filters if f not in bounds])
            rows = filter(matches, self._walk(name, bounds, descending, query.position))
            if rest and rest != [("id", descending)]:
                ties = groupby(rows, key=lambda row: self._value(row, name))
                rows = (row for _, group in ties for row in self._sorted(group, rest))
        position = query.position
        if position is None:
            return rows
        return (row for row in rows if self._is_after(row, position, query.order))

    def _matching(self, filters: Sequence[Filter]) -> Iterator[Row]:
        """The rows that match, in no order, found by the first filter that has an index."""
        chosen = next((f for f in filters if self._walkable(f.field)), None)
        if chosen is None:
            return filter(self._matcher(filters), iter(self.rows.values()))
        if isinstance(chosen.value, tuple):
            name = chosen.field
            rows = (row for v in dict.fromkeys(chosen.value) for row in self._walk(name, [Filter(name, "==", v)]))
            return filter(self._matcher([f for f in filters if f is not chosen]), rows)
        bounds = [f for f in filters if f.field == chosen.field and f.op != "in"]
        return filter(self._matcher([f for f in filters if f not in bounds]), self._walk(chosen.field, bounds))

    def _walkable(self, name: str) -> bool:
        return name == "id" or self._places[name] in self._indexes

    def _walk(
        self,
        name: str,
        bounds: Sequence[Filter],
        descending: bool = False,
        position: tuple[Value, ...] | None = None,
    ) -> Iterator[Row]:
        """The rows of a slice of an index, in its order; begins at a cursor's position or before it."""
        first, last = self._slice(name, bounds)
        if position is not None:
            low, high = self._slice(name, [Filter(name, "==", position[0])])
            first, last = (first, min(last, high)) if descending else (max(first, low), last)
        if name == "id":
            return (self.rows[id] for id in self.rows.islice(first, last, descending))
        index = self._indexes[self._places[name]]
        return (self.rows[id] for _, id in index.islice(first, last, descending))

    def _slice(self, name: str, bounds: Sequence[Filter]) -> tuple[int, int]:
        """Where in an index all these filters on its field hold."""
        index: Any = self.rows if name == "id" else self._indexes[self._places[name]]
        first, last = 0, len(index)
        for _, op, value in bounds:
            key: Any = value
            after: Any = value
            if name == "id" and value is None:  # an id is never missing
                return 0, 0
            if name != "id":
                assert not isinstance(value, tuple)
                key, after = (_key(value), ""), (_key(value), _LAST_ID)
                if op in ("<", "<="):  # a missing value is in no range
                    first = max(first, index.bisect_right(((), _LAST_ID)))
            if op in ("==", ">="):
                first = max(first, index.bisect_left(key))
            if op in ("==", "<="):
                last = min(last, index.bisect_right(after))
            if op == ">":
                first = max(first, index.bisect_right(after))
            if op == "<":
                last = min(last, index.bisect_left(key))
        return first, max(first, last)

    def _value(self, row: Row, name: str) -> Value:
        return row.id if name == "id" else row.values[self._places[name]]

    def _sorted(self, rows: Iterable[Row], order: Sequence[tuple[str, bool]]) -> list[Row]:
        result = list(rows)
        for name, descending in reversed(order):
            result.sort(key=lambda row: _key(self._value(row, name)), reverse=descending)
        return result

    def _is_after(self, row: Row, position: Sequence[Value], order: Sequence[tuple[str, bool]]) -> bool:
        for (name, descending), value in zip(order, position, strict=True):
            mine, its = _key(self._value(row, name)), _key(value)
            if mine != its:
                return (mine < its) if descending else (mine > its)
        return False

    def _matcher(self, filters: Sequence[Filter]) -> Callable[[Row], bool]:
        def matches(row: Row) -> bool:
            return all(_holds(self._value(row, name), op, operand) for name, op, operand in filters)

        return matches


# Above every id, which has at most 2,048 bytes.
_LAST_ID = chr(0x10FFFF) * 513


def _holds(value: Any, op: str, operand: Any) -> bool:
    match op:
        case "==":
            return bool(value == operand)
        case "in":
            return value in operand
    if value is None:
        return False
    match op:
        case "<":
            return bool(value < operand)
        case "<=":
            return bool(value <= operand)
        case ">":
            return bool(value > operand)
    return bool(value >= operand)
