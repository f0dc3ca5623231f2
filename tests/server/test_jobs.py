"""Work at set times, on a clock that tests move."""

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import time_machine
from aiohttp import web

from homeport.server.clock import Clock, MovableClock
from homeport.server.jobs import Job, last_due, next_due
from homeport.server.keys import CLOCK
from homeport.server.operation import Api
from homeport.storage.times import format_time, parse_time

SECOND = 1_000_000


@pytest.fixture
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "schedule", "utc", "now", "due"),
    [
        pytest.param("UTC", "0 3 * * *", False, "2025-06-03T02:59:59.999Z", "2025-06-03T03:00:00.000Z", id="soon"),
        pytest.param("UTC", "0 3 * * *", False, "2025-06-03T03:00:00Z", "2025-06-04T03:00:00.000Z", id="just now"),
        pytest.param("Asia/Tokyo", "0 3 * * *", False, "2025-06-03T12:00:00Z", "2025-06-03T18:00:00.000Z", id="local"),
        pytest.param("Asia/Tokyo", "0 0 1 * *", True, "2025-06-30T23:00:00Z", "2025-07-01T00:00:00.000Z", id="UTC"),
        pytest.param(
            "Europe/Berlin", "0 3 * * *", False, "2025-03-29T12:00:00Z", "2025-03-30T01:00:00.000Z", id="clocks forward"
        ),
        pytest.param(
            "Europe/Berlin", "0 3 * * *", False, "2025-10-25T12:00:00Z", "2025-10-26T02:00:00.000Z", id="clocks back"
        ),
        pytest.param(
            "Europe/Berlin",
            "30 2 * * *",
            False,
            "2025-03-29T12:00:00Z",
            "2025-03-30T01:30:00.000Z",
            id="a time that is not",
        ),
        pytest.param("UTC", "0 0 29 2 *", True, "2025-06-03T12:00:00Z", "2028-02-29T00:00:00.000Z", id="leap day"),
    ],
    indirect=["zone"],
)
def test_when_a_job_is_due(zone: None, schedule: str, utc: bool, now: str, due: str) -> None:
    assert format_time(next_due(schedule, parse_time(now), utc=utc)) == due


@pytest.mark.parametrize(
    ("schedule", "now", "due"),
    [
        pytest.param("0 0 1 * *", "2025-12-01T00:00:00Z", "2025-12-01T00:00:00.000Z", id="just now"),
        pytest.param("0 0 1 * *", "2025-12-01T00:00:00.000001Z", "2025-12-01T00:00:00.000Z", id="a moment ago"),
        pytest.param("0 0 1 * *", "2025-11-30T23:59:59.999999Z", "2025-11-01T00:00:00.000Z", id="in a moment"),
        pytest.param("30 4 15 * *", "2026-01-02T12:00:00Z", "2025-12-15T04:30:00.000Z", id="in another year"),
        pytest.param("* * * * *", "2025-12-01T00:00:59.999Z", "2025-12-01T00:00:00.000Z", id="within a minute"),
    ],
)
def test_when_it_was_due_last(schedule: str, now: str, due: str) -> None:
    assert format_time(last_due(schedule, parse_time(now))) == due


class Runs:
    """A job's runs, each told by the time at which it began."""

    def __init__(self) -> None:
        self.times: list[str] = []
        self._run = asyncio.Event()

    async def __call__(self, app: web.Application) -> None:
        self.times.append(format_time(app[CLOCK].now()))
        self._run.set()
        if len(self.times) == 2:
            raise RuntimeError("the second run fails")

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(5):
            while len(self.times) < count:
                self._run.clear()
                await self._run.wait()
        return self.times


async def test_a_job_runs_at_start_and_at_its_times(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    runs = Runs()
    api = Api("toy")
    api.jobs.append(Job("tidying", "0 3 * * *", runs, utc=True))
    server = await start([api])
    assert await runs.until(1) == ["2025-06-03T12:00:00.000Z"]
    server.clock.move_to(parse_time("2025-06-04T03:00:00Z"))
    await runs.until(2)
    server.clock.move_to(parse_time("2025-06-05T02:59:59.999Z"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(runs.times) == 2
    server.clock.advance(0.001)
    assert (await runs.until(3))[1:] == ["2025-06-04T03:00:00.000Z", "2025-06-05T03:00:00.000Z"]
    [record] = caplog.records
    assert record.getMessage() == "tidying failed; it runs again at its next time"
    assert "the second run fails" in caplog.text


async def test_a_schedule_from_the_configuration(start: Any) -> None:
    runs = Runs()
    api = Api("toy")
    api.jobs.append(Job("tidying", lambda config: config.apis.metering.refresh_schedule, runs, utc=True))
    server = await start([api])
    await runs.until(1)
    server.clock.move_to(parse_time("2025-07-01T00:00:00Z"))
    assert await runs.until(2) == ["2025-06-03T12:00:00.000Z", "2025-07-01T00:00:00.000Z"]


async def test_a_job_that_runs_is_stopped_with_the_server(start: Any) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless(_: web.Application) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    api = Api("toy")
    api.jobs.append(Job("endless", "* * * * *", endless))
    server = await start([api])
    await begun.wait()
    assert (await server.get("/none")).status == 404
    await server.app.cleanup()
    assert stopped.is_set()


async def test_what_an_api_opens_is_closed_in_reverse(start: Any) -> None:
    told: list[str] = []

    def api(name: str) -> Api:
        one = Api(name)

        async def lifespan(_: web.Application) -> Any:
            told.append(f"open {name}")
            yield
            told.append(f"close {name}")

        one.lifespan = lifespan
        return one

    server = await start([api("a"), api("b")])
    assert told == ["open a", "open b"]
    await server.app.cleanup()
    assert told == ["open a", "open b", "close b", "close a"]


# Clocks


def test_the_systems_clock() -> None:
    with time_machine.travel(datetime(2025, 6, 3, 12, tzinfo=UTC), tick=False):
        assert format_time(Clock().now()) == "2025-06-03T12:00:00.000Z"


async def test_the_systems_clock_waits() -> None:
    clock = Clock()
    begin = clock.now()
    await clock.wait_until(begin - SECOND)
    await clock.wait_until(begin + SECOND // 50)
    assert clock.now() >= begin + SECOND // 50


async def test_a_clock_that_is_moved() -> None:
    clock = MovableClock(100)
    waiting = asyncio.create_task(clock.wait_until(100 + 2 * SECOND))
    await asyncio.sleep(0)
    clock.advance(1)
    await asyncio.sleep(0)
    assert (clock.now(), waiting.done()) == (100 + SECOND, False)
    clock.move_to(100 + 2 * SECOND)
    await asyncio.wait_for(waiting, 5)
    clock.reset()
    assert abs(clock.now() - Clock().now()) < SECOND
    await asyncio.wait_for(clock.wait_until(clock.now() + SECOND // 100), 5)


async def test_a_clock_that_shows_the_systems_time_can_be_moved_while_somebody_waits() -> None:
    clock = MovableClock()
    waiting = asyncio.create_task(clock.wait_until(clock.now() + 3600 * SECOND))
    await asyncio.sleep(0)
    clock.advance(3600)
    await asyncio.wait_for(waiting, 5)
