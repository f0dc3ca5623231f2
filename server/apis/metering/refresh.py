"""The tokens that come each month: by the server's own schedule, and when an outside cron asks for them.

Each profile says which month has begun for it, in the commit that begins it: however often all are gone through, by
however many, and wherever that was broken off, it begins once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ....storage import Query, StorageError, walk
from ....storage.times import MINUTE
from ...auth import bearer_token, guard, same_secret
from ...errors import Forbidden, Unauthorized
from ...jobs import Job, last_due
from ...keys import CLOCK, CONFIG, STORAGE
from .api import api
from .documents import PROFILES, month_of
from .ledger import LEDGER

if TYPE_CHECKING:
    from aiohttp import web

    from ...config import Config
    from ...request import ApiRequest
    from .ledger import Ledger

log = logging.getLogger(__name__)

_TOGETHER = 64
"""Profiles that are committed at a time."""
_AGAIN_AFTER = 5 * MINUTE
"""A store that fails is tried again."""


@guard("bearer")
async def cron(request: ApiRequest) -> None:
    """Whoever presents the secret of the configuration; nobody, where it has none."""
    secret = request.config.apis.metering.cron_secret
    if secret is None:
        raise Forbidden("CRON_SECRET is not set; the server refreshes by its own schedule")
    if not same_secret(bearer_token(request), secret):
        raise Unauthorized("Invalid or missing cron secret", headers={"WWW-Authenticate": "Bearer"})


@api.post("/api/cron/refresh-tokens", returns={200: "metering#/$defs/RefreshResponse"}, auth=cron)
async def refresh_tokens(request: ApiRequest) -> dict[str, Any]:
    """Begins the month for every profile, unless it has begun; counts those for which it had not."""
    return {"success": True, "refreshed": await refresh_all(request.app, month_of(request.now))}


async def refresh_all(app: web.Application, month: str) -> int:
    """Begins a month (YYYY-MM) for every profile for which it has not begun; returns for how many."""
    ledger, count = app[LEDGER], 0
    late: list[str] = []
    async for record in walk(app[STORAGE], Query(PROFILES)):
        if record.decode()["month"] < month:
            late.append(record.id)
        if len(late) == _TOGETHER:
            count += await _refresh(ledger, late, month)
            late.clear()
    return count + await _refresh(ledger, late, month)


async def _refresh(ledger: Ledger, user_ids: list[str], month: str) -> int:
    done = await asyncio.gather(*[ledger.refresh(id, month) for id in user_ids], return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    return done.count(True)


async def _scheduled(app: web.Application) -> None:
    """The refresh that was due last: now, or while no server ran."""
    clock = app[CLOCK]
    while True:
        month = month_of(last_due(_schedule(app[CONFIG]), clock.now()))
        try:
            count = await refresh_all(app, month)
        except StorageError:
            log.exception("the refresh of %s failed; it is tried again in five minutes", month)
            await clock.wait_until(clock.now() + _AGAIN_AFTER)
            continue
        if count:
            log.info("refreshed %d profiles for %s", count, month)
        return


def _schedule(config: Config) -> str:
    return config.apis.metering.refresh_schedule


async def _give_back(app: web.Application) -> None:
    await app[LEDGER].give_back_abandoned()


api.jobs += [
    Job("monthly tokens", _schedule, _scheduled, utc=True),
    Job("abandoned reservations", "*/5 * * * *", _give_back),
]
