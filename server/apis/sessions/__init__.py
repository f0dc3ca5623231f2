"""Coding sessions in tmux, seen and steered from web and native apps (contracts/sessions.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ...health import TMUX
from ...keys import CLOCK
from . import (  # noqa: F401  # declare their operations
    contents,
    devices,
    hooks,
    notifications,
    projects,
    retention,
    reviews,
    sessions,
    tickets,
    websocket,
)
from .api import api
from .events import EVENTS, Events
from .push import pushing
from .runner import RUNNER, Runner
from .syncing import FOLDERS
from .watching import watching

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    app[EVENTS] = Events(app[CLOCK])
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(pushing(app))
        app[RUNNER] = runner = Runner(app)
        app[TMUX] = runner.tmux_available
        await stack.enter_async_context(runner.running_in())
        await stack.enter_async_context(watching(app))
        yield


async def _reset(app: web.Application) -> None:
    app[FOLDERS].reset()


api.lifespan = _lifespan
api.reset = _reset
