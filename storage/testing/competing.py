"""Commits beside commits: unique values, and what becomes of many that arrive at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ..base import Storage
from ..errors import Conflict
from ..queries import Filter, Query
from ..records import ABSENT
from ..writes import Check, Commit, Delete, DeleteWhere, Put
from .contract import Contract, all_changes, at_once, ids, put


def email(address: str | None) -> dict[str, object]:
    return {"email": address}


class Competing(Contract):
    async def people_at(self, storage: Storage, **emails: str | None) -> None:
        await storage.commit([Put(self.people, id, email(address)) for id, address in emails.items()])

    async def test_a_unique_value_is_one_records(self, storage: Storage) -> None:
        await self.people_at(storage, a="x")
        with pytest.raises(Conflict) as caught:
            await storage.commit([Put(self.notes, "n", {}), Put(self.people, "b", {"number": 1, "email": "x"})])
        assert vars(caught.value) == {
            "index": 1,
            "collection": "people",
            "id": "b",
            "reason": "unique",
            "version": ABSENT,
            "field": "email",
        }
        await put(storage, self.people, "a", email="x", number=1)
        await put(storage, self.people, "b", email="y", number=2)
        with pytest.raises(Conflict) as caught:
            await storage.commit([Put(self.people, "b", {"email": "z", "number": 1})])
        assert (caught.value.field, caught.value.version) == ("number", ABSENT)
        assert (await storage.get(self.people, ["b"]))["b"].version == 3

    @pytest.mark.parametrize(
        ("documents", "fits"),
        [
            pytest.param([{}, {}], True, id="both miss it"),
            pytest.param([{"email": None}, {"email": None}, {}], True, id="null"),
            pytest.param([{"email": ""}, {}], True, id="empty and missing"),
            pytest.param([{"email": ""}, {"email": ""}], False, id="both empty"),
            pytest.param([{"email": "a"}, {"email": "A"}, {"email": "a "}], True, id="case and blanks count"),
            pytest.param([{"email": "é"}, {"email": "e\u0301"}], True, id="nothing is normalised"),
            pytest.param([{"email": "1"}, {"number": 1}], True, id="of two fields"),
            pytest.param([{"number": 5}, {"number": 5.0}], False, id="one integer written in two ways"),
            pytest.param([{"number": 2**63 - 1}, {"number": 2**63 - 2}], True, id="neighbours beyond a double"),
            pytest.param([{"number": -(2**63)}, {"number": -(2**63)}], False, id="the least integer"),
        ],
    )
    async def test_what_is_the_same_value(
        self, storage: Storage, documents: Sequence[dict[str, object]], fits: bool
    ) -> None:
        writes = [Put(self.people, str(number), document) for number, document in enumerate(documents)]
        assert [isinstance(o, Commit) for o in await at_once(storage, *[[w] for w in writes])] == [
            *[True] * (len(documents) - 1),
            fits,
        ]
        if fits:
            await storage.commit(writes)
        else:
            with pytest.raises(Conflict) as caught:
                await storage.commit(writes)
            assert (caught.value.index, caught.value.reason) == (len(writes) - 1, "unique")

    @pytest.mark.parametrize(
        ("after", "at_fault"),
        [
            pytest.param({"a": "y", "b": "x"}, None, id="swap"),
            pytest.param({"a": "y", "b": "z", "c": "x"}, None, id="rotate"),
            pytest.param({"c": "x", "a": "free"}, None, id="take before it is freed"),
            pytest.param({"a": "free", "c": "x"}, None, id="take after it is freed"),
            pytest.param({"a": None, "c": "x"}, None, id="freed by its loss"),
            pytest.param({"a": "x", "b": "y"}, None, id="keep"),
            pytest.param({"a": "y"}, 0, id="taken"),
            pytest.param({"c": "n", "a": "y", "b": "y"}, 1, id="taken and kept"),
            pytest.param({"c": "n", "d": "n"}, 1, id="given twice"),
            pytest.param({"a": "y", "b": "x", "c": "x"}, 2, id="swapped and taken"),
        ],
    )
    async def test_uniqueness_is_judged_on_the_state_after_the_commit(
        self, storage: Storage, after: dict[str, str | None], at_fault: int | None
    ) -> None:
        await self.people_at(storage, a="x", b="y")
        if at_fault is None:
            await self.people_at(storage, **after)
            found = await storage.get(self.people, list(after))
            assert {id: record.decode()["email"] for id, record in found.items()} == after
        else:
            with pytest.raises(Conflict) as caught:
                await self.people_at(storage, **after)
            assert (caught.value.index, caught.value.reason, caught.value.field) == (at_fault, "unique", "email")
            assert caught.value.id == list(after)[at_fault]

    async def test_a_deletion_frees_a_unique_value(self, storage: Storage) -> None:
        await self.people_at(storage, a="x", b="y", c="z")
        await storage.commit([Put(self.people, "d", email("x")), Delete(self.people, "a")])
        where = Query(self.people, (Filter("email", "in", ("y", "z")),))
        await storage.commit([Put(self.people, "e", email("y")), DeleteWhere(where), Put(self.people, "f", email("z"))])
        assert ids((await storage.find(Query(self.people, sort=("email",)))).records) == ["d", "e", "f"]

    # Many commits at once

    async def test_commits_take_effect_in_order_of_arrival(self, storage: Storage) -> None:
        commits = [[Put(self.items, f"{n}", {"n": n}), Put(self.items, "last", {"n": n})] for n in range(200)]
        assert await at_once(storage, *commits) == [
            Commit(2 * n + 2, (2 * n + 1, 2 * n + 2), (1, 1)) for n in range(200)
        ]
        assert (await storage.get(self.items, ["last"]))["last"].decode() == {"n": 199}

    async def test_of_two_that_exclude_each_other_the_first_wins(self, storage: Storage) -> None:
        await put(storage, self.notes, "a")
        first, *others = await at_once(
            storage, *[[Put(self.notes, "a", {"n": n}, if_version=1), Put(self.notes, f"{n}", {})] for n in range(50)]
        )
        assert first == Commit(3, (2, 3), (1, 1))
        for other in others:
            assert isinstance(other, Conflict)
            assert (other.index, other.reason, other.version) == (0, "version", 2)
        assert (await storage.get(self.notes, ["a"]))["a"].decode() == {"n": 0}
        assert await storage.count(Query(self.notes)) == 2

    async def test_a_commit_sees_those_before_it(self, storage: Storage) -> None:
        outcomes = await at_once(
            storage,
            [Put(self.items, "a", {}, if_version=ABSENT)],
            [Put(self.items, "a", {}, if_version=1)],
            [Check(self.items, "a", if_version=2)],
            [Delete(self.items, "a", if_version=2)],
            [Check(self.items, "a", if_version=ABSENT)],
            [Check(self.items, "a", if_version=2)],
            [Put(self.items, "a", {}, if_version=ABSENT)],
        )
        assert [o.version for o in outcomes] == [1, 2, 2, 3, 3, ABSENT, 4]
        assert [type(o) for o in outcomes] == [Commit, Commit, Commit, Commit, Commit, Conflict, Commit]

    @pytest.mark.parametrize(
        ("steps", "refused"),
        [
            pytest.param([{"c": "x"}, {"a": "free"}, {"c": "x"}], [0], id="freed between"),
            pytest.param([{"a": "y", "b": "x"}, {"c": "x"}, {"b": "z"}, {"c": "x"}], [1], id="swapped, then freed"),
            pytest.param([{"c": "n"}, {"d": "n"}, {"c": "m"}, {"d": "n"}, {"c": "n"}], [1, 4], id="passed on"),
            pytest.param([{"c": "n"}, {"d": "n", "c": "m"}, {"c": "n"}], [2], id="moved within"),
            pytest.param([{"c": "n", "a": "y"}, {"d": "n"}, {"e": "n"}], [0, 2], id="a refused commit gives nothing"),
            pytest.param([{"a": None}, {"c": "x"}, {"a": "x"}], [2], id="lost and taken"),
        ],
    )
    async def test_uniqueness_among_commits_at_once(
        self, storage: Storage, steps: list[dict[str, str | None]], refused: list[int]
    ) -> None:
        await self.people_at(storage, a="x", b="y")
        outcomes = await at_once(
            storage, *[[Put(self.people, id, email(address)) for id, address in step.items()] for step in steps]
        )
        assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Conflict)] == refused
        expected: dict[str, str | None] = {"a": "x", "b": "y"}
        for place, step in enumerate(steps):
            expected |= {} if place in refused else step
        found = (await storage.find(Query(self.people))).records
        assert {record.id: record.decode()["email"] for record in found} == dict(sorted(expected.items()))

    async def test_who_is_at_fault_among_commits_at_once(self, storage: Storage) -> None:
        await self.people_at(storage, a="x")
        freed = [Put(self.people, "a", email(None))]
        taken_twice = [Put(self.people, "b", email("x")), Put(self.people, "a", email("x"))]
        _, conflict = await at_once(storage, freed, taken_twice)
        assert isinstance(conflict, Conflict)
        assert (conflict.index, conflict.id, conflict.field) == (1, "a", "email")

    async def test_deletions_among_commits_at_once(self, storage: Storage) -> None:
        await self.people_at(storage, a="x")
        outcomes = await at_once(
            storage,
            [Delete(self.people, "a")],
            [Put(self.people, "b", email("x"))],
            [Delete(self.people, "b")],
            [Delete(self.people, "b")],
            [Put(self.people, "a", email("x"))],
            [Put(self.notes, "n", {})],
            [Delete(self.notes, "n")],
        )
        assert outcomes == [
            Commit(2, (2,), (1,)),
            Commit(3, (3,), (1,)),
            Commit(4, (4,), (1,)),
            Commit(4, (0,), (0,)),
            Commit(5, (5,), (1,)),
            Commit(6, (6,), (1,)),
            Commit(7, (7,), (1,)),
        ]
        people = await all_changes(storage, self.people)
        assert [(c.id, c.version, c.deleted) for c in people.changes] == [("b", 4, True), ("a", 5, False)]
        assert (await all_changes(storage, self.notes)).floor == 7

    async def test_a_cancelled_committer_harms_no_other(self, storage: Storage) -> None:
        tasks = [asyncio.create_task(put(storage, self.notes, f"{n}")) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, Commit) for outcome in outcomes[1::2])
        done = {f"{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, Commit)}
        await put(storage, self.notes, "after")
        assert done | {"after"} <= set(ids((await storage.find(Query(self.notes))).records))

    async def test_big_commits_at_once(self, storage: Storage) -> None:
        text = "x" * (1 << 20)
        writes = [[Put(self.notes, f"{n}/{m}", {"n": n, "text": text}) for m in range(2)] for n in range(6)]
        assert [o.version for o in await at_once(storage, *writes)] == [2, 4, 6, 8, 10, 12]
        found = await storage.get(self.notes, [f"{n}/{m}" for n in range(6) for m in range(2)])
        assert {id: record.decode()["n"] for id, record in found.items()} == {
            f"{n}/{m}": n for n in range(6) for m in range(2)
        }

    async def test_a_big_commit(self, storage: Storage) -> None:
        many = [f"{n:04}" for n in range(3000)]
        done = await storage.commit([Put(self.indexed, id, {"n": int(id), "t": "x"}) for id in many])
        assert done == Commit(3000, tuple(range(1, 3001)), (1,) * 3000)
        assert await storage.count(Query(self.indexed, (Filter("n", ">=", 1000),))) == 2000
        done = await storage.commit([Delete(self.indexed, id) for id in many])
        assert done == Commit(6000, tuple(range(3001, 6001)), (1,) * 3000)
        assert ids((await all_changes(storage, self.indexed)).changes) == many
