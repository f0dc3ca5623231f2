"""A back end and a model of dicts side by side: whatever is done to both, they answer alike, to the letter."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from homeport.storage import (
    Changes,
    Check,
    Collection,
    Conflict,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Gone,
    Put,
    Query,
    Storage,
    StorageError,
    StorageUnavailable,
    Tombstones,
    Write,
)
from homeport.storage.records import Value
from homeport.storage.testing.watching import Watcher

from .conftest import BackEnd
from .stranger.dictstore import DictStorage, Shelf

T = TypeVar("T")

IDS = ["a", "A", "b/1", "..", "😀"]
VALUES: dict[str, list[Any]] = {
    "n": [1, 2, 2.0, 2**63 - 1],
    "t": ["", "b", "B", "😀"],
    "b": [False, True],
    "d": [0, -0.0, 0.5, 2, 1e308],
    "at": ["2025-01-01T00:00:00Z", "2025-01-01T01:00:00+01:00", "1969-12-31T23:59:59.999999Z"],
}


def fields(**of: str) -> tuple[Field, ...]:
    """``n="integer indexed"``."""
    return tuple(Field(name, *_type_of(words)) for name, words in of.items())


def _type_of(words: str) -> tuple[Any, bool, bool]:
    type_, *marks = words.split()
    return type_, "indexed" in marks, "unique" in marks


EVERY = {"n": "integer", "t": "text", "b": "boolean", "d": "double", "at": "time"}
MARKS = Collection("marks")
DECLARATIONS = {
    "notes": [
        Collection("notes", fields(n="integer", t="text indexed")),
        Collection("notes", fields(t="text", n="integer indexed"), tombstones=True),
        Collection("notes"),
    ],
    "items": [
        Collection("items", fields(**EVERY), tombstones=True, layout="files"),
        Collection("items", fields(**{name: f"{words} indexed" for name, words in EVERY.items()}), tombstones=True),
        Collection("items", fields(n="double indexed", t="time"), tombstones=True, layout="files"),
    ],
    "people": [
        Collection("people", fields(n="integer unique", t="text unique"), tombstones=True),
        Collection("people", fields(t="text unique", b="boolean indexed")),
        Collection("people", fields(n="integer", t="text indexed"), tombstones=True),
    ],
}
DOCUMENTS = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from([None, *values]) for name, values in VALUES.items()}
)


class Stores(RuleBasedStateMachine):
    def __init__(self, back_end: BackEnd) -> None:
        super().__init__()
        self.back_end = back_end
        self.runner = asyncio.Runner()
        self.folder = TemporaryDirectory()
        self.declared = {name: declarations[0] for name, declarations in DECLARATIONS.items()}
        self.unfinished: list[Query] = []
        self.watches: list[tuple[Watcher, asyncio.Task[None], list[str], int]] = []
        self.ids: list[str] = []
        self.shelf = Shelf()
        self.run(self._open())

    # Both

    async def _open(self) -> None:
        self.model = DictStorage(self.shelf)
        self.real = self.back_end.make(Path(self.folder.name) / "store")
        self.opened_at = self.shelf.version
        for storage in self.model, self.real:
            await storage.open()
            await storage.declare(MARKS, *self.declared.values())
        self.ids.append(self.real.id)

    async def _close(self) -> None:
        await self.model.close()
        await self.real.close()
        with pytest.raises(StorageUnavailable):
            await self.real.ping()
        for watcher, task, _, _ in self.watches:
            await watcher.end()
            await task
        self.watches.clear()

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def alike(self, verb: Callable[[Storage], Awaitable[T]]) -> T | None:
        """What both answer; None where both raise."""

        async def both() -> T | None:
            expected, answer = await told(verb(self.model)), await told(verb(self.real))
            assert answer == expected
            return None if isinstance(expected, Refusal) else expected

        return self.run(both())

    def teardown(self) -> None:
        try:
            self.hold_the_same()
            self.run(self._watched())
        finally:
            self.run(self._close())
            self.runner.close()
            self.folder.cleanup()

    # What is done

    def _write(self, data: st.DataObject, collections: list[Collection]) -> Write:
        collection = data.draw(st.sampled_from(collections))
        kind = data.draw(st.sampled_from(["put", "put", "put", "delete", "check", "where"]), "write")
        if kind == "where":
            return DeleteWhere(Query(collection, self._where(data, collection), limit=data.draw(LIMITS)))
        id = data.draw(st.sampled_from(IDS))
        record = self.shelf.records.get((collection.name, id))
        present = record.version if record else 0
        near = [None, None, None, present, present, 0, max(0, present - 1), 2**70]
        if_version = data.draw(st.sampled_from(near), "if_version")
        if kind == "put":
            document = data.draw(DOCUMENTS)
            for declared in collection.fields:
                if _value(declared, document.get(declared.name)) is None:
                    document.pop(declared.name, None)  # a text that is no time, where the declaration makes it one
            return Put(collection, id, document, if_version)
        if kind == "delete":
            return Delete(collection, id, if_version)
        return Check(collection, id, present if if_version is None else if_version)

    def _writes(self, data: st.DataObject, collections: list[Collection]) -> list[Write]:
        return [self._write(data, collections) for _ in range(data.draw(st.sampled_from([0, 1, 1, 2, 2, 3, 4])))]

    def _one_or_all(self, data: st.DataObject) -> list[Collection]:
        """Writes to one collection meet more often."""
        every = list(self.declared.values())
        return data.draw(st.sampled_from([*[[collection] for collection in every], every]))

    def _collection(self, data: st.DataObject) -> Collection:
        return self.declared[data.draw(st.sampled_from(list(self.declared)))]

    def _where(self, data: st.DataObject, collection: Collection) -> tuple[Filter, ...]:
        return tuple(self._filter(data, collection) for _ in range(data.draw(st.integers(0, 2))))

    def _filter(self, data: st.DataObject, collection: Collection) -> Filter:
        name = data.draw(st.sampled_from(["id", *collection.by_name]))
        values: Iterable[Value] = IDS
        if name != "id":
            values = {value for raw in VALUES[name] if (value := _value(collection.by_name[name], raw)) is not None}
        op = data.draw(st.sampled_from(["==", "<", "<=", ">", ">=", "in"]))
        one = st.sampled_from([*values, *([None] if op in ("==", "in") else [])] or [0])
        if op == "in":
            return Filter(name, "in", tuple(data.draw(st.lists(one, max_size=3))))
        return Filter(name, op, data.draw(one))  # type: ignore[arg-type] - one of the operators

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """With something in it: unique fields are filled otherwise."""
        documents = {name: data.draw(st.lists(DOCUMENTS, max_size=len(IDS))) for name in ("notes", "items")}
        writes = [
            Put(self.declared[name], id, document)
            for name, drawn in documents.items()
            for id, document in zip(IDS, drawn, strict=False)
        ]
        self.alike(lambda storage: storage.commit(writes))

    def _version(self, data: st.DataObject, *telling: int) -> int:
        """One that was reached, or the next; often one that is next to a telling one."""
        last = self.shelf.version
        near = [version + by for version in (*telling, last) for by in (-1, 0, 1) if 0 <= version + by <= last + 1]
        return data.draw(st.sampled_from(near) | st.integers(0, last))

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        writes = self._writes(data, self._one_or_all(data))
        self.alike(lambda storage: storage.commit(writes))

    @rule(data=st.data())
    def commit_many_at_once(self, data: st.DataObject) -> None:
        collections = self._one_or_all(data)
        batch = [self._writes(data, collections) for _ in range(data.draw(st.integers(2, 6)))]

        async def both() -> None:
            expected = [await told(self.model.commit(writes)) for writes in batch]
            assert await asyncio.gather(*[told(self.real.commit(writes)) for writes in batch]) == expected

        self.run(both())

    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        collection = self._collection(data)
        where = self._where(data, collection)
        self.alike(lambda storage: storage.purge(Query(collection, where)))

    @rule(data=st.data())
    def purge_tombstones(self, data: st.DataObject) -> None:
        collection = self._collection(data)
        up_to = self._version(data)
        self.alike(lambda storage: storage.purge(Tombstones(collection, up_to)))

    @rule(data=st.data())
    def declare_otherwise(self, data: st.DataObject) -> None:
        collection = data.draw(st.sampled_from(DECLARATIONS[self._collection(data).name]))

        async def both() -> None:
            refused = [isinstance(await told(s.declare(collection)), Refusal) for s in (self.model, self.real)]
            assert refused[0] == refused[1]  # which of several records is named may differ
            if not refused[0]:
                self.declared[collection.name] = collection

        self.run(both())

    @rule()
    def reopen(self) -> None:
        self.run(self._watched())
        self.run(self._close())
        if not self.back_end.durable:
            self.shelf = Shelf()
        self.run(self._open())
        assert (self.ids[-1] == self.ids[-2]) == self.back_end.durable

    # What is read

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        collection = self._collection(data)
        names = ["id", *collection.by_name]
        sort = data.draw(st.lists(st.sampled_from([*names, *[f"-{name}" for name in names]]), max_size=3))
        query = Query(
            collection,
            self._where(data, collection),
            tuple(sort),
            data.draw(LIMITS),
            offset=data.draw(st.sampled_from([0, 0, 0, 1, 5])),
            total=data.draw(st.booleans()),
            rank=data.draw(st.booleans()),
        )
        self._page(query)
        self.alike(lambda storage: storage.count(query))

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def find_what_follows(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.unfinished) - 1))
        self._page(self.unfinished.pop(place))

    def _page(self, query: Query) -> None:
        page = self.alike(lambda storage: storage.find(query))
        if page is not None and page.next is not None:
            more = Query(query.collection, query.where, query.sort, query.limit, page.next, 0, query.total, query.rank)
            self.unfinished = [*self.unfinished[-4:], more]

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        collection = self._collection(data)
        ids = data.draw(st.lists(st.sampled_from([*IDS, "none", "\0"])))
        self.alike(lambda storage: storage.get(collection, ids))

    @rule(data=st.data())
    def changes(self, data: st.DataObject) -> None:
        collection = self._collection(data)
        floor = self.shelf.floors.get(collection.name, 0)
        after, began = self._version(data, floor), data.draw(st.sampled_from([0, 0, floor, self.shelf.version]))
        limit = data.draw(st.integers(1, 5))

        async def every(storage: Storage) -> list[Changes]:
            pages = [await storage.changes(collection, after, limit, began=began)]
            while pages[-1].more:
                pages.append(await storage.changes(collection, pages[-1].version, limit, began=began))
            return pages

        self.alike(every)

    @rule()
    def hold_the_same(self) -> None:
        async def everything(storage: Storage) -> list[object]:
            return [
                (await storage.changes(collection, 0, 1000), await storage.find(Query(collection, total=True)))
                for collection in self.declared.values()
            ]

        self.alike(everything)

    # What is watched

    @precondition(lambda self: len(self.watches) < 3)
    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(list(self.declared)), min_size=1, unique=True))
        after = min(self._version(data, self.opened_at), self.shelf.version)
        floors = [self.shelf.floors.get(name, 0) for name in names]
        gone = after < self.opened_at and any(0 < after < floor for floor in floors)

        async def begin() -> None:
            watcher = Watcher()
            changes = self.real.watch([MARKS, *[self.declared[name] for name in names]], after)
            task = asyncio.create_task(watcher.follow(changes))
            if gone:
                with pytest.raises(Gone):
                    await task
            else:
                self.watches.append((watcher, task, names, after))
                await self._watched()

        self.run(begin())

    @precondition(lambda self: self.watches)
    @rule()
    def what_was_watched(self) -> None:
        self.run(self._watched())

    async def _watched(self) -> None:
        """Each watcher has been told, once and in order, what makes its collections what they are."""
        mark = [Put(MARKS, "mark", {})]
        done = await self.model.commit(mark)
        assert await self.real.commit(mark) == done
        for watcher, _, names, after in self.watches:
            seen = await watcher.until(done.version)
            versions = [change.version for change in seen]
            assert versions == sorted(set(versions))
            assert versions[0] > after
            latest = {(change.collection, change.id): change for change in seen}
            for name in names:
                for change in (await self.model.changes(self.declared[name], 0, 1000)).changes:
                    assert latest.pop((name, change.id), None) == (change if change.version > after else None)
            del latest["marks", "mark"]
            assert all(change.deleted for change in latest.values())


LIMITS = st.sampled_from([None, 1, 2, 3])


@dataclass
class Refusal:
    """The kind of an error, and the details of a `Conflict`."""

    kind: type[Exception]
    details: dict[str, object] = field(default_factory=dict)


async def told(verb: Awaitable[T]) -> T | Refusal:
    try:
        return await verb
    except Conflict as conflict:
        return Refusal(Conflict, vars(conflict))
    except (StorageError, ValueError) as error:
        return Refusal(type(error))


def _value(declared: Field, raw: object) -> Value:
    with suppress(ValueError):
        return declared.value(raw)
    return None


@pytest.mark.usefixtures("checkpoints_often")
@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_store_answers_as_the_model_does(back_end: BackEnd, examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call] - hypothesis
        lambda: Stores(back_end),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
