"""Many at once: nothing is lost, counted twice, seen half done or out of order."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from homeport.storage import (
    Change,
    Collection,
    Commit,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Gone,
    Put,
    Query,
    Storage,
    Tombstones,
    Write,
    retry,
    starts_with,
)
from homeport.storage.testing.contract import SOON

from .conftest import BackEnd

COUNTERS = Collection("counters", (Field("n", "integer", indexed=True),))
KEPT = Collection("kept", (Field("n", "integer"),), tombstones=True)
FORGOTTEN = Collection("forgotten", (Field("n", "integer"),))

State = dict[str, bytes]


@pytest.fixture
async def storage(back_end: BackEnd, tmp_path: Path) -> AsyncIterator[Storage]:
    async with back_end.make(tmp_path / "store") as storage:
        await storage.declare(COUNTERS, KEPT, FORGOTTEN)
        yield storage


async def increment(storage: Storage, *ids: str) -> Commit:
    """Adds one to counters, by the versions that were read."""
    records = await storage.get(COUNTERS, ids)
    writes = []
    for id in ids:
        record = records.get(id)
        n = record.decode()["n"] if record else 0
        writes.append(Put(COUNTERS, id, {"n": n + 1}, if_version=record.version if record else 0))
    return await storage.commit(writes)


async def counted(storage: Storage) -> dict[str, int]:
    return {record.id: record.decode()["n"] for record in (await storage.find(Query(COUNTERS))).records}


async def test_no_increment_is_lost(storage: Storage) -> None:
    rng = random.Random(1)
    asked = [rng.sample([f"{n}" for n in range(10)], rng.randint(1, 4)) for _ in range(200)]

    async def one(ids: list[str]) -> None:
        await retry(storage, ids, lambda: increment(storage, *ids))

    await asyncio.gather(*[one(ids) for ids in asked])
    assert await counted(storage) == {f"{n}": sum(f"{n}" in ids for ids in asked) for n in range(10)}
    assert (await storage.commit([])).version == sum(map(len, asked))


async def test_no_increment_is_lost_to_another_server(storage: Storage) -> None:
    """One that does not share the locks: each of 16 can lose to 15 others at most."""
    await asyncio.gather(*[retry(storage, [f"{n}"], lambda: increment(storage, "shared")) for n in range(16)])
    assert await counted(storage) == {"shared": 16}


async def test_nobody_sees_half_a_commit(storage: Storage) -> None:
    """While money moves between accounts, its sum is the same in every answer."""
    ids = [f"{n}" for n in range(40)]
    await storage.commit([Put(COUNTERS, id, {"n": 100}) for id in ids])
    rng = random.Random(2)

    async def transfer() -> None:
        for _ in range(15):
            pair = rng.sample(ids, 2)

            async def move(pair: list[str] = pair) -> None:
                records = await storage.get(COUNTERS, pair)
                amounts = zip(pair, (-1, 1), strict=True)
                await storage.commit(
                    [
                        Put(COUNTERS, id, {"n": records[id].decode()["n"] + amount}, if_version=records[id].version)
                        for id, amount in amounts
                    ]
                )

            await retry(storage, pair, move)

    async def read() -> None:
        former = 0
        while not done.is_set():
            few = await storage.get(COUNTERS, ids[:20])
            many = await storage.get(COUNTERS, ids)
            page = await storage.find(Query(COUNTERS, sort=("-n",), total=True))
            changes = await storage.changes(COUNTERS, 0, 100)
            assert len(few) == 20
            for found in many.values(), page.records:
                assert sum(record.decode()["n"] for record in found) == 4000
            assert page.total == 40
            assert former <= max(r.version for r in page.records) == page.version <= changes.store_version
            former = changes.store_version
            assert [c.version for c in changes.changes][-1] == changes.store_version
            await asyncio.sleep(0)

    done = asyncio.Event()
    readers = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.gather(*[transfer() for _ in range(20)])
    done.set()
    await asyncio.gather(*readers)
    assert sum((await counted(storage)).values()) == 4000


class Writers:
    """Commits of all kinds, by many at once; ``history`` is every change, made of what the commits answered."""

    def __init__(self, storage: Storage, seed: int) -> None:
        self.storage = storage
        self.rng = random.Random(seed)
        self.history: list[Change] = []

    async def run(self) -> None:
        await asyncio.gather(*[self._one(f"{writer}") for writer in range(20)])
        await self._commit([Put(KEPT, "last", {})], [["last"]])
        self.history.sort(key=lambda change: change.version)
        assert [change.version for change in self.history] == list(range(1, len(self.history) + 1))

    async def _one(self, name: str) -> None:
        """Fifteen commits on records of its own, so that it knows what its deletions do."""
        mine: dict[Collection, dict[str, int]] = {KEPT: {}, FORGOTTEN: {}}
        for n in range(15):
            collection = self.rng.choice([KEPT, FORGOTTEN])
            present = mine[collection]
            writes: list[Write] = []
            changed: list[list[str]] = []
            named = [f"{name}/{place}" for place in self.rng.sample(range(8), self.rng.randint(1, 4))]
            for id in named:
                if self.rng.random() < 0.3:
                    writes.append(Delete(collection, id))
                    changed.append([id] if present.pop(id, None) is not None else [])
                else:
                    writes.append(Put(collection, id, {"n": n, "by": name}))
                    changed.append([id])
                    present[id] = n
            if self.rng.random() < 0.2:
                old = (*starts_with(f"{name}/"), Filter("n", "<", n - 3))
                writes.append(DeleteWhere(Query(collection, old)))
                changed.append(sorted(id for id in present if present[id] < n - 3 and id not in named))
                for id in changed[-1]:
                    del present[id]
            await self._commit(writes, changed)
            await asyncio.sleep(0)  # a store in memory commits at once

    async def _commit(self, writes: list[Write], changed: list[list[str]]) -> None:
        done = await self.storage.commit(writes)
        assert done.counts == tuple(map(len, changed))
        for write, last, ids in zip(writes, done.versions, changed, strict=True):
            collection = write.query.collection if isinstance(write, DeleteWhere) else write.collection
            document = write.document if isinstance(write, Put) else None
            first = last - len(ids) + 1
            self.history += [Change(collection.name, id, first + at, document) for at, id in enumerate(ids)]

    def state(self, collection: Collection, version: int | None = None) -> State:
        """The documents of a collection as a version left them."""
        state: State = {}
        for change in self.history if version is None else self.history[:version]:
            if change.collection == collection.name:
                apply(state, change)
        return state


def apply(state: State, change: Change) -> None:
    if change.document is None:
        state.pop(change.id, None)
    else:
        state[change.id] = change.document


@pytest.mark.parametrize("collection", [KEPT, FORGOTTEN], ids=lambda collection: str(collection.name))
async def test_changes_polled_while_others_write_rebuild_the_store(storage: Storage, collection: Collection) -> None:
    writers = Writers(storage, 3)

    async def poll(limit: int) -> State:
        state: State = {}
        cursor = began = 0
        last = False
        while True:
            try:
                page = await storage.changes(collection, cursor, limit, began=began)
            except Gone:
                assert collection is FORGOTTEN
                state, cursor, began = {}, 0, 0
                continue
            began = began or page.store_version
            cursor = page.version
            for change in page.changes:
                apply(state, change)
            if not page.more:
                if last:
                    return state
                last = done.is_set()
            await asyncio.sleep(0)

    done = asyncio.Event()
    pollers = [asyncio.create_task(poll(limit)) for limit in (1, 7, 1000)]
    await writers.run()
    done.set()
    for copy in await asyncio.gather(*pollers):
        assert copy == writers.state(collection)
    floor = (await storage.changes(collection, 0, 1)).floor
    assert (floor > 0) == (collection is FORGOTTEN)
    for version in range(len(writers.history) + 1):
        if 0 < version < floor:
            with pytest.raises(Gone):
                await storage.changes(collection, version, 1)
        else:
            copy = writers.state(collection, version)
            for change in (await storage.changes(collection, version, 10_000)).changes:
                apply(copy, change)
            assert copy == writers.state(collection)


async def test_a_watch_tells_each_change_once_and_in_order_through_reconnects(storage: Storage) -> None:
    writers = Writers(storage, 4)

    async def follow(seed: int) -> list[Change]:
        rng = random.Random(seed)
        seen: list[Change] = []
        while not seen or seen[-1].id != "last":
            reconnect_at = len(seen) + rng.randint(1, 60)
            async with aclosing(storage.watch([FORGOTTEN, KEPT], seen[-1].version if seen else 0)) as changes:  # type: ignore[type-var]
                async for change in changes:
                    seen.append(change)
                    if change.id == "last" or len(seen) == reconnect_at:
                        break
        return seen

    watchers = [asyncio.create_task(follow(seed)) for seed in range(4)]
    await writers.run()
    for seen in await asyncio.wait_for(asyncio.gather(*watchers), SOON):
        assert seen == writers.history


async def test_a_watch_goes_on_where_it_was_when_the_store_is_opened_again(durable: BackEnd, tmp_path: Path) -> None:
    """However far it had come: what it missed, it is told the latest of."""
    async with durable.make(tmp_path / "store") as storage:
        await storage.declare(KEPT, FORGOTTEN)
        writers = Writers(storage, 5)
        await writers.run()
    async with durable.make(tmp_path / "store") as storage:
        again = Put(KEPT, "last", {"again": True})
        version = (await storage.commit([again])).version
        for after in range(0, version, 7):
            copy = writers.state(KEPT, after)
            async with aclosing(storage.watch([KEPT], after)) as changes:  # type: ignore[type-var]
                former = after
                async for change in changes:
                    assert former < change.version
                    former = change.version
                    apply(copy, change)
                    if change.version == version:
                        break
            assert copy == {**writers.state(KEPT), "last": again.document}


async def test_a_purge_goes_on_between_other_commits(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.storage.base._PURGE_CHUNK", 20)  # so many that one is seen, however slow we look
    ids = [f"{n:04}" for n in range(1700)]
    await storage.commit([Put(KEPT, id, {}) for id in ids])
    for what in Query(KEPT), Tombstones(KEPT, 10 * len(ids)):
        purge = asyncio.create_task(storage.purge(what))
        left = []
        while not purge.done():
            await storage.commit([Put(COUNTERS, "a", {})])
            changes = await storage.changes(KEPT, 0, 10_000)
            left.append(sum(change.deleted == isinstance(what, Tombstones) for change in changes.changes))
            await asyncio.sleep(0)
        assert await purge == len(ids)
        assert any(0 < count < len(ids) for count in left)
