"""`homeport check` and the leaderboard's totals: found where they are wrong, and rebuilt, with and without a server."""

from pathlib import Path
from typing import Any

import pytest

from homeport.server.apis.leaderboard.documents import MONTHS, TOTALS, USERS, Row, period_id
from homeport.server.apis.leaderboard.ledger import Ledger
from homeport.server.apis.leaderboard.upgrading import DAYS
from homeport.storage import Delete, Put, Storage
from homeport.storage.times import format_time, parse_time

from .commands import finding, on_store, run

NOW = parse_time("2025-12-22T12:00:00Z")
COLLECTIONS = (MONTHS, TOTALS, USERS)
MODEL = "claude-opus-4-5-20251101"


def row(tokens: int) -> Row:
    at = "2025-12-21T10:30:00Z"
    return Row(at, parse_time(at), tokens, 9_300_000, 0, 0, 0, 0, [MODEL])


async def fill(storage: Storage) -> None:
    for number, name in enumerate(("alice", "bob", "carol"), 1):
        entries = [(f"2025-12-{day:02}", row(number * day)) for day in (1, 20, 21)]
        await Ledger(storage).record(name, entries, NOW)


RIGHT = (0, "ok", "those of 3 users are what their entries come to")


async def _other_tokens(storage: Storage) -> None:
    id = period_id("bob", "2025-12")
    record = (await storage.get(TOTALS, [id]))[id]
    await storage.commit([Put(TOTALS, id, record.decode() | {"totalTokens": 1}, record.version)])


async def _another_rank(storage: Storage) -> None:
    id = period_id("bob", "all")
    record = (await storage.get(TOTALS, [id]))[id]
    await storage.commit([Put(TOTALS, id, record.decode() | {"byCost": "all/0199"}, record.version)])


async def _no_total(storage: Storage) -> None:
    await storage.commit([Delete(TOTALS, period_id("bob", "2025-12"))])


async def _a_total_of_nothing(storage: Storage) -> None:
    id = period_id("bob", "2025-12")
    record = (await storage.get(TOTALS, [id]))[id]
    await storage.commit([Put(TOTALS, period_id("bob", "2024-02"), record.document)])


@pytest.mark.parametrize("damage", [_other_tokens, _another_rank, _no_total, _a_total_of_nothing])
def test_wrong_totals_are_found_and_rebuilt(url: str, maybe_a_server: None, damage: Any) -> None:
    on_store(url, COLLECTIONS, fill)
    assert finding("totals") == RIGHT
    on_store(url, COLLECTIONS, damage)
    wrong = (1, "fatal", "they are not what the entries come to, of bob")
    assert finding("totals") == wrong
    assert finding("totals") == wrong  # looking changes nothing
    assert finding("totals", "--repair-totals") == (0, "ok", "rebuilt of bob; 3 users were looked at")
    assert finding("totals") == RIGHT


def test_the_cure_is_named(url: str) -> None:
    on_store(url, COLLECTIONS, fill)
    on_store(url, COLLECTIONS, _no_total)
    assert "-> homeport check --repair-totals" in run("check").stdout


@pytest.mark.parametrize(
    ("day", "level", "message"),
    [
        pytest.param(
            {"rows": [], "byArrival": f"2025-12-21/{format_time(NOW)}"},
            "note",
            "they are of an earlier version; a start brings them up to date",
            id="whole",
        ),
        pytest.param(
            {"rows": [7]},
            "fatal",
            "leaderboard_days/alice 2025-12-21 cannot be read: KeyError('byArrival')",
            id="broken",
        ),
    ],
)
def test_those_of_an_earlier_version_are_left_to_the_next_start(
    url: str, day: dict[str, Any], level: str, message: str
) -> None:
    async def fill_as_it_was(storage: Storage) -> None:
        await storage.commit([Put(DAYS, "alice 2025-12-21", day)])

    on_store(url, [DAYS], fill_as_it_was)
    assert finding("totals", "--repair-totals") == (int(level == "fatal"), level, message)


def test_an_entry_that_cannot_be_read_is_named(url: str, maybe_a_server: None) -> None:
    async def damage(storage: Storage) -> None:
        await storage.commit([Put(MONTHS, "bob 2025-12", {"days": {"2025-12-21": [1, [["?"]]]}})])

    on_store(url, COLLECTIONS, fill)
    on_store(url, COLLECTIONS, damage)
    for arguments in ([], ["--repair-totals"]):
        code, level, message = finding("totals", *arguments)
        assert (code, level) == (1, "fatal")
        assert message.startswith("leaderboard_months/bob 2025-12 cannot be read: ")


def test_a_store_that_is_not_there_is_not_made(url: str, folder: Path) -> None:
    assert "totals" not in run("check").stdout
    assert list(folder.iterdir()) == []


def test_without_the_leaderboard_there_is_nothing_to_look_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_store(url, COLLECTIONS, fill)
    monkeypatch.setenv("HOMEPORT_APIS__ENABLED", '["device_usage"]')
    assert "totals" not in run("check").stdout
