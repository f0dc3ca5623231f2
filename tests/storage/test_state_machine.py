"""A back end and a model of dicts side by side: whatever is done to both, they answer alike, to the letter."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from homeport.storage import (
    Changes,
    Collection,
    Conflict,
    Gone,
    Put,
    Query,
    Storage,
    StorageError,
    StorageUnavailable,
    Tombstones,
)
from homeport.storage.testing.watching import Watcher

from .choices import DECLARATIONS, IDS, Choices
from .conftest import BackEnd
from .stranger.dictstore import DictStorage, Shelf

T = TypeVar("T")

SEEDS = st.integers(0, 2**32 - 1)
"""Hypothesis decides what is done and when, a seed the details: drawn one by one they would use up an example."""
MARKS = Collection("marks")


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


async def every_page(storage: Storage, collection: Collection, after: int, limit: int, began: int) -> list[Changes]:
    pages = [await storage.changes(collection, after, limit, began=began)]
    while pages[-1].more:
        pages.append(await storage.changes(collection, pages[-1].version, limit, began=began))
    return pages


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

    def choose(self, seed: int) -> Choices:
        return Choices(seed, self.shelf, self.declared)

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
            self.what_was_watched()
        finally:
            self.run(self._close())
            self.runner.close()
            self.folder.cleanup()

    # What is done

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.commit(seed)

    @rule(seed=SEEDS)
    def commit(self, seed: int) -> None:
        for turn in range(5):
            (writes,) = self.choose(seed + turn).commits(1)
            note(f"{writes}")
            self.alike(lambda storage, writes=writes: storage.commit(writes))  # type: ignore[misc]  # a lambda's default

    @rule(seed=SEEDS)
    def commit_many_at_once(self, seed: int) -> None:
        batch = self.choose(seed).commits(5)
        note(f"{batch}")

        async def both() -> None:
            expected = [await told(self.model.commit(writes)) for writes in batch]
            assert await asyncio.gather(*[told(self.real.commit(writes)) for writes in batch]) == expected

        self.run(both())

    @rule(seed=SEEDS, of_tombstones=st.booleans())
    def purge(self, seed: int, of_tombstones: bool) -> None:
        choose = self.choose(seed)
        collection = choose.collection()
        query, tombstones = Query(collection, choose.where(collection)), Tombstones(collection, choose.version())
        what = tombstones if of_tombstones else query
        note(f"{what}")
        self.alike(lambda storage: storage.purge(what))

    @rule(seed=SEEDS)
    def declare_otherwise(self, seed: int) -> None:
        choose = self.choose(seed)
        collection = choose.rng.choice(DECLARATIONS[choose.collection().name])
        note(f"{collection}")

        async def both() -> None:
            refused = [isinstance(await told(s.declare(collection)), Refusal) for s in (self.model, self.real)]
            assert refused[0] == refused[1]  # which of several records is named may differ
            if not refused[0]:
                self.declared[collection.name] = collection

        self.run(both())

    @precondition(lambda self: self.back_end.durable or self.shelf.version > 100)
    @rule()
    def reopen(self) -> None:
        self.what_was_watched()
        self.run(self._close())
        if not self.back_end.durable:
            self.shelf = Shelf()
        self.run(self._open())
        assert (self.ids[-1] == self.ids[-2]) == self.back_end.durable

    # What is read

    @rule(seed=SEEDS)
    def find(self, seed: int) -> None:
        for turn in range(5):
            query = self.choose(seed + turn).query()
            self._page(query)
            self.alike(lambda storage, query=query: storage.count(query))  # type: ignore[misc]  # a lambda's default

    @precondition(lambda self: self.unfinished)
    @rule(place=st.integers(0, 4))
    def find_what_follows(self, place: int) -> None:
        self._page(self.unfinished.pop(place % len(self.unfinished)))

    def _page(self, query: Query) -> None:
        note(f"{query}")
        page = self.alike(lambda storage: storage.find(query))
        if page is not None and page.next is not None:
            more = Query(query.collection, query.where, query.sort, query.limit, page.next, 0, query.total, query.rank)
            self.unfinished = [*self.unfinished[-4:], more]

    @rule(seed=SEEDS)
    def get(self, seed: int) -> None:
        choose = self.choose(seed)
        collection, ids = choose.collection(), choose.some([*IDS, "none", "\0"])
        note(f"{collection.name} {ids}")
        self.alike(lambda storage: storage.get(collection, ids))

    @rule(seed=SEEDS)
    def changes(self, seed: int) -> None:
        for collection in self.declared.values():
            choose = self.choose(seed)
            floor = self.shelf.floors.get(collection.name, 0)
            after, began = choose.version(floor), choose.rng.choice([0, 0, floor, self.shelf.version])
            limit = choose.rng.randint(1, 5)
            note(f"{collection.name} {after=} {began=} {limit=}")
            self.alike(partial(every_page, collection=collection, after=after, limit=limit, began=began))

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
    @rule(seed=SEEDS)
    def watch(self, seed: int) -> None:
        choose = self.choose(seed)
        names = choose.some(list(self.declared))
        after = min(choose.version(self.opened_at), self.shelf.version)
        note(f"{names} {after=}")
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


@pytest.mark.usefixtures("checkpoints_often")
@pytest.mark.parametrize("examples", [15, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_store_answers_as_the_model_does(back_end: BackEnd, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Stores(back_end),  # type: ignore[arg-type]  # a maker does as well as a class
        settings=settings(max_examples=examples, stateful_step_count=60, deadline=None),
    )
