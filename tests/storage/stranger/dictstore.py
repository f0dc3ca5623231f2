"""A back end of somebody else's, written from `homeport.storage.base` alone and as plainly as can be.

It passes the contract, and is the model that the state machine holds Homeport's back ends against.
"""

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from homeport.storage import (
    Change,
    Changes,
    Collection,
    Commit,
    Conflict,
    Delete,
    DeleteWhere,
    Filter,
    Floor,
    Gone,
    NotEmpty,
    Page,
    Put,
    Query,
    Record,
    Storage,
    StorageLocked,
    StorageUnavailable,
    Tombstones,
    Write,
)
from homeport.storage.documents import decode
from homeport.storage.records import Value

Key = tuple[str, str]
"""Collection and id."""
Records = dict[Key, Record]
Values = dict[str, Value]


@dataclass
class Shelf:
    """What stays of a store when it is closed."""

    id: str = field(default_factory=lambda: str(uuid4()))
    version: int = 0
    records: Records = field(default_factory=dict)
    tombstones: dict[Key, int] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    taken: bool = False


class DictStorage(Storage):
    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf

    async def open(self) -> None:
        if self.shelf.taken:
            raise StorageLocked("the shelf is taken")
        self.shelf.taken = True
        self.id = self.shelf.id
        self.collections = self.shelf.collections
        self._feed.open(self.shelf.version)

    async def close(self) -> None:
        if not self._feed.closed:
            self._feed.close()
            self.shelf.taken = False

    async def declare(self, *collections: Collection) -> None:
        await self.ping()
        for collection in collections:
            self._check_unique(collection, self.shelf.records)
        for collection in collections:
            if not collection.tombstones:
                self._drop(collection.name, self.shelf.version)
            self.collections[collection.name] = collection

    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        name = self._declared(collection).name
        return {id: self.shelf.records[name, id] for id in ids if (name, id) in self.shelf.records}

    async def find(self, query: Query) -> Page:
        self._declared(query.collection)
        rows = self._sorted(query)
        total = len(rows)
        lead, descending = query.order[0]
        places = sorted((_sortable(values[lead]) for _, values in rows), reverse=descending)
        if query.position is not None:
            cursor = dict(zip([name for name, _ in query.order], query.position, strict=True))
            rows = [row for row in rows if _precedes(cursor, row[1], query)]
        rows = rows[query.offset :]
        page = rows if query.limit is None else rows[: query.limit]
        more = len(page) < len(rows)
        return Page(
            tuple(record for record, _ in page),
            query.cursor([page[-1][1][name] for name, _ in query.order]) if more else None,
            self.shelf.version,
            total if query.total else None,
            1 + places.index(_sortable(page[0][1][lead])) if query.rank and page else None,
        )

    async def count(self, query: Query) -> int:
        return len(self._matching(query))

    async def commit(self, writes: Sequence[Write]) -> Commit:
        await self.ping()
        self._checked(writes)
        before, version = self.shelf.records, self.shelf.version
        named = {(w.collection.name, w.id) for w in writes if isinstance(w, Put | Delete)}
        changes: dict[Key, Change] = {}
        versions, counts = [], []
        for index, write in enumerate(writes):
            keys = []
            if isinstance(write, DeleteWhere):
                name = write.query.collection.name
                found = sorted(record.id for record, _ in self._matching(write.query))[: write.query.limit]
                keys = [(name, id) for id in found if (name, id) not in named and (name, id) not in changes]
            else:
                key = write.collection.name, write.id
                present = before[key].version if key in before else 0
                if write.if_version not in (None, present):
                    raise Conflict(index, *key, "version", present)
                if isinstance(write, Put) or (isinstance(write, Delete) and present):
                    keys = [key]
            for key in keys:
                version += 1
                changes[key] = Change(*key, version, write.document if isinstance(write, Put) else None)
            versions.append(version if keys else 0)
            counts.append(len(keys))
        after = {key: record for key, record in before.items() if key not in changes}
        after |= {key: Record(c.id, c.version, c.document) for key, c in changes.items() if c.document is not None}
        for index, write in enumerate(writes):
            if isinstance(write, Put):
                key = write.collection.name, write.id
                field = self._taken(write.collection, after, key, before)
                if field is not None:
                    raise Conflict(index, *key, "unique", field=field)
                before = {**before, key: after[key]}
        self.shelf.records, self.shelf.version = after, version
        for change in changes.values():
            self._bury(change)
        self._feed.publish(list(changes.values()), version)
        return Commit(version, tuple(versions), tuple(counts))

    async def _forget(self, what: Tombstones, limit: int) -> int:
        return self._drop(self._declared(what.collection).name, what.up_to, limit)

    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        name = self._declared(collection).name
        floor = self.shelf.floors.get(name, 0)
        if after > self.shelf.version or (after and max(after, began) < floor):
            raise Gone(name)
        found = [Change(name, id, version, None) for (its, id), version in self.shelf.tombstones.items() if its == name]
        found += [Change(its, *record) for (its, _), record in self.shelf.records.items() if its == name]
        found = sorted((c for c in found if c.version > after), key=lambda change: change.version)
        page, more = tuple(found[:limit]), len(found) > limit
        return Changes(page, page[-1].version if more else self.shelf.version, more, self.shelf.version, floor)

    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        await self.ping()
        loaded = [change async for change in changes]
        if self.shelf.version:
            raise NotEmpty("the shelf is not empty")
        if unknown := {change.collection for change in loaded} - set(self.collections):
            raise ValueError(f"collections {unknown} were not declared")
        records = {
            (c.collection, c.id): Record(c.id, c.version, c.document)
            for c in loaded
            if isinstance(c, Change) and c.document is not None
        }
        for collection in self.collections.values():
            self._check_unique(collection, records)
        self.shelf.records = records
        self.shelf.version = max((change.version for change in loaded), default=0)
        for change in loaded:
            if isinstance(change, Floor):
                self._raise_floor(change.collection, change.version)
            else:
                self._bury(change)
        self.id = self.shelf.id = str(uuid4())
        self._feed.open(self.shelf.version)

    async def ping(self) -> None:
        if self._feed.closed:
            raise StorageUnavailable("the shelf is closed")

    def _bury(self, change: Change) -> None:
        self.shelf.tombstones.pop((change.collection, change.id), None)
        if change.deleted and self.collections[change.collection].tombstones:
            self.shelf.tombstones[change.collection, change.id] = change.version
        elif change.deleted:
            self._raise_floor(change.collection, change.version)

    def _drop(self, name: str, up_to: int, limit: int | None = None) -> int:
        """Forgets the oldest tombstones."""
        old = sorted((v, key) for key, v in self.shelf.tombstones.items() if key[0] == name and v <= up_to)[:limit]
        for version, key in old:
            del self.shelf.tombstones[key]
            self._raise_floor(name, version)
        return len(old)

    def _raise_floor(self, name: str, version: int) -> None:
        self.shelf.floors[name] = max(self.shelf.floors.get(name, 0), version)

    def _check_unique(self, collection: Collection, records: Records) -> None:
        for name, id in records:
            if name == collection.name and (field := self._taken(collection, records, (name, id), records)) is not None:
                raise Conflict(0, name, id, "unique", records[name, id].version, field)

    def _taken(self, collection: Collection, records: Records, key: Key, before: Records) -> str | None:
        """The first unique field of a record whose value another record holds, and held before."""
        others = [other for other in records.keys() & before.keys() - {key} if other[0] == key[0]]
        for place, name in collection.unique:
            mine = _of(collection, records[key])[place]
            if mine is not None and any(
                _of(collection, records[other])[place] == mine == _of(collection, before[other])[place]
                for other in others
            ):
                return name
        return None

    def _matching(self, query: Query) -> list[tuple[Record, Values]]:
        name = self._declared(query.collection).name
        records = [record for (its, _), record in self.shelf.records.items() if its == name]
        rows = [(record, _values(query.collection, record)) for record in records]
        return [row for row in rows if all(_holds(row[1][f.field], f) for f in query.filters)]

    def _sorted(self, query: Query) -> list[tuple[Record, Values]]:
        rows = self._matching(query)
        for name, descending in reversed(query.order):
            rows.sort(key=lambda row: _sortable(row[1][name]), reverse=descending)
        return rows


def _of(collection: Collection, record: Record) -> tuple[Value, ...]:
    return collection.values(decode(record.document), strict=False)


def _values(collection: Collection, record: Record) -> Values:
    names = [field.name for field in collection.fields]
    return {"id": record.id, **dict(zip(names, _of(collection, record), strict=True))}


def _sortable(value: Value) -> tuple[bool, Value]:
    return value is not None, value


def _precedes(a: Values, b: Values, query: Query) -> bool:
    for name, descending in query.order:
        x, y = _sortable(a[name]), _sortable(b[name])
        if x != y:
            return x > y if descending else x < y
    return False


def _holds(value: Value, condition: Filter) -> bool:
    if condition.op == "in":
        return value in condition.value  # type: ignore[operator]  # Query has made it a tuple
    if condition.op == "==":
        return value == condition.value
    if value is None:
        return False
    compared = {"<": value < condition.value, ">": value > condition.value}  # type: ignore[operator]  # of one type
    return compared[condition.op[0]] or (condition.op.endswith("=") and value == condition.value)


def on_a_new_shelf() -> Storage:
    """What a storage URL names."""
    return DictStorage(Shelf())
