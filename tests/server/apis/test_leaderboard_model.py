"""Whatever is synced, again, late, at once or deleted: what is answered and what is kept equals a small model."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from homeport.server.apis.leaderboard.documents import MONTHS, TOTALS, USERS, Row
from homeport.server.apis.leaderboard.ledger import Entry, Ledger
from homeport.server.app import create_app
from homeport.server.clock import MovableClock
from homeport.server.config import load_config
from homeport.storage import Collection, Conflict, Delete, Page, Put, Query, Record, Storage, make_storage
from homeport.storage.times import SECOND, format_time, parse_time

from .conftest import Served
from .leaderboards import ENDLESS, LARGEST_COUNT, NOW, Board, entry

T = TypeVar("T")

SEEDS = st.integers(0, 2**32 - 1)
"""Hypothesis decides what is done and when, a seed the details."""
NAMES = ["alice", "Bob", "a-b", "a_b", "abc", "abc-d"]
DATES = ["2020-12-28", "2020-12-31", "2021-01-01", "2021-01-04", "2024-02-29", "2025-12-15", "2025-12-20", "2025-12-21"]
DEVICES = [None, None, "laptop", "Laptop", "a b"]
MODELS = ["opus", "Opus", "sonnet", "opus-4"]
COSTS = [0, 0.1, 0.2, 0.3, 1, 9.3, 0.0000005, 0.0000015, 0.0000025, 1e9, 999_999_999.999999, 2.675]
TOKENS = [0, 1, 2, 3, 10, LARGEST_COUNT]
TIMES = [
    "2025-12-21T10:30:00Z",
    "2025-12-21T12:30:00.000000+02:00",
    "2025-12-21T10:30:00.000001Z",
    "2025-12-21 10:29:59",
]
PERIODS = ("daily", "weekly", "monthly", "all-time")


def label(period: str, day: str) -> str:
    """Which period of its kind holds a day."""
    year, week, _ = date.fromisoformat(day).isocalendar()
    return {"daily": day, "weekly": f"{year}-W{week:02}", "monthly": day[:7], "all-time": "all"}[period]


def micros(cost: float) -> Decimal:
    return Decimal(repr(cost)).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)


Rows = dict[str | None, dict[str, Any]]


@dataclass
class User:
    """The rows of each day by their device, and when a day last changed."""

    days: dict[str, Rows] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)

    def sync(self, entries: Iterable[Mapping[str, Any]], now: int) -> None:
        for posted in entries:
            rows, device = self.days.setdefault(posted["date"], {}), posted.get("device")
            known = rows.get(device)
            if known and parse_time(known["timestamp"]) > parse_time(posted["timestamp"]):
                continue
            if device is not None and not any(rows):
                rows.clear()
            rows[device] = dict(posted)
            self.arrivals[posted["date"]] = max(now, self.arrivals.get(posted["date"], now))

    def total(self, days: Iterable[str]) -> dict[str, Any]:
        """What some days come to."""
        chosen = {day: self.days[day].values() for day in days}
        rows = [row for day in chosen.values() for row in day]
        models = Counter(model for day in chosen.values() for model in {m for row in day for m in row["modelsUsed"]})
        return {
            "totalTokens": sum(row["totalTokens"] for row in rows),
            "totalCost": sum((micros(row["totalCost"]) for row in rows), Decimal()),
            "days": len(chosen),
            "rows": len(rows),
            "models": dict(models),
            "topModel": min(models, key=lambda model: (-models[model], model), default=None),
        }

    def totals(self, periods: Iterable[str]) -> dict[str, dict[str, Any]]:
        """By label."""
        days = defaultdict(set)
        for period in periods:
            for day in self.days:
                days[label(period, day)].add(day)
        return {name: self.total(chosen) for name, chosen in days.items()}

    def page(self, username: str) -> Any:
        total = self.total(self.days)
        return {
            "username": username,
            "totalDays": total["days"],
            "totalCost": total["totalCost"],
            "totalTokens": total["totalTokens"],
            "averageDailyCost": (total["totalCost"] / total["days"]).quantize(Decimal("0.01"), ROUND_HALF_UP),
            "topModel": total["topModel"],
            "firstSync": min(self.days),
            "lastSync": max(self.days),
            "recentActivity": [self._activity(day) for day in sorted(self.days, reverse=True)],
        }

    def _activity(self, day: str) -> dict[str, Any]:
        total = self.total([day])
        return {
            "date": day,
            "totalTokens": total["totalTokens"],
            "totalCost": total["totalCost"],
            "modelsUsed": sorted(total["models"]),
        }


def ranking(users: Mapping[str, User], period: str, metric: str, day: str) -> Any:
    """A whole leaderboard."""
    wanted = label(period, day)
    member = {"tokens": "totalTokens", "cost": "totalCost"}[metric]
    found = {name: totals[wanted] for name, user in users.items() if wanted in (totals := user.totals([period]))}
    entries = [
        {
            "rank": 1 + sum(other[member] > total[member] for other in found.values()),
            "username": name,
            "totalCost": total["totalCost"],
            "totalTokens": total["totalTokens"],
            "daysCounted": total["days"],
            "topModel": total["topModel"],
        }
        for name, total in sorted(found.items(), key=lambda item: (-item[1][member], item[0]))
    ]
    arrivals = [at for user in users.values() for on, at in user.arrivals.items() if label(period, on) == wanted]
    return {
        "period": period,
        "metric": metric,
        "updated_at": format_time(max(arrivals)) if arrivals else None,
        "total": len(entries),
        "entries": entries,
    }


def entries_of(random: Random, username: str, count: int) -> list[dict[str, Any]]:
    """Some may be of one day and device."""
    return [
        entry(
            username=username,
            date=random.choice(DATES),
            device=random.choice(DEVICES) or ...,
            totalTokens=random.choice(TOKENS),
            totalCost=random.choice(COSTS),
            modelsUsed=random.choices(MODELS, k=random.randint(0, 3)),
            timestamp=random.choice(TIMES),
        )
        for _ in range(count)
    ]


class _NoTurns:
    @asynccontextmanager
    async def hold(self, _: Iterable[str]) -> AsyncIterator[None]:
        yield


@contextmanager
def as_from_several_servers(storage: Storage) -> Iterator[list[Conflict]]:
    """Nobody takes turns, and others come between any read and what follows it; tells the conflicts."""
    conflicts: list[Conflict] = []
    real_get, real_find, real_commit = storage.get, storage.find, storage.commit

    async def get(*arguments: Any) -> Any:
        found = await real_get(*arguments)
        await asyncio.sleep(0)
        return found

    async def find(query: Query) -> Page:
        page = await real_find(query)
        await asyncio.sleep(0)
        return page

    async def commit(*arguments: Any) -> Any:
        try:
            return await real_commit(*arguments)
        except Conflict as conflict:
            conflicts.append(conflict)
            raise

    with patch.multiple(storage, locks=_NoTurns(), get=get, find=find, commit=commit):
        yield conflicts


async def kept(storage: Storage, collection: Collection) -> dict[str, Any]:
    return {record.id: record.decode() for record in (await storage.find(Query(collection))).records}


class Boards(RuleBasedStateMachine):
    """A server that clients sync with, beside the model."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = MovableClock(parse_time(NOW))
        self.url = url
        self.durable = self.url != "memory:"
        self.users: dict[str, User] = {}
        self.keys: dict[tuple[str, tuple[str, ...]], str] = {}
        self.run(self._open())

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        overrides = {"storage.url": self.url, "log.level": "error", "apis.enabled": ["leaderboard"], **ENDLESS}
        self.storage = await self.stack.enter_async_context(make_storage(self.url))
        app = create_app(load_config(environ={}, overrides=overrides), storage=self.storage, clock=self.clock)
        server = await self.stack.enter_async_context(TestServer(app))
        session = await self.stack.enter_async_context(aiohttp.ClientSession())
        served = Served(str(server.make_url("")).rstrip("/"), session, self.clock, self.storage, app)
        self.board = Board(served, self.keys)
        self.ledger = Ledger(self.storage)

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def teardown(self) -> None:
        try:
            self.run(self._leaderboards())
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    # What clients do

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        random = Random(seed)
        for name in random.sample(NAMES, 3):
            self.sync(random.getrandbits(32), name)

    @rule(seed=SEEDS, name=st.sampled_from(NAMES))
    def sync(self, seed: int, name: str) -> None:
        random = Random(seed)
        entries = entries_of(random, name, random.randint(1, 12))
        note(f"{entries}")
        self.run(self.board.sync(*entries))
        self.users.setdefault(name, User()).sync(entries, self.clock.now())

    @rule(seed=SEEDS, servers=st.booleans())
    def sync_at_once(self, seed: int, servers: bool) -> None:
        """What order these come in does not matter: no two have a time in common, and all have devices."""
        random = Random(seed)
        times = iter(random.sample(range(100), 60))
        batches = [entries_of(random, random.choice(NAMES[:3]), random.randint(1, 10)) for _ in range(6)]
        for posted in (posted for entries in batches for posted in entries):
            posted["device"] = random.choice(DEVICES[2:])
            posted["timestamp"] = format_time(parse_time(TIMES[0]) + (next(times) - 50) * SECOND)
        note(f"{batches}")

        async def at_once() -> None:
            for name in NAMES[:3]:
                await self.board.key(name)
            await asyncio.gather(*[self.board.sync(*entries) for entries in batches])

        if servers:
            with as_from_several_servers(self.storage):
                self.run(at_once())
        else:
            self.run(at_once())
        for entries in batches:
            self.users.setdefault(entries[0]["username"], User()).sync(entries, self.clock.now())

    @rule(seed=SEEDS, name=st.sampled_from(NAMES))
    def fail(self, seed: int, name: str) -> None:
        """A bad entry among good ones."""
        random = Random(seed)
        entries = entries_of(random, name, 8)
        entries[random.randrange(8)][random.choice(["date", "timestamp", "totalCost"])] = "x"
        answer = self.run(self.board.post({"entries": entries, "source": "x", "version": "1"}, username=name))
        assert answer.status == 400

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        answer = self.run(self.board.call("DELETE", "/v1/user/data", username=name))
        user = self.users.pop(name, User())
        assert answer.json["entriesDeleted"] == user.total(user.days)["rows"]

    @rule(seconds=st.floats(-1000, 100_000))
    def set_the_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.durable)
    @rule()
    def reopen(self) -> None:
        self.run(self.stack.aclose())
        self.run(self._open())

    # What is kept and answered

    @invariant()
    def all_is_right(self) -> None:
        self.run(self._all_is_right())

    async def _all_is_right(self) -> None:
        found = await kept(self.storage, TOTALS)
        expected = {
            f"{name} {period}": total
            for name, user in self.users.items()
            for period, total in user.totals(["monthly", "all-time"]).items()
        }
        assert found.keys() == expected.keys()
        for id, total in expected.items():
            assert found[id]["totalTokens"] == total["totalTokens"]
            assert Decimal(found[id]["costMicros"]).scaleb(-6) == total["totalCost"]
            for member in ("days", "rows", "models", "topModel"):
                assert found[id][member] == total[member]
        for name in NAMES:
            assert await self.ledger.audit(name, repair=False)

    @rule(seed=SEEDS)
    def read(self, seed: int) -> None:
        """A page of a leaderboard."""
        random = Random(seed)
        period, metric, day = random.choice(PERIODS), random.choice(["tokens", "cost"]), random.choice(DATES)
        offset, limit = random.randint(0, 4), random.randint(1, 4)
        page = self.run(self.board.ranking(f"{period=!s}&{metric=!s}&date={day}&{offset=}&{limit=}"))
        expected = ranking(self.users, period, metric, day)
        assert page == expected | {"entries": expected["entries"][offset : offset + limit]}

    @rule(name=st.sampled_from(NAMES))
    def read_a_user(self, name: str) -> None:
        user = self.users.get(name)
        assert self.run(self.board.user(name)) == (user.page(name) if user else None)
        rows = self.run(self.board.rows(name))
        sent = [row for _, rows in sorted((user or User()).days.items()) for row in rows.values()]
        assert sorted(rows, key=_of_row) == sorted(
            [row | {"totalCost": micros(row["totalCost"])} for row in sent], key=_of_row
        )

    async def _leaderboards(self) -> None:
        """All of them, whole."""
        for period in PERIODS:
            for day in {label(period, day): day for day in DATES}.values():
                for metric in ("tokens", "cost"):
                    page = await self.board.ranking(f"{period=!s}&{metric=!s}&date={day}")
                    assert page == ranking(self.users, period, metric, day)


