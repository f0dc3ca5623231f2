"""The leaderboard as it is kept on a store.

Every total is written in the commit that changes a day of it, so that a page of months or of all time reads as many
records as it shows. All writes of a user go with a new version of the user's record: of two servers that sync one
user, the second tries again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from typing import Any

import msgspec

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
    StorageDamaged,
    Write,
    retry,
    walk,
)
from ....storage.documents import decode_kept
from ....storage.times import format_time
from ...errors import InvalidBody, Problem
from ...turns import Turns
from .documents import (
    MAX_MONTH,
    MONTHS,
    TOTALS,
    USERS,
    Day,
    Delta,
    Row,
    in_period,
    of_user,
    period_id,
    read_day,
    read_days,
    with_rows,
)
from .periods import ALL_TIME, month_of

_BYTES_AN_ENTRY = 256
_MONTHS_AT_ONCE = 12
"""Of a user, read at a time."""

Entry = tuple[str, Row]
"""A user's usage on a day (YYYY-MM-DD), of one device or of none in particular."""


class Ledger:
    """What the API knows of users, on a store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def record(self, username: str, entries: Sequence[Entry], now: int) -> None:
        """Takes in a user's entries, all or none, in their order: of one day and device the latest timestamp counts, of
        equal ones the later arrival. ``now`` in microseconds since the epoch. Raises `InvalidBody` beyond the bounds.
        """
        months: defaultdict[str, defaultdict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for day, row in entries:
            months[month_of(day)][day].append(row)

        async def attempt() -> None:
            fence = await self._fence(username, now)
            present = await self._records(MONTHS, username, months)
            writes: list[Write] = [fence]
            deltas: dict[str, Delta] = {}
            turns = Turns()
            for month, arrived in months.items():
                document = present.get(month, b'{"days":{}}')
                days: dict[str, Any] = read_days(document)
                delta = _taken_in(days, arrived, now)
                if delta is not None:
                    deltas[month] = delta
                    put = Put(MONTHS, period_id(username, month), {"days": dict(sorted(days.items()))})
                    _check_size(month, len(put.document), len(document))
                    writes.append(put)
                await turns.took(len(document) + _BYTES_AN_ENTRY * len(arrived))
            await self._storage.commit([*writes, *await self._totals(username, deltas, present)])

        await retry(self._storage, [username], attempt)

    async def _fence(self, username: str, now: int | None) -> Put:
        """The write of the user's record that fails where another server writes as well; None: not for a sync."""
        record = (await self._storage.get(USERS, [username])).get(username)
        state = record.decode() if record else {}
        if now is not None:
            state["lastSyncAt"] = format_time(now)
        return Put(USERS, username, state, record.version if record else ABSENT)

    async def _records(self, collection: Collection, username: str, labels: Iterable[str]) -> dict[str, bytes]:
        """The documents of a user's months or totals that there are, by their labels."""
        ids = {period_id(username, label): label for label in labels}
        records = await self._storage.get(collection, list(ids))
        return {ids[id]: record.document for id, record in records.items()}

    async def _totals(self, username: str, deltas: dict[str, Delta], known: Container[str]) -> list[Write]:
        """The writes of the totals of some months that have changed, and of all time. ``known``: which there were."""
        if not deltas:
            return []
        ever = Delta()
        for delta in deltas.values():
            ever.merge(delta)
        present = await self._records(TOTALS, username, [ALL_TIME, *[month for month in deltas if month in known]])
        deltas[ALL_TIME] = ever
        totals = {label: decode_kept(document) for label, document in present.items()}
        return [
            Put(TOTALS, period_id(username, label), delta.applied_to(totals.get(label), label))
            for label, delta in deltas.items()
        ]

    async def forget(self, username: str) -> int:
        """Removes all of a user's months and totals in one commit; returns how many rows they held."""

        async def attempt() -> int:
            fence = await self._fence(username, None)
            if fence.if_version == ABSENT:
                return 0  # nobody of that name ever synced
            total = (await self._records(TOTALS, username, [ALL_TIME])).get(ALL_TIME)
            everything = (DeleteWhere(of_user(MONTHS, username)), DeleteWhere(of_user(TOTALS, username)))
            await self._storage.commit([*everything, fence])
            return int(decode_kept(total)["rows"]) if total else 0

        return await retry(self._storage, [username], attempt)

    async def days(self, username: str) -> AsyncIterator[tuple[str, Day]]:
        """A user's days, in order. Raises `StorageDamaged` where some cannot be read."""
        async for record in walk(self._storage, of_user(MONTHS, username), _MONTHS_AT_ONCE):
            try:
                days = [(day, read_day(kept)) for day, kept in read_days(record.document).items()]
            except msgspec.ValidationError as error:
                raise StorageDamaged(f"{MONTHS.name}/{record.id} cannot be read: {error}") from error
            for day in days:
                yield day
            await asyncio.sleep(0)

    async def count(self) -> int:
        """How many users there are."""
        return await self._storage.count(Query(TOTALS, in_period("byCost", ALL_TIME)))

    async def usernames(self) -> AsyncIterator[str]:
        """Everybody of whom there is a month or a total, in order."""
        last = ""
        while True:
            first = [await self._storage.find(Query(c, (Filter("id", ">=", last),), limit=1)) for c in (MONTHS, TOTALS)]
            names = [record.id.partition(" ")[0] for page in first for record in page.records]
            if not names:
                return
            yield min(names)
            last = f"{min(names)}!"  # "!" follows a blank

    async def audit(self, username: str, *, repair: bool) -> bool:
        """Whether a user's totals are what the rows come to; ``repair``: makes them so, where they are not."""

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
        """The writes that make a user's totals what the rows come to."""
        writes: list[Write] = []
        deltas: defaultdict[str, Delta] = defaultdict(Delta)
        async for day, kept in self.days(username):
            for label in (month_of(day), ALL_TIME):
                deltas[label].add([], [kept])
        async for record in walk(self._storage, of_user(TOTALS, username)):
            label = record.id.partition(" ")[2]
            delta = deltas.pop(label, None)
            if delta is None:
                writes.append(Delete(TOTALS, record.id, record.version))
                continue
            right = delta.applied_to(None, label)
            if right != record.decode():
                writes.append(Put(TOTALS, record.id, right, record.version))
        for label, delta in deltas.items():
            writes.append(Put(TOTALS, period_id(username, label), delta.applied_to(None, label), ABSENT))
        return writes


def _check_size(month: str, size: int, before: int) -> None:
    """Raises `InvalidBody` for a month's document that has grown too large."""
    if size > max(MAX_MONTH, before):
        problem = f"must not give {month} more than {MAX_MONTH:,} bytes of rows"
        raise InvalidBody(problems=[Problem(("entries",), problem)])


def _taken_in(days: dict[str, Any], arrived: Mapping[str, Sequence[Row]], now: int) -> Delta | None:
    """Takes rows into the days of a month; what that changes, None where it is nothing."""
    before, after = [], []
    for day, rows in arrived.items():
        was = read_day(days[day]) if day in days else None
        kept = with_rows(was, rows, day, now)
        if kept is not None:
            days[day] = kept
            after.append(kept)
            if was is not None:
                before.append(was)
    if not after:
        return None
    delta = Delta()
    delta.add(before, after)
    return delta
