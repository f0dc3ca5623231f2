"""Collections of anybody's documents (contracts/collections.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...keys import CLOCK, CONFIG, STORAGE
from . import changes, operations, syncing  # noqa: F401  # declare their operations
from .api import api
from .changes import FIRST_READINGS, FirstReadings
from .fanout import FANOUT, Fanout
from .registry import COLLECTIONS, Registry
from .retention import RETENTION, Retention
from .watching import watching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web


def _set_up(app: web.Application) -> None:
    app[COLLECTIONS] = Registry(app[CONFIG])


api.set_up = _set_up


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    await app[COLLECTIONS].open(app[STORAGE], app[CLOCK])
    app[FANOUT] = Fanout(app[STORAGE], app[COLLECTIONS])
    app[FIRST_READINGS] = FirstReadings()
    app[RETENTION] = Retention(app[STORAGE], app[COLLECTIONS], app[CLOCK])
    await app[RETENTION].mark()  # before anybody writes, who might wonder about a version
    if not app[CONFIG].apis.collections.watch:
        yield
        return
    async with watching(app[COLLECTIONS]):
        yield


api.lifespan = _lifespan


async def _reset(app: web.Application) -> None:
    await app[COLLECTIONS].reset()


api.reset = _reset
