"""The leaderboard for browsers: the same as plain HTML pages (contracts/leaderboard.md)."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode

from ...pages import page
from ...request import Answer, ApiRequest
from .api import READING, api, reader
from .board import leaderboard, profile
from .periods import label, today
from .rankings import RANKINGS, Ranking


@api.get(
    "/leaderboard",
    query="leaderboard#/$defs/LeaderboardQuery",
    returns={200: None},
    produces=("text/html",),
    auth=reader,
    limits=READING,
)
async def leaderboard_page(request: ApiRequest) -> Answer:
    """A page of a ranking, with links to the others."""
    query = request.query
    offset, limit = query["offset"], query["limit"]
    ranking = Ranking(query["period"], query["metric"], query.get("date") or today(request.now))
    board = await leaderboard(request.app[RANKINGS], ranking, limit, offset)
    return await page(
        "leaderboard.html",
        board=board,
        label="all time" if ranking.period == "all-time" else label(ranking.period, ranking.day),
        query=partial(_query, {name: value for name, value in query.items() if name != "offset"}),
        earlier=max(0, offset - limit) if offset else None,
        later=offset + limit if offset + limit < board["total"] else None,
    )


def _query(given: dict[str, Any], **changed: object) -> str:
    return urlencode({**given, **changed})


@api.get(
    "/user/{username}",
    reads={"params": "leaderboard#/$defs/UserPath"},
    returns={200: None, 404: None},
    produces=("text/html",),
    auth=reader,
    limits=READING,
)
async def user_page(request: ApiRequest) -> Answer:
    """A user's sums and newest days."""
    user = await profile(request.storage, request.path["username"])
    return await page("nobody.html", 404) if user is None else await page("user.html", user=user)
