"""load: another store's records and tombstones, versions kept; all, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from ..base import Storage
from ..errors import Conflict, Gone, NotEmpty, StorageUnavailable
from ..queries import Filter, Query, Tombstones
from ..records import Change, Collection, Floor
from ..writes import Commit, Delete
from .contract import Contract, all_changes, everything, ids, put
from .watching import watching


async def copy_of(storage: Storage, *collections: Collection) -> AsyncIterator[Change | Floor]:
    """What `Storage.load` takes, as a copy makes it."""
    for collection in collections:
        changes = await all_changes(storage, collection)
        yield Floor(collection.name, changes.floor)
        for change in changes.changes:
            yield change


async def stream(changes: Iterable[Change | Floor]) -> AsyncIterator[Change | Floor]:
    for change in changes:
        yield change


class Loading(Contract):
    async def fill(self, storage: Storage) -> None:
        """A bit of everything: overwritten, deleted, forgotten."""
        await put(storage, self.items, *[f"{n:04}" for n in range(700)], n=1)
        await put(storage, self.items, "0000", "0699", n=2)
        await put(storage, self.people, "a", "b")
        await put(storage, self.people, "b", email="b", number=2**63 - 1)
        await put(storage, self.notes, *"abcd")
        await storage.commit([Delete(self.notes, "b"), Delete(self.items, "0001"), Delete(self.items, "0002")])
        await storage.purge(Tombstones(self.items, (await all_changes(storage, self.items)).changes[-2].version))
        await storage.commit([Delete(self.people, "a")])

    async def test_a_copy_is_the_same(self, storage: Storage, path: Path) -> None:
        await self.fill(storage)
        before = await everything(storage, *self.collections)
        assert [page.floor for page in before] == [710, 711, 0, 0]
        assert [page.changes[-1].deleted for page in before if page.changes] == [False, True, True]
        async with self.make(path.with_name("copy")) as copy:
            await copy.declare(*self.collections)
            formerly = copy.id
            await copy.load(copy_of(storage, *self.collections))
            assert copy.id not in (formerly, storage.id)
            assert await everything(copy, *self.collections) == before
            assert await copy.count(Query(self.items, (Filter("n", "==", 2),))) == 2
            assert ids((await copy.find(Query(self.people, sort=("-email",)))).records) == ["b"]
            # It goes on like the other.
            for each in storage, copy:
                assert await put(each, self.items, "0001") == Commit(714, (714,), (1,))
                with pytest.raises(Conflict) as caught:
                    await put(each, self.people, "c", email="b")
                assert caught.value.reason == "unique"
                with pytest.raises(Gone):
                    await each.changes(self.notes, 709, 10)
            assert await everything(copy, *self.collections) == await everything(storage, *self.collections)
        if self.durable:
            after = await everything(storage, *self.collections)
            async with self.make(path.with_name("copy")) as copy:
                await copy.declare(*self.collections)
                assert await everything(copy, *self.collections) == after

    async def test_a_copy_of_nothing(self, storage: Storage) -> None:
        formerly = storage.id
        await storage.load(stream([]))
        assert storage.id != formerly
        assert await put(storage, self.notes, "a") == Commit(1, (1,), (1,))

    async def test_order_does_not_matter(self, storage: Storage) -> None:
        changes: list[Change | Floor] = [
            Change("items", "b", 9, None),
            Change("notes", "a", 4, b"{}"),
            Floor("items", 3),
            Change("items", "a", 8, b'{"n":1}'),
            Floor("notes", 7),
            Change("items", "c", 5, b"{}"),
        ]
        await storage.load(stream(changes))
        items = await all_changes(storage, self.items)
        assert ([(c.id, c.version) for c in items.changes], items.floor) == ([("c", 5), ("a", 8), ("b", 9)], 3)
        assert (await all_changes(storage, self.notes)).floor == 7
        assert (await storage.commit([])).version == 9

    async def test_a_floor_alone_has_a_version(self, storage: Storage) -> None:
        await storage.load(stream([Floor("notes", 12)]))
        assert (await put(storage, self.notes, "a")).version == 13
        assert (await all_changes(storage, self.notes)).floor == 12

    async def test_a_deletion_is_forgotten_where_there_are_no_tombstones(self, storage: Storage) -> None:
        await storage.load(stream([Change("notes", "a", 5, None), Change("notes", "b", 2, b"{}")]))
        notes = await all_changes(storage, self.notes)
        assert (ids(notes.changes), notes.floor, notes.store_version) == (["b"], 5, 5)

    async def test_what_cannot_be_indexed_is_kept(self, storage: Storage) -> None:
        document = b'{"n":9223372036854775808,"t":"x"}'
        await storage.load(stream([Change("indexed", "a", 1, document)]))
        page = await storage.find(Query(self.indexed, (Filter("n", "==", None), Filter("t", "==", "x"))))
        assert [record.document for record in page.records] == [document]

    async def test_only_an_empty_store_is_filled(self, storage: Storage) -> None:
        await put(storage, self.items, "a")
        before = await everything(storage, *self.collections)
        with pytest.raises(NotEmpty):
            await storage.load(stream([Change("notes", "a", 7, b"{}")]))
        await storage.commit([Delete(self.items, "a")])
        await storage.purge(Tombstones(self.items, 2))
        with pytest.raises(NotEmpty):  # its versions are somebody's cursors
            await storage.load(stream([]))
        assert (await everything(storage, self.notes))[0].changes == before[0].changes == ()

    @pytest.mark.parametrize(
        ("last", "error"),
        [
            pytest.param(None, ConnectionError, id="the source fails"),
            pytest.param(Change("other", "a", 1500, b"{}"), ValueError, id="undeclared"),
            pytest.param(Change("people", "0000", 1500, b'{"email":"0"}'), Conflict, id="not unique"),
        ],
    )
    async def test_nothing_stays_of_a_load_that_fails(
        self, storage: Storage, path: Path, last: Change | None, error: type[Exception]
    ) -> None:
        async def source() -> AsyncIterator[Change | Floor]:
            yield Floor("notes", 1400)
            for n in range(1200):
                yield Change("people", f"{n}", n + 1, b'{"email":"%d"}' % n)
            yield Change("items", "a", 1300, None)
            if last is None:
                raise ConnectionError
            yield last

        formerly = storage.id
        with pytest.raises(error):
            await storage.load(source())

        async def check(storage: Storage) -> None:
            assert storage.id == formerly
            for changes in await everything(storage, *self.collections):
                assert (changes.changes, changes.floor, changes.store_version) == ((), 0, 0)
            assert await storage.count(Query(self.people, (Filter("email", "==", "7"),))) == 0

        await check(storage)
        if self.durable:
            async with self.reopened(storage, path) as again:
                await check(again)
                await again.load(stream([Change("people", "a", 7, b'{"email":"7"}')]))
        else:
            await storage.load(stream([Change("people", "a", 7, b'{"email":"7"}')]))
            assert (await put(storage, self.people, "b", email="8")).version == 8

    async def test_a_commit_while_a_store_is_filled_is_not_lost(self, storage: Storage) -> None:
        begun, done = asyncio.Event(), asyncio.Event()

        async def source() -> AsyncIterator[Change | Floor]:
            yield Change("items", "loaded", 5, b"{}")
            begun.set()
            await done.wait()

        load = asyncio.create_task(storage.load(source()))
        await begun.wait()
        commit = asyncio.create_task(put(storage, self.items, "committed"))
        await asyncio.wait([commit], timeout=0.05)  # it may have to wait for the load
        done.set()
        outcomes = await asyncio.gather(load, commit, return_exceptions=True)
        assert isinstance(outcomes[1], Commit)
        assert isinstance(outcomes[0], NotEmpty | None)
        present = ids((await storage.find(Query(self.items))).records)
        assert present == ["committed"] + (["loaded"] if outcomes[0] is None else [])

    async def test_a_load_that_is_cancelled_is_done_or_not(self, path: Path) -> None:
        """Whenever it is cancelled, what is committed next takes the version that follows what is there."""
        for turn in range(40):
            async with self.make(path.with_name(f"{turn}")) as storage:
                await storage.declare(*self.collections)
                ended = asyncio.Event()

                async def source(ended: asyncio.Event = ended) -> AsyncIterator[Change | Floor]:
                    for n in range(1, 40):
                        yield Change("items", f"{n}", n, b"{}")
                    ended.set()

                load = asyncio.create_task(storage.load(source()))
                await ended.wait()
                await asyncio.sleep(turn * 0.0001)
                load.cancel()
                await asyncio.wait([load])
                try:
                    version = (await put(storage, self.items, "next")).version
                except StorageUnavailable:
                    continue  # a store may say that it does not know
                found = ids((await all_changes(storage, self.items)).changes)
                assert found == [*[f"{n}" for n in range(1, version)], "next"]
                assert version in (1, 40)

    async def test_who_watches_is_told_of_what_was_loaded(self, storage: Storage) -> None:
        async with watching(storage, [self.items], 0) as watcher:
            await asyncio.sleep(0)
            await storage.load(stream([Change("items", "a", 3, b"{}"), Change("items", "b", 5, None)]))
            assert [change.version for change in await watcher.until(5)] == [3, 5]
