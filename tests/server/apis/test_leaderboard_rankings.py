"""The rankings of days and weeks, which are held in memory: as of now, whatever happens on the store, and within
bounds."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from homeport.server.apis.leaderboard import rankings as module
from homeport.server.apis.leaderboard.documents import MONTHS, TOTALS, USERS, Row
from homeport.server.apis.leaderboard.ledger import Ledger
from homeport.server.apis.leaderboard.periods import Period
from homeport.server.apis.leaderboard.rankings import Ranking, Rankings
from homeport.storage import Query, Storage

DAY, WEEK = "2026-01-01", ["2025-12-29", "2025-12-31", "2026-01-01", "2026-01-04"]
"""A week of two months and two years."""


@pytest.fixture
async def ledger(storage: Storage) -> Ledger:
    await storage.declare(MONTHS, TOTALS, USERS)
    return Ledger(storage)


async def sync(ledger: Ledger, name: str, tokens: int, *days: str, at: int = 1) -> None:
    row = Row("2026-01-04T10:30:00Z", at, tokens, tokens, 0, 0, 0, 0, [])
    await ledger.record(name, [(day, row) for day in days or (DAY,)], at)


async def names(rankings: Rankings, period: Any = "daily", day: str = DAY) -> list[tuple[str, int]]:
    found = await rankings.standings(Ranking(period, "tokens", day), 10, 0)
    return [(user.username, user.tokens) for user in found.page]


async def _another_user(ledger: Ledger, _: Storage) -> None:
    await sync(ledger, "carol", 3)


async def _another_amount(ledger: Ledger, _: Storage) -> None:
    await sync(ledger, "alice", 9)


async def _a_deletion(ledger: Ledger, _: Storage) -> None:
    await ledger.forget("bob")


async def _another_day(ledger: Ledger, _: Storage) -> None:
    await sync(ledger, "alice", 5, "2025-12-31")


async def _much(ledger: Ledger, _: Storage) -> None:
    for number in range(12):
        await sync(ledger, f"many{number:02}", 100 - number)


async def _all_is_gone(_: Ledger, storage: Storage) -> None:
    for collection in (MONTHS, TOTALS, USERS):
        await storage.purge(Query(collection))


CHANGES = [_another_user, _another_amount, _a_deletion, _another_day, _much, _all_is_gone]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_ranking_is_as_one_that_is_made_anew(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Awaitable[None]]
) -> None:
    monkeypatch.setattr(module, "_CHANGES_AT_ONCE", 2)
    rankings = Rankings(storage)
    for number, name in enumerate(("alice", "bob"), 1):
        await sync(ledger, name, number, *WEEK)
    assert await names(rankings) == [("bob", 2), ("alice", 1)]
    assert await names(rankings, "weekly") == [("bob", 8), ("alice", 4)]
    await change(ledger, storage)
    for period in ("daily", "weekly"):
        for day in WEEK:
            assert await names(rankings, period, day) == await names(Rankings(storage), period, day)


async def test_what_is_synced_while_a_ranking_is_made_is_in_it(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 1)
    for number in range(8):
        await sync(ledger, f"user{number}", 10 + number)
    rankings = Rankings(storage)
    making = asyncio.create_task(names(rankings))
    for number in range(8):
        await sync(ledger, f"user{number}", 30 - number)
    await ledger.forget("user0")
    await making
    assert await names(rankings) == [(f"user{number}", 30 - number) for number in range(1, 8)]


async def test_whoever_syncs_deletes_and_asks_at_once(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHANGES_AT_ONCE", 3)
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 2)
    monkeypatch.setattr(module, "MAX_RANKINGS", 4)
    random, rankings = Random(1), Rankings(storage)
    periods: tuple[Period, ...] = ("daily", "weekly")

    async def write() -> None:
        for _ in range(20):
            name = f"user{random.randrange(8)}"
            if random.random() < 0.2:
                await ledger.forget(name)
            else:
                await sync(ledger, name, random.randrange(9), *random.sample(WEEK, 2), at=random.randrange(1, 99))

    async def ask() -> None:
        for _ in range(60):
            await names(rankings, random.choice(periods), random.choice(WEEK))

    for _ in range(5):
        await asyncio.gather(*[write() for _ in range(4)], *[ask() for _ in range(4)])
        for day in WEEK:
            for period in periods:
                ranking = Ranking(period, "cost", day)
                assert await rankings.standings(ranking, 9, 0) == await Rankings(storage).standings(ranking, 9, 0)


async def test_rankings_are_let_go_beyond_the_bound(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_USERS", 3)
    for name in ("alice", "bob"):
        await sync(ledger, name, 1, *WEEK)
    rankings = Rankings(storage)
    for day in WEEK * 2:
        assert await names(rankings, day=day) == [("alice", 1), ("bob", 1)]
        assert rankings.users <= 3


async def test_rankings_that_nobody_is_in_are_let_go_too(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RANKINGS", 3)
    rankings = Rankings(storage)
    for day in range(1, 29):
        assert await names(rankings, day=f"1999-02-{day:02}") == []
        assert len(rankings) <= 3


async def test_whoever_asks_for_one_that_is_held_waits_for_no_other(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sync(ledger, "alice", 1, *WEEK)
    rankings = Rankings(storage)
    await names(rankings)
    read, began, go = storage.get, asyncio.Event(), asyncio.Event()

    async def get(*arguments: Any) -> Any:
        began.set()
        await go.wait()
        return await read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "get", get)
        others = [asyncio.create_task(names(rankings, day=day)) for day in WEEK[:2]]
        await began.wait()
        async with asyncio.timeout(10):
            assert await names(rankings) == [("alice", 1)]
        assert not any(other.done() for other in others)
        go.set()
        assert await asyncio.gather(*others) == [[("alice", 1)]] * 2


async def test_many_who_ask_for_one_ranking_have_it_made_once(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sync(ledger, "alice", 1)
    finds = _counted(storage, monkeypatch)
    rankings = Rankings(storage)
    assert await asyncio.gather(*[names(rankings) for _ in range(20)]) == [[("alice", 1)]] * 20
    assert finds == [1]


async def test_a_deletion_has_no_ranking_made_anew(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob"):
        await sync(ledger, name, 1)
    rankings = Rankings(storage)
    await names(rankings)
    finds = _counted(storage, monkeypatch)
    await ledger.forget("alice")
    assert await names(rankings) == [("bob", 1)]
    assert finds == [0]


def _counted(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often totals are looked for, which they are to make a ranking."""
    find, count = storage.find, [0]

    async def counting(query: Query) -> Any:
        count[0] += query.collection == TOTALS
        return await find(query)

    monkeypatch.setattr(storage, "find", counting)
    return count


async def test_a_ranking_is_made_however_much_changes_meanwhile(
    ledger: Ledger, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many changes each time as are read in many pages."""
    monkeypatch.setattr(module, "_CHANGES_AT_ONCE", 1)
    await sync(ledger, "alice", 1)
    find, amount = storage.find, 1

    async def find_while_others_sync(query: Query) -> Any:
        nonlocal amount
        found = await find(query)
        for number in range(60):
            amount += 1
            await sync(ledger, f"user{number:02}", amount)
        return found

    monkeypatch.setattr(storage, "find", find_while_others_sync)
    async with asyncio.timeout(20):
        page = await names(Rankings(storage))
    assert page[0] == ("user59", amount)


async def test_the_first_and_the_last_week_that_there_are(ledger: Ledger, storage: Storage) -> None:
    for day in ("0001-01-01", "9999-12-31"):
        await sync(ledger, "alice", 1, day)
        assert await names(Rankings(storage), "weekly", day) == [("alice", 1)]
