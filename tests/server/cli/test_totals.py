"""`homeport check` and the leaderboard's totals: found where they are wrong, and rebuilt, with and without a server."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from homeport.server.apis.leaderboard.documents import DAYS, TOTALS, USERS, day_id
from homeport.server.apis.leaderboard.ledger import Entry, Ledger
from homeport.server.cli import cli
from homeport.storage import Delete, Put, Storage
from homeport.storage.remote.reach import reach_storage
from homeport.storage.times import parse_time

from ..test_serve import Server

NOW = parse_time("2025-12-22T12:00:00Z")
MODEL = "claude-opus-4-5-20251101"


@pytest.fixture(params=[False, True], ids=["no server", "a server"])
def maybe_a_server(request: pytest.FixtureRequest, url: str) -> Iterator[None]:
    """With and without a server on the store."""
    if not request.param:
        yield
        return
    server = Server(Path.cwd(), "--port", "0", environ=dict(os.environ))
    yield
    server.kill()


def row(tokens: int) -> dict[str, Any]:
    return {
        "timestamp": "2025-12-21T10:30:00Z",
        "instant": parse_time("2025-12-21T10:30:00Z"),
        "totalTokens": tokens,
        "costMicros": 9_300_000,
        "inputTokens": 0,
        "outputTokens": 0,
        "cacheCreationTokens": 0,
        "cacheReadTokens": 0,
        "modelsUsed": [MODEL],
    }


def on_store(url: str, work: Any) -> Any:
    async def run() -> Any:
        async with reach_storage(url, (DAYS, TOTALS, USERS)) as storage:
            return await work(storage)

    return asyncio.run(run())


async def fill(storage: Storage) -> None:
    for number, name in enumerate(("alice", "bob", "carol"), 1):
        entries = [Entry(f"2025-12-{day:02}", row(number * day)) for day in (1, 20, 21)]
        await Ledger(storage).record(name, entries, NOW)


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments], prog_name="homeport")


def finding(*arguments: str) -> tuple[int, str, str]:
    """The exit code of the check, and what it finds of the totals."""
    result = check("--json", *arguments)
    found = [one for one in json.loads(result.stdout)["findings"] if one["subject"] == "totals"]
    return result.exit_code, found[0]["level"], found[0]["message"]


RIGHT = (0, "ok", "those of 3 users are what their entries come to")


async def _other_tokens(storage: Storage) -> None:
    id = day_id("bob", "2025-W51")
    record = (await storage.get(TOTALS, [id]))[id]
    await storage.commit([Put(TOTALS, id, record.decode() | {"totalTokens": 1}, record.version)])


async def _another_rank(storage: Storage) -> None:
    id = day_id("bob", "2025-12-21")
    record = (await storage.get(DAYS, [id]))[id]
    await storage.commit([Put(DAYS, id, record.decode() | {"byCost": "2025-12-21/0199"}, record.version)])


async def _no_total(storage: Storage) -> None:
    await storage.commit([Delete(TOTALS, day_id("bob", "2025-12"))])


async def _a_total_of_nothing(storage: Storage) -> None:
    id = day_id("bob", "2025-12")
    record = (await storage.get(TOTALS, [id]))[id]
    await storage.commit([Put(TOTALS, day_id("bob", "2024-02"), record.document)])


@pytest.mark.parametrize("damage", [_other_tokens, _another_rank, _no_total, _a_total_of_nothing])
def test_wrong_totals_are_found_and_rebuilt(url: str, maybe_a_server: None, damage: Any) -> None:
    on_store(url, fill)
    assert finding() == RIGHT
    on_store(url, damage)
    wrong = (1, "fatal", "they are not what the entries come to, of bob")
    assert finding() == wrong
    assert finding() == wrong  # looking changes nothing
    assert finding("--repair-totals") == (0, "ok", "rebuilt of bob; 3 users were looked at")
    assert finding() == RIGHT


def test_the_cure_is_named(url: str) -> None:
    on_store(url, fill)
    on_store(url, _no_total)
    assert "-> homeport check --repair-totals" in check().stdout


def test_a_store_that_is_not_there_is_not_made(url: str, folder: Path) -> None:
    assert "totals" not in check().stdout
    assert list(folder.iterdir()) == []


def test_without_the_leaderboard_there_is_nothing_to_look_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_store(url, fill)
    monkeypatch.setenv("HOMEPORT_APIS__ENABLED", '["device_usage"]')
    assert "totals" not in check().stdout
