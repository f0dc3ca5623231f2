"""watch: what happened since a version, then what happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from ..base import Storage
from ..errors import Gone, StorageUnavailable
from ..feed import MAX_CHANGES
from ..queries import Query
from ..records import Change, Collection
from ..writes import Delete, DeleteWhere, Put
from .contract import SOON, Contract, all_changes, put


class Watcher:
    """What a watch has said so far."""

    def __init__(self) -> None:
        self.seen: list[Change] = []
        self.ended = False
        self._moved = asyncio.Condition()

    async def follow(self, changes: AsyncIterator[Change]) -> None:
        async for change in changes:
            async with self._moved:
                self.seen.append(change)
                self._moved.notify_all()
        async with self._moved:
            self.ended = True
            self._moved.notify_all()

    async def until(self, version: int) -> list[Change]:
        """All that was seen, when a version has been."""
        async with asyncio.timeout(SOON), self._moved:
            await self._moved.wait_for(lambda: self.seen and self.seen[-1].version >= version)
        return self.seen

    async def end(self) -> list[Change]:
        async with asyncio.timeout(SOON), self._moved:
            await self._moved.wait_for(lambda: self.ended)
        return self.seen


@asynccontextmanager
async def watching(storage: Storage, collections: Sequence[Collection], after: int) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    task = asyncio.create_task(watcher.follow(storage.watch(collections, after)))
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def first(changes: AsyncIterator[Change]) -> Change:
    async with aclosing(changes):  # type: ignore[type-var]
        return await anext(changes)


def told(changes: Sequence[Change]) -> list[tuple[str, str, int, bool]]:
    return [(change.collection, change.id, change.version, change.deleted) for change in changes]


class Watching(Contract):
    async def test_what_was_then_what_is(self, storage: Storage) -> None:
        await put(storage, self.items, "a", "b")
        await storage.commit([Delete(self.items, "a")])
        async with watching(storage, [self.items], 1) as watcher:
            assert told(await watcher.until(3)) == [("items", "b", 2, False), ("items", "a", 3, True)]
            await put(storage, self.items, "c", t="x")
            assert (await watcher.until(4))[-1] == Change("items", "c", 4, b'{"t":"x"}')
            await storage.commit([Delete(self.items, "b"), Put(self.items, "a", {})])
            assert told(await watcher.until(6))[3:] == [("items", "b", 5, True), ("items", "a", 6, False)]

    async def test_some_collections(self, storage: Storage) -> None:
        await put(storage, self.items, "a")
        await put(storage, self.notes, "b")
        await put(storage, self.people, "c")
        async with watching(storage, [self.people, self.items], 0) as watcher:
            await watcher.until(3)
            await put(storage, self.notes, "d")
            await put(storage, self.people, "e")
            await put(storage, self.notes, "f")
            await put(storage, self.items, "g")
            assert [(c.collection, c.id) for c in await watcher.until(7)] == [
                ("items", "a"),
                ("people", "c"),
                ("people", "e"),
                ("items", "g"),
            ]

    async def test_deletions_are_told_even_where_they_are_not_remembered(self, storage: Storage) -> None:
        await put(storage, self.notes, "a", "b", "c")
        async with watching(storage, [self.notes], 3) as watcher:
            await storage.commit([Delete(self.notes, "b"), Delete(self.notes, "none")])
            await storage.commit([DeleteWhere(Query(self.notes))])
            assert told(await watcher.until(6)) == [
                ("notes", "b", 4, True),
                ("notes", "a", 5, True),
                ("notes", "c", 6, True),
            ]

    async def test_what_is_refused_is_not_told(self, storage: Storage) -> None:
        await put(storage, self.people, "a", email="x")
        async with watching(storage, [self.people], 0) as watcher:
            await asyncio.gather(
                put(storage, self.people, "b", email="x"), put(storage, self.people, "c"), return_exceptions=True
            )
            assert told(await watcher.until(2)) == [("people", "a", 1, False), ("people", "c", 2, False)]

    async def test_what_is_told_can_be_read(self, storage: Storage) -> None:
        async with aclosing(storage.watch([self.notes], 0)) as changes:  # type: ignore[type-var]
            for version in 1, 2, 3:
                commit = asyncio.create_task(put(storage, self.notes, "a"))
                assert (await anext(changes)).version == version
                assert (await storage.get(self.notes, ["a"]))["a"].version == version
                await commit

    async def test_each_of_many_watchers_is_told_everything(self, storage: Storage) -> None:
        commits = [put(storage, self.notes, f"{n}/1", f"{n}/2") for n in range(50)]
        async with watching(storage, [self.notes], 0) as one, watching(storage, [self.notes], 0) as two:
            await asyncio.gather(*commits)
            assert [c.version for c in await one.until(100)] == list(range(1, 101))
            assert await two.until(100) == one.seen

    async def test_a_reconnect_misses_and_repeats_nothing(self, storage: Storage) -> None:
        seen: list[int] = []

        async def write() -> None:
            for n in range(100):
                await put(storage, self.items, f"{n}")

        writing = asyncio.create_task(write())
        for count in 1, 7, 42, 50:
            after = seen[-1] if seen else 0
            async with asyncio.timeout(SOON), aclosing(storage.watch([self.items], after)) as changes:  # type: ignore[type-var]
                seen += [(await anext(changes)).version for _ in range(count)]
        await writing
        assert seen == list(range(1, 101))

    async def test_a_slow_reader_is_given_the_latest(self, storage: Storage) -> None:
        """One that lags by more than the store holds in memory for it."""
        await put(storage, self.items, "gone", "kept", n=1)
        async with aclosing(storage.watch([self.items, self.notes], 0)) as changes:  # type: ignore[type-var]
            seen = [await anext(changes)]
            chunk = [f"{n:03}" for n in range(200)]
            last = 2
            for n in range(MAX_CHANGES // len(chunk) + 2):
                last = (await put(storage, self.items, *chunk, n=n)).version
            await put(storage, self.notes, "a")
            last = (await storage.commit([Delete(self.items, "gone")])).version
            while seen[-1].version < last:
                seen.append(await anext(changes))
        versions = [change.version for change in seen]
        assert versions == sorted(set(versions))
        assert len(versions) < MAX_CHANGES
        latest = {(c.collection, c.id): c.version for c in seen}
        present = [*(await all_changes(storage, self.items)).changes, *(await all_changes(storage, self.notes)).changes]
        assert latest == {(c.collection, c.id): c.version for c in present}

    async def test_a_watch_from_a_version_never_reached(self, storage: Storage) -> None:
        await put(storage, self.items, "a")
        with pytest.raises(Gone):
            await first(storage.watch([self.items], 2))

    async def test_a_watch_from_what_is_forgotten(self, storage: Storage) -> None:
        """Once the store holds it no longer in memory."""
        await put(storage, self.notes, *"ab")
        await storage.commit([Delete(self.notes, "a")])
        for _ in range(MAX_CHANGES // 200 + 1):
            await put(storage, self.items, *[f"{n}" for n in range(200)])
        with pytest.raises(Gone):
            await first(storage.watch([self.items, self.notes], 2))
        assert (await first(storage.watch([self.items, self.notes], 3))).collection == "items"
        assert (await first(storage.watch([self.items, self.notes], 0))).version == 2

    @pytest.mark.usefixtures("needs_durable")
    async def test_a_watch_goes_on_after_reopening(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, *"abc")
        await storage.commit([Delete(self.items, "b"), Delete(self.items, "c")])
        await put(storage, self.notes, *"de")
        await storage.commit([Delete(self.notes, "d")])
        async with self.reopened(storage, path) as again:
            async with watching(again, [self.items, self.notes], 0) as watcher:
                await watcher.until(7)
                await put(again, self.notes, "e")
                assert [change.version for change in await watcher.until(9)] == [1, 4, 5, 7, 9]
            async with watching(again, [self.items], 4) as watcher:
                await put(again, self.items, "a")
                assert told(await watcher.until(10)) == [("items", "c", 5, True), ("items", "a", 10, False)]
            with pytest.raises(Gone):
                await first(again.watch([self.notes], 7))

    async def test_a_watch_ends_when_the_store_is_closed(self, storage: Storage) -> None:
        await put(storage, self.notes, "a")
        async with watching(storage, [self.notes], 0) as waiting, watching(storage, [self.items], 0) as idle:
            await waiting.until(1)
            await storage.close()
            assert [change.id for change in await waiting.end()] == ["a"]
            assert await idle.end() == []
        with pytest.raises(StorageUnavailable):
            await first(storage.watch([self.notes], 0))

    async def test_an_undeclared_collection(self, storage: Storage) -> None:
        with pytest.raises(ValueError, match="other"):
            await first(storage.watch([self.notes, self.collection("other")], 0))
