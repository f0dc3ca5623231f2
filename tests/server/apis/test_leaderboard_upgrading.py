"""A store on which every day had a record: the first start packs them, and nobody notices."""

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from homeport.server.apis.leaderboard import upgrading
from homeport.server.apis.leaderboard.documents import MONTHS, RANKED, TOTALS, USERS, Row
from homeport.server.apis.leaderboard.ledger import Ledger
from homeport.server.apis.leaderboard.upgrading import check_unpacked, pack_days
from homeport.storage import Collection, Put, Query, Storage, StorageDamaged
from homeport.storage.times import parse_time

from .conftest import Serve
from .leaderboards import entry, open_board

DAYS = Collection("leaderboard_days", RANKED)
ARRIVAL = "2025-12-21T10:30:05.000000Z"


def kept(day: str, *rows: dict[str, Any]) -> dict[str, Any]:
    """A day's record as it was."""
    tokens, cost = sum(row["totalTokens"] for row in rows), sum(row["costMicros"] for row in rows)
    return {
        "byCost": f"{day}/{len(str(cost)):02}{cost}",
        "byTokens": f"{day}/{len(str(tokens)):02}{tokens}",
        "byArrival": f"{day}/{ARRIVAL}",
        "totalTokens": tokens,
        "costMicros": cost,
        "models": sorted({model for row in rows for model in row["modelsUsed"]}),
        "rows": list(rows),
    }


def row(**changes: Any) -> dict[str, Any]:
    whole = entry(**changes)
    del whole["username"], whole["date"], whole["totalCost"]
    return whole | {"costMicros": 9_300_000, "instant": parse_time(whole["timestamp"])}


def total(label: str) -> dict[str, Any]:
    """Of weeks there is none any more."""
    return kept(label) | {"days": 1, "rows": 1, "models": {}, "topModel": None}


@pytest.fixture
async def old(storage: Storage) -> Storage:
    await storage.declare(DAYS, TOTALS, USERS)
    await storage.commit(
        [
            Put(DAYS, "alice 2025-11-30", kept("2025-11-30", row(totalTokens=1))),
            Put(DAYS, "alice 2025-12-21", kept("2025-12-21", row(device="a"), row(device="b", modelsUsed=["opus"]))),
            Put(DAYS, "bob 2025-12-20", kept("2025-12-20", row(totalTokens=2))),
            *[Put(TOTALS, f"alice {label}", total(label)) for label in ("2025-W51", "2025-12", "all")],
            Put(USERS, "alice", {"lastSyncAt": ARRIVAL}),
        ]
    )
    return storage


async def test_the_days_of_an_earlier_version_are_packed(serve: Serve, old: Storage) -> None:
    board = await open_board(serve)
    cost = Decimal("9.3")
    assert await board.rows() == [
        entry(date="2025-11-30", totalTokens=1, totalCost=cost),
        entry(device="a", totalCost=cost),
        entry(device="b", modelsUsed=["opus"], totalCost=cost),
    ]
    page = await board.ranking("period=weekly&metric=tokens&date=2025-12-21")
    assert [(user["username"], user["totalTokens"]) for user in page["entries"]] == [
        ("alice", 2 * 11681277),
        ("bob", 2),
    ]
    assert page["updated_at"] == "2025-12-21T10:30:05.000Z"
    assert (await board.user())["totalDays"] == 2
    assert not (await old.find(Query(DAYS))).records
    assert [record.id for record in (await old.find(Query(TOTALS))).records] == [
        "alice 2025-11",
        "alice 2025-12",
        "alice all",
        "bob 2025-12",
        "bob all",
    ]
    for name in ("alice", "bob"):
        assert await Ledger(old).audit(name, repair=False)


async def test_a_start_that_was_killed_is_made_up_for(old: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of its commits, or after it."""
    await old.declare(MONTHS)
    commit, left = old.commit, 0

    async def commit_unless_killed(writes: Any) -> Any:
        nonlocal left
        if left == 0:
            raise _Killed
        left -= 1
        done = await commit(writes)
        if left == 0:
            raise _Killed
        left -= 1
        return done

    monkeypatch.setattr(old, "commit", commit_unless_killed)
    for moment in range(12):
        left = moment
        with suppress(_Killed):
            await pack_days(old)
    monkeypatch.undo()
    await pack_days(old)
    assert [record.id for record in (await old.find(Query(MONTHS))).records] == [
        "alice 2025-11",
        "alice 2025-12",
        "bob 2025-12",
    ]
    assert not (await old.find(Query(DAYS))).records
    for name in ("alice", "bob"):
        assert await Ledger(old).audit(name, repair=False)
    assert [(day, len(kept.rows)) async for day, kept in Ledger(old).days("alice")] == [
        ("2025-11-30", 1),
        ("2025-12-21", 2),
    ]


class _Killed(Exception):
    """What ends a start."""


async def test_months_that_were_there_before_are_kept(serve: Serve, old: Storage) -> None:
    """An earlier version had the store once more."""
    await old.declare(MONTHS)
    later, earlier = parse_time("2025-12-22T00:00:00Z"), parse_time("2025-12-01T00:00:00Z")
    entries = [
        ("2025-12-21", Row("2025-12-22T00:00:00Z", later, 7, 0, 0, 0, 0, 0, [], "a")),
        ("2025-12-21", Row("2025-12-01T00:00:00Z", earlier, 7, 0, 0, 0, 0, 0, [], "b")),
        ("2025-12-01", Row("2025-12-01T00:00:00Z", earlier, 5, 0, 0, 0, 0, 0, [])),
        ("2026-01-01", Row("2025-12-22T00:00:00Z", later, 3, 0, 0, 0, 0, 0, [])),
    ]
    await Ledger(old).record("alice", entries, parse_time("2025-12-21T11:00:00Z"))
    board = await open_board(serve)
    assert [(row["date"], row["totalTokens"]) for row in await board.rows()] == [
        ("2025-11-30", 1),
        ("2025-12-01", 5),
        ("2025-12-21", 7),
        ("2025-12-21", 11681277),
        ("2026-01-01", 3),
    ]
    assert await Ledger(old).audit("alice", repair=False)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"byArrival": "2025-12-20"}, id="no arrival"),
        pytest.param({"rows": [{}]}, id="no rows"),
        pytest.param({"rows": [7]}, id="no row"),
        pytest.param({"rows": None}, id="null"),
    ],
)
async def test_a_day_that_cannot_be_read_is_named(storage: Storage, change: dict[str, Any]) -> None:
    await storage.declare(DAYS, MONTHS, TOTALS, USERS)
    await storage.commit([Put(DAYS, "bob 2025-12-20", kept("2025-12-20", row()) | change)])
    for work in (check_unpacked, pack_days):
        with pytest.raises(StorageDamaged, match="leaderboard_days/bob 2025-12-20"):
            await work(storage)
    assert len((await storage.find(Query(DAYS))).records) == 1


async def test_progress_is_told(
    old: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await old.declare(MONTHS)
    monkeypatch.setattr(upgrading, "_TOLD_EVERY", 2)
    with caplog.at_level("INFO"):
        await pack_days(old)
        await pack_days(old)
    assert caplog.messages == [
        "packing 3 days of an earlier version into months",
        "packed 2 of 3 days",
        "packed all 3 days",
    ]


async def test_a_new_store_has_no_trace_of_them(serve: Serve, storage: Storage) -> None:
    await open_board(serve)
    assert DAYS.name not in storage.collections
