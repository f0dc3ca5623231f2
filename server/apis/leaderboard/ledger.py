"""The leaderboard as it is kept: every user's days, and their totals by week, month and all of time.

A day holds the rows that its clients sent, one for each device, and their sum. Every total is written in the commit
that changes a day of it, so that a page of any period reads as many records as it shows. Ids are built to be scanned:
``alice 2025-12-21`` among the days, ``alice 2025-W51`` among the totals; a blank sorts before whatever a username may
hold, so that order of id is order of username. What a period is ranked by stands in one text with the period, so that
an index serves both.

All writes of a user go with a new version of the user's record: of two servers that sync one user, the second tries
again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ....storage import (
    ABSENT,
    Collection,
    Delete,
    DeleteWhere,
    Field,
    Filter,
    Put,
    Query,
    Record,
    Storage,
    Write,
    retry,
    starts_with,
)
from ....storage.times import format_instant, format_time
from ...errors import InvalidBody, Problem
from .periods import ALL_TIME, longer_periods

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
_PAGE = 500
_STEP = 100
"""Entries that are worked out before others have their turn."""


class Entry(NamedTuple):
    """A user's usage on a day (YYYY-MM-DD), of one device or of none in particular.

    ``row``: the document that is kept, with the ``device`` if there is one and the ``instant`` of the timestamp in
    microseconds since the epoch.
    """

    day: str
    row: dict[str, Any]


class Ranked(NamedTuple):
    """A field to rank by, and the part of its values that one period has."""

    field: str
    prefix: str

    @property
    def where(self) -> tuple[Filter, Filter]:
        return Filter(self.field, ">=", self.prefix), Filter(self.field, "<", self.prefix[:-1] + "0")  # "0" follows "/"


def ranked(field: str, label: str) -> Ranked:
    """Of a period by its label; ``field``: ``byCost``, ``byTokens`` or ``byArrival``."""
    return Ranked(field, f"{label}/")


def day_id(username: str, day: str) -> str:
    """The id of a user's day; with the label of a longer period, of that total."""
    return f"{username} {day}"


def of_user(collection: Collection, username: str) -> Query:
    """All of a user's days or totals."""
    return Query(collection, starts_with(f"{username} "))


