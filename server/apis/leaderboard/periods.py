"""The periods that users are ranked in: days, ISO weeks (ISO 8601), calendar months, and all of time."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Literal

from ....storage.times import SECOND

Period = Literal["daily", "weekly", "monthly", "all-time"]

ALL_TIME = "all"
_FURTHEST_EAST = timedelta(hours=14)
"""Where on Earth the day begins first (UTC+14)."""


@lru_cache(maxsize=8192)
def longer_periods(day: str) -> tuple[str, str, str]:
    """The labels of the week, the month and all of time that hold a day: ``2025-W51``, ``2025-12``, ``all``."""
    year, week, _ = date.fromisoformat(day).isocalendar()
    return f"{year:04}-W{week:02}", day[:7], ALL_TIME


def label(period: Period, day: str) -> str:
    """The label of the period that holds a day; of a daily one, the day itself."""
    if period == "daily":
        return day
    return longer_periods(day)[("weekly", "monthly", "all-time").index(period)]


def today(now: int) -> str:
    """The day in UTC; ``now`` in microseconds since the epoch."""
    return datetime.fromtimestamp(now // SECOND, UTC).date().isoformat()


def latest_day(now: int) -> str:
    """The latest day that it is anywhere on Earth."""
    return (datetime.fromtimestamp(now // SECOND, UTC) + _FURTHEST_EAST).date().isoformat()
