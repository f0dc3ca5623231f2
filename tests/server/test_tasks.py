"""Tasks that are stopped."""

import asyncio

import pytest

from homeport.server.tasks import stop


async def _wait() -> None:
    await asyncio.Event().wait()


async def _fail() -> None:
    try:
        await _wait()
    finally:
        raise OSError("the disk is full")


async def test_one_that_waits_has_ended() -> None:
    task = asyncio.create_task(_wait())
    await asyncio.sleep(0)
    await stop(task)
    assert task.cancelled()
    await stop(task)


async def test_what_one_raises_is_raised() -> None:
    task = asyncio.create_task(_fail())
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="the disk is full"):
        await stop(task)


async def test_who_stops_one_can_be_cancelled() -> None:
    """Its own end is not taken for that of the other."""
    ready, go_on = asyncio.Event(), asyncio.Event()

    async def linger() -> None:
        try:
            await _wait()
        except asyncio.CancelledError:
            ready.set()
            await go_on.wait()
            raise

    lingering = asyncio.create_task(linger())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(stop(lingering))
    await ready.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await lingering
