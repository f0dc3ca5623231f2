"""Stores of before 0.1 had a record a day, and totals of weeks: the first start packs the days into months."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from ....storage import Collection, DeleteWhere, Put, Query, Storage, StorageDamaged, walk
from ....storage.times import parse_time
from .documents import MONTHS, RANKED, Day, Row, of_user, period_id, read_day, read_days, with_rows
from .ledger import Ledger
from .periods import month_of

log = logging.getLogger(__name__)

DAYS = Collection("leaderboard_days", RANKED)
"""A user's days, as ``alice 2025-12-21``. Nothing is written there any more."""

_TOLD_EVERY = 100_000


async def first_unpacked(storage: Storage) -> str | None:
    """The first user of whom there are days that are not packed."""
    if DAYS.name not in storage.collections:
        return None
    await storage.declare(DAYS)
    page = await storage.find(Query(DAYS, limit=1))
    return page.records[0].id.partition(" ")[0] if page.records else None


async def check_unpacked(storage: Storage) -> None:
    """Raises `StorageDamaged` unless all days that are not packed can be read."""
    async for _ in _unpacked(storage, Query(DAYS)):
        pass


async def pack_days(storage: Storage) -> None:
    """Packs what there is, user by user; one that is interrupted is begun again. Raises `StorageDamaged`."""
    username = await first_unpacked(storage)
    if username is None:
        return
    done, total = 0, await storage.count(Query(DAYS))
    log.info("packing %d days of an earlier version into months", total)
    while username is not None:
        before, done = done, done + await _pack(storage, username)
        if before // _TOLD_EVERY < done // _TOLD_EVERY:
            log.info("packed %d of %d days", done, total)
        username = await first_unpacked(storage)
    log.info("packed all %d days", done)


async def _pack(storage: Storage, username: str) -> int:
    """Packs a user's days; returns how many there were."""
    months: defaultdict[str, dict[str, Day]] = defaultdict(dict)
    async for day, kept in _unpacked(storage, of_user(DAYS, username)):
        months[month_of(day)][day] = kept
    count = sum(map(len, months.values()))
    ids = {period_id(username, month): days for month, days in months.items()}
    for id, record in (await storage.get(MONTHS, list(ids))).items():
        # From a start that was interrupted, or of before an earlier version had the store once more.
        for day, raw in read_days(record.document).items():
            since = read_day(raw)
            ids[id][day] = with_rows(ids[id].get(day), since.rows, day, since.arrival) or ids[id][day]
    await storage.commit([Put(MONTHS, id, {"days": dict(sorted(days.items()))}) for id, days in ids.items()])
    await Ledger(storage).audit(username, repair=True)
    await storage.commit([DeleteWhere(of_user(DAYS, username))])
    return count


async def _unpacked(storage: Storage, query: Query) -> AsyncIterator[tuple[str, Day]]:
    """Days that are not packed. Raises `StorageDamaged` where one cannot be read."""
    async for record in walk(storage, query):
        try:
            document = record.decode()
            arrival = parse_time(document["byArrival"].partition("/")[2])
            day = Day(arrival, [_row(row) for row in document["rows"]])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StorageDamaged(f"{DAYS.name}/{record.id} cannot be read: {error!r}") from error
        yield record.id.partition(" ")[2], day


def _row(row: dict[str, Any]) -> Row:
    return Row(
        row["timestamp"],
        row["instant"],
        row["totalTokens"],
        row["costMicros"],
        row["inputTokens"],
        row["outputTokens"],
        row["cacheCreationTokens"],
        row["cacheReadTokens"],
        row["modelsUsed"],
        row.get("device"),
    )
