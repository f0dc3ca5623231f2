"""Metering: a desktop app spends prepaid tokens with a license key (contracts/metering.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from . import checkout, refresh, tokens, transcription, validating, webhooks  # noqa: F401  # declare their operations
from .api import api
from .billing import CHECKOUTS, EVENTS, FORGET_OLD_EVENTS, SUBSCRIBERS, selling
from .documents import EMAILS, PROFILES, RESERVATIONS, TRANSACTIONS
from .ledger import bookkeeping
from .licenses import LICENSES, LICENSING, SECRETS, licensing
from .oauth import authorizing, exchanging, metadata  # noqa: F401  # declare theirs
from .oauth.grants import GRANTS
from .oauth.serving import KEEP_UP, authorization_server, begin_anew
from .transcription import transcribing
from .usage import USAGE

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["api"]


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bookkeeping(app))
        await stack.enter_async_context(licensing(app))
        await stack.enter_async_context(authorization_server(app))
        await stack.enter_async_context(selling(app))
        await stack.enter_async_context(transcribing(app))
        yield


async def _reset(app: web.Application) -> None:
    app[LICENSING].forget()
    await begin_anew(app)


api.collections += (PROFILES, EMAILS, TRANSACTIONS, RESERVATIONS, LICENSES, SECRETS, GRANTS, USAGE)
api.collections += (EVENTS, CHECKOUTS, SUBSCRIBERS)
api.jobs.append(KEEP_UP)
api.jobs.append(FORGET_OLD_EVENTS)
api.lifespan = _lifespan
api.reset = _reset
