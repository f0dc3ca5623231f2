"""How long deletions are remembered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiohttp import web

from ....storage import Filter, Put, Query, Tombstones
from ....storage.times import DAY, HOUR, format_instant
from ...jobs import Job
from .api import MARKS, api

if TYPE_CHECKING:
    from ....storage import Record, Storage
    from ...clock import Clock
    from .registry import Registry

log = logging.getLogger(__name__)

_MARK_EVERY = 20 * HOUR


class Retention:
    """Forgets the deletions in collections that are older than each keeps them."""

    def __init__(self, storage: Storage, registry: Registry, clock: Clock) -> None:
        self._storage = storage
        self._registry = registry
        self._clock = clock
        self._looked = 0

    async def mark(self) -> None:
        """Remembers the store's version, unless that was done less than a day ago or nothing was written since."""
        now = self._clock.now()
        if now - self._looked < _MARK_EVERY:
            return
        self._looked = now
        newest = await self._storage.find(Query(MARKS, sort=("-id",), limit=1))
        marked = newest.records[0] if newest.records else None
        due = marked is None or marked.id <= format_instant(now - _MARK_EVERY)
        if due and newest.version > (marked.version if marked else 0):
            await self._storage.commit([Put(MARKS, format_instant(now), {})])

    async def forget(self) -> None:
        """Drops what is old enough, and the marks that nobody needs any more."""
        oldest = None
        for collection in sorted(self._registry.all(), key=lambda collection: -collection.keep_deleted_days):
            days = collection.keep_deleted_days
            mark = await self._mark_before(days)
            if mark is None:
                continue
            oldest = oldest or mark
            if removed := await self._storage.purge(Tombstones(collection.storage, mark.version)):
                log.info("%s: forgot %d deletions older than %d days", collection.name, removed, days)
        if oldest is not None:
            await self._storage.purge(Query(MARKS, (Filter("id", "<", oldest.id),)))

    async def _mark_before(self, days: int) -> Record | None:
        """The newest mark that is so old."""
        latest = format_instant(self._clock.now() - days * DAY)
        page = await self._storage.find(Query(MARKS, (Filter("id", "<=", latest),), sort=("-id",), limit=1))
        return page.records[0] if page.records else None


RETENTION = web.AppKey("retention", Retention)


async def _daily(app: web.Application) -> None:
    await app[RETENTION].mark()
    await app[RETENTION].forget()


api.jobs.append(Job("collections retention", "0 3 * * *", _daily))
