"""changes and purge: what happened since a version, and what is forgotten of it."""

from __future__ import annotations

import pytest

from ..base import Storage
from ..errors import Gone
from ..queries import Filter, Query, Tombstones, starts_with
from ..records import Change, Changes
from ..writes import Commit, Delete, DeleteWhere
from .contract import Contract, all_changes, everything, ids, put


def versions(changes: Changes) -> list[int]:
    return [change.version for change in changes.changes]


class Changing(Contract):
    async def test_changes_come_in_order_and_each_record_once(self, storage: Storage) -> None:
        assert await storage.changes(self.items, 0, 10) == Changes((), 0, False, 0, 0)
        await put(storage, self.items, "a", "b", t="1")
        await put(storage, self.notes, "a")
        await put(storage, self.items, "a", t="2")
        await storage.commit([Delete(self.items, "b")])
        assert await storage.changes(self.items, 0, 10) == Changes(
            (Change("items", "a", 4, b'{"t":"2"}'), Change("items", "b", 5, None)), 5, False, 5, 0
        )
        assert await storage.changes(self.notes, 0, 10) == Changes((Change("notes", "a", 3, b"{}"),), 5, False, 5, 0)
        assert versions(await storage.changes(self.items, 4, 10)) == [5]
        assert await storage.changes(self.items, 5, 10) == Changes((), 5, False, 5, 0)

    async def test_pages_of_changes(self, storage: Storage) -> None:
        await put(storage, self.items, *"abcdef")
        await storage.commit([Delete(self.items, "b"), Delete(self.items, "e")])
        await put(storage, self.notes, "a")
        expected = [1, 3, 4, 6, 7, 8]
        for limit in 1, 2, 3, 5, 6, 7, 2**53 - 1:
            seen: list[int] = []
            cursor, more = 0, True
            while more:
                page = await storage.changes(self.items, cursor, limit)
                assert len(page.changes) <= limit
                seen += versions(page)
                cursor, more = page.version, page.more
                assert cursor == (seen[-1] if more else 9)
                assert (page.store_version, page.floor) == (9, 0)
            assert seen == expected

    async def test_changes_between_pages(self, storage: Storage) -> None:
        await put(storage, self.items, *"abcd")
        page = await storage.changes(self.items, 0, 2)
        assert (ids(page.changes), page.version, page.more) == (["a", "b"], 2, True)
        await put(storage, self.items, "c")
        await storage.commit([Delete(self.items, "a")])
        page = await storage.changes(self.items, page.version, 2)
        assert ([(c.id, c.version) for c in page.changes], page.version, page.more) == ([("d", 4), ("c", 5)], 5, True)
        page = await storage.changes(self.items, page.version, 2)
        assert ([(c.id, c.deleted) for c in page.changes], page.version, page.more) == ([("a", True)], 6, False)

    async def test_a_record_that_returns_has_no_tombstone(self, storage: Storage) -> None:
        await put(storage, self.items, "a", "b")
        await storage.commit([Delete(self.items, "a")])
        await put(storage, self.items, "a")
        assert [(c.id, c.version, c.deleted) for c in (await all_changes(storage, self.items)).changes] == [
            ("b", 2, False),
            ("a", 4, False),
        ]
        await storage.commit([Delete(self.items, "a")])
        assert [(c.id, c.version, c.deleted) for c in (await all_changes(storage, self.items)).changes] == [
            ("b", 2, False),
            ("a", 5, True),
        ]

    async def test_what_is_not_there_leaves_no_tombstone(self, storage: Storage) -> None:
        await storage.commit([Delete(self.items, "a"), DeleteWhere(Query(self.items))])
        assert (await all_changes(storage, self.items)).changes == ()

    @pytest.mark.parametrize("after", [3, 2**31, 2**63 - 1, 2**63, 2**70])
    async def test_a_version_never_reached_is_gone(self, storage: Storage, after: int) -> None:
        await put(storage, self.items, "a", "b")
        with pytest.raises(Gone):
            await storage.changes(self.items, after, 10)

    async def test_deletions_that_are_not_remembered_raise_the_floor(self, storage: Storage) -> None:
        await put(storage, self.notes, "a", "b", "c")
        await storage.commit([Delete(self.notes, "a"), Delete(self.notes, "b")])
        await put(storage, self.notes, "d")
        for after in 1, 3, 4:
            with pytest.raises(Gone):
                await storage.changes(self.notes, after, 10)
        for after in 0, 5, 6:
            page = await storage.changes(self.notes, after, 10)
            assert versions(page) == [version for version in (3, 6) if version > after]
            assert (page.floor, page.store_version) == (5, 6)
        assert (await all_changes(storage, self.items)).floor == 0
        await storage.commit([DeleteWhere(Query(self.notes))])
        assert (await all_changes(storage, self.notes)).floor == 8

    async def test_a_reader_that_began_later_misses_no_deletion(self, storage: Storage) -> None:
        await put(storage, self.notes, *"abcd")
        await storage.commit([Delete(self.notes, "a")])
        page = await storage.changes(self.notes, 0, 1)
        assert (ids(page.changes), page.version, page.more) == (["b"], 2, True)
        with pytest.raises(Gone):
            await storage.changes(self.notes, 2, 10)
        with pytest.raises(Gone):
            await storage.changes(self.notes, 2, 10, began=4)
        page = await storage.changes(self.notes, 2, 10, began=page.store_version)
        assert (ids(page.changes), page.more) == (["c", "d"], False)
        await storage.commit([Delete(self.notes, "b")])
        with pytest.raises(Gone):
            await storage.changes(self.notes, 2, 10, began=5)

    # Purging

    async def test_purge_removes_what_matches(self, storage: Storage) -> None:
        await put(storage, self.items, "a", "c", "e", n=1)
        await put(storage, self.items, "b", "d", n=2)
        assert await storage.purge(Query(self.items, (Filter("n", "==", 1),))) == 3
        assert [(c.id, c.version, c.deleted) for c in (await all_changes(storage, self.items)).changes] == [
            ("b", 4, False),
            ("d", 5, False),
            ("a", 6, True),
            ("c", 7, True),
            ("e", 8, True),
        ]
        assert await storage.purge(Query(self.items, (Filter("n", "==", 1),))) == 0
        assert await storage.commit([]) == Commit(8, (), ())

    async def test_purge_disregards_paging(self, storage: Storage) -> None:
        await put(storage, self.notes, *"abcde")
        cursor = (await storage.find(Query(self.notes, sort=("-id",), limit=1))).next
        assert await storage.purge(Query(self.notes, starts_with("c"), limit=1, offset=1)) == 1
        assert await storage.purge(Query(self.notes, sort=("-id",), limit=1, after=cursor)) == 4
        assert (await all_changes(storage, self.notes)).floor == 10

    async def test_purge_of_many(self, storage: Storage) -> None:
        many = [f"{n:04}" for n in range(1700)]
        await put(storage, self.items, *many)
        await put(storage, self.items, "kept", n=1)
        assert await storage.purge(Query(self.items, (Filter("n", "==", None),))) == 1700
        changes = await all_changes(storage, self.items)
        assert ids(changes.changes) == ["kept", *many]
        assert await storage.purge(Tombstones(self.items, changes.store_version)) == 1700
        assert (await all_changes(storage, self.items)).floor == changes.store_version

    async def test_purge_of_tombstones(self, storage: Storage) -> None:
        await put(storage, self.items, *"abcd")
        await storage.commit([Delete(self.items, "c"), Delete(self.items, "a"), Delete(self.items, "b")])
        other = self.people
        await put(storage, other, "x")
        await storage.commit([Delete(other, "x")])
        assert await storage.purge(Tombstones(self.items, 4)) == 0
        assert (await all_changes(storage, self.items)).floor == 0
        assert await storage.purge(Tombstones(self.items, 6)) == 2
        after = await all_changes(storage, self.items)
        assert [(c.id, c.version) for c in after.changes] == [("d", 4), ("b", 7)]
        assert (after.floor, after.store_version) == (6, 9)
        with pytest.raises(Gone):
            await storage.changes(self.items, 5, 10)
        assert versions(await storage.changes(self.items, 6, 10)) == [7]
        assert await storage.purge(Tombstones(self.items, 6)) == 0
        assert await storage.purge(Tombstones(self.items, 2**70)) == 1
        assert (await all_changes(storage, self.items)).floor == 7
        assert [c.deleted for c in (await all_changes(storage, other)).changes] == [True]
        assert await storage.purge(Tombstones(self.notes, 9)) == 0

    async def test_a_purged_tombstone_stays_purged(self, storage: Storage) -> None:
        await put(storage, self.items, "a")
        await storage.commit([Delete(self.items, "a")])
        await storage.purge(Tombstones(self.items, 2))
        await put(storage, self.items, "a")
        await storage.commit([Delete(self.items, "a")])
        changes = await all_changes(storage, self.items)
        assert ([(c.id, c.version) for c in changes.changes], changes.floor) == ([("a", 4)], 2)

    async def test_nothing_else_is_purged(self, storage: Storage) -> None:
        for collection in self.collections:
            await put(storage, collection, "a")
        before = await everything(storage, self.notes, self.indexed, self.people)
        assert await storage.purge(Query(self.items)) == 1
        after = await everything(storage, self.notes, self.indexed, self.people)
        assert [page.changes for page in after] == [page.changes for page in before]
        assert [page.floor for page in after] == [0, 0, 0]
