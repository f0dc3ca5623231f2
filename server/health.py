"""Whether the server can do its work, for who watches over it: people and apps (contracts/sessions.md, "Health"), and
what starts it anew or sends it requests (`/health/live`, `/health/ready`)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..storage.errors import StorageError
from ..storage.times import SECOND, format_time
from .errors import ServiceUnavailable
from .keys import CLOCK, STORAGE
from .request import Answer
from .tasks import stop

if TYPE_CHECKING:
    from .operation import Api
    from .request import ApiRequest

log = logging.getLogger(__name__)

TMUX: web.AppKey[Callable[[], Awaitable[bool]]] = web.AppKey("tmux_probe")
"""Set, when the application starts, by who runs programs in tmux: asks whether that works."""
_PATIENCE = 3.0
"""Seconds that what is asked may take."""
_NO_STORE = {"Cache-Control": "no-store"}
_FRESH = 1.0
"""Seconds that an answer is given again, so that nobody keeps disk and tmux busy by asking."""


class _Question:
    """Asked once for all who want to know at about the same time."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[bool]]) -> None:
        self._name = name
        self._ask = ask
        self._asking: asyncio.Task[bool] | None = None
        self._stale_at = 0.0

    async def answer(self) -> bool:
        """As it is, or was a moment ago."""
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._stale_at):
            self._asking = asyncio.create_task(self._asked(), name=self._name, context=Context())
        return await asyncio.shield(self._asking)

    async def _asked(self) -> bool:
        answer = await self._ask()
        self._stale_at = time.monotonic() + _FRESH
        return answer

    async def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            await stop(self._asking)


class Health:
    """Asks the store and tmux. ``stopping``: whether the server will not take requests for long."""

    def __init__(self, app: web.Application) -> None:
        self.stopping = False
        self._app = app
        self._started = app[CLOCK].now()
        self._store = _Question("health of the store", self._database)
        self._terminals = _Question("health of tmux", self._tmux)

    async def report(self) -> dict[str, Any]:
        """As `GET /api/health` answers it."""
        from .. import __version__

        database, tmux = await asyncio.gather(self._store.answer(), self._terminals.answer())
        now = self._app[CLOCK].now()
        healthy = database and (tmux or TMUX not in self._app)
        return {
            "status": "healthy" if healthy else "degraded",
            "uptime": max(0, (now - self._started) // SECOND),
            "version": __version__,
            "database": "connected" if database else "disconnected",
            "tmux": "available" if tmux else "unavailable",
            "timestamp": format_time(now),
        }

    async def check_ready(self) -> None:
        """Raises `ServiceUnavailable` unless requests can be answered, and will be."""
        if self.stopping:
            raise ServiceUnavailable("The server is stopping")
        if not await self._store.answer():
            raise ServiceUnavailable("The store does not answer, or cannot be written to")

    async def _database(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._app[STORAGE].ping()
        except (StorageError, TimeoutError) as error:
            log.warning("the store does not answer: %s", error or "too slow")
            return False
        return True

    async def _tmux(self) -> bool:
        if TMUX not in self._app:
            return await asyncio.to_thread(shutil.which, "tmux") is not None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._app[TMUX]()
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Asks no more."""
        await self._store.close()
        await self._terminals.close()


HEALTH = web.AppKey("health", Health)
"""Set when the application starts."""


@asynccontextmanager
async def with_health(app: web.Application) -> AsyncIterator[None]:
    """The application's `Health`, while it runs."""
    health = app[HEALTH] = Health(app)
    try:
        yield
    finally:
        await health.close()


def add_health(api: Api) -> None:
    """Adds the operations, which never need a key, to the server's own."""

    @api.get(
        "/api/health", query="health#/$defs/Query", returns={200: "health#/$defs/Health", 503: "health#/$defs/Health"}
    )
    async def health(request: ApiRequest) -> Answer:
        """Whether the store, and tmux for sessions, can be used."""
        report = await request.app[HEALTH].report()
        strict = request.query.get("strict") in ("1", "true") and report["status"] != "healthy"
        return Answer(report, 503 if strict else 200, _NO_STORE)

    @api.get("/health/live", returns={200: "health#/$defs/Live"})
    async def live(_: ApiRequest) -> Answer:
        """That the server takes requests at all; where there is no answer, start it anew."""
        return Answer({"status": "alive"}, headers=_NO_STORE)

    @api.get("/health/ready", returns={200: "health#/$defs/Ready"})
    async def ready(request: ApiRequest) -> Answer:
        """Whether to send requests here: the store answers and can be written to, and the server is not stopping."""
        await request.app[HEALTH].check_ready()
        return Answer({"status": "ready"}, headers=_NO_STORE)
