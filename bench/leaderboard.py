"""The leaderboard: entries a second of large syncs against raw SQLite, and a page of a large board against a small one.

    python -m bench leaderboard

Loads a million entries of 10,000 users through the API, which takes some minutes.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from bench.load import LOAD_CORE, running
from bench.processes import free_port
from homeport.server import bcrypt_pool
from homeport.server.api_keys import KEYS, USERS, ApiKeys
from homeport.server.clock import Clock
from homeport.storage import open_storage

LARGE_SYNC = 1000
SYNCING_USERS = 24
CLIENTS = 4
RANKED_USERS, DAYS_EACH = 10_000, 100
SMALL_USERS = 100
PAGES = 300
LAST_DAY = date(2025, 12, 21)


def days(count: int) -> list[str]:
    return [(LAST_DAY - timedelta(n)).isoformat() for n in range(count)]


def body(username: str, wanted: Sequence[str], timestamp: str, number: int) -> bytes:
    """A sync with an entry for each day; ``number`` tells users apart in what they used."""
    entries = [
        {
            "username": username,
            "date": day,
            "totalTokens": 11_681_277 + 7919 * number % 1_000_003,
            "totalCost": round(9.3 + 37 * number % 1009 / 100, 2),
            "inputTokens": 19_756,
            "outputTokens": 448,
            "cacheCreationTokens": 583_432,
            "cacheReadTokens": 11_077_641,
            "modelsUsed": ["claude-opus-4-5-20251101"],
            "timestamp": timestamp,
        }
        for day in wanted
    ]
    return json.dumps({"entries": entries, "source": "ccusage", "version": "1.0.0"}).encode()


async def make_keys(url: str, count: int) -> list[str]:
    """Keys of as many users. Their hashes cost little: it is not bcrypt that is measured here."""
    bcrypt_pool.COST = 4
    async with open_storage(url, [KEYS, USERS]) as storage:
        keys = ApiKeys(storage, Clock())
        made = []
        for start in range(0, count, 100):
            names = [f"user{n:05}" for n in range(start, min(start + 100, count))]
            made += [text for _, text in await asyncio.gather(*(keys.create(name) for name in names))]
        keys.close()
        return made


@contextlib.contextmanager
def serving(url: str) -> Iterator[int]:
    """The port of a server that keeps its data there."""
    port = free_port()
    with running(["-m", "homeport", "serve", "--storage", url, "--port", str(port)], port):
        yield port


class Clients:
    """Some connections that take turns at requests."""

    def __init__(self, port: int, count: int = CLIENTS) -> None:
        self._connections = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(count)]

    def sync(self, requests: Sequence[tuple[str, bytes]], told: Callable[[int], None] = lambda _: None) -> float:
        """Posts bodies with their keys; seconds until the last is answered."""
        waiting = iter(requests)
        done = itertools.count(1)

        def work(connection: http.client.HTTPConnection) -> None:
            for key, data in waiting:
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                connection.request("POST", "/v1/sync", data, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"a sync was answered {answer.status}: {text!r}")
                told(next(done))

        begin = time.perf_counter()
        with ThreadPoolExecutor(len(self._connections)) as threads:
            list(threads.map(work, self._connections))
        return time.perf_counter() - begin

    def page(self, path: str) -> float:
        """Milliseconds that a page takes, median."""
        connection = self._connections[0]
        took = []
        for _ in range(PAGES):
            begin = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            page = json.loads(answer.read())
            took.append((time.perf_counter() - begin) * 1000)
            if len(page["entries"]) != 100:
                raise SystemExit(f"{path} has {len(page['entries'])} entries")
        return statistics.median(took)


def raw_upserts(folder: Path) -> list[float]:
    """Rows a second of plain `executemany` upserts of a sync's entries, a row each, in commits of a sync."""
    rates = []
    entries = json.loads(body("user", days(LARGE_SYNC), "2025-12-21T10:30:00Z", 1))["entries"]
    documents = [(entry["date"], json.dumps(entry, separators=(",", ":"))) for entry in entries]
    with contextlib.closing(sqlite3.connect(folder / "raw.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE days (id TEXT PRIMARY KEY, document TEXT NOT NULL)")
        for number in range(SYNCING_USERS):
            rows = [(f"user{number:05} {day}", document) for day, document in documents]
            for _ in range(2):
                begin = time.perf_counter()
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    "INSERT INTO days VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET document = excluded.document", rows
                )
                db.execute("COMMIT")
                rates.append(len(rows) / (time.perf_counter() - begin))
    return rates


def large_syncs(folder: Path) -> None:
    url = f"sqlite:{folder}/syncs.db"
    keys = asyncio.run(make_keys(url, SYNCING_USERS))
    wanted = days(LARGE_SYNC)

    def requests(timestamp: str, users: range) -> list[tuple[str, bytes]]:
        return [(keys[n], body(f"user{n:05}", wanted, timestamp, n)) for n in users]

    users = range(SYNCING_USERS)
    with serving(url) as port:
        clients = Clients(port)
        clients.sync([(keys[n], body(f"user{n:05}", wanted[:1], "2025-12-21T10:00:00Z", n)) for n in users])
        taken = [clients.sync(requests(f"2025-12-21T1{hour}:30:00Z", users)) for hour in (0, 1)]
    raw = statistics.median(raw_upserts(folder))
    print(f"raw executemany upserts of the same entries: {raw:,.0f} rows/s")
    for name, seconds in zip(("first sync", "sync again"), taken, strict=True):
        rate = SYNCING_USERS * LARGE_SYNC / seconds
        print(f"{name} of {LARGE_SYNC} entries: {rate:,.0f} entries/s ({rate / raw:.3f} of raw)")


def pages(folder: Path) -> None:
    paths = [
        f"/v1/leaderboard?period={period}&metric={metric}&date={LAST_DAY}"
        for period in ("all-time", "monthly", "weekly", "daily")
        for metric in ("cost", "tokens")
    ]
    measured: list[list[float]] = []
    for name, users, each in (
        ("small", SMALL_USERS, 1000 // SMALL_USERS),
        ("large", RANKED_USERS, DAYS_EACH),
    ):
        url = f"sqlite:{folder}/{name}.db"
        keys = asyncio.run(make_keys(url, users))
        wanted = days(each)
        with serving(url) as port:
            clients = Clients(port)
            begin = time.perf_counter()

            def told(syncs: int, users: int = users, each: int = each, begin: float = begin) -> None:
                if syncs % 500 == 0 or syncs == users:
                    rate = syncs * each / (time.perf_counter() - begin)
                    print(f"\r{syncs * each:,} of {users * each:,} entries, {rate:,.0f}/s", end="", file=sys.stderr)

            bodies: Any = ((key, body(f"user{n:05}", wanted, "2025-12-21T10:30:00Z", n)) for n, key in enumerate(keys))
            clients.sync(list(bodies), told)
            print(file=sys.stderr)
            measured.append([clients.page(path) for path in paths])
    for path, small, large in zip(paths, *measured, strict=True):
        print(f"{path.partition('?')[2]:48} {small:.2f} ms small, {large:.2f} ms large: {large / small:.2f}")


def main() -> None:
    os.environ["HOMEPORT_APIS__LEADERBOARD__RATE_LIMIT"] = "1000000000/hour"
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with tempfile.TemporaryDirectory() as folder:
        large_syncs(Path(folder))
        pages(Path(folder))


if __name__ == "__main__":
    main()
