"""What OAuth needs while a server runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ....jobs import Job
from ....keys import CLOCK, CONFIG, STORAGE
from ..licenses import LICENSING
from .access_tokens import ACCESS_TOKENS, AccessTokens
from .grants import Grants
from .signing import SigningKeys

if TYPE_CHECKING:
    from aiohttp import web


@asynccontextmanager
async def authorization_server(app: web.Application) -> AsyncIterator[None]:
    """Sets `ACCESS_TOKENS`."""
    storage, clock, licenses = app[STORAGE], app[CLOCK], app[LICENSING]
    grants = Grants(storage, clock, licenses)
    app[ACCESS_TOKENS] = AccessTokens(SigningKeys(storage, clock), grants, licenses, clock)
    yield


async def begin_anew(app: web.Application) -> None:
    """As at the first start: the store has been emptied."""
    app[ACCESS_TOKENS].keys.forget()
    await _keep_up(app)


async def _keep_up(app: web.Application) -> None:
    tokens = app[ACCESS_TOKENS]
    if app[CONFIG].apis.metering.oauth.clients:  # else nobody is given a token
        await tokens.keys.rotate()
    await tokens.grants.forget_expired()


KEEP_UP = Job("OAuth's keys and grants", "23 * * * *", _keep_up, utc=True)
