"""Clients push, the server is killed in the middle: every acknowledged report is there on the next start."""

import asyncio
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from homeport.storage.times import SECOND, format_time, parse_time

from .conftest import Launch, Process, report, user_key

CLIENTS = 12
FREE = {"HOMEPORT_APIS__DEVICE_USAGE__RATE_LIMIT": "1000000/hour", "HOMEPORT_LOG__LEVEL": "debug"}
Reports = dict[tuple[str, str, str], int]
"""The tokens of a report by user's key, hostname and timestamp."""


class Clients:
    """Push new reports, and now and then an earlier one with more tokens; they remember what was acknowledged."""

    def __init__(self, random: Random) -> None:
        self.acknowledged: Reports = {}
        self.sent: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        self.count = 0
        self._random = random
        self._tokens = 0

    async def push(self, process: Process, until: int) -> None:
        """Kills the server when so many more reports were acknowledged."""
        goal = self.count + until
        await asyncio.gather(*(self._client(process, number, goal) for number in range(CLIENTS)))
        await process.process.wait()

    async def _client(self, process: Process, number: int, goal: int) -> None:
        health = (await process.get("/")).json
        now = parse_time(health["data"]["timestamp"])
        key, hostname = user_key(f"user {number % 4}"), f"m{number}"
        mine: list[str] = []
        while True:
            if mine and self._random.random() < 0.2:
                timestamp = self._random.choice(mine)
            else:
                timestamp = format_time(now + self._tokens * SECOND // 1000 - 3600 * SECOND)
                mine.append(timestamp)
            self._tokens += 1
            tokens = self._tokens
            self.sent[key, hostname, timestamp].add(tokens)
            body = report(userKey=key, hostname=hostname, timestamp=timestamp, usage__totalTokens=tokens)
            try:
                answer = await process.sync(body)
            except aiohttp.ClientError:
                return
            assert answer.status == 200
            self.acknowledged[key, hostname, timestamp] = tokens
            self.count += 1
            if self.count == goal:
                process.process.kill()


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
async def test_every_acknowledged_report_survives_a_kill(
    launch: Launch, tmp_path: Path, back_end: str, kills: int
) -> None:
    random = Random(kills)
    url, clients = f"{back_end}:{tmp_path / 'store'}", Clients(random)
    for _ in range(kills):
        process = await launch("--port", "0", "--storage", url, **FREE)
        await process.ready()
        await check(process, clients)
        await clients.push(process, until=random.randint(1, 400))
    process = await launch("--port", "0", "--storage", url, **FREE)
    await process.ready()
    await check(process, clients)
    assert await process.stop() == 0


async def check(process: Process, clients: Clients) -> None:
    """What was acknowledged is kept, and what is kept was sent; what is told of it agrees."""
    kept: Reports = {}
    for key in {key for key, _, _ in clients.acknowledged}:
        newest: dict[str, Any] = {}
        for body in reversed(await process.history("limit=1000", key)):
            kept[key, body["hostname"], body["timestamp"]] = body["usage"]["totalTokens"]
            newest[body["hostname"]] = body["usage"]["totalTokens"]
        stats = (await process.stats(key)).json
        assert {device["hostname"]: device["totalTokens"] for device in stats["devices"]} == newest
        assert stats["totalTokens"] == sum(newest.values())
    for report_, tokens in clients.acknowledged.items():
        assert kept[report_] >= tokens  # a later one may have been on its way
    for report_, tokens in kept.items():
        assert tokens in clients.sent[report_]
        clients.acknowledged[report_] = tokens  # what was not acknowledged and is there stays
