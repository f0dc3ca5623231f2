"""What readers are shown: a page of a ranking, and a user (contracts/leaderboard.md)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ....storage import Query, Storage, walk
from ....storage.documents import decode_kept
from ....storage.times import format_time
from .documents import MONTHS, TOTALS, Day, models_of, of_user, period_id, read_day, read_days, summed
from .periods import ALL_TIME
from .rankings import Ranking, Rankings

RECENT_DAYS = 30
_MONTHS_AT_ONCE = 3
_MICROS = 1_000_000


async def leaderboard(rankings: Rankings, ranking: Ranking, limit: int, offset: int) -> dict[str, Any]:
    """A page of a ranking; ties share a rank, in order of username."""
    found = await rankings.standings(ranking, limit, offset)
    entries: list[dict[str, Any]] = []
    rank, last = found.rank, None
    for place, user in enumerate(found.page, offset + 1):
        amount = user.amount(ranking.metric)
        if last is not None and amount != last:
            rank = place
        last = amount
        entries.append(
            {
                "rank": rank,
                "username": user.username,
                "totalCost": dollars(user.cost_micros),
                "totalTokens": user.tokens,
                "daysCounted": user.days,
                "topModel": user.top_model,
            }
        )
    return {
        "period": ranking.period,
        "metric": ranking.metric,
        "updated_at": None if found.arrival is None else format_time(found.arrival),
        "total": found.total,
        "entries": entries,
    }


async def profile(storage: Storage, username: str) -> dict[str, Any] | None:
    """A user's sums and newest days; None where there are none."""
    id = period_id(username, ALL_TIME)
    found = await storage.get(TOTALS, [id])
    if not found:
        return None
    total = decode_kept(found[id].document)
    first, recent = await asyncio.gather(
        storage.find(Query(MONTHS, of_user(MONTHS, username).where, ("id",), 1)), _recent(storage, username)
    )
    if not first.records or not recent:
        return None  # they were deleted in between
    return {
        "username": username,
        "totalDays": total["days"],
        "totalCost": dollars(total["costMicros"]),
        "totalTokens": total["totalTokens"],
        "averageDailyCost": average(total["costMicros"], total["days"]),
        "topModel": total["topModel"],
        "firstSync": min(read_days(first.records[0].document)),
        "lastSync": recent[0][0],
        "recentActivity": [_activity(*day) for day in recent],
    }


async def _recent(storage: Storage, username: str) -> list[tuple[str, Day]]:
    """A user's newest days."""
    recent: list[tuple[str, Day]] = []
    async for record in walk(storage, replace(of_user(MONTHS, username), sort=("-id",)), _MONTHS_AT_ONCE):
        days = read_days(record.document)
        recent += [(day, read_day(days[day])) for day in sorted(days, reverse=True)[: RECENT_DAYS - len(recent)]]
        if len(recent) == RECENT_DAYS:
            break
    return recent


def _activity(day: str, kept: Day) -> dict[str, Any]:
    sums = summed([kept])
    return {
        "date": day,
        "totalTokens": sums.tokens,
        "totalCost": dollars(sums.cost_micros),
        "modelsUsed": models_of(kept),
    }


def dollars(micros: int) -> Decimal:
    """Millionths of a dollar, 0 or more, as dollars: exactly, whatever the amount."""
    whole, part = divmod(micros, _MICROS)
    return Decimal(f"{whole}.{part:06}".rstrip("0").rstrip("."))


def average(micros: int, days: int) -> Decimal:
    """Dollars a day, in whole cents, half up."""
    cents = (2 * micros + days * 10_000) // (2 * days * 10_000)
    return dollars(cents * 10_000)
