"""`homeport check` and the ledgers of metering: what is wrong is found, with and without a server."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from homeport.server.apis.metering import api
from homeport.server.apis.metering.documents import PROFILES
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.cli import cli
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import Put, Storage
from homeport.storage.remote.reach import reach_storage

from ..test_serve import Server

NAMES = ("alice", "bob", "carol")


@pytest.fixture(params=[False, True], ids=["no server", "a server"])
def maybe_a_server(request: pytest.FixtureRequest, url: str) -> Iterator[None]:
    """With and without a server on the store."""
    if not request.param:
        yield
        return
    server = Server(Path.cwd(), "--port", "0", environ=dict(os.environ))
    yield
    server.kill()


def on_store(url: str, work: Any) -> Any:
    async def run() -> Any:
        async with reach_storage(url, api.collections) as storage:
            return await work(storage)

    return asyncio.run(run())


async def fill(storage: Storage) -> None:
    ledger = Ledger(storage, Clock(), load_config(environ={}).apis.metering)
    for name in NAMES:
        await storage.commit(ledger.opened(name, f"{name}@example.com", "free"))
        await ledger.consume(name, 1000, "Feature usage", lambda _: ())


async def damage(storage: Storage) -> None:
    record = (await storage.get(PROFILES, ["bob"]))["bob"]
    await storage.commit([Put(PROFILES, "bob", record.decode() | {"tokens_balance": 1_000_000})])


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments], prog_name="homeport")


def finding() -> tuple[int, str, str]:
    """The exit code of the check, and what it finds of the balances."""
    result = check("--json")
    found = [one for one in json.loads(result.stdout)["findings"] if one["subject"] == "balances"]
    return result.exit_code, found[0]["level"], found[0]["message"]


def test_a_wrong_balance_is_found(url: str, maybe_a_server: None) -> None:
    on_store(url, fill)
    assert finding() == (0, "ok", "those of 3 profiles are what their ledgers come to")
    on_store(url, damage)
    problem = "bob, the balance is 1,000,000, the ledger comes to 249,000"
    assert finding() == (1, "fatal", f"1 of 3 are not what the ledger comes to: {problem}")
    assert "-> undo what was changed by hand" in check().stdout


def test_a_store_that_is_not_there_is_not_made(url: str, folder: Path) -> None:
    assert "balances" not in check().stdout
    assert list(folder.iterdir()) == []


def test_without_metering_there_is_nothing_to_look_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_store(url, fill)
    monkeypatch.setenv("HOMEPORT_APIS__ENABLED", '["device_usage"]')
    assert "balances" not in check().stdout
