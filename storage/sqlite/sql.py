"""The names and the statements of a collection's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..documents import encode
from ..queries import Filter, Query
from ..records import Collection, Value, is_text

_MAX_PARAMETERS = 32_000
MAX_ROWS = 256
LAST_VERSION = 2**63 - 1
_OWN_COLUMNS = ("version", "id", "document")

LISTED = "(SELECT value FROM json_each(?))"
SEPARATOR = b"\x1e"
AS_ONE_ROW = "json_group_array(json_array(id, version)), group_concat(document, char(30))"
"""Ids and versions, and the documents with `SEPARATOR` between them, which no JSON text holds: as members of a JSON
array all of their quotes would be escaped."""


def listed(ids: Sequence[str]) -> str:
    """The parameter of ``LISTED``, without ids that no record can have: JSON functions end a text at U+0000."""
    return encode([id for id in ids if "\0" not in id and is_text(id)]).decode()


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class Sql:
    """The names and statements of a collection's table."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.table = quoted(collection.name)
        self.columns = _columns(collection)
        self.rows_a_statement = MAX_ROWS
        while self.rows_a_statement > max(1, _MAX_PARAMETERS // (len(self.columns) + len(_OWN_COLUMNS))):
            self.rows_a_statement //= 2
        self.get_one = f"SELECT version, CAST(document AS TEXT) FROM {self.table} WHERE id = ?"
        self.get_many = f"SELECT {AS_ONE_ROW} FROM {self.table} WHERE id IN {LISTED}"
        self._by_name = {"id": "id"} | {
            field.name: quoted(column) for field, column in zip(collection.fields, self.columns, strict=True)
        }
        self._inserts: dict[int, str] = {}
        self.largest = 0
        """Bytes of the largest document that `reading.get` has met."""

    def insert(self, rows: int) -> str:
        """The statement that writes so many rows of version, id, fields and document."""
        if rows not in self._inserts:
            names = ", ".join(["version", "id", *map(quoted, self.columns), "document"])
            row = "(" + ", ".join("?" * (len(self.columns) + len(_OWN_COLUMNS))) + ")"
            self._inserts[rows] = f"INSERT OR REPLACE INTO {self.table} ({names}) VALUES " + ", ".join([row] * rows)
        return self._inserts[rows]

    def order(self, query: Query) -> str:
        return ", ".join(self._by_name[name] + (" DESC" if down else "") for name, down in query.order)

    def where(self, filters: Sequence[Filter]) -> tuple[str, list[Value]]:
        conditions = [self._condition(*condition) for condition in filters]
        text = " AND ".join(condition for condition, _ in conditions)
        return (f" WHERE {text}" if text else ""), [value for _, values in conditions for value in values]

    def pages(self, query: Query) -> list[tuple[str, list[Value]]]:
        """The conditions of what follows a query's cursor: ranges without overlap, in order, each fit for an index."""
        if query.position is None:
            return [self.where(query.filters)]
        ranges = []
        for last in reversed(range(len(query.order))):
            same = [Filter(query.order[i][0], "==", query.position[i]) for i in range(last)]
            name, descending = query.order[last]
            value = query.position[last]
            if value is None and not descending:
                where, parameters = self.where([*query.filters, *same])
                glue = " AND " if where else " WHERE "
                ranges.append((f"{where}{glue}{self._by_name[name]} IS NOT NULL", parameters))
            elif value is not None:
                beyond = Filter(name, "<" if descending else ">", value)
                ranges.append(self.where([*query.filters, *same, beyond]))
                if descending and name != "id":
                    ranges.append(self.where([*query.filters, *same, Filter(name, "==", None)]))
        return ranges

    def _condition(self, name: str, op: str, value: Any) -> tuple[str, Sequence[Value]]:
        column = self._by_name[name]
        if op == "in":
            present = [item for item in value if item is not None]
            listed = f"{column} IN ({', '.join('?' * len(present))})"
            return (listed if len(present) == len(value) else f"({listed} OR {column} IS NULL)"), present
        if value is None:
            return f"{column} IS NULL", ()
        return f"{column} {op} ?", (value,)


def _columns(collection: Collection) -> list[str]:
    """A column for each field, called like it where SQLite, which folds case, has not given the name away."""
    taken = set(_OWN_COLUMNS)
    columns = []
    for field in collection.fields:
        column, number = field.name, 2
        while column.lower() in taken:
            column, number = f"{field.name}_{number}", number + 1
        taken.add(column.lower())
        columns.append(column)
    return columns
