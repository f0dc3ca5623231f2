"""Opening, declaring and closing; what a store remembers of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from ..base import Storage
from ..errors import Conflict, Gone, InvalidQuery, StorageLocked, StorageUnavailable
from ..queries import Filter, Query, Tombstones
from ..records import Change, Collection, Field, Floor
from ..writes import Delete, DeleteWhere, Put
from .contract import SOON, Contract, all_changes, everything, ids, put


async def nothing() -> AsyncIterator[Change | Floor]:
    return
    yield


Verb = Callable[[Storage, Collection], Awaitable[object]]

VERBS: dict[str, Verb] = {
    "get": lambda storage, collection: storage.get(collection, ["a"]),
    "get nothing": lambda storage, collection: storage.get(collection, []),
    "find": lambda storage, collection: storage.find(Query(collection)),
    "count": lambda storage, collection: storage.count(Query(collection)),
    "commit": lambda storage, collection: storage.commit([Put(collection, "a", {})]),
    "commit a deletion": lambda storage, collection: storage.commit([Delete(collection, "a")]),
    "commit a DeleteWhere": lambda storage, collection: storage.commit([DeleteWhere(Query(collection))]),
    "purge": lambda storage, collection: storage.purge(Query(collection)),
    "purge tombstones": lambda storage, collection: storage.purge(Tombstones(collection, 1)),
    "changes": lambda storage, collection: storage.changes(collection, 0, 1),
    "watch": lambda storage, collection: anext(storage.watch([collection], 0)),
}
ON_THE_STORE: dict[str, Verb] = {
    "commit nothing": lambda storage, _: storage.commit([]),
    "load": lambda storage, _: storage.load(nothing()),
    "ping": lambda storage, _: storage.ping(),
    "declare": lambda storage, collection: storage.declare(collection),
}


def table(verbs: dict[str, Verb]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", [pytest.param(verb, id=name) for name, verb in verbs.items()])


class Opening(Contract):
    async def test_a_new_store(self, storage: Storage) -> None:
        assert str(UUID(storage.id)) == storage.id
        assert storage.collections == {collection.name: collection for collection in self.collections}
        await storage.ping()
        for changes in await everything(storage, *self.collections):
            assert (changes.changes, changes.floor, changes.store_version) == ((), 0, 0)

    async def test_each_store_has_an_id_of_its_own(self, storage: Storage, path: Path) -> None:
        async with self.make(path.with_name("another")) as another:
            assert another.id != storage.id

    @table(VERBS)
    async def test_a_collection_must_be_declared(self, storage: Storage, verb: Verb) -> None:
        with pytest.raises(ValueError, match="other was not declared"):
            await verb(storage, self.collection("other"))
        with pytest.raises(ValueError, match="notes was not declared to this store, or differently"):
            await verb(storage, self.collection("notes", Field("n", "integer")))

    @table({**VERBS, **ON_THE_STORE})
    async def test_a_closed_store_is_unavailable(self, storage: Storage, verb: Verb) -> None:
        await put(storage, self.notes, "a")
        await storage.close()
        with pytest.raises(StorageUnavailable):
            await verb(storage, self.notes)

    @table({**VERBS, **ON_THE_STORE})
    async def test_a_store_that_was_not_opened_is_unavailable(self, path: Path, verb: Verb) -> None:
        storage = self.make(path)
        with pytest.raises(StorageUnavailable):
            await verb(storage, self.notes)

    async def test_closing_twice_is_no_error(self, storage: Storage, path: Path) -> None:
        await storage.close()
        await storage.close()
        await self.make(path).close()

    async def test_closing_finishes_the_commits_that_wait(self, storage: Storage, path: Path) -> None:
        tasks = [asyncio.create_task(put(storage, self.notes, f"{n}", "last")) for n in range(100)]
        await asyncio.sleep(0)
        await storage.close()
        outcomes = await asyncio.gather(*tasks)
        assert [outcome.version for outcome in outcomes] == list(range(2, 202, 2))
        if self.durable:
            async with self.reopened(storage, path) as again:
                assert await again.count(Query(self.notes)) == 101

    async def test_closing_while_verbs_are_under_way(self, storage: Storage, path: Path) -> None:
        """Each answers, or says that the store is unavailable."""
        await put(storage, self.items, *[f"{n}" for n in range(100)])
        verbs = {name: verb for name, verb in {**VERBS, **ON_THE_STORE}.items() if name != "load"}
        tasks = [
            asyncio.ensure_future(verb(storage, collection))
            for collection in (self.items, self.indexed)
            for verb in verbs.values()
            for _ in range(5)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        await storage.close()
        done, waiting = await asyncio.wait(tasks, timeout=SOON)
        assert not waiting
        errors = [task.exception() for task in done]
        assert {type(error) for error in errors} <= {type(None), StorageUnavailable, StopAsyncIteration}

    # Opening again

    @pytest.mark.usefixtures("needs_durable")
    async def test_what_was_committed_is_there_when_opened_again(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, "a", "b", "c", n=1, t="é", b=True, d=-0.0, at="2025-01-01T00:00:00Z")
        await put(storage, self.people, "a", email="x")
        await put(storage, self.notes, "a", "b")
        await storage.commit([Delete(self.items, "b"), Delete(self.notes, "b")])
        await put(storage, self.items, "a", n=2)
        await storage.commit([Delete(self.items, "c")])
        await storage.purge(Tombstones(self.items, 7))
        store_id, before = storage.id, await everything(storage, *self.collections)
        for _ in range(3):
            async with self.reopened(storage, path) as storage:
                assert storage.id == store_id
                assert await everything(storage, *self.collections) == before
                page = await storage.find(Query(self.items, (Filter("n", "==", 2),), total=True))
                assert (ids(page.records), page.version, page.total) == (["a"], 10, 1)
                with pytest.raises(Conflict):
                    await put(storage, self.people, "b", email="x")
                with pytest.raises(Gone):
                    await storage.changes(self.items, 6, 10)
        async with self.reopened(storage, path) as storage:
            assert (await put(storage, self.items, "a")).version == 11

    @pytest.mark.usefixtures("needs_durable")
    async def test_a_store_can_be_opened_again_itself(self, storage: Storage) -> None:
        await put(storage, self.notes, "a")
        await storage.close()
        await storage.open()
        await storage.declare(*self.collections)
        assert (await put(storage, self.notes, "b")).version == 2
        await storage.ping()

    async def test_opening_again_goes_on_or_begins_anew(self, storage: Storage, path: Path) -> None:
        await put(storage, self.notes, "a")
        before = storage.id
        async with self.reopened(storage, path) as again:
            assert (again.id == before) == self.durable
            assert list(await again.get(self.notes, ["a"])) == ["a"] * self.durable
            assert (await put(again, self.notes, "b")).version == 1 + self.durable

    @pytest.mark.usefixtures("needs_durable")
    async def test_a_store_has_one_owner(self, storage: Storage, path: Path) -> None:
        await put(storage, self.notes, "a")
        for _ in range(2):
            with pytest.raises(StorageLocked):
                await self.make(path).open()
        assert (await put(storage, self.notes, "b")).version == 2
        async with self.reopened(storage, path) as again:
            assert await again.count(Query(self.notes)) == 2

    @pytest.mark.usefixtures("needs_durable")
    async def test_a_collection_that_nobody_declares_is_kept(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, "a", "b", n=1)
        await storage.commit([Delete(self.items, "b")])
        before = await all_changes(storage, self.items)
        await storage.close()
        async with self.make(path) as again:
            await again.declare(self.notes)
            await put(again, self.notes, "a")
            assert again.collections == {collection.name: collection for collection in self.collections}
        async with self.reopened(storage, path) as again:
            assert (await all_changes(again, self.items)).changes == before.changes
            assert (await put(again, self.items, "a")).version == 5

    # Declaring

    async def test_declaring_again_changes_nothing(self, storage: Storage) -> None:
        await put(storage, self.items, "a", "b", n=1)
        await storage.commit([Delete(self.items, "b")])
        before = await everything(storage, *self.collections)
        await storage.declare(*self.collections)
        await storage.declare()
        assert await everything(storage, *self.collections) == before

    @pytest.mark.parametrize(
        "field",
        [
            pytest.param(Field("n", "integer"), id="plain"),
            pytest.param(Field("n", "integer", indexed=True), id="indexed"),
            pytest.param(Field("n", "integer", unique=True), id="unique"),
        ],
    )
    async def test_a_new_field_is_derived_from_the_documents(self, storage: Storage, path: Path, field: Field) -> None:
        documents = [b'{"n":3}', b'{"n":1,"n":2}', b'{"n":"x"}', b"{}", b'{"n":9223372036854775808}', b'{"n":null}']
        await storage.commit([Put(self.notes, f"{n}", document) for n, document in enumerate(documents)])
        before = await all_changes(storage, self.notes)
        notes = self.collection("notes", Field("t", "text"), field)
        await storage.declare(notes)

        async def check(storage: Storage) -> None:
            assert await all_changes(storage, notes) == before
            assert ids((await storage.find(Query(notes, sort=("-n",)))).records) == ["0", "1", "2", "3", "4", "5"]
            assert ids((await storage.find(Query(notes, (Filter("n", "==", None),)))).records) == ["2", "3", "4", "5"]
            assert ids((await storage.find(Query(notes, (Filter("n", "<=", 2),)))).records) == ["1"]

        await check(storage)
        with pytest.raises(ValueError, match="notes"):
            await storage.find(Query(self.notes))
        if self.durable:
            await storage.close()
            async with self.make(path) as again:
                await again.declare(notes)
                await check(again)

    async def test_a_field_changes_its_type(self, storage: Storage) -> None:
        for id, value in ("a", "2025-01-01T00:00:00Z"), ("b", "x"), ("c", 7), ("d", "2024-01-01"):
            await storage.commit([Put(self.notes, id, {"f": value})])
        expected = {"text": ["b", "a", "d", "c"], "time": ["a", "b", "c", "d"], "integer": ["c", "a", "b", "d"]}
        for type_, order in expected.items():
            notes = self.collection("notes", Field("f", type_, indexed=True))  # type: ignore[arg-type]
            await storage.declare(notes)
            assert ids((await storage.find(Query(notes, sort=("-f",)))).records) == order

    async def test_a_field_that_is_no_longer_declared(self, storage: Storage) -> None:
        await put(storage, self.items, "a", n=1)
        less = replace(self.items, fields=self.items.fields[1:])
        await storage.declare(less)
        with pytest.raises(InvalidQuery, match="n cannot be queried"):
            Query(less, (Filter("n", "==", 1),))
        assert (await storage.get(less, ["a"]))["a"].decode() == {"n": 1}
        await storage.declare(self.items)
        assert await storage.count(Query(self.items, (Filter("n", "==", 1),))) == 1

    async def test_a_field_becomes_unique(self, storage: Storage) -> None:
        await put(storage, self.items, "a", "b", t="same", n=None)
        await put(storage, self.items, "c", n=1)
        by_n, by_t = (
            replace(self.items, fields=tuple(replace(f, unique=f.name == name) for f in self.items.fields))
            for name in "nt"
        )
        await storage.declare(by_n)
        with pytest.raises(Conflict) as caught:
            await put(storage, by_n, "d", n=1)
        assert caught.value.field == "n"
        before = await all_changes(storage, by_n)
        with pytest.raises(Conflict) as caught:
            await storage.declare(by_t)
        assert (caught.value.collection, caught.value.reason, caught.value.field) == ("items", "unique", "t")
        assert caught.value.id in ("a", "b")
        # It is as it was.
        assert await all_changes(storage, by_n) == before
        with pytest.raises(Conflict):
            await put(storage, by_n, "d", n=1)
        await storage.commit([Delete(by_n, "b")])
        await storage.declare(by_t)
        await put(storage, by_t, "d", n=1)
        with pytest.raises(Conflict):
            await put(storage, by_t, "e", t="same")

    async def test_a_collection_forgets_its_tombstones(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, *"abc")
        await storage.commit([Delete(self.items, "a"), Delete(self.items, "b")])
        forgetful = replace(self.items, tombstones=False)
        await storage.declare(forgetful)
        changes = await all_changes(storage, forgetful)
        assert (ids(changes.changes), changes.floor, changes.store_version) == (["c"], 5, 5)
        await put(storage, forgetful, "d")
        await storage.declare(self.items)
        await storage.commit([Delete(self.items, "c")])
        changes = await all_changes(storage, self.items)
        assert ([(c.id, c.deleted) for c in changes.changes], changes.floor) == ([("d", False), ("c", True)], 5)
        if self.durable:
            async with self.reopened(storage, path) as again:
                assert await all_changes(again, self.items) == changes

    async def test_a_collection_changes_its_layout(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, "a", "A", "../x", "con", "é" * 100, n=1)
        await storage.commit([Delete(self.items, "a")])
        items, before = self.items, await all_changes(storage, self.items)
        for layout in "files", "lines", "files", self.layout:
            items = replace(self.items, layout=layout)
            await storage.declare(items)
            assert await all_changes(storage, items) == before
            await put(storage, items, "con", "A", n=2)
            await storage.commit([Delete(items, "A"), Put(items, "a", {})])
            before = await all_changes(storage, items)
        if self.durable:
            async with self.reopened(storage, path) as again:
                assert await all_changes(again, items) == before

    async def test_watches_go_on_over_a_declaration(self, storage: Storage) -> None:
        changes = storage.watch([self.notes], 0)
        await put(storage, self.notes, "a")
        assert (await anext(changes)).version == 1
        await storage.declare(self.collection("other"))
        await put(storage, self.notes, "a")
        assert (await anext(changes)).version == 2
