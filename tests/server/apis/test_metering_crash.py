"""Clients spend, reserve and buy, the server is killed in the middle: every acknowledged token is counted, once, and on
the next start reservations are given back."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from homeport.server.apis.metering.audit import audit
from homeport.server.apis.metering.documents import RESERVATIONS, entries_of
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import Query, Storage, open_storage, walk

from .conftest import Launch, Process
from .licensed import bearer
from .metering_child import COLLECTIONS, EVENTS, MONTH

FREE = {"HOMEPORT_APIS__METERING__RATE_LIMIT": "1000000/minute", "HOMEPORT_LOG__LEVEL": "error"}
NAMES = ["alice", "alice", "alice", "alice", "bob"]


async def made(url: str) -> dict[str, tuple[str, str]]:
    """The ids of profiles, and keys of theirs."""
    clock = Clock()
    async with open_storage(url, COLLECTIONS) as storage:
        licenses = Licenses(storage, clock, Ledger(storage, clock, load_config(environ={}).apis.metering))
        found = {}
        for name in sorted(set(NAMES)):
            made_, key = await licenses.create(f"{name}@example.com")
            found[name] = made_.user_id, key
        return found


class Spenders:
    """Each spends with a key of its own for every token, and sends again what was not answered."""

    def __init__(self, random: Random, keys: dict[str, tuple[str, str]]) -> None:
        self.acknowledged: Counter[str] = Counter()
        self.answers: dict[tuple[str, str], str] = {}
        self._unanswered: list[str | None] = [None] * len(NAMES)
        self._count = 0
        self._random = random
        self._keys = keys

    async def spend(self, process: Process, until: int) -> None:
        """Kills the server at some moment after so many more were acknowledged."""
        goal = self._count + until
        await asyncio.gather(*[self._spender(process, number, name, goal) for number, name in enumerate(NAMES)])
        await process.process.wait()

    async def _spender(self, process: Process, number: int, name: str, goal: int) -> None:
        headers = bearer(self._keys[name][1])
        while True:
            key = self._unanswered[number] or f"{number} {self._random.random()}"
            self._unanswered[number] = key
            once = {**headers, "Idempotency-Key": key}
            try:
                answer = await process("POST", "/api/tokens/consume", json={"tokens_amount": 7}, headers=once)
            except aiohttp.ClientError:
                return
            assert answer.status == 200
            assert self.answers.setdefault((name, key), answer.json["transaction_id"]) == answer.json["transaction_id"]
            self._unanswered[number] = None
            self.acknowledged[name] += 1
            self._count += 1
            if self._count == goal:
                asyncio.get_running_loop().call_later(self._random.uniform(0, 0.02), process.process.kill)

    async def check(self, storage: Storage) -> None:
        """What was acknowledged is spent, once; beside it at most what nobody was told of."""
        assert [problem async for _, problem in audit(storage)] == [None] * len(self._keys)
        for name, (user_id, _) in self._keys.items():
            spent = [
                entry["transaction_id"]
                async for record in walk(storage, entries_of(user_id))
                if (entry := record.decode())["transaction_type"] == "usage"
            ]
            acknowledged = {id for (owner, _), id in self.answers.items() if owner == name}
            assert acknowledged <= set(spent)
            assert self.acknowledged[name] <= len(spent) <= self.acknowledged[name] + NAMES.count(name)


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
async def test_what_was_spent_is_spent_once_whenever_the_server_is_killed(
    launch: Launch, tmp_path: Path, back_end: str, kills: int
) -> None:
    random = Random(kills)
    url = f"{back_end}:{tmp_path / 'store'}"
    keys = await made(url)
    spenders = Spenders(random, keys)
    for _ in range(kills):
        process = await launch("--port", "0", "--storage", url, **FREE)
        await process.ready()
        await spenders.spend(process, until=random.randint(1, 60))
        async with open_storage(url, COLLECTIONS) as storage:
            await spenders.check(storage)


# Between any two commits


async def whole(storage: Storage, user_id: str, acknowledged: list[Any]) -> None:
    """The ledger is right, nothing counts twice, and nothing that was acknowledged is lost."""
    assert {problem async for _, problem in audit(storage)} == {None}
    entries = [record.decode() async for record in walk(storage, entries_of(user_id))]
    events = {record.id async for record in walk(storage, Query(EVENTS))}
    assert [entry["transaction_type"] for entry in entries].count("purchase") == ("bought" in events)
    assert [entry["description"] for entry in entries].count("Subscription: pro") == ("subscribed" in events)
    assert [entry["description"] for entry in entries].count(f"Monthly refresh: {MONTH}") <= 1
    assert {line[1] for line in acknowledged if line[0] == "event"} <= events
    spent = {entry["transaction_id"] for entry in entries if entry["transaction_type"] == "usage"}
    assert {line[1] for line in acknowledged if line[0] == "spent"} <= spent


async def child(url: str, user_id: str, kill_at: int) -> list[Any]:
    """What a process was acknowledged that uses a ledger in every way, and is killed around one of its commits."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("metering_child.py")), url, user_id, str(kill_at)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode in (-9, 0)
    lines = [json.loads(line) for line in output.splitlines()]
    assert (process.returncode == 0) == (lines[-1:] == [["done"]])
    return lines


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_kill_before_or_after_any_commit(tmp_path: Path, back_end: str, step: int) -> None:
    """Then the same is done to the end: as if nothing had happened, save what was reserved and is given back."""
    kill_at = 0
    while True:
        url = f"{back_end}:{tmp_path / str(kill_at)}"
        user_id, _ = (await made(url))["alice"]
        acknowledged = await child(url, user_id, kill_at)
        if acknowledged[-1:] == [["done"]]:
            break
        async with open_storage(url, COLLECTIONS) as storage:
            await whole(storage, user_id, acknowledged)
            ledger = Ledger(storage, Clock(), load_config(environ={}).apis.metering)
            reserved = await storage.count(Query(RESERVATIONS))
            assert await ledger.give_back_abandoned() == reserved
            await whole(storage, user_id, acknowledged)
            assert await storage.count(Query(RESERVATIONS)) == 0
        finished = await child(url, user_id, -1)
        assert finished[-1] == ["done"]
        async with open_storage(url, COLLECTIONS) as storage:
            await whole(storage, user_id, finished)
            assert await storage.count(Query(EVENTS)) == 2
        kill_at += step
    assert kill_at > 10
