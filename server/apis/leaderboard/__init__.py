"""The leaderboard: clients upload daily usage, the server ranks its users (contracts/leaderboard.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ...errors import NotFound
from ...keys import CLOCK, CONFIG, STORAGE
from ...request import ApiRequest
from . import pages, syncing  # noqa: F401  # declare their operations
from .api import READING, api, reader
from .board import leaderboard, profile
from .periods import today
from .rankings import RANKINGS, Ranking, Rankings
from .slack import REQUESTS, SLACK, SlackRequests
from .statistics import STATISTICS, Statistics
from .upgrading import pack_days

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client.metrics_core import Metric

__all__ = ["api"]


@api.get(
    "/v1/leaderboard",
    query="leaderboard#/$defs/LeaderboardQuery",
    returns={200: "leaderboard#/$defs/LeaderboardResponse"},
    auth=reader,
    limits=READING,
)
async def show_leaderboard(request: ApiRequest) -> dict[str, Any]:
    """Users by what they used in a period, most first."""
    query = request.query
    ranking = Ranking(query["period"], query["metric"], query.get("date") or today(request.now))
    return await leaderboard(request.app[RANKINGS], ranking, query["limit"], query["offset"])


@api.get(
    "/v1/user/{username}",
    reads={"params": "leaderboard#/$defs/UserPath"},
    returns={200: "leaderboard#/$defs/UserResponse"},
    errors=(404,),
    auth=reader,
    limits=READING,
)
async def show_user(request: ApiRequest) -> dict[str, Any]:
    """A user's sums and newest days."""
    found = await profile(request.storage, request.path["username"])
    if found is None:
        raise NotFound("No data found for this user")
    return found


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    await pack_days(app[STORAGE])
    app[RANKINGS] = Rankings(app[STORAGE])
    app[STATISTICS] = Statistics(app)
    if secret := app[CONFIG].apis.leaderboard.slack_signing_secret:
        app[SLACK] = SlackRequests(secret, app[STORAGE], app[CLOCK])
    yield


async def _reset(app: web.Application) -> None:
    app[STATISTICS].reset()
    app[RANKINGS].reset()


async def _metrics(app: web.Application) -> list[Metric]:
    return await app[STATISTICS].metrics()


api.collections += (REQUESTS,)
api.lifespan = _lifespan
api.metrics = _metrics
api.reset = _reset
