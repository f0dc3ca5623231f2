"""The database of the server that these clients used before: taken in once, in place.

Its tables: ``users`` (``user_key`` in clear), and ``device_stats``, unique by ``user_key``, ``hostname`` and
``timestamp``, with a column for each number and ``hourly_usage`` as JSON text. It kept neither the client's version nor
the average duration of sessions.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from functools import partial
from pathlib import Path

from ....storage import Collection, Put, Storage, StorageDamaged
from ....storage.documents import decode
from ....storage.times import parse_time
from ...validation import Checker, Schemas
from .ledger import Ledger, Report, user_id

log = logging.getLogger(__name__)

IMPORTS = Collection("device_usage_imports")
"""What was taken in from elsewhere."""

_DONE = "original"
_CHUNK = 500
_NEEDED = {"id", "user_key", "hostname", "timestamp"}
"""The columns without which a `device_stats` is none of the original server's; one for a number may be missing."""


async def import_original(storage_url: str, storage: Storage) -> None:
    """Takes in the original server's reports, where the store is a database that holds them, once.

    A crash in between is no harm: the next start does it again, to the same end. The store backed the database up when
    it first made its own tables in it.
    """
    if not storage_url.startswith("sqlite:"):
        return
    from ....storage.sqlite import SqliteStorage  # not for other back ends: its driver takes a while to import

    if not isinstance(storage, SqliteStorage) or await storage.get(IMPORTS, [_DONE]):
        return
    database = await asyncio.to_thread(_connect, storage.path)
    try:
        columns = {name for (name,) in await _select(database, "SELECT name FROM pragma_table_info('device_stats')")}
        if not columns >= _NEEDED:
            return
        taken, refused = await _take_in(database, Ledger(storage))
    except sqlite3.Error as error:
        raise StorageDamaged(f"{storage.path}: the original server's reports cannot be read: {error}") from error
    finally:
        database.close()
    await storage.commit([Put(IMPORTS, _DONE, {"reports": taken, "refused": refused})])
    log.info("took in %d reports of the original server (%d could not be read)", taken, refused)


def _connect(path: Path) -> sqlite3.Connection:
    """Another connection of the same library, which is all that may open a live database."""
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
    database.row_factory = sqlite3.Row
    database.text_factory = partial(str, encoding="utf-8", errors="replace")
    return database


async def _take_in(database: sqlite3.Connection, ledger: Ledger) -> tuple[int, int]:
    """How many reports were taken in, and how many cannot be."""
    ((total,),) = await _select(database, "SELECT count(*) FROM device_stats")
    log.info("taking in %d reports of the original server", total)
    taken = refused = 0
    checker = Schemas().checker("device_usage#/$defs/SyncRequest")
    for (key,) in await _select(database, "SELECT DISTINCT user_key FROM device_stats"):
        last = -1
        while rows := await _select(database, _ROWS, key, last, _CHUNK):
            last = rows[-1]["id"]
            reports = [report for row in rows if (report := _report(row, checker))]
            if reports:
                await ledger.record(user_id(key), reports, admission=None)
            taken += len(reports)
            refused += len(rows) - len(reports)
            log.info("took in %d of %d reports", taken + refused, total)
    return taken, refused


_ROWS = "SELECT * FROM device_stats WHERE user_key IS ? AND id > ? ORDER BY id LIMIT ?"


async def _select(database: sqlite3.Connection, statement: str, *parameters: object) -> list[sqlite3.Row]:
    return await asyncio.to_thread(lambda: database.execute(statement, parameters).fetchall())


def _report(columns: sqlite3.Row, checker: Checker) -> Report | None:
    """A row as a report; None, and a line in the log, where it is none that a client could send."""
    row = dict(columns)
    try:
        document = {
            "userKey": row["user_key"],
            "hostname": row["hostname"],
            "timestamp": str(row["timestamp"]).replace(" ", "T", 1),
            "usage": {
                "totalTokens": row.get("total_tokens") or 0,
                "inputTokens": row.get("input_tokens") or 0,
                "outputTokens": row.get("output_tokens") or 0,
                "cacheCreationTokens": row.get("cache_creation_tokens") or 0,
                "cacheReadTokens": row.get("cache_read_tokens") or 0,
            },
            "sessions": {
                "total": row.get("sessions_total") or 0,
                "active": row.get("sessions_active") or 0,
                "averageDuration": 0,
            },
            "costs": {
                "opus": row.get("cost_opus") or 0,
                "sonnet": row.get("cost_sonnet") or 0,
                "haiku": row.get("cost_haiku") or 0,
                "actual": row.get("cost_actual") or 0,
            },
            "hourlyUsage": decode(str(row.get("hourly_usage") or "[]").encode()) or [0] * 24,
            "version": "unknown",
        }
        if not checker.is_valid(document):
            problem = checker.problems(document)[0]
            raise ValueError(f"{problem.field} {problem.message}")
    except ValueError as error:
        log.warning("report %s of the original server cannot be read: %s", row["id"], error)
        return None
    del document["userKey"]
    return Report(document["hostname"], parse_time(document["timestamp"]), document)
