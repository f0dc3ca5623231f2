"""Clients sync, the server is killed in the middle: every acknowledged sync is whole on the next start, and none is
there in part."""

import asyncio
from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from random import Random

import aiohttp
import pytest

from homeport.server.api_keys import KEYS
from homeport.server.api_keys import USERS as KEY_USERS
from homeport.server.apis.leaderboard.documents import MONTHS, TOTALS, USERS
from homeport.server.apis.leaderboard.ledger import Ledger
from homeport.server.clock import Clock
from homeport.storage import Storage, open_storage
from homeport.storage.times import SECOND, format_time, parse_time

from .conftest import Launch, Process
from .leaderboards import api_keys, entry, upload

COLLECTIONS = [MONTHS, TOTALS, USERS, KEYS, KEY_USERS]
CLIENTS = [("alice", "laptop"), ("alice", "desktop"), ("alice", "phone"), ("bob", "laptop"), ("carol", "laptop")]
DATES = [(date(2025, 1, 1) + timedelta(days=number)).isoformat() for number in range(300)]
FREE = {"HOMEPORT_APIS__LEADERBOARD__RATE_LIMIT": "1000000/hour", "HOMEPORT_LOG__LEVEL": "error"}
BEGIN = parse_time("2025-12-21T10:30:00Z")


class Clients:
    """Each syncs the same days again and again, each time with a newer timestamp; they remember which was the last
    that was acknowledged, and the last that was sent. The number of a sync stands in all of its entries."""

    def __init__(self, random: Random, keys: dict[str, str]) -> None:
        self.acknowledged: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[tuple[str, str]] = Counter()
        self._count = 0
        self._random = random
        self._keys = keys

    async def push(self, process: Process, until: int) -> None:
        """Kills the server at some moment after so many more syncs were acknowledged."""
        goal = self._count + until
        await asyncio.gather(*[self._client(process, client, goal) for client in CLIENTS])
        await process.process.wait()

    async def _client(self, process: Process, client: tuple[str, str], goal: int) -> None:
        username, device = client
        headers = {"Authorization": f"Bearer {self._keys[username]}"}
        while True:
            self.sent[client] += 1
            number = self.sent[client]
            common = {"username": username, "device": device, "timestamp": format_time(BEGIN + number * SECOND)}
            entries = [entry(date=day, totalTokens=number, totalCost=number, **common) for day in DATES]
            try:
                answer = await process("POST", "/v1/sync", json=upload(*entries), headers=headers)
            except aiohttp.ClientError:
                return
            assert answer.status == 200
            self.acknowledged[client] = number
            self._count += 1
            if self._count == goal:
                asyncio.get_running_loop().call_later(self._random.uniform(0, 0.05), process.process.kill)

    async def check(self, storage: Storage) -> None:
        """What was acknowledged is kept, and what is kept was sent, whole; all totals are theirs."""
        ledger = Ledger(storage)
        for username in self._keys:
            assert await ledger.audit(username, repair=False)
            rows: dict[tuple[str, str], Counter[tuple[int, str]]] = defaultdict(Counter)
            async for _, kept in ledger.days(username):
                for row in kept.rows:
                    assert row.device is not None
                    rows[username, row.device][row.tokens, row.timestamp] += 1
            for client, found in rows.items():
                number = next(iter(found))[0]
                assert found == {(number, format_time(BEGIN + number * SECOND)): len(DATES)}
                assert self.acknowledged[client] <= number <= self.sent[client]
                self.acknowledged[client] = number  # what was not acknowledged and is there stays
            assert rows.keys() >= {client for client in self.acknowledged if client[0] == username}

    async def check_ranking(self, process: Process) -> None:
        """As anybody sees it."""
        expected: Counter[str] = Counter()
        for (username, _), number in self.acknowledged.items():
            expected[username] += number * len(DATES)
        answer = (await process.get("/v1/leaderboard?metric=tokens")).json
        assert {row["username"]: row["totalTokens"] for row in answer["entries"]} == {**expected}


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
async def test_no_sync_is_lost_or_half_there_after_a_kill(
    launch: Launch, tmp_path: Path, back_end: str, kills: int
) -> None:
    random, keys = Random(kills), {}
    url = f"{back_end}:{tmp_path / 'store'}"
    async with open_storage(url, COLLECTIONS) as storage, api_keys(storage, Clock()) as made:
        for username in ("alice", "bob", "carol"):
            keys[username] = (await made.create(username))[1]
    clients = Clients(random, keys)
    for _ in range(kills):
        process = await launch("--port", "0", "--storage", url, **FREE)
        await process.ready()
        await clients.push(process, until=random.randint(1, 15))
        async with open_storage(url, COLLECTIONS) as storage:
            await clients.check(storage)
    process = await launch("--port", "0", "--storage", url, **FREE)
    await process.ready()
    await clients.check_ranking(process)
    assert await process.stop() == 0
