"""commit: all or nothing, versions to the letter, preconditions, what a query deletes."""

from __future__ import annotations

from typing import Any

import pytest

from ..base import Storage
from ..errors import Conflict, InvalidQuery
from ..queries import Filter, Query, starts_with
from ..records import ABSENT, Collection
from ..writes import Check, Commit, Delete, DeleteWhere, Put, Write
from .contract import Contract, all_changes, at_once, everything, ids, put

NOTHING = Collection("nothing")
FAR = 2**70
"""A version beyond 64 bits."""

# A write of a record that is absent (None) or at a version, its precondition, whether it holds.
PRECONDITIONS = [
    pytest.param(kind, version, if_version, holds, id=f"{kind.__name__}-{name}")
    for kind in (Put, Delete, Check)
    for version, if_version, holds, name in [
        (None, None, True, "absent-any"),
        (None, ABSENT, True, "absent-absent"),
        (None, 1, False, "absent-some version"),
        (None, FAR, False, "absent-far version"),
        (2, None, True, "there-any"),
        (2, 2, True, "there-its version"),
        (2, ABSENT, False, "there-absent"),
        (2, 1, False, "there-former version"),
        (2, 3, False, "there-later version"),
        (2, FAR, False, "there-far version"),
        (2, -1, False, "there-negative version"),
    ]
    if kind is not Check or if_version is not None
]


def email(address: str | None) -> dict[str, object]:
    return {"email": address}


