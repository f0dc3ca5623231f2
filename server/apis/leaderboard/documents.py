"""The documents of the leaderboard: every user's days, and their totals by week, month and all of time.

A day holds the rows that its clients sent, one for each device, and their sum. Ids are built to be scanned:
``alice 2025-12-21`` among the days, ``alice 2025-W51`` among the totals; a blank sorts before whatever a username may
hold, so that order of id is order of username. What a period is ranked by stands in one text with the period, so that
an index serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ....storage import Collection, Field, Filter, Query, starts_with
from ...errors import InvalidBody, Problem

_RANKED = tuple(Field(name, "text", indexed=True) for name in ("byCost", "byTokens", "byArrival"))
"""A period and what is ranked in it, as `_key` makes them; ``byArrival``: when the period last changed."""

DAYS = Collection("leaderboard_days", _RANKED)
"""``rows``: what was sent, one a device; ``totalTokens``, ``costMicros`` and ``models``: all of them together."""
TOTALS = Collection("leaderboard_totals", _RANKED)
"""``days`` and ``rows`` are counted, ``totalTokens`` and ``costMicros`` are sums over them; ``models``: on how many
days each was used; ``topModel``: the one on most."""
USERS = Collection("leaderboard_users", (Field("lastSyncAt", "time", indexed=True),))
"""Everybody who ever synced."""

MAX_DEVICES = 1000
"""Rows of one user's day."""
MAX_MODELS = 100_000
"""Names of models that one user may have used."""


def in_period(field: str, label: str) -> tuple[Filter, Filter]:
    """The records of a period by its label; ``field``: what they are ranked by."""
    return Filter(field, ">=", f"{label}/"), Filter(field, "<", f"{label}0")  # "0" follows "/"


def day_id(username: str, day: str) -> str:
    """The id of a user's day; with the label of a longer period, of that total."""
    return f"{username} {day}"


def of_user(collection: Collection, username: str) -> Query:
    """All of a user's days or totals."""
    return Query(collection, starts_with(f"{username} "))


def with_rows(
    before: Mapping[str, Any] | None, rows: Iterable[dict[str, Any]], day: str, arrival: str
) -> dict[str, Any] | None:
    """A day after some rows have arrived; None where they change nothing."""
    kept = {row.get("device"): row for row in before["rows"]} if before else {}
    changed = False
    for row in rows:
        device = row.get("device")
        if device in kept and kept[device]["instant"] > row["instant"]:
            continue
        if device is not None and kept.keys() == {None}:
            del kept[None]  # it was all devices together, and is now told device by device
        kept[device] = row
        changed = True
    if len(kept) > MAX_DEVICES:
        raise InvalidBody(problems=[Problem(("entries",), f"must not give {day} more than {MAX_DEVICES} devices")])
    return summed(list(kept.values()), day, _latest(before, arrival)) if changed else None


def summed(rows: list[dict[str, Any]], day: str, arrival: str) -> dict[str, Any]:
    """The document of a day that has these rows."""
    if len(rows) == 1:
        (row,) = rows
        tokens, cost, models = row["totalTokens"], row["costMicros"], row["modelsUsed"]
    else:
        tokens = sum([row["totalTokens"] for row in rows])
        cost = sum([row["costMicros"] for row in rows])
        models = [model for row in rows for model in row["modelsUsed"]]
    if len(models) > 1:
        models = sorted(set(models))
    return {
        "byCost": _key(day, cost),
        "byTokens": _key(day, tokens),
        "byArrival": f"{day}/{arrival}",
        "totalTokens": tokens,
        "costMicros": cost,
        "models": models,
        "rows": rows,
    }


class Delta:
    """By how much some days change a total that they belong to."""

    def __init__(self) -> None:
        self._tokens = self._cost = self._days = self._rows = 0
        self._models: dict[str, int] = {}

    def add(self, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> None:
        """A day that has changed."""
        self._tokens += after["totalTokens"]
        self._cost += after["costMicros"]
        self._rows += len(after["rows"])
        if before is None:
            self._days += 1
            self._count(after["models"], 1)
            return
        self._tokens -= before["totalTokens"]
        self._cost -= before["costMicros"]
        self._rows -= len(before["rows"])
        if before["models"] != after["models"]:
            self._count(after["models"], 1)
            self._count(before["models"], -1)

    def _count(self, models: Iterable[str], days: int) -> None:
        for model in models:  # a Counter takes three times as long for one or two
            self._models[model] = self._models.get(model, 0) + days

    def applied_to(self, total: Mapping[str, Any] | None, label: str, arrival: str) -> dict[str, Any]:
        """The document of the total after the change."""
        old = total or {"totalTokens": 0, "costMicros": 0, "days": 0, "rows": 0, "models": {}}
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
            "byArrival": f"{label}/{_latest(total, arrival)}",
            "totalTokens": tokens,
            "costMicros": cost,
            "days": old["days"] + self._days,
            "rows": old["rows"] + self._rows,
            "topModel": min(models, key=lambda model: (-models[model], model), default=None),
            "models": models,
        }


def _key(label: str, number: int) -> str:
    """A period and a whole number of at least 0, as a text that sorts like the number: its length comes first."""
    digits = str(number)
    return f"{label}/{len(digits):02}{digits}"


def arrival_of(document: Mapping[str, Any]) -> str:
    """When a day or a total last changed, as `format_instant` writes it."""
    return str(document.get("byArrival", "")).partition("/")[2]


def _latest(document: Mapping[str, Any] | None, arrival: str) -> str:
    """The clock may have been set back: what arrives now is then not the newest."""
    return arrival if document is None else max(arrival_of(document), arrival)
