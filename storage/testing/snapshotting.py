"""snapshot: all of a store at one version, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from ..base import Storage
from ..errors import StorageUnavailable
from ..queries import Tombstones
from ..records import Change, Floor
from ..snapshots import Snapshot
from ..writes import Delete, Put
from .contract import Contract, everything, put


async def contents(snapshot: Snapshot) -> dict[str, tuple[list[Change], int]]:
    """By collection, the changes in order of version, and the floor."""
    changes: dict[str, list[Change]] = {collection.name: [] for collection in snapshot.collections}
    floors = dict.fromkeys(changes, 0)
    async for change in snapshot.changes:
        if isinstance(change, Floor):
            floors[change.collection] = change.version
        else:
            changes[change.collection].append(change)
    return {name: (sorted(changes[name], key=lambda change: change.version), floors[name]) for name in changes}


class Snapshotting(Contract):
    async def test_a_snapshot_has_everything(self, storage: Storage) -> None:
        await put(storage, self.items, *[f"{n:04}" for n in range(250)], n=1)
        await put(storage, self.items, "0007", n=2)
        await put(storage, self.people, "b", email="b", number=2**63 - 1)
        await put(storage, self.notes, *"abc")
        await storage.commit([Delete(self.notes, "b"), *[Delete(self.items, f"{n:04}") for n in range(5)]])
        await storage.purge(Tombstones(self.items, 257))
        pages = await everything(storage, *self.collections)
        async with storage.snapshot() as snapshot:
            assert snapshot.version == pages[0].store_version
            assert {c.name: c for c in snapshot.collections} == {c.name: c for c in self.collections}
            found = await contents(snapshot)
        expected = zip(self.collections, pages, strict=True)
        assert found == {collection.name: ([*page.changes], page.floor) for collection, page in expected}

    async def test_a_snapshot_of_nothing(self, storage: Storage) -> None:
        async with storage.snapshot() as snapshot:
            assert snapshot.version == 0
            assert await contents(snapshot) == {collection.name: ([], 0) for collection in self.collections}

    async def test_a_snapshot_before_anything_is_declared(self, path: Path) -> None:
        async with self.make(path) as storage, storage.snapshot() as snapshot:
            assert (snapshot.version, snapshot.collections) == (0, ())
            assert await contents(snapshot) == {}

    async def test_a_snapshot_is_one_version(self, storage: Storage) -> None:
        """Commits move a record of each collection; a store that cannot do both says so."""
        for n in range(300):
            await storage.commit([Put(self.items, f"{n:04}", {"n": 0}), Put(self.notes, f"{n:04}", {"n": 0})])

        async def write() -> None:
            n = 0
            while True:
                n += 1
                id = f"{n * 7 % 300:04}"
                await storage.commit([Put(self.items, id, {"n": n}), Put(self.notes, id, {"n": n})])
                await storage.commit([Delete(self.notes, "0001"), Delete(self.items, "0001")])
                await storage.purge(Tombstones(self.items, 10_000))
                await asyncio.sleep(0)

        writer = asyncio.create_task(write())
        try:
            for _ in range(5):
                await asyncio.sleep(0.01)
                try:
                    async with storage.snapshot() as snapshot:
                        found = await contents(snapshot)
                except StorageUnavailable as error:
                    assert "written to" in str(error)  # noqa: PT017 - it need not be raised
                    continue
                items, notes = (
                    {change.id: change.document for change in found[name][0] if not change.deleted}
                    for name in ("items", "notes")
                )
                assert items == notes
                reached = [at for changes, floor in found.values() for at in (floor, *[c.version for c in changes])]
                assert max(reached) == snapshot.version
        finally:
            writer.cancel()
            await asyncio.wait([writer])

    async def test_a_snapshot_ends_with_its_context(self, storage: Storage, path: Path) -> None:
        await put(storage, self.items, *[f"{n:04}" for n in range(300)])
        async with storage.snapshot() as snapshot:
            await anext(snapshot.changes)
        await put(storage, self.items, "more")
        async with storage.snapshot() as snapshot:
            assert len((await contents(snapshot))["items"][0]) == 301

    async def test_a_store_that_is_closed_meanwhile(self, storage: Storage) -> None:
        await put(storage, self.items, *[f"{n:04}" for n in range(3000)], t="x" * 300)
        async with storage.snapshot() as snapshot:
            await storage.close()
            with suppress(StorageUnavailable):
                assert len((await contents(snapshot))["items"][0]) == 3000
        with pytest.raises(StorageUnavailable):
            async with storage.snapshot():
                pass