class Committing(Contract):
    async def test_a_commit_of_n_writes_takes_n_versions(self, storage: Storage) -> None:
        a, b, c = (Put(self.items, id, {}) for id in "abc")
        assert await storage.commit([a]) == Commit(1, (1,), (1,))
        assert await storage.commit([a, b, c]) == Commit(4, (2, 3, 4), (1, 1, 1))
        done = await storage.commit(
            [
                Delete(self.items, "b"),
                Check(self.items, "c", if_version=4),
                Delete(self.items, "none"),
                Put(self.notes, "b", {}),
                Delete(self.items, "a", if_version=2),
            ]
        )
        assert done == Commit(7, (5, 0, 0, 6, 7), (1, 0, 0, 1, 1))
        assert (await all_changes(storage, self.items)).store_version == 7
        assert {r.id: r.version for r in (await storage.find(Query(self.items))).records} == {"c": 4}

    async def test_a_commit_of_nothing(self, storage: Storage) -> None:
        assert await storage.commit([]) == Commit(0, (), ())
        await put(storage, self.notes, "a")
        assert await storage.commit([]) == Commit(1, (), ())
        assert await storage.commit([Delete(self.notes, "none")]) == Commit(1, (0,), (0,))
        assert await storage.commit([Check(self.notes, "a", if_version=1)]) == Commit(1, (0,), (0,))

    async def test_a_write_of_the_same_document_is_a_write(self, storage: Storage) -> None:
        await put(storage, self.notes, "a")
        assert await put(storage, self.notes, "a") == Commit(2, (2,), (1,))
        assert [(c.id, c.version) for c in (await all_changes(storage, self.notes)).changes] == [("a", 2)]

    async def test_a_record_carries_the_version_that_wrote_it_last(self, storage: Storage) -> None:
        await put(storage, self.notes, "a", "b")
        await put(storage, self.notes, "a")
        assert {id: r.version for id, r in (await storage.get(self.notes, ["a", "b"])).items()} == {"a": 3, "b": 2}

    @pytest.mark.parametrize(("kind", "version", "if_version", "holds"), PRECONDITIONS)
    async def test_preconditions(
        self,
        storage: Storage,
        kind: type[Put | Delete | Check],
        version: int | None,
        if_version: int | None,
        holds: bool,
    ) -> None:
        await put(storage, self.items, "other")
        if version is not None:
            await put(storage, self.items, "a", t="before")
        before = await everything(storage, *self.collections)
        write: Write
        if kind is Put:
            write = Put(self.items, "a", {"t": "after"}, if_version)
        elif kind is Delete:
            write = Delete(self.items, "a", if_version)
        else:
            assert if_version is not None
            write = Check(self.items, "a", if_version)
        if holds:
            done = await storage.commit([write])
            changed = 0 if kind is Check or (kind is Delete and version is None) else 1
            assert done.counts == (changed,)
            assert done.versions == (done.version * changed,)
            return
        with pytest.raises(Conflict) as caught:
            await storage.commit([Put(self.items, "other", {"t": "after"}), write])
        assert vars(caught.value) == {
            "index": 1,
            "collection": "items",
            "id": "a",
            "reason": "version",
            "version": version or ABSENT,
            "field": None,
        }
        assert await everything(storage, *self.collections) == before

    async def test_a_deleted_record_is_absent(self, storage: Storage) -> None:
        for collection in self.items, self.notes:
            await put(storage, collection, "a")
            await storage.commit([Delete(collection, "a")])
            with pytest.raises(Conflict) as caught:
                await storage.commit([Delete(collection, "a", if_version=1)])
            assert caught.value.version == ABSENT
            await storage.commit([Put(collection, "a", {}, if_version=ABSENT)])

    async def test_the_first_write_at_fault_is_named(self, storage: Storage) -> None:
        await put(storage, self.people, "a", email="x")
        writes: list[Write] = [
            Put(self.people, "b", email("x")),
            Check(self.people, "a", if_version=1),
            Delete(self.people, "c", if_version=7),
            Check(self.people, "a", if_version=8),
        ]
        with pytest.raises(Conflict) as caught:
            await storage.commit(writes)
        assert (caught.value.index, caught.value.id, caught.value.reason) == (2, "c", "version")

    async def test_a_refused_commit_leaves_no_trace(self, storage: Storage) -> None:
        await put(storage, self.people, "a", email="x")
        await put(storage, self.items, "old", "kept")
        before = await everything(storage, *self.collections)
        with pytest.raises(Conflict):
            await storage.commit(
                [
                    Put(self.items, "new", {}),
                    Delete(self.items, "old"),
                    DeleteWhere(Query(self.items)),
                    Put(self.people, "b", email("y")),
                    Put(self.people, "c", email("x")),
                ]
            )
        assert await everything(storage, *self.collections) == before
        assert await storage.commit([Put(self.people, "b", email("y"))]) == Commit(4, (4,), (1,))

    @pytest.mark.parametrize("first", ["put", "delete"])
    @pytest.mark.parametrize("second", ["put", "delete"])
    async def test_a_commit_names_an_id_once(self, storage: Storage, first: str, second: str) -> None:
        kinds: dict[str, Write] = {"put": Put(self.notes, "a", {}), "delete": Delete(self.notes, "a")}
        with pytest.raises(ValueError, match="notes/a"):
            await storage.commit([kinds[first], Put(self.notes, "b", {}), kinds[second]])
        assert await storage.count(Query(self.notes)) == 0
        assert (await storage.commit([])).version == 0

    # DeleteWhere

    async def test_delete_where(self, storage: Storage) -> None:
        for id, n in ("c", 1), ("a", 1), ("d", 2), ("b", 1):
            await put(storage, self.items, id, n=n)
        done = await storage.commit(
            [
                Put(self.notes, "first", {}),
                DeleteWhere(Query(self.items, (Filter("n", "==", 1),))),
                Put(self.notes, "last", {}),
            ]
        )
        assert done == Commit(9, (5, 8, 9), (1, 3, 1))
        changes = await all_changes(storage, self.items)
        assert [(c.id, c.version, c.deleted) for c in changes.changes] == [
            ("d", 3, False),
            ("a", 6, True),  # in order of id
            ("b", 7, True),
            ("c", 8, True),
        ]

    async def test_delete_where_nothing_matches(self, storage: Storage) -> None:
        await put(storage, self.items, "a")
        assert await storage.commit([DeleteWhere(Query(self.items, starts_with("b")))]) == Commit(1, (0,), (0,))
        assert await storage.commit([DeleteWhere(Query(self.notes))]) == Commit(1, (0,), (0,))

    async def test_delete_where_spares_what_the_commit_names(self, storage: Storage) -> None:
        await put(storage, self.items, *"abcd")
        done = await storage.commit(
            [
                Put(self.items, "a", {"t": "new"}),
                DeleteWhere(Query(self.items)),
                Delete(self.items, "b"),
                Put(self.items, "e", {}),
            ]
        )
        assert done == Commit(9, (5, 7, 8, 9), (1, 2, 1, 1))
        assert {r.id: r.version for r in (await storage.find(Query(self.items))).records} == {"a": 5, "e": 9}

    async def test_delete_where_has_a_limit(self, storage: Storage) -> None:
        await put(storage, self.items, *"cabd")
        done = await storage.commit([DeleteWhere(Query(self.items, limit=2))])
        assert done == Commit(6, (6,), (2,))
        assert ids((await storage.find(Query(self.items))).records) == ["c", "d"]

    @pytest.mark.parametrize(
        "paging",
        [{"sort": ("-id",)}, {"sort": ("n",), "limit": 1}, {"offset": 1}, {"after": Query(NOTHING).cursor(["a"])}],
    )
    async def test_delete_where_has_no_other_paging(self, storage: Storage, paging: dict[str, Any]) -> None:
        """What seems to keep the newest ones must not delete all."""
        await put(storage, self.items, *"ab")
        with pytest.raises(InvalidQuery, match="DeleteWhere has no order, offset or cursor"):
            await storage.commit([DeleteWhere(Query(self.items, **paging))])
        assert await storage.count(Query(self.items)) == 2

    async def test_delete_where_is_judged_on_the_state_before(self, storage: Storage) -> None:
        await put(storage, self.items, "a", n=1)
        await put(storage, self.items, "b", n=1)
        one = DeleteWhere(Query(self.items, (Filter("n", "==", 1),)))
        two = DeleteWhere(Query(self.items, (Filter("n", "==", 2),)))
        done = await storage.commit([Put(self.items, "c", {"n": 2}), one, two, one])
        assert done == Commit(5, (3, 5, 0, 0), (1, 2, 0, 0))
        assert ids((await storage.find(Query(self.items))).records) == ["c"]

    async def test_delete_where_sees_what_was_committed_just_before(self, storage: Storage) -> None:
        outcomes = await at_once(
            storage,
            [Put(self.items, "a", {"n": 1})],
            [DeleteWhere(Query(self.items, (Filter("n", "==", 1),)))],
            [Put(self.items, "a", {"n": 1}, if_version=ABSENT)],
            [Put(self.items, "b", {"n": 1})],
            [DeleteWhere(Query(self.items, (Filter("n", "==", 1),)))],
        )
        assert [outcome.counts for outcome in outcomes if isinstance(outcome, Commit)] == [
            (1,),
            (1,),
            (1,),
            (1,),
            (2,),
        ]
