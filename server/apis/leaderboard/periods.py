"""The periods that users are ranked in: days, ISO weeks (ISO 8601), calendar months, and all of time."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Literal

from ....storage.times import SECOND

Period = Literal["daily", "weekly", "monthly", "all-time"]

ALL_TIME = "all"
_FURTHEST_EAST = timedelta(hours=14)
"""Where on Earth the day begins first (UTC+14)."""


def month_of(day: str) -> str:
    """The label of the month that holds a day: ``2025-12``."""
    return day[:7]


def label(period: Period, day: str) -> str:
    """The label of the period that holds a day: ``2025-12-21``, ``2025-W51``, ``2025-12`` or ``all``."""
    match period:
        case "daily":
            return day
        case "weekly":
            year, week, _ = date.fromisoformat(day).isocalendar()
            return f"{year:04}-W{week:02}"
        case "monthly":
            return month_of(day)
        case "all-time":
            return ALL_TIME


def week_of(day: str) -> tuple[str, ...]:
    """The days of the week that holds a day, as far as they are within the years 1 to 9999."""
    number = date.fromisoformat(day).toordinal()
    monday = number - (number - 1) % 7
    within = range(max(monday, date.min.toordinal()), min(monday + 6, date.max.toordinal()) + 1)
    return tuple([date.fromordinal(ordinal).isoformat() for ordinal in within])


def today(now: int) -> str:
    """The day in UTC; ``now`` in microseconds since the epoch."""
    return datetime.fromtimestamp(now // SECOND, UTC).date().isoformat()


def latest_day(now: int) -> str:
    """The latest day that it is anywhere on Earth."""
    return (datetime.fromtimestamp(now // SECOND, UTC) + _FURTHEST_EAST).date().isoformat()
