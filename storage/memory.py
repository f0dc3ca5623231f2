"""Records in memory: gone when the store is closed."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from .base import Storage
from .commits import resolve
from .errors import Conflict, NotEmpty
from .queries import Page, Query, Tombstones
from .records import Change, Changes, Collection, Floor, Record
from .snapshots import Snapshot
from .table import Held
from .tables import Tables
from .writes import Commit, Write


class TablesStorage(Storage):
    """What every back end does alike that answers from `Tables`."""

    def __init__(self) -> None:
        super().__init__()
        self._tables = Tables()

    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        rows = self._tables.tables[self._declared(collection).name].rows
        return {id: Record(*row[:3]) for id in ids if (row := rows.get(id)) is not None}

    async def find(self, query: Query) -> Page:
        return self._tables.tables[self._declared(query.collection).name].find(query, self._tables.version)

    async def count(self, query: Query) -> int:
        return self._tables.tables[self._declared(query.collection).name].count(query.filters)

    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        table = self._tables.tables[self._declared(collection).name]
        return table.changes(after, limit, began, self._tables.version)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Rows are never changed, only replaced: to list the present ones takes 4 ms a hundred thousand, and then
        nobody is held up."""
        self._check_open()
        held = [table.held() for table in self._tables.tables.values()]
        yield Snapshot(self._tables.version, tuple(self.collections.values()), _changes(held))

    async def _loaded(self, changes: AsyncIterable[Change | Floor]) -> Tables:
        """Tables made of another store's changes."""
        if self._tables.version:
            raise NotEmpty("the store is not empty")
        tables = Tables()
        for collection in self.collections.values():
            tables.declare(collection)
        async for change in changes:
            tables.restore(change)
        for table in tables.tables.values():
            table.check_unique()
        return tables


async def _changes(tables: Sequence[Held]) -> AsyncIterator[Change | Floor]:
    for name, floor, rows, tombstones in tables:
        for row in rows:
            yield Change(name, *row[:3])
        for version, id in tombstones:
            yield Change(name, id, version, None)
        yield Floor(name, floor)


class MemoryStorage(TablesStorage):
    async def open(self) -> None:
        self.id = str(uuid4())
        self._tables = Tables()
        for collection in self.collections.values():
            self._tables.declare(collection)
        self._feed.open(0)

    async def close(self) -> None:
        self._feed.close()

    async def declare(self, *collections: Collection) -> None:
        self._check_open()
        for collection in collections:
            self._tables.declare(collection)
            self.collections[collection.name] = collection

    async def commit(self, writes: Sequence[Write]) -> Commit:
        resolution = resolve([self._checked(writes)], self._tables, self._tables.version)
        (outcome,) = resolution.outcomes
        if isinstance(outcome, Conflict):
            raise outcome
        self._tables.apply(resolution.written, resolution.version)
        self._feed.publish(resolution.written, resolution.version)
        return outcome

    async def _forget(self, what: Tombstones, limit: int) -> int:
        return self._tables.tables[self._declared(what.collection).name].forget(what.up_to, limit)

    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        self._check_open()
        tables = await self._loaded(changes)
        self._check_open()
        if self._tables.version:
            raise NotEmpty("the store was written to while it was filled")
        for collection in self.collections.values():
            tables.declare(collection)
        self._tables = tables
        self.id = str(uuid4())
        self._feed.open(self._tables.version)

    async def ping(self) -> None:
        self._check_open()