class Ledger:
    """What the API knows of users, on a store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def record(self, username: str, entries: Sequence[Entry], now: int) -> None:
        """Takes in a user's entries, all or none, in their order: of one day and device the latest timestamp counts, of
        equal ones the later arrival. ``now`` in microseconds since the epoch. Raises `InvalidBody` beyond the bounds.
        """
        by_day: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for day, row in entries:
            by_day[day].append(row)
        arrival = format_instant(now)

        async def attempt() -> None:
            fence = await self._fence(username, now)
            before = await self._documents(DAYS, username, by_day)
            changes: list[tuple[str, dict[str, Any] | None, dict[str, Any]]] = []
            for number, (day, rows) in enumerate(by_day.items(), 1):
                after = _with_rows(before.get(day), rows, day, arrival)
                if after is not None:
                    changes.append((day, before.get(day), after))
                if number % _STEP == 0:
                    await asyncio.sleep(0)
            totals = await self._totals(username, changes, arrival)
            writes = [Put(DAYS, day_id(username, day), after) for day, _, after in changes]
            await self._storage.commit([fence, *writes, *totals])

        await retry(self._storage, [username], attempt)

    async def _fence(self, username: str, now: int | None) -> Put:
        """The write of the user's record that fails where another server writes as well; None: not for a sync."""
        record = (await self._storage.get(USERS, [username])).get(username)
        state = record.decode() if record else {}
        if now is not None:
            state["lastSyncAt"] = format_time(now)
        return Put(USERS, username, state, record.version if record else ABSENT)

    async def _documents(
        self, collection: Collection, username: str, labels: Iterable[str]
    ) -> dict[str, dict[str, Any]]:
        """A user's days or totals that there are, by their labels."""
        ids = {day_id(username, label): label for label in labels}
        records = await self._storage.get(collection, list(ids))
        return {ids[id]: record.decode() for id, record in records.items()}

    async def _totals(
        self, username: str, changes: Sequence[tuple[str, dict[str, Any] | None, dict[str, Any]]], arrival: str
    ) -> list[Write]:
        """The writes of the totals that some changed days, each as it was and as it is, belong to."""
        deltas: defaultdict[str, _Delta] = defaultdict(_Delta)
        for day, before, after in changes:
            for label in longer_periods(day):
                deltas[label].add(before, after)
        totals = await self._documents(TOTALS, username, deltas)
        return [
            Put(TOTALS, day_id(username, label), delta.applied_to(totals.get(label), label, arrival))
            for label, delta in deltas.items()
        ]

    async def forget(self, username: str) -> int:
        """Removes all of a user's days and totals in one commit; returns how many rows they held."""

        async def attempt() -> int:
            fence = await self._fence(username, None)
            total = (await self._documents(TOTALS, username, [ALL_TIME])).get(ALL_TIME)
            if total is None:
                return 0
            everything = (DeleteWhere(of_user(DAYS, username)), DeleteWhere(of_user(TOTALS, username)))
            await self._storage.commit([*everything, fence])
            return int(total["rows"])

        return await retry(self._storage, [username], attempt)

    async def days(self, username: str) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """A user's days with their rows, in order."""
        async for record in self._all(of_user(DAYS, username)):
            yield record.id.partition(" ")[2], record.decode()["rows"]

    async def usernames(self) -> AsyncIterator[str]:
        """Everybody of whom there is a day or a total, in order."""
        last = ""
        while True:
            first = [await self._storage.find(Query(c, (Filter("id", ">=", last),), limit=1)) for c in (DAYS, TOTALS)]
            names = [record.id.partition(" ")[0] for page in first for record in page.records]
            if not names:
                return
            yield min(names)
            last = f"{min(names)}!"  # "!" follows a blank

    async def audit(self, username: str, *, repair: bool) -> bool:
        """Whether a user's days and totals are what the rows come to; ``repair``: makes them so, where they are not."""

        async def attempt() -> bool:
            fence = await self._fence(username, None)
            days = [record async for record in self._all(of_user(DAYS, username))]
            totals = {record.id: record async for record in self._all(of_user(TOTALS, username))}
            arrivals = {record.id: _arrival(record) for record in (*days, *totals.values())}
            newest = max(arrivals.values(), default="")
            writes: list[Write] = []
            deltas: defaultdict[str, _Delta] = defaultdict(_Delta)
            for number, record in enumerate(days, 1):
                day = record.id.partition(" ")[2]
                found = record.decode()
                right = _summed(found["rows"], day, arrivals[record.id] or newest)
                if right != found:
                    writes.append(Put(DAYS, record.id, right, record.version))
                for label in longer_periods(day):
                    deltas[label].add(None, right)
                if number % _STEP == 0:
                    await asyncio.sleep(0)
            for label, delta in deltas.items():
                id = day_id(username, label)
                total = totals.pop(id, None)
                right = delta.applied_to(None, label, arrivals.get(id) or newest)
                if total is None or right != total.decode():
                    writes.append(Put(TOTALS, id, right, total.version if total else ABSENT))
            writes += [Delete(TOTALS, id, total.version) for id, total in totals.items()]
            if not writes:
                return True
            if (await self._fence(username, None)).if_version != fence.if_version:
                return await attempt()  # a sync came between: what was read is of two moments
            if repair:
                await self._storage.commit([fence, *writes])
            return False

        return await retry(self._storage, [username], attempt)

    async def _all(self, query: Query) -> AsyncIterator[Record]:
        """Every record that a query matches, a page at a time."""
        after = None
        while True:
            page = await self._storage.find(Query(query.collection, query.where, limit=_PAGE, after=after))
            for record in page.records:
                yield record
            after = page.next
            if after is None:
                return


def _with_rows(
    before: Mapping[str, Any] | None, rows: Iterable[dict[str, Any]], day: str, arrival: str
) -> dict[str, Any] | None:
    """A day after some rows have come; None where they change nothing."""
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
    return _summed(list(kept.values()), day, arrival) if changed else None


def _summed(rows: list[dict[str, Any]], day: str, arrival: str) -> dict[str, Any]:
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


class _Delta:
    """By how much some days change a total that they belong to."""

    def __init__(self) -> None:
        self._tokens = self._cost = self._days = self._rows = 0
        self._models: Counter[str] = Counter()

    def add(self, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> None:
        """A day that has changed."""
        self._tokens += after["totalTokens"]
        self._cost += after["costMicros"]
        self._rows += len(after["rows"])
        if before is None:
            self._days += 1
            self._models.update(after["models"])
            return
        self._tokens -= before["totalTokens"]
        self._cost -= before["costMicros"]
        self._rows -= len(before["rows"])
        if before["models"] != after["models"]:
            self._models.update(after["models"])
            self._models.subtract(before["models"])

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
            "byArrival": f"{label}/{arrival}",
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


def _arrival(record: Record) -> str:
    arrival = record.decode().get("byArrival", "")
    return str(arrival).partition("/")[2]