def _of_row(row: dict[str, Any]) -> tuple[str, str]:
    return row["date"], row.get("device", "")


def test_answers_equal_a_model(storage_url: str) -> None:
    """A tenth as many examples as hypothesis is asked for: each does much."""
    numbers = iter(range(10**9))
    run_machine(
        lambda: Boards(storage_url if storage_url == "memory:" else f"{storage_url}-{next(numbers)}"),  # type: ignore[arg-type]  # any callable will do
        settings=settings(max_examples=settings().max_examples // 10, stateful_step_count=10, deadline=None),
    )


# Two servers on one store


@pytest.fixture
async def ledger(storage: Storage) -> Ledger:
    await storage.declare(MONTHS, TOTALS, USERS)
    return Ledger(storage)


def row(day: str, tokens: int, device: str, timestamp: str = TIMES[0]) -> Entry:
    return day, Row(timestamp, parse_time(timestamp), tokens, tokens, 0, 0, 0, 0, ["opus"], device)


async def test_of_two_servers_that_sync_one_user_the_second_tries_again(ledger: Ledger, storage: Storage) -> None:
    with as_from_several_servers(storage) as conflicts:
        await asyncio.gather(
            *[ledger.record("alice", [row(day, 2**n, f"m{n}") for day in DATES], n) for n in range(8)],
            *[ledger.record("bob", [row(day, 2**n, f"m{n}") for day in DATES], n) for n in range(8)],
        )
    assert conflicts
    totals = await kept(storage, TOTALS)
    for name in ("alice", "bob"):
        assert totals[f"{name} all"]["totalTokens"] == 255 * len(DATES)
        assert totals[f"{name} all"]["rows"] == 8 * len(DATES)
        assert await ledger.audit(name, repair=False)


async def test_deletion_and_syncs_at_once_leave_what_adds_up(ledger: Ledger, storage: Storage) -> None:
    for turn in range(5):
        with as_from_several_servers(storage):
            syncs = [ledger.record("alice", [row(day, 1, f"m{n}-{turn}") for day in DATES], n) for n in range(4)]
            forgotten = asyncio.create_task(ledger.forget("alice"))
            await asyncio.gather(forgotten, *syncs)
        assert forgotten.result() % len(DATES) == 0
        assert await ledger.audit("alice", repair=False)


async def test_an_audit_while_others_sync(ledger: Ledger, storage: Storage) -> None:
    """Finds nothing, and repairs nothing that they wrote."""
    for turn in range(5):
        with as_from_several_servers(storage):
            syncs = [ledger.record("alice", [row(day, 1, f"m{n}-{turn}") for day in DATES], n) for n in range(4)]
            audits = [ledger.audit("alice", repair=turn % 2 == 0) for _ in range(3)]
            found = await asyncio.gather(*audits, *syncs)
        assert found[:3] == [True] * 3
    assert (await kept(storage, TOTALS))["alice all"]["totalTokens"] == 20 * len(DATES)


# Damage


async def record_some(ledger: Ledger) -> None:
    for name in ("alice", "alice-", "bob"):
        await ledger.record(name, [row(day, n, f"m{n}") for day in DATES for n in (1, 2)], parse_time(NOW))


DAMAGE: list[tuple[str, dict[str, Any]]] = [
    ("all", {"totalTokens": 1}),
    ("all", {"costMicros": 0}),
    ("2025-12", {"days": 4}),
    ("2025-12", {"rows": 0}),
    ("2020-12", {"models": {}}),
    ("2020-12", {"topModel": None}),
    ("2025-12", {"byCost": "2025-12/011"}),
    ("2025-12", {"byTokens": "2025-11/011"}),
    ("all", {"byArrival": "all/2025-01-01T00:00:00.000000Z"}),
]


@pytest.mark.parametrize(
    ("what", "changes"), [pytest.param(*case, id=f"{case[0]} {'/'.join(case[1])}") for case in DAMAGE]
)
async def test_damage_is_found_and_repaired(
    ledger: Ledger, storage: Storage, what: str, changes: dict[str, Any]
) -> None:
    await record_some(ledger)
    before = await kept(storage, TOTALS)
    [damaged] = (await storage.get(TOTALS, [f"alice {what}"])).values()
    await storage.commit([Put(TOTALS, damaged.id, damaged.decode() | changes)])
    await is_repaired(ledger, storage)
    assert await kept(storage, TOTALS) == before


async def is_repaired(ledger: Ledger, storage: Storage) -> None:
    """Of the one user, when it is asked for."""
    found = await every_record(storage)
    assert not await ledger.audit("alice", repair=False)
    assert await every_record(storage) == found
    assert not await ledger.audit("alice", repair=True)
    others = [record for record in await every_record(storage) if not record.id.startswith("alice ")]
    assert [record for record in others if record.id != "alice"] == [
        record for record in found if not record.id.startswith("alice ") and record.id != "alice"
    ]
    for name in ("alice", "alice-", "bob"):
        assert await ledger.audit(name, repair=False)


async def every_record(storage: Storage) -> list[Record]:
    return [record for c in (MONTHS, TOTALS, USERS) for record in (await storage.find(Query(c))).records]


async def test_a_repair_while_others_sync(ledger: Ledger, storage: Storage) -> None:
    await record_some(ledger)
    for turn in range(5):
        [total] = (await storage.get(TOTALS, ["alice all"])).values()
        await storage.commit([Put(TOTALS, total.id, total.decode() | {"totalTokens": turn})])
        with as_from_several_servers(storage):
            syncs = [ledger.record("alice", [row(day, 1, f"m{n}-{turn}") for day in DATES], n) for n in range(4)]
            await asyncio.gather(*syncs, ledger.audit("alice", repair=True))
        assert await ledger.audit("alice", repair=False)
    assert (await kept(storage, TOTALS))["alice all"]["totalTokens"] == (3 + 20) * len(DATES)


async def test_a_total_that_is_missing_or_too_many(ledger: Ledger, storage: Storage) -> None:
    await record_some(ledger)
    before = await kept(storage, TOTALS)
    for damage in (
        [Delete(TOTALS, "alice all")],
        [Put(TOTALS, "alice 2019-12", before["alice all"])],
        [Delete(TOTALS, id) for id in before if id.startswith("alice ")],
    ):
        await storage.commit(damage)
        await is_repaired(ledger, storage)
        assert await kept(storage, TOTALS) == before


async def test_months_that_are_missing(ledger: Ledger, storage: Storage) -> None:
    """Their totals are then those of the others."""
    await record_some(ledger)
    await storage.commit([Delete(MONTHS, "alice 2025-12"), Delete(MONTHS, "alice 2024-02")])
    await is_repaired(ledger, storage)
    totals = await kept(storage, TOTALS)
    assert totals["alice all"]["days"] == sum(day[:7] not in ("2025-12", "2024-02") for day in DATES)
    assert "alice 2024-02" not in totals
