"""Metering: a desktop app spends prepaid tokens with a license key (contracts/metering.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ...keys import CLOCK, CONFIG, STORAGE
from . import validating  # noqa: F401  # declares its operations
from .api import api
from .documents import PROFILES, RESERVATIONS, TRANSACTIONS
from .ledger import LEDGER, Ledger
from .licenses import LICENSES, LICENSING, SECRETS, licensing

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    app[LEDGER] = Ledger(app[STORAGE], app[CLOCK], app[CONFIG].apis.metering)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(licensing(app))
        yield


async def _reset(app: web.Application) -> None:
    app[LICENSING].forget()


api.collections += (PROFILES, TRANSACTIONS, RESERVATIONS, LICENSES, SECRETS)
api.lifespan = _lifespan
api.reset = _reset
