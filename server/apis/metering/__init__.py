"""Metering: a desktop app spends prepaid tokens with a license key (contracts/metering.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from . import refresh, tokens, validating  # noqa: F401  # declare their operations
from .api import api
from .documents import PROFILES, RESERVATIONS, TRANSACTIONS
from .ledger import bookkeeping
from .licenses import LICENSES, LICENSING, SECRETS, licensing

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bookkeeping(app))
        await stack.enter_async_context(licensing(app))
        yield


async def _reset(app: web.Application) -> None:
    app[LICENSING].forget()


api.collections += (PROFILES, TRANSACTIONS, RESERVATIONS, LICENSES, SECRETS)
api.lifespan = _lifespan
api.reset = _reset
