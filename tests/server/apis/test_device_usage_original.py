"""A database of the original server is taken in: once, whole, with a backup, whatever happens meanwhile."""

import json
import re
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from homeport.storage import StorageDamaged

from .conftest import KEY, Launch, Log, Process, Serve, Served, report, until, user_key

Row = dict[str, Any]
COLUMNS = (
    *("user_key", "hostname", "timestamp", "total_tokens", "input_tokens", "output_tokens", "cache_creation_tokens"),
    *(
        "cache_read_tokens",
        "sessions_total",
        "sessions_active",
        "cost_opus",
        "cost_sonnet",
        "cost_haiku",
        "cost_actual",
    ),
    "hourly_usage",
)
TABLES = """
CREATE TABLE users (user_key TEXT PRIMARY KEY, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    last_seen TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE device_stats (id INTEGER PRIMARY KEY AUTOINCREMENT, user_key TEXT, hostname TEXT, timestamp TIMESTAMP,
    total_tokens INTEGER DEFAULT 0, input_tokens INTEGER DEFAULT 0, output_tokens INTEGER DEFAULT 0,
    cache_creation_tokens INTEGER DEFAULT 0, cache_read_tokens INTEGER DEFAULT 0, sessions_total INTEGER DEFAULT 0,
    sessions_active INTEGER DEFAULT 0, cost_opus REAL DEFAULT 0, cost_sonnet REAL DEFAULT 0,
    cost_haiku REAL DEFAULT 0, cost_actual REAL DEFAULT 0, hourly_usage TEXT,
    FOREIGN KEY (user_key) REFERENCES users (user_key), UNIQUE (user_key, hostname, timestamp));
CREATE INDEX idx_device_stats_user ON device_stats (user_key, timestamp);
"""
FOR_EVER = {"HOMEPORT_APIS__DEVICE_USAGE__RETENTION_DAYS": "36500", "HOMEPORT_LOG__LEVEL": "debug"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ccusage.db"


def row(**changes: Any) -> Row:
    """A report as the original server kept it."""
    values = (KEY, "M4x.local", "2025-06-03 10:30:00+00:00", 2412018, 1608012, 402003, 201501, 200502, 30, 15)
    costs = (12.06, 2.41, 0.64, 15.11)
    return dict(zip(COLUMNS, (*values, *costs, json.dumps(list(range(24)))), strict=True)) | changes


def make_original(path: Path, rows: Iterable[Row]) -> list[Sequence[Any]]:
    """The original server's database; returns what is in it."""
    rows = list(rows)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(TABLES)
        keys = {r["user_key"] for r in rows if r["user_key"]}
        db.executemany("INSERT INTO users (user_key) VALUES (?)", [(key,) for key in keys])
        places = ", ".join("?" * len(COLUMNS))
        inserts = f"INSERT INTO device_stats ({', '.join(COLUMNS)}) VALUES ({places})"
        db.executemany(inserts, [tuple(r[column] for column in COLUMNS) for r in rows])
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    return original(path)


def read(path: Path, statement: str) -> list[Sequence[Any]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return db.execute(statement).fetchall()


def original(path: Path) -> list[Sequence[Any]]:
    """What an original database holds, which is whole."""
    assert read(path, "PRAGMA integrity_check") == [("ok",)]
    return read(path, "SELECT * FROM device_stats ORDER BY id")


def backups(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.iterdir() if re.fullmatch(r".+\.before-schema-1-\d+", file.name))


def kept_of(changed: Row) -> dict[str, Any]:
    """The report that a row becomes."""
    names = ("totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens")
    numbers = [changed[column] or 0 for column in COLUMNS[3:14]]
    opus, sonnet, haiku, actual = (Decimal(str(cost)) for cost in numbers[7:])
    return {
        "hostname": changed["hostname"],
        "timestamp": changed["timestamp"].replace(" ", "T"),
        "usage": dict(zip(names, numbers, strict=False)),
        "sessions": {"total": numbers[5], "active": numbers[6], "averageDuration": 0},
        "costs": {"opus": opus, "sonnet": sonnet, "haiku": haiku, "actual": actual},
        "hourlyUsage": json.loads(changed["hourly_usage"] or "[]") or [0] * 24,
        "version": "unknown",
    }


# As a whole


async def test_a_database_of_today(launch: Launch, path: Path, tmp_path: Path) -> None:
    """Every kind of row that the original server wrote, newest first."""
    rows = [
        row(timestamp="2025-06-03 11:00:00.123456+00:00", cost_actual=0.1),
        row(),
        row(hostname="offset", timestamp="2025-06-03 12:00:00+02:00", hourly_usage=None),
        row(hostname="no offset", timestamp="2025-06-03 09:00:00", cost_actual=None, total_tokens=5),
        row(hostname="T and Z", timestamp="2025-06-03T08:00:00Z", cost_actual=0, cost_opus=0.2),
        row(hostname="a/b 🖥", timestamp="2025-06-01 00:00:00+00:00", hourly_usage="[]"),
        row(hostname="nothing", timestamp="2025-05-01 00:00:00+00:00", **dict.fromkeys(COLUMNS[3:])),
    ]
    before = make_original(path, [*reversed(rows), row(user_key=user_key("bob"), total_tokens=1)])
    process = await launch("--port", "0", "--ready-file", "url", DATABASE_PATH=str(path), **FOR_EVER)
    await process.ready()
    assert (tmp_path / "url").read_text().strip() == process.url

    assert await process.history() == list(map(kept_of, rows))
    stats = (await process.stats()).json
    hosts = {changed["hostname"]: changed["total_tokens"] or 0 for changed in rows}
    assert {device["hostname"]: device["totalTokens"] for device in stats["devices"]} == hosts
    assert stats["totalTokens"] == sum(hosts.values())
    assert stats["totalCost"] == Decimal("0.1") + Decimal("15.11") + Decimal("12.06") + Decimal("0.2") + Decimal(
        "15.11"
    )
    assert (await process.stats(user_key("bob"))).json["totalTokens"] == 1

    (backup,) = backups(path)
    assert original(backup) == original(path) == before
    assert backup.stat().st_mode & 0o077 == 0  # it holds keys
    assert await process.stop() == 0
    assert "taking in 8 reports of the original server" in process.log
    assert "took in 8 reports of the original server (0 could not be read)" in process.log


async def test_database_path_and_port_as_they_are_set_today(launch: Launch, tmp_path: Path) -> None:
    """Once: what is done afterwards is not undone by the next start."""
    (tmp_path / "data folder").mkdir()
    path = tmp_path / "data folder" / "cc usage%20?.db"
    make_original(path, [row(), row(hostname="mini.local")])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    process = await launch(DATABASE_PATH="data folder/cc usage%20?.db", PORT=port, **FOR_EVER)
    await process.ready()
    assert process.url == f"http://127.0.0.1:{port}"
    assert sorted(await process.devices()) == ["M4x.local", "mini.local"]
    assert (await process("DELETE", f"/api/device/{KEY}/mini.local")).status == 200
    assert (await process.sync(report(timestamp="2025-06-03T10:30:00Z", usage__totalTokens=7))).status == 200
    assert await process.stop() == 0

    process = await launch(DATABASE_PATH="data folder/cc usage%20?.db", PORT=port, **FOR_EVER)
    await process.ready()
    assert await process.devices() == ["M4x.local"]
    assert (await process.stats()).json["totalTokens"] == 7
    assert await process.stop() == 0
    assert "of the original server" not in process.log
    assert len(backups(path)) == 1


# Row by row

Take = Callable[..., Awaitable[Served]]


@pytest.fixture
def back_end() -> str:
    return "memory"


@pytest.fixture
def take_in(serve: Serve, path: Path) -> Take:
    """Starts an application on the database, in this process."""

    async def take_in(**settings: Any) -> Served:
        return await serve({"storage.url": f"sqlite:{path}", "retention_days": 36500, **settings}, opens_store=True)

    return take_in


ODD_ROWS: dict[str, dict[str, Any]] = {
    "no user": {"user_key": None},
    "a short key": {"user_key": KEY[:10]},
    "a long key": {"user_key": KEY + KEY},
    "a key that is not hex": {"user_key": "z" * 64},
    "a key with blanks": {"user_key": KEY[:62] + "  "},
    "no host": {"hostname": None},
    "an empty host": {"hostname": ""},
    "a long host": {"hostname": "x" * 256},
    "a host of two lines": {"hostname": "a\nb"},
    "a host of bytes": {"hostname": b"\xff\xfe"},
    "no time": {"timestamp": None},
    "an empty time": {"timestamp": ""},
    "a time in words": {"timestamp": "yesterday"},
    "a time in seconds": {"timestamp": 1748946600},
    "a day": {"timestamp": "2025-06-03"},
    "a day that is none": {"timestamp": "2025-02-30 00:00:00+00:00"},
    "less than no tokens": {"total_tokens": -5},
    "tokens in words": {"total_tokens": "many"},
    "half a token": {"input_tokens": 0.5},
    "too many tokens": {"total_tokens": 2**62},
    "sessions in words": {"sessions_active": "x"},
    "less than no cost": {"cost_actual": -0.01},
    "an endless cost": {"cost_opus": float("inf"), "cost_actual": None},
    "hours that are no JSON": {"hourly_usage": "[1, 2"},
    "too few hours": {"hourly_usage": "[1, 2]"},
    "hours by name": {"hourly_usage": '{"0": 5}'},
    "hours of bytes": {"hourly_usage": b"\x80"},
}


async def test_odd_rows_are_told_and_left_out(take_in: Take, path: Path, log: Log) -> None:
    """No row keeps the server from starting, nor from answering afterwards."""
    odd = [row(**{"hostname": name, **changes}) for name, changes in ODD_ROWS.items()]
    before = make_original(path, [row(), *odd, row(hostname="last", user_key=KEY.upper())])
    server = await take_in()
    assert sorted(await server.devices()) == ["M4x.local", "last"]
    assert (await server.stats()).json["totalTokens"] == 2 * 2412018
    assert len(await server.history()) == 2
    told = log.stream.getvalue()
    assert f"took in 2 reports of the original server ({len(odd)} could not be read)" in told
    for number in range(2, 2 + len(odd)):
        assert f"report {number} of the original server cannot be read: " in told
    assert "cannot be read: usage.totalTokens must be an integer" in told
    assert original(path) == original(*backups(path)) == before


async def test_the_same_instant_twice_is_one_report(take_in: Take, path: Path) -> None:
    """The original server told texts apart, and keys by their case."""
    spellings = ["2025-06-03 10:30:00+00:00", "2025-06-03 12:30:00+02:00", "2025-06-03T10:30:00Z"]
    make_original(path, [row(timestamp=text, total_tokens=number) for number, text in enumerate(spellings)])
    server = await take_in()
    assert [kept["usage"]["totalTokens"] for kept in await server.history()] == [2]


async def test_limits_are_for_who_comes_now(take_in: Take, path: Path) -> None:
    """More devices and users than may be are taken in; where registration is closed, they are still to be added."""
    make_original(path, [row(hostname=f"m{n}") for n in range(5)] + [row(user_key=user_key(f"u{n}")) for n in range(3)])
    server = await take_in(max_devices_per_user=2, max_users=1, registration="closed")
    assert len(await server.devices()) == 5
    assert await server.devices(user_key("u2")) == ["M4x.local"]
    assert (await server.sync(report(hostname="m0"))).status == 403


async def test_what_is_too_old_goes_at_once(take_in: Take, path: Path) -> None:
    """As everywhere; the backup and the original tables have it."""
    before = make_original(path, [row(), row(hostname="silent", timestamp="2025-01-01 00:00:00+00:00")])
    server = await take_in(retention_days=90)

    async def is_gone() -> bool:
        return await server.devices() == ["M4x.local"]

    await until(is_gone)
    assert original(path) == original(*backups(path)) == before


async def test_a_database_without_reports(take_in: Take, path: Path, log: Log) -> None:
    make_original(path, [])
    assert (await (await take_in()).stats()).status == 404
    assert "took in 0 reports of the original server (0 could not be read)" in log.stream.getvalue()


async def test_a_database_of_an_earlier_version(take_in: Take, path: Path) -> None:
    """What it did not count is 0."""
    make_original(path, [row(), row(hostname="caf\xe9".encode("latin-1"), timestamp="2025-06-03 09:00:00")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE device_stats SET hostname = CAST(hostname AS TEXT)")  # which is then not UTF-8
        for column in ("hourly_usage", "cost_actual", "sessions_active"):
            db.execute(f"ALTER TABLE device_stats DROP COLUMN {column}")
    server = await take_in()
    assert await server.devices() == ["M4x.local", "caf\ufffd"]
    assert (await server.stats()).json["totalCost"] == 2 * Decimal("12.06")


async def test_a_damaged_database_is_told_in_one_line(take_in: Take, path: Path) -> None:
    make_original(path, many_rows())
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 50_000)
    with pytest.raises(StorageDamaged, match=f"{path}: the original server's reports cannot be read: "):
        await take_in()


@pytest.mark.slow
async def test_a_database_that_its_server_still_writes(launch: Launch, path: Path) -> None:
    """The new one waits for a while, and then says why it does not start; it has changed nothing."""
    before = make_original(path, [row()])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        process = await launch("--port", "0", DATABASE_PATH=str(path))
        assert await process.process.wait() == 1
    assert f"homeport: {path}: database is locked\n" in process.log
    assert "Traceback" not in process.log
    assert not backups(path)
    assert original(path) == before


async def test_a_database_that_holds_other_tables(take_in: Take, path: Path, log: Log) -> None:
    """It is theirs as much as ours."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE users (name TEXT)")
        db.execute("INSERT INTO users VALUES ('alice')")
        db.execute("CREATE TABLE device_stats (hostname TEXT, uptime INTEGER)")
    assert (await (await take_in()).sync()).status == 200
    assert "of the original server" not in log.stream.getvalue()
    for file in (path, *backups(path)):
        assert read(file, "SELECT * FROM users") == [("alice",)]
    assert len(backups(path)) == 1


async def test_a_database_that_is_not_there_yet(take_in: Take, path: Path, log: Log) -> None:
    assert (await (await take_in()).sync()).status == 200
    assert "of the original server" not in log.stream.getvalue()
    assert not backups(path)


async def test_an_application_on_another_store_leaves_it_alone(serve: Serve, path: Path) -> None:
    """Whatever its configuration says."""
    make_original(path, [row()])
    server = await serve({"storage.url": f"sqlite:{path}", "retention_days": 36500})
    assert await server.devices() == []
    assert not backups(path)


# Whatever happens meanwhile

ROWS = 4000


def many_rows() -> list[Row]:
    """Three quarters of them one user's."""
    return [
        row(
            user_key=user_key("heavy" if number % 4 else f"light {number % 20}"),
            hostname=f"m{number % 7}",
            timestamp=f"2025-05-{1 + number % 28:02} {number // 28 % 24:02}:{number // 672:02}:00+00:00",
            total_tokens=number,
        )
        for number in range(ROWS)
    ]


async def test_kills_at_every_stage(launch: Launch, path: Path) -> None:
    """Nothing is lost, nothing doubled, and every backup is whole."""
    rows = many_rows()
    before = make_original(path, rows)
    taken_in = []
    for moment in ("backup", 1, ROWS * 2 // 3):
        process = await launch("--port", "0", DATABASE_PATH=str(path), **FOR_EVER)
        await until(lambda process=process, moment=moment: _has_come_to(process, path, moment), every=0)  # type: ignore[misc]
        await process.kill()
        taken_in.append(_taken_in(path))
    assert any(0 < count < ROWS for count in taken_in)
    process = await launch("--port", "0", "--log-format", "json", DATABASE_PATH=str(path), **FOR_EVER)
    await process.ready()

    for key in {kept["user_key"] for kept in rows}:
        mine = {number: kept for number, kept in enumerate(rows) if kept["user_key"] == key}
        history = await process.history("limit=1000", key)
        assert sorted(kept["usage"]["totalTokens"] for kept in history) == sorted(mine)
        in_time = sorted(mine, key=lambda number: str(rows[number]["timestamp"]))
        newest = {rows[number]["hostname"]: number for number in in_time}
        devices = (await process.stats(key)).json["devices"]
        assert {device["hostname"]: device["totalTokens"] for device in devices} == newest
    assert backups(path)
    for database in (path, *backups(path)):
        assert original(database) == before

    assert await process.stop() == 0
    events = [json.loads(line)["event"] for line in process.log.splitlines()]
    told = [event for event in events if event.startswith("took in ") and event.endswith(f" of {ROWS} reports")]
    counts = [int(event.split()[2]) for event in told]
    assert counts == sorted(counts)
    assert counts[-1] == ROWS
    assert len(counts) >= 8


async def _has_come_to(process: Process, path: Path, moment: str | int) -> bool:
    assert process.process.returncode is None, process.log
    if moment == "backup":
        return any(file.name.startswith(f"{path.name}.before") for file in path.parent.iterdir())
    return _taken_in(path) >= int(moment)


def _taken_in(path: Path) -> int:
    try:
        return int(read(path, "SELECT count(*) FROM device_usage_reports")[0][0])
    except sqlite3.OperationalError:  # no such table yet
        return 0
