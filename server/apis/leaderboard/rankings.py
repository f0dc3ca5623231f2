"""Who used how much in a period, most first.

Months and all of time are ranked on the store, by their totals. Days and weeks are ranked in memory: a client that
uploads its history would write an index of them all over, for a thousand days that nobody looks at. Their ranking is
made of the months' documents when it is first asked for, and then caught up with: what was written of a user's months
is told by the user's record, which each such commit writes too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from aiohttp import web

from ....storage import Gone, Query, Storage, walk
from ....storage.locks import KeyedLocks
from ....storage.times import parse_time
from ...turns import Turns
from .documents import MONTHS, TOTALS, USERS, in_period, period_id, read_day, read_days, summed, top_model
from .periods import Period, label, month_of, week_of

if TYPE_CHECKING:
    from sortedcontainers import SortedList

Metric = Literal["tokens", "cost"]

MAX_RANKINGS = 100
MAX_USERS = 100_000
"""In all rankings that are held, unless one alone has more."""
_USERS_AT_ONCE = 100
"""So many records at once SQLite reads on a thread, and drops none that it remembers for them."""
_CHANGES_AT_ONCE = 500
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
        self._turns = KeyedLocks()
        self._making = asyncio.Lock()

    def __len__(self) -> int:
        """How many are held."""
        return len(self._boards)

    @property
    def users(self) -> int:
        """Of the rankings that are held."""
        return sum(map(len, self._boards.values()))

    def reset(self) -> None:
        """Lets all rankings go."""
        self._boards.clear()

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
        """The ranking of some days, as of now. Whoever asks for one that is held waits for no other to be made."""
        async with self._turns.hold([name]):
            board = self._boards.get(name)
            while board is None or not await self._catch_up(board):
                async with self._making:
                    board = await self._made(days)
            self._boards[name] = board
            self._boards.move_to_end(name)
            while len(self) > MAX_RANKINGS or (len(self) > 1 and self.users > MAX_USERS):
                self._boards.popitem(last=False)
            return board

    async def _made(self, days: Sequence[str]) -> _Board:
        """A ranking to be caught up: who changes while it is made is in it as before or as after."""
        board = _Board(days, (await self._storage.changes(USERS, 0, 1)).store_version)
        usernames: dict[str, None] = {}
        for month in board.months:
            async for record in walk(self._storage, Query(TOTALS, in_period("byCost", month), ("byCost",))):
                usernames[record.id.partition(" ")[0]] = None
        await self._take(board, list(usernames))
        return board

    async def _catch_up(self, board: _Board) -> bool:
        """Takes in what has changed; returns whether that is known."""
        more = True
        while more:
            try:
                page = await self._storage.changes(USERS, board.version, _CHANGES_AT_ONCE)
            except Gone:
                return False
            await self._take(board, [change.id for change in page.changes])
            board.version, more = page.version, page.more
        return True

    async def _take(self, board: _Board, usernames: Sequence[str]) -> None:
        """Takes in what some users' months are now."""
        for start in range(0, len(usernames), _USERS_AT_ONCE):
            ids = {
                name: [period_id(name, month) for month in board.months]
                for name in usernames[start : start + _USERS_AT_ONCE]
            }
            found = await self._storage.get(MONTHS, [id for months in ids.values() for id in months])
            turns = Turns()
            for name, months in ids.items():
                documents = [found[id].document for id in months if id in found]
                board.take(name, documents)
                await turns.took(sum(map(len, documents)))
            await asyncio.sleep(0)


class _Board:
    """The ranking of some days, as of a version of the store."""

    def __init__(self, days: Sequence[str], version: int) -> None:
        from sortedcontainers import SortedList  # takes 24 ms, which a start need not

        self.months = sorted({month_of(day) for day in days})
        self.version = version
        self._days = days
        self._standings: dict[str, Standing] = {}
        self._arrived: dict[str, int] = {}
        self._orders: dict[Metric, SortedList[tuple[int, str]]] = {"tokens": SortedList(), "cost": SortedList()}
        self._arrivals: SortedList[int] = SortedList()

    def __len__(self) -> int:
        return len(self._standings)

    def take(self, username: str, months: Sequence[bytes]) -> None:
        """What a user's months are now."""
        former = self._standings.pop(username, None)
        if former is not None:
            for metric, order in self._orders.items():
                order.remove((-former.amount(metric), username))
            self._arrivals.remove(self._arrived.pop(username))
        days = [read_day(kept[day]) for kept in map(read_days, months) for day in self._days if day in kept]
        if not days:
            return
        sums = summed(days)
        standing = Standing(username, sums.cost_micros, sums.tokens, sums.days, top_model(sums.models))
        self._standings[username], self._arrived[username] = standing, sums.arrival
        for metric, order in self._orders.items():
            order.add((-standing.amount(metric), username))
        self._arrivals.add(sums.arrival)

    def page(self, metric: Metric, limit: int, offset: int) -> Standings:
        order = self._orders[metric]
        page = [self._standings[username] for _, username in order.islice(offset, offset + limit)]
        rank = 1 + order.bisect_left((-page[0].amount(metric), "")) if page else 0
        return Standings(page, rank, len(order), self._arrivals[-1] if self._arrivals else None)


RANKINGS = web.AppKey("leaderboard_rankings", Rankings)
