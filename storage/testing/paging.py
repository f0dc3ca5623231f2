"""find and count: order, pages by cursor and by offset, totals, ranks."""

from __future__ import annotations

import pytest

from ..base import Storage
from ..errors import InvalidQuery
from ..queries import Filter, Page, Query
from ..records import Record
from ..writes import Delete, Put
from .contract import Contract, ids, put
from .rows import BOTH, matches, ordered, pages, rows_of, value_of

ORDERS = [
    (),
    ("id",),
    ("-id",),
    *[(name,) for name in ("n", "t", "b", "d", "at")],
    *[(f"-{name}",) for name in ("n", "t", "b", "d", "at")],
    *[("n", "-id"), ("-n", "-id"), ("-n", "id"), ("n", "id", "t"), ("n", "-n")],
    *[("b", "n"), ("b", "-n"), ("-b", "n"), ("-b", "-n", "-t", "at")],
    *[("t", "-d", "n"), ("-at", "b"), ("d", "-b", "-id")],
]
WHERES: dict[str, tuple[Filter, ...]] = {
    "all": (),
    "equal": (Filter("n", "==", 1),),
    "range": (Filter("n", ">", 1),),
    "another field": (Filter("b", "==", True),),
    "in": (Filter("n", "in", (1, 3, None)),),
}


class Paging(Contract):
    @BOTH
    @pytest.mark.parametrize("sort", [pytest.param(sort, id=",".join(sort) or "none") for sort in ORDERS])
    async def test_order_and_pages(self, storage: Storage, kind: str, sort: tuple[str, ...]) -> None:
        collection = self.of(kind)
        rows = rows_of(collection)
        await storage.commit(rows)
        for name, where in WHERES.items():
            expected = ids(ordered((row for row in rows if matches(row, where)), sort))
            query = Query(collection, where, sort)
            assert ids((await storage.find(query)).records) == expected, name
            for limit in 1, 3:
                by_cursor = await pages(storage, Query(collection, where, sort, limit))
                assert by_cursor == [expected[i : i + limit] for i in range(0, len(expected), limit)], name
            for offset in 1, 4, 10, 99:
                page = await storage.find(Query(collection, where, sort, limit=2, offset=offset))
                assert ids(page.records) == expected[offset : offset + 2], name
                assert (page.next is None) == (offset + 2 >= len(expected))

    @BOTH
    async def test_a_page_is_full_at_the_end(self, storage: Storage, kind: str) -> None:
        collection = self.of(kind)
        await storage.commit(rows_of(collection))
        for limit, more in (9, True), (10, False), (11, False), (2**53 - 1, False):
            page = await storage.find(Query(collection, sort=("n",), limit=limit))
            assert (len(page.records), page.next is not None) == (min(limit, 10), more)
        assert ids((await storage.find(Query(collection, offset=2**53 - 1, limit=1))).records) == []

    async def test_an_empty_page(self, storage: Storage) -> None:
        assert await storage.find(Query(self.items, total=True, rank=True)) == Page((), None, 0, 0, None)
        await put(storage, self.notes, "a")
        empty = Query(self.items, (Filter("n", ">", 1),), ("n",), limit=1)
        assert await storage.find(empty) == Page((), None, 1, None, None)
        assert await storage.count(empty) == 0

    async def test_a_page_is_of_one_version(self, storage: Storage) -> None:
        await storage.commit(rows_of(self.items))
        await put(storage, self.notes, "a")
        page = await storage.find(Query(self.items, limit=1))
        assert page == Page((Record("a", 2, rows_of(self.items)[1].document),), page.next, 11)

    @BOTH
    @pytest.mark.parametrize("sort", [("id",), ("n",), ("-n",), ("-n", "-id"), ("b", "-n"), ("-b", "t")])
    async def test_a_cursor_holds_its_place(self, storage: Storage, kind: str, sort: tuple[str, ...]) -> None:
        collection = self.of(kind)
        rows = {row.id: row for row in rows_of(collection)}
        for limit in range(1, 10):
            await storage.commit(list(rows.values()))
            first = await storage.find(Query(collection, sort=sort, limit=limit))
            last = rows[first.records[-1].id]
            # The record at the cursor goes, others come before and behind it.
            twins = [Put(collection, last.id + suffix, last.document) for suffix in ("0", "1")]
            before = Put(collection, "\x01", {"n": -5})
            await storage.commit([Delete(collection, last.id), *twins, before])
            present = [row for row in rows.values() if row is not last] + [*twins, before]
            expected = ids(ordered([*present, last], sort))
            rest = await storage.find(Query(collection, sort=sort, after=first.next))
            assert ids(rest.records) == expected[expected.index(last.id) + 1 :]
            await storage.commit([Delete(collection, row.id) for row in present])

    async def test_a_record_that_moves_is_found_where_it_is(self, storage: Storage) -> None:
        for id, n in ("a", 1), ("b", 2), ("c", 3):
            await put(storage, self.indexed, id, n=n)
        first = await storage.find(Query(self.indexed, sort=("n",), limit=2))
        await put(storage, self.indexed, "a", n=4)
        await put(storage, self.indexed, "c", n=0)
        rest = await storage.find(Query(self.indexed, sort=("n",), after=first.next))
        assert ids(rest.records) == ["a"]

    @BOTH
    async def test_another_orders_cursor_is_refused(self, storage: Storage, kind: str) -> None:
        await storage.commit(rows_of(self.of(kind)))
        cursor = (await storage.find(Query(self.of(kind), sort=("n",), limit=1))).next
        for sort in (), ("-n",), ("d",), ("n", "-id"), ("n", "t"):
            with pytest.raises(InvalidQuery, match="cursor"):
                await storage.find(Query(self.of(kind), sort=sort, after=cursor))

    @BOTH
    @pytest.mark.parametrize("sort", [(), ("n",), ("-n",), ("-n", "t"), ("-d",), ("b",), ("-t",), ("-id",)])
    async def test_total_and_rank(self, storage: Storage, kind: str, sort: tuple[str, ...]) -> None:
        collection = self.of(kind)
        await storage.commit(rows_of(collection))
        lead, key = (sort or ("id",))[0], (sort or ("id",))[0].lstrip("-")
        for where in WHERES.values():
            present = ordered((row for row in rows_of(collection) if matches(row, where)), sort)
            by_lead = [value_of(row, key) for row in ordered(present, [lead])]
            for offset, first in enumerate(present):
                page = await storage.find(Query(collection, where, sort, 1, offset=offset, total=True, rank=True))
                assert ids(page.records) == [first.id]
                assert (page.total, page.rank) == (len(present), 1 + by_lead.index(value_of(first, key)))
                if page.next is not None:
                    page = await storage.find(Query(collection, where, sort, 1, page.next, total=True, rank=True))
                    place = by_lead.index(value_of(present[offset + 1], key))
                    assert (page.total, page.rank) == (len(present), 1 + place)

    async def test_count_disregards_paging(self, storage: Storage) -> None:
        await storage.commit(rows_of(self.items))
        cursor = (await storage.find(Query(self.items, limit=3))).next
        assert await storage.count(Query(self.items, limit=1, offset=5)) == 10
        assert await storage.count(Query(self.items, limit=1, after=cursor)) == 10
