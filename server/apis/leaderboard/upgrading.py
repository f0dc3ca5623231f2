"""Stores of before 0.1 had a record a day, and totals of weeks: the first start packs the days into months."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ....storage import Collection, DeleteWhere, Put, Query, Storage, walk
from ....storage.times import parse_time
from .documents import MONTHS, RANKED, Day, Row, of_user, period_id
from .ledger import Ledger
from .periods import month_of

DAYS = Collection("leaderboard_days", RANKED)
"""A user's days, as ``alice 2025-12-21``. Nothing is written there any more."""


async def first_unpacked(storage: Storage) -> str | None:
    """The first user of whom there are days that are not packed."""
    if DAYS.name not in storage.collections:
        return None
    await storage.declare(DAYS)
    page = await storage.find(Query(DAYS, limit=1))
    return page.records[0].id.partition(" ")[0] if page.records else None


async def pack_days(storage: Storage) -> None:
    """Packs what there is, user by user; one that is interrupted is begun again. No server may run on the store."""
    while username := await first_unpacked(storage):
        await _pack(storage, username)


async def _pack(storage: Storage, username: str) -> None:
    months: defaultdict[str, dict[str, Day]] = defaultdict(dict)
    async for record in walk(storage, of_user(DAYS, username)):
        day, document = record.id.partition(" ")[2], record.decode()
        arrival = parse_time(document["byArrival"].partition("/")[2])
        months[month_of(day)][day] = Day(arrival, [_row(row) for row in document["rows"]])
    await storage.commit([Put(MONTHS, period_id(username, month), {"days": days}) for month, days in months.items()])
    await Ledger(storage).audit(username, repair=True)
    await storage.commit([DeleteWhere(of_user(DAYS, username))])


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
