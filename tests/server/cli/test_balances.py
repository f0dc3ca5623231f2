"""`homeport check` and the ledgers of metering: what is wrong is found, with and without a server."""

from pathlib import Path

import pytest

from homeport.server.apis.metering import api
from homeport.server.apis.metering.documents import PROFILES
from homeport.server.apis.metering.ledger import Ledger
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import Put, Storage

from .commands import finding, on_store, run

NAMES = ("alice", "bob", "carol")


async def fill(storage: Storage) -> None:
    ledger = Ledger(storage, Clock(), load_config(environ={}).apis.metering)
    for name in NAMES:
        await storage.commit(ledger.opened(name, f"{name}@example.com", "free"))
        await ledger.consume(name, 1000, "Feature usage", lambda _: ())


async def damage(storage: Storage) -> None:
    record = (await storage.get(PROFILES, ["bob"]))["bob"]
    await storage.commit([Put(PROFILES, "bob", record.decode() | {"tokens_balance": 1_000_000})])


def test_a_wrong_balance_is_found(url: str, maybe_a_server: None) -> None:
    on_store(url, api.collections, fill)
    assert finding("balances") == (0, "ok", "those of 3 profiles are what their ledgers come to")
    on_store(url, api.collections, damage)
    problem = "bob, the balance is 1,000,000, the ledger comes to 249,000"
    assert finding("balances") == (1, "fatal", f"1 of 3 are not what the ledger comes to: {problem}")
    assert "-> undo what was changed by hand" in run("check").stdout


def test_a_store_that_is_not_there_is_not_made(url: str, folder: Path) -> None:
    assert "balances" not in run("check").stdout
    assert list(folder.iterdir()) == []


def test_without_metering_there_is_nothing_to_look_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_store(url, api.collections, fill)
    monkeypatch.setenv("HOMEPORT_APIS__ENABLED", '["device_usage"]')
    assert "balances" not in run("check").stdout
