"""Work at set times, on the server's clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING

from cronsim import CronSim

from ..storage.times import SECOND
from .keys import CONFIG

if TYPE_CHECKING:
    from aiohttp import web

    from .clock import Clock
    from .config import Config
    from .meters import JobMeter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """``run`` is called with the application at the times of a cron expression, and when the server starts.

    ``schedule``: the expression, or what takes it from the configuration. ``utc``: whether it is in UTC; else in the
    time zone of the server. One that fails is logged, and runs again at its next time. A run that is still going on
    when the next is due takes its place.
    """

    name: str
    schedule: str | Callable[[Config], str]
    run: Callable[[web.Application], Awaitable[None]]
    utc: bool = False


def next_due(schedule: str, now: int, *, utc: bool) -> int:
    """When a cron expression is due next; microseconds since the epoch, as ``now``."""
    if utc:
        at = next(CronSim(schedule, datetime.fromtimestamp(now / SECOND, UTC)))
    else:
        # Without a zone the system's rules apply on the way back too, so that 03:00 stays 03:00 across a change of
        # daylight-saving time.
        at = next(CronSim(schedule, datetime.fromtimestamp(now / SECOND)))  # noqa: DTZ006
    return round(at.timestamp() * SECOND)


def last_due(schedule: str, now: int) -> int:
    """When a cron expression in UTC was due last, or is now; microseconds since the epoch, as ``now``."""
    after = datetime.fromtimestamp(now // SECOND + 1, UTC)
    return round(next(CronSim(schedule, after, reverse=True)).timestamp() * SECOND)


async def run_jobs(jobs: list[Job], app: web.Application, clock: Clock, meter: Callable[[str], JobMeter]) -> None:
    """Runs every job now and then at its times, until cancelled. ``meter``: that of a job, by its name."""
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_run(job, app, clock, meter(job.name)), name=f"job {job.name}")


async def _run(job: Job, app: web.Application, clock: Clock, meter: JobMeter) -> None:
    schedule = job.schedule if isinstance(job.schedule, str) else job.schedule(app[CONFIG])
    while True:
        due = next_due(schedule, clock.now(), utc=job.utc)
        began = perf_counter()
        try:
            await job.run(app)
        except Exception:
            log.exception("%s failed; it runs again at its next time", job.name)
            meter.failures += 1
        else:
            meter.last_success = clock.now()
        meter.runs += 1
        meter.seconds += perf_counter() - began
        await clock.wait_until(due)
