"""Tables in memory: what the memory back end is, and what the file back end answers from."""

from __future__ import annotations

from collections.abc import Collection as Sized
from collections.abc import Iterable, Mapping, Sequence

from .commits import Key, UniqueValue, Written
from .documents import decode
from .queries import Query
from .records import Change, Collection, Floor, Record
from .table import Row, Table


class Tables:
    """All collections of a store: a `State` for `resolve`."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.version = 0

    def declare(self, collection: Collection) -> None:
        table = self.tables.get(collection.name)
        if table is None:
            self.tables[collection.name] = Table(collection)
        elif table.collection != collection:
            self.tables[collection.name] = table.redeclared(collection)

    def apply(self, written: Iterable[Written], version: int) -> None:
        for collection, id, at, put in written:
            table = self.tables[collection.name]
            if put is None:
                table.delete(id, at)
            else:
                table.put(Row(id, at, put.document, put.values))
        self.version = version

    def restore(self, change: Change | Floor) -> None:
        """Takes over a record, a tombstone or a floor from another store, with its version."""
        table = self.tables.get(change.collection)
        if table is None:
            raise ValueError(f"collection {change.collection} was not declared to this store")
        if isinstance(change, Floor):
            table.floor = max(table.floor, change.version)
        elif change.document is None:
            table.delete(change.id, change.version)
        else:
            values = table.collection.values(decode(change.document), strict=False)
            table.put(Row(change.id, change.version, change.document, values))
        self.version = max(self.version, change.version)

    def fill(self, name: str, records: Sequence[Record]) -> None:
        """Takes over the records of a collection that has none yet."""
        table = self.tables[name]
        values = table.collection.values
        table.fill([Row(*record, values(decode(record.document), strict=False)) for record in records])
        self.version = max([self.version, *[record.version for record in records]])

    def versions(self, keys: Sized[Key]) -> Mapping[Key, int]:
        found = ((key, self.tables[key[0]].rows.get(key[1])) for key in keys)
        return {key: row.version for key, row in found if row is not None}

    def holders(self, values: Sized[UniqueValue]) -> Mapping[UniqueValue, str]:
        found = ((value, self.tables[value[0]].holder(value[1], value[2])) for value in values)
        return {value: id for value, id in found if id is not None}

    def select(self, query: Query) -> Sequence[str]:
        table = self.tables[query.collection.name]
        limited = Query(query.collection, query.where, limit=query.limit)
        return [record.id for record in table.find(limited, self.version).records]
