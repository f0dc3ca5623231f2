"""Coding sessions in tmux, seen and steered from web and native apps (contracts/sessions.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ...keys import CLOCK
from . import devices, notifications  # noqa: F401  # declare their operations
from .api import api
from .events import EVENTS, Events
from .push import pushing

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    app[EVENTS] = Events(app[CLOCK])
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(pushing(app))
        yield


api.lifespan = _lifespan
