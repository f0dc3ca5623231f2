"""Coding sessions in tmux, seen and steered from web and native apps (contracts/sessions.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ...health import TMUX
from ...keys import CLOCK
from .api import api
from .events import EVENTS, Events
from .folders.syncing import FOLDERS
from .folders.watching import watching
from .live import websocket  # noqa: F401  # declares its operations
from .notifications import devices, inbox  # noqa: F401  # declare theirs
from .notifications.push import pushing
from .projects import contents, projects, reviews, tickets  # noqa: F401  # declare theirs
from .running import hooks, retention, sessions  # noqa: F401  # declare theirs
from .running.runner import RUNNER, SessionRunner

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    app[EVENTS] = Events(app[CLOCK])
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(pushing(app))
        app[RUNNER] = runner = SessionRunner(app)
        app[TMUX] = runner.tmux.available
        await stack.enter_async_context(runner.running_in())
        await stack.enter_async_context(watching(app))
        yield


async def _reset(app: web.Application) -> None:
    app[FOLDERS].reset()


api.lifespan = _lifespan
api.reset = _reset
