"""The leaderboard's metrics (contracts/leaderboard.md, "Metrics")."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from ....storage import Filter, Query, walk
from ....storage.times import DAY, MINUTE
from ...keys import CLOCK, STORAGE
from .board import leaderboard
from .documents import TOTALS, USERS, in_period
from .periods import ALL_TIME, today
from .rankings import RANKINGS, Ranking

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from ....storage import Storage

LARGEST = 20
"""Users and models that are shown."""
_ENTRIES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)  # as Prometheus writes bounds
_WINDOWS = {"day": DAY, "week": 7 * DAY, "month": 30 * DAY}
_MODELS_FOR = 5 * MINUTE
"""How long the sum over all users is shown before it is made again."""


class _Total(msgspec.Struct):
    models: dict[str, int]


_read = msgspec.json.Decoder(_Total).decode


class Statistics:
    """What is told of an application's leaderboard."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self.reset()

    def reset(self) -> None:
        """Begins at zero."""
        self._by_bucket = [0] * (len(_ENTRIES) + 1)
        self._entries = 0
        self._models: list[tuple[str, int]] = []
        self._models_until = 0

    def count(self, entries: int) -> None:
        """Counts a sync by its entries."""
        self._by_bucket[bisect_left(_ENTRIES, entries)] += 1
        self._entries += entries

    async def metrics(self) -> list[Metric]:
        """The metrics as they stand. Reads totals alone, those of all users at most once in five minutes."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        name = "homeport_leaderboard_"
        syncs = list(accumulate(self._by_bucket))
        entries = HistogramMetricFamily(f"{name}entries_per_sync", "Entries of a sync.")
        entries.add_metric([], list(zip([*map(str, _ENTRIES), "+Inf"], syncs, strict=True)), self._entries)
        storage, now = self._app[STORAGE], self._app[CLOCK].now()
        active = GaugeMetricFamily(f"{name}active_users", "Users who synced lately.", labels=["window"])
        for window, length in _WINDOWS.items():
            recent = Query(USERS, (Filter("lastSyncAt", ">=", now - length),))
            active.add_metric([window], await storage.count(recent))
        top = GaugeMetricFamily(f"{name}top_users_cost", "Dollars of the users who cost most.", labels=["username"])
        page = await leaderboard(self._app[RANKINGS], Ranking("all-time", "cost", today(now)), LARGEST, 0)
        for user in page["entries"]:
            top.add_metric([user["username"]], float(user["totalCost"]))
        days = GaugeMetricFamily(f"{name}model_days", "Days on which users used a model.", labels=["model"])
        for model, count in await self._largest_models(storage, now):
            days.add_metric([model], count)
        return [
            CounterMetricFamily(f"{name}syncs", "Syncs that were taken in.", value=syncs[-1]),
            entries,
            active,
            top,
            days,
        ]

    async def _largest_models(self, storage: Storage, now: int) -> list[tuple[str, int]]:
        if not now < self._models_until <= now + _MODELS_FOR:  # the clock may be set back
            days: Counter[str] = Counter()
            async for record in walk(storage, Query(TOTALS, in_period("byCost", ALL_TIME), ("byCost",))):
                days.update(_read(record.document).models)
            self._models = sorted(days.items(), key=lambda item: (-item[1], item[0]))[:LARGEST]
            self._models_until = now + _MODELS_FOR
        return self._models


STATISTICS = web.AppKey("leaderboard_statistics", Statistics)
