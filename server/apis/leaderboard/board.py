"""What readers are shown: a page of a ranking, and a user (contracts/leaderboard.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ....storage import Query, Record, Storage
from ....storage.times import format_time, parse_time
from .documents import DAYS, TOTALS, day_id, in_period, of_user
from .periods import ALL_TIME, Period, label

if TYPE_CHECKING:
    from typing import Literal

RECENT_DAYS = 30
_FIELDS = {"cost": "byCost", "tokens": "byTokens"}
_MICROS = 1_000_000


class _Day(msgspec.Struct):
    totalTokens: int  # noqa: N815  # a name of the document, as are those below
    costMicros: int  # noqa: N815
    models: tuple[str, ...]
    days = 1

    @property
    def topModel(self) -> str | None:  # noqa: N802
        return self.models[0] if self.models else None


class _Total(msgspec.Struct):
    """Without the models, of which there may be many."""

    totalTokens: int  # noqa: N815
    costMicros: int  # noqa: N815
    days: int
    topModel: str | None  # noqa: N815


_read_day = msgspec.json.Decoder(_Day).decode
_read_total = msgspec.json.Decoder(_Total).decode


class Ranking(NamedTuple):
    """Which ranking: ``day`` (YYYY-MM-DD) is one of its period's."""

    period: Period
    metric: Literal["tokens", "cost"]
    day: str


async def leaderboard(storage: Storage, ranking: Ranking, limit: int, offset: int) -> dict[str, Any]:
    """A page of a ranking; ties share a rank, in order of username."""
    period, metric, day = ranking
    daily = period == "daily"
    collection, read = (DAYS, _read_day) if daily else (TOTALS, _read_total)
    period_label = label(period, day)
    field = _FIELDS[metric]
    page, newest = await asyncio.gather(
        storage.find(
            Query(
                collection,
                in_period(field, period_label),
                (f"-{field}",),
                limit,
                offset=offset,
                total=True,
                rank=True,
            )
        ),
        storage.find(Query(collection, in_period("byArrival", period_label), ("-byArrival",), 1)),
    )
    entries: list[dict[str, Any]] = []
    rank, last = page.rank or 0, None
    for place, record in enumerate(page.records, offset + 1):
        user = read(record.document)
        amount = user.costMicros if metric == "cost" else user.totalTokens
        if last is not None and amount != last:
            rank = place
        last = amount
        entries.append(
            {
                "rank": rank,
                "username": record.id.partition(" ")[0],
                "totalCost": dollars(user.costMicros),
                "totalTokens": user.totalTokens,
                "daysCounted": user.days,
                "topModel": user.topModel,
            }
        )
    return {
        "period": period,
        "metric": metric,
        "updated_at": _arrival(newest.records),
        "total": page.total,
        "entries": entries,
    }


def _arrival(newest: Sequence[Record]) -> str | None:
    if not newest:
        return None
    return format_time(parse_time(newest[0].decode()["byArrival"].partition("/")[2]))


async def profile(storage: Storage, username: str) -> dict[str, Any] | None:
    """A user's sums and newest days; None where there are none."""
    id = day_id(username, ALL_TIME)
    found = await storage.get(TOTALS, [id])
    if not found:
        return None
    total = _read_total(found[id].document)
    days = of_user(DAYS, username)
    first, recent = await asyncio.gather(
        storage.find(Query(DAYS, days.where, ("id",), 1)),
        storage.find(Query(DAYS, days.where, ("-id",), RECENT_DAYS)),
    )
    if not first.records or not recent.records:
        return None  # they were deleted in between
    return {
        "username": username,
        "totalDays": total.days,
        "totalCost": dollars(total.costMicros),
        "totalTokens": total.totalTokens,
        "averageDailyCost": average(total.costMicros, total.days),
        "topModel": total.topModel,
        "firstSync": _date(first.records[0]),
        "lastSync": _date(recent.records[0]),
        "recentActivity": [_activity(record) for record in recent.records],
    }


def _activity(record: Record) -> dict[str, Any]:
    day = _read_day(record.document)
    return {
        "date": _date(record),
        "totalTokens": day.totalTokens,
        "totalCost": dollars(day.costMicros),
        "modelsUsed": day.models,
    }


def _date(record: Record) -> str:
    return record.id.partition(" ")[2]


def dollars(micros: int) -> Decimal:
    """Millionths of a dollar, 0 or more, as dollars: exactly, whatever the amount."""
    whole, part = divmod(micros, _MICROS)
    return Decimal(f"{whole}.{part:06}".rstrip("0").rstrip("."))


def average(micros: int, days: int) -> Decimal:
    """Dollars a day, in whole cents, half up."""
    cents = (2 * micros + days * 10_000) // (2 * days * 10_000)
    return dollars(cents * 10_000)
