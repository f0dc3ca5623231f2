"""The documents of the leaderboard: what every user's clients sent, by month, and totals of each month and of all time.

Ids are built to be scanned: ``alice 2025-12`` among the months and the totals, ``alice all`` among the totals; a blank
sorts before whatever a username may hold, so that order of id is order of username. What a total is ranked by stands
in one text with its period, so that an index serves both. Days and weeks are ranked in memory (see `rankings`): an
index of them would be written all over by a client that uploads its history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from ....storage import Collection, Field, Filter, Query, starts_with
from ....storage.times import format_instant
from ...errors import InvalidBody, Problem

RANKED = tuple(Field(name, "text", indexed=True) for name in ("byCost", "byTokens", "byArrival"))
"""A period and what is ranked in it, as `_key` makes them; ``byArrival``: when the period last changed."""

MONTHS = Collection("leaderboard_months")
"""``days``: those of the month with data, by date, each a `Day`."""
TOTALS = Collection("leaderboard_totals", RANKED)
"""``days`` and ``rows`` are counted, ``totalTokens`` and ``costMicros`` are sums over them; ``models``: on how many
days each was used; ``topModel``: the one on most."""
USERS = Collection("leaderboard_users", (Field("lastSyncAt", "time", indexed=True),))
"""Everybody who ever synced."""

MAX_DEVICES = 1000
"""Rows of one user's day."""
MAX_MONTH = 1 << 20
"""Bytes of a month's document, which every sync of the month reads and writes whole."""
MAX_MODELS = 10_000
"""Names of models that one user may have used: each sync reads and writes on how many days each was."""


class Row(msgspec.Struct, array_like=True, gc=False):
    """What a client sent of a day, in all or of one device. ``instant``: of the timestamp, in microseconds since the
    epoch."""

    timestamp: str
    instant: int
    tokens: int
    cost_micros: int
    input_tokens: int
    output_tokens: int
    cache_creation_tokens: int
    cache_read_tokens: int
    models: list[str]
    device: str | None = None


class Day(msgspec.Struct, array_like=True, gc=False):
    """A day's rows, one a device. ``arrival``: when it last changed, in microseconds since the epoch."""

    arrival: int
    rows: list[Row]


class _Month(msgspec.Struct):
    days: dict[str, msgspec.Raw]


read_day = msgspec.json.Decoder(Day).decode
_read_month = msgspec.json.Decoder(_Month).decode


def read_days(document: bytes) -> dict[str, msgspec.Raw]:
    """The days of a month, each to be read where it is needed."""
    return _read_month(document).days


class Sums(msgspec.Struct, gc=False):
    """What some days come to. ``models``: on how many each was used; ``arrival``: of the newest."""

    tokens: int
    cost_micros: int
    days: int
    models: Mapping[str, int]
    arrival: int


def in_period(field: str, label: str) -> tuple[Filter, Filter]:
    """The totals of a period by its label; ``field``: what they are ranked by."""
    return Filter(field, ">=", f"{label}/"), Filter(field, "<", f"{label}0")  # "0" follows "/"


def period_id(username: str, label: str) -> str:
    """The id of a user's month or total."""
    return f"{username} {label}"


def of_user(collection: Collection, username: str) -> Query:
    """All of a user's months or totals."""
    return Query(collection, starts_with(f"{username} "))


def with_rows(before: Day | None, rows: Sequence[Row], day: str, arrival: int) -> Day | None:
    """A day after some rows have arrived; None where they change nothing."""
    if len(rows) == 1 and (before is None or _is_newer_of_one(before, rows[0])):
        return Day(arrival if before is None else max(before.arrival, arrival), list(rows))
    kept = {row.device: row for row in before.rows} if before else {}
    changed = False
    for row in rows:
        device = row.device
        if device in kept and kept[device].instant > row.instant:
            continue
        if device is not None and kept.keys() == {None}:
            del kept[None]  # it was all devices together, and is now told device by device
        kept[device] = row
        changed = True
    if len(kept) > MAX_DEVICES:
        raise InvalidBody(problems=[Problem(("entries",), f"must not give {day} more than {MAX_DEVICES} devices")])
    if not changed:
        return None
    # The clock may have been set back: what arrives now is then not the newest.
    return Day(max(before.arrival, arrival) if before else arrival, list(kept.values()))


