"""The leaderboard as it is kept on a store.

Every total is written in the commit that changes a day of it, so that a page of any period reads as many records as it
shows. All writes of a user go with a new version of the user's record: of two servers that sync one user, the second
tries again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

from ....storage import (
    ABSENT,
    Collection,
    Conflict,
    Delete,
    DeleteWhere,
    Filter,
    Put,
    Query,
    Storage,
    Write,
    retry,
    walk,
)
from ....storage.times import format_instant, format_time
from .documents import DAYS, TOTALS, USERS, Delta, arrival_of, day_id, in_period, of_user, summed, with_rows
from .periods import ALL_TIME, longer_periods

_STEP = 100
"""Entries that are worked out before others have their turn."""


class Entry(NamedTuple):
    """A user's usage on a day (YYYY-MM-DD), of one device or of none in particular.

    ``row``: the document that is kept, with the ``device`` if there is one and the ``instant`` of the timestamp in
    microseconds since the epoch.
    """

    day: str
    row: dict[str, Any]


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
                after = with_rows(before.get(day), rows, day, arrival)
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
        deltas: defaultdict[str, Delta] = defaultdict(Delta)
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
            if fence.if_version == ABSENT:
                return 0  # nobody of that name ever synced
            total = (await self._documents(TOTALS, username, [ALL_TIME])).get(ALL_TIME)
            everything = (DeleteWhere(of_user(DAYS, username)), DeleteWhere(of_user(TOTALS, username)))
            await self._storage.commit([*everything, fence])
            return int(total["rows"]) if total else 0

        return await retry(self._storage, [username], attempt)

    async def days(self, username: str) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """A user's days with their rows, in order."""
        async for record in walk(self._storage, of_user(DAYS, username)):
            yield record.id.partition(" ")[2], record.decode()["rows"]

    async def count(self) -> int:
        """How many users there are."""
        return await self._storage.count(Query(TOTALS, in_period("byCost", ALL_TIME)))

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
            writes = await self._repairs(username)
            if repair and writes:
                await self._storage.commit([fence, *writes])
            elif writes and (await self._fence(username, None)).if_version != fence.if_version:
                # A sync came in between: what was read is of two moments.
                raise Conflict(0, USERS.name, username, "version")
            return not writes

        return await retry(self._storage, [username], attempt)

    async def _repairs(self, username: str) -> list[Write]:
        """The writes that make a user's days and totals what the rows come to."""
        writes: list[Write] = []
        deltas: defaultdict[str, Delta] = defaultdict(Delta)
        arrivals: defaultdict[str, str] = defaultdict(str)
        count = 0
        async for record in walk(self._storage, of_user(DAYS, username)):
            day = record.id.partition(" ")[2]
            found = record.decode()
            right = summed(found["rows"], day, arrival_of(found))
            if right != found:
                writes.append(Put(DAYS, record.id, right, record.version))
            for label in longer_periods(day):
                deltas[label].add(None, right)
                arrivals[label] = max(arrivals[label], arrival_of(found))
            count += 1
            if count % _STEP == 0:
                await asyncio.sleep(0)
        async for record in walk(self._storage, of_user(TOTALS, username)):
            label = record.id.partition(" ")[2]
            delta = deltas.pop(label, None)
            if delta is None:
                writes.append(Delete(TOTALS, record.id, record.version))
                continue
            found = record.decode()
            right = delta.applied_to(None, label, arrivals[label])
            if right != found:
                writes.append(Put(TOTALS, record.id, right, record.version))
        for label, delta in deltas.items():
            total = delta.applied_to(None, label, arrivals[label])
            writes.append(Put(TOTALS, day_id(username, label), total, ABSENT))
        return writes
