"""Who used how much in a period, most first.

Months and all of time are ranked on the store, by their totals. Days and weeks are ranked in memory: a client that
uploads its history would write an index of them all over, for a thousand days that nobody looks at. Their ranking is
made of the months' documents when it is first asked for, some 50 microseconds a user, and then kept up with what
changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from aiohttp import web

from ....storage import Gone, Query, Storage
from ....storage.times import parse_time
from .documents import MONTHS, TOTALS, Sums, in_period, read_day, read_days, summed, top_model
from .periods import Period, label, month_of, week_of

if TYPE_CHECKING:
    from sortedcontainers import SortedList

Metric = Literal["tokens", "cost"]

MAX_USERS = 100_000
"""In all rankings that are held, unless one alone has more."""
_USERS_AT_ONCE = 100
_CHANGES_AT_ONCE = 100
_MAX_BEHIND = 50
"""Pages of changes that are read, rather than the rankings made anew."""
_FIELDS: Mapping[Metric, str] = {"cost": "byCost", "tokens": "byTokens"}


class Ranking(NamedTuple):
    """Which ranking: ``day`` (YYYY-MM-DD) is one of its period's."""

    period: Period
    metric: Metric
    day: str


class Standing(NamedTuple):
    """What a user comes to in a period."""

    username: str
    cost_micros: int
    tokens: int
    days: int
    top_model: str | None

    def amount(self, metric: Metric) -> int:
        """What it is ranked by."""
        return self.cost_micros if metric == "cost" else self.tokens


class Standings(NamedTuple):
    """A page of a ranking, ties in order of username. ``rank``: of its first; ``total``: how many users the period has;
    ``arrival``: when it last changed, in microseconds since the epoch."""

    page: Sequence[Standing]
    rank: int
    total: int
    arrival: int | None


class _Total(msgspec.Struct, rename="camel"):
    """Without the models, of which there may be many."""

    total_tokens: int
    cost_micros: int
    days: int
    top_model: str | None
    by_arrival: str


_read_total = msgspec.json.Decoder(_Total).decode


class Rankings:
    """All rankings of a store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._boards: OrderedDict[str, _Board] = OrderedDict()
        self._version = 0
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        """Users of the rankings that are held."""
        return sum(map(len, self._boards.values()))

    async def standings(self, ranking: Ranking, limit: int, offset: int) -> Standings:
        """A page of a ranking, as of now."""
        period, metric, day = ranking
        if period == "daily" or period == "weekly":
            board = await self._board(label(period, day), (day,) if period == "daily" else week_of(day))
            return board.page(metric, limit, offset)
        field, wanted = _FIELDS[metric], label(period, day)
        page, newest = await asyncio.gather(
            self._storage.find(
                Query(TOTALS, in_period(field, wanted), (f"-{field}",), limit, offset=offset, total=True, rank=True)
            ),
            self._storage.find(Query(TOTALS, in_period("byArrival", wanted), ("-byArrival",), 1)),
        )
        standings = []
        for record in page.records:
            total = _read_total(record.document)
            username = record.id.partition(" ")[0]
            standings.append(Standing(username, total.cost_micros, total.total_tokens, total.days, total.top_model))
        arrivals = [_read_total(record.document).by_arrival.partition("/")[2] for record in newest.records]
        return Standings(standings, page.rank or 0, page.total or 0, parse_time(arrivals[0]) if arrivals else None)

    async def _board(self, name: str, days: Sequence[str]) -> _Board:
        """The ranking of some days, as of now."""
        async with self._turn:
            await self._catch_up()
            while name not in self._boards:
                self._boards[name] = await self._made(days)
                await self._catch_up()  # with what changed while its users were read one after the other
            self._boards.move_to_end(name)
            while len(self._boards) > 1 and len(self) > MAX_USERS:
                self._boards.popitem(last=False)
            return self._boards[name]

    async def _catch_up(self) -> None:
        """Takes in what has changed. Lets all rankings go where somebody was deleted, or too much has changed."""
        for _ in range(_MAX_BEHIND if self._boards else 0):
            try:
                page = await self._storage.changes(MONTHS, self._version, _CHANGES_AT_ONCE)
            except Gone:
                break
            for change in page.changes:
                username, _, month = change.id.partition(" ")
                days = read_days(change.document or b"{}")
                for board in self._boards.values():
                    board.take(username, month, days)
            self._version = page.version
            if not page.more:
                return
            await asyncio.sleep(0)
        self._boards.clear()
        self._version = (await self._storage.changes(MONTHS, 0, 1)).store_version

    async def _made(self, days: Sequence[str]) -> _Board:
        board = _Board(days)
        for month in board.months:
            query: Query | None = Query(TOTALS, in_period("byCost", month), ("byCost",), _USERS_AT_ONCE)
            while query is not None:
                page = await self._storage.find(query)
                months = await self._storage.get(MONTHS, [record.id for record in page.records])
                for id, record in months.items():
                    board.take(id.partition(" ")[0], month, read_days(record.document))
                query = replace(query, after=page.next) if page.next else None
                await asyncio.sleep(0)
        return board


class _Board:
    """The ranking of some days."""

    def __init__(self, days: Sequence[str]) -> None:
        from sortedcontainers import SortedList  # takes 24 ms, which a start need not

        self.months = sorted({month_of(day) for day in days})
        self._days = days
        self._sums: dict[str, dict[str, Sums]] = {}  # of each user, by month
        self._standings: dict[str, Standing] = {}
        self._orders: dict[Metric, SortedList[tuple[int, str]]] = {"tokens": SortedList(), "cost": SortedList()}
        self._arrivals: SortedList[int] = SortedList()

    def __len__(self) -> int:
        return len(self._standings)

    def take(self, username: str, month: str, days: Mapping[str, Any]) -> None:
        """What a user's month is now, by its days."""
        if month not in self.months:
            return
        sums = self._sums.pop(username, {})
        if sums:
            standing = self._standings.pop(username)
            for metric, order in self._orders.items():
                order.remove((-standing.amount(metric), username))
            self._arrivals.remove(_arrival(sums))
        sums.pop(month, None)
        chosen = [read_day(days[day]) for day in self._days if day in days]
        if chosen:
            sums[month] = summed(chosen)
        if sums:
            self._sums[username] = sums
            standing = self._standings[username] = _standing(username, sums.values())
            for metric, order in self._orders.items():
                order.add((-standing.amount(metric), username))
            self._arrivals.add(_arrival(sums))

    def page(self, metric: Metric, limit: int, offset: int) -> Standings:
        order = self._orders[metric]
        page = [self._standings[username] for _, username in order.islice(offset, offset + limit)]
        rank = 1 + order.bisect_left((-page[0].amount(metric), "")) if page else 0
        return Standings(page, rank, len(order), self._arrivals[-1] if self._arrivals else None)


def _standing(username: str, months: Collection[Sums]) -> Standing:
    models: Counter[str] = Counter()
    for sums in months:
        models.update(sums.models)
    cost, tokens = sum([sums.cost_micros for sums in months]), sum([sums.tokens for sums in months])
    return Standing(username, cost, tokens, sum([sums.days for sums in months]), top_model(models))


def _arrival(months: Mapping[str, Sums]) -> int:
    return max([sums.arrival for sums in months.values()])


RANKINGS = web.AppKey("leaderboard_rankings", Rankings)