def _is_newer_of_one(before: Day, row: Row) -> bool:
    """Whether a row takes the place of a day's only one, as most do."""
    return len(before.rows) == 1 and before.rows[0].device == row.device and before.rows[0].instant <= row.instant


def models_of(day: Day) -> list[str]:
    """The models of a day, each once, in order."""
    if len(day.rows) == 1 and len(day.rows[0].models) < 2:
        return day.rows[0].models
    return sorted({model for row in day.rows for model in row.models})


def summed(days: Sequence[Day]) -> Sums:
    """What some days, at least one, come to."""
    return Sums(
        sum([row.tokens for day in days for row in day.rows]),
        sum([row.cost_micros for day in days for row in day.rows]),
        len(days),
        Counter(chain.from_iterable(map(models_of, days))),
        max([day.arrival for day in days]),
    )


class Delta:
    """By how much some days change a total that they belong to. ``arrival``: the newest of them."""

    def __init__(self) -> None:
        self.arrival = 0
        self._tokens = self._cost = self._days = self._rows = 0
        self._models: dict[str, int] = {}

    def add(self, before: Sequence[Day], after: Sequence[Day]) -> None:
        """Days that have changed: as they were, those that there were, and as they are."""
        old, new = [row for day in before for row in day.rows], [row for day in after for row in day.rows]
        self._tokens += sum([row.tokens for row in new]) - sum([row.tokens for row in old])
        self._cost += sum([row.cost_micros for row in new]) - sum([row.cost_micros for row in old])
        self._rows += len(new) - len(old)
        self._days += len(after) - len(before)
        self._count(Counter(chain.from_iterable(map(models_of, after))), 1)
        self._count(Counter(chain.from_iterable(map(models_of, before))), -1)
        self.arrival = max([self.arrival, *[day.arrival for day in after]])

    def merge(self, other: Delta) -> None:
        """Other days of the same total."""
        self.arrival = max(self.arrival, other.arrival)
        self._tokens += other._tokens
        self._cost += other._cost
        self._days += other._days
        self._rows += other._rows
        self._count(other._models, 1)

    def _count(self, models: Mapping[str, int], factor: int) -> None:
        for model, days in models.items():
            self._models[model] = self._models.get(model, 0) + factor * days

    def applied_to(self, total: Mapping[str, Any] | None, label: str) -> dict[str, Any]:
        """The document of the total after the change."""
        old = total or {"byArrival": "", "totalTokens": 0, "costMicros": 0, "days": 0, "rows": 0, "models": {}}
        models: dict[str, int] = old["models"]
        for model, days in self._models.items():
            models[model] = models.get(model, 0) + days
            if not models[model]:
                del models[model]
        if len(models) > MAX_MODELS:
            raise InvalidBody(problems=[Problem(("entries",), f"must not name more than {MAX_MODELS} models in all")])
        tokens, cost = old["totalTokens"] + self._tokens, old["costMicros"] + self._cost
        return {
            "byCost": _key(label, cost),
            "byTokens": _key(label, tokens),
            "byArrival": max(old["byArrival"], f"{label}/{format_instant(self.arrival)}"),
            "totalTokens": tokens,
            "costMicros": cost,
            "days": old["days"] + self._days,
            "rows": old["rows"] + self._rows,
            "topModel": top_model(models),
            "models": models,
        }


def top_model(days: Mapping[str, int]) -> str | None:
    """The model of most days, of several the alphabetically first."""
    return min(days, key=lambda model: (-days[model], model), default=None)


def _key(label: str, number: int) -> str:
    """A period and a whole number of at least 0, as a text that sorts like the number: its length comes first."""
    digits = str(number)
    return f"{label}/{len(digits):02}{digits}"
