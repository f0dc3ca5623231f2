"""Live changes for many: one watch of the store, each change encoded once for each protocol.

A subscriber is either *live*, and is written to as changes come, or it *follows*: it reads the store page by page, at
its own pace, until it has what the live ones have. One that begins at an older version follows, and so does one whose
reader has let a megabyte wait, once that is taken; so no burst of changes costs a subscriber its connection, and none
of them has a queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, web

from ....storage.errors import Gone, StorageError
from ...turns import Turns
from .events import Event, fitting, pack
from .user_collection import PREFIX

if TYPE_CHECKING:
    from ....storage.base import Storage
    from ....storage.records import Change, Collection
    from ...streams import Stream, Wire
    from .registry import Registry

log = logging.getLogger(__name__)

_PAGE = 100
"""Changes that a follower reads at a time."""
_READERS = 8
"""Followers that read the store at a time."""
_QUEUED = 256
"""Changes that were read from the store and are not yet written."""
_BATCH_BYTES = 256 * 1024
"""Documents that are written in one go, unless a single one is larger."""
_REMEMBERED = 1024
_REMEMBERED_BYTES = 4 << 20
"""Changes that were written, so that who returns soon need not read the store."""
_RESTART_SECONDS = 1.0


class Subscriber:
    """A stream and what it is to be told: the changes of some collections (storage names) after a version."""

    __slots__ = ("after", "following", "names", "stream")

    def __init__(self, stream: Stream, names: frozenset[str], after: int) -> None:
        self.stream = stream
        self.names = names
        self.after = after
        """What came up to here it has, or does not want."""
        self.following: asyncio.Task[None] | None = None


class Audience:
    """The live subscribers that are sent the same bytes."""

    def __init__(self, names: frozenset[str], wire: Wire) -> None:
        self.names = names
        self.wire = wire
        self.subscribers: set[Subscriber] = set()

    def packed(self, events: Iterable[Event]) -> bytes:
        return pack([event for event in events if event.collection in self.names], self.wire)


class Fanout:
    """Tells the subscribers of one application what changes. The store is watched while there are any."""

    def __init__(self, storage: Storage, registry: Registry) -> None:
        self._storage = storage
        self._registry = registry
        self._audiences: dict[tuple[frozenset[str], Wire], Audience] = {}
        self._subscribers: set[Subscriber] = set()
        self._reading = asyncio.Semaphore(_READERS)
        self._watch: asyncio.Task[None] | None = None
        self._watched: frozenset[str] = frozenset()
        self._recent: deque[Event] = deque()
        self._recent_bytes = 0
        self._floor = 0
        """``_recent`` has every change after this version, up to ``_version``."""
        self._version = 0
        self._settled = 0
        """What came up to here every live subscriber has."""

    @contextmanager
    def subscribed(self, stream: Stream, names: Iterable[str], after: int) -> Iterator[None]:
        """Tells a stream what changes in some collections after a version, for as long as the context lasts."""
        subscriber = Subscriber(stream, frozenset(PREFIX + name for name in names), after)
        self._subscribers.add(subscriber)
        self._follow(subscriber)
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            self._leave(subscriber)
            if subscriber.following is not None:
                subscriber.following.cancel()
            if not self._subscribers:
                self._unwatch()

    # Following

    def _follow(self, subscriber: Subscriber) -> None:
        subscriber.following = asyncio.create_task(self._catch_up(subscriber))

    async def _catch_up(self, subscriber: Subscriber) -> None:
        stream = subscriber.stream
        try:
            began, present = 0, False
            while True:
                await stream.drained()
                if not stream.open or ((present or self._watch) and self._join(subscriber)):
                    return
                async with self._reading:
                    began, present = await self._read_page(subscriber, began)
        except Gone:
            stream.end(WSCloseCode.POLICY_VIOLATION, "these changes are not remembered: start over")
        except StorageError as error:
            log.error("changes cannot be read: %s", error)
            stream.end(WSCloseCode.TRY_AGAIN_LATER, "the store is unavailable: try again later")

    async def _read_page(self, subscriber: Subscriber, began: int) -> tuple[int, bool]:
        """Sends what comes next; returns the version at which a reader from 0 began, and whether that was all."""
        after = subscriber.after
        pages = [
            await self._storage.changes(collection, after, _PAGE, began=began)
            for collection in self._collections()
            if collection.name in subscriber.names
        ]
        upto = min([page.version for page in pages], default=after)
        changes = [change for page in pages for change in page.changes if change.version <= upto]
        changes.sort(key=lambda change: change.version)
        fit = fitting(changes, _BATCH_BYTES)
        subscriber.stream.write(pack(map(Event, changes[:fit]), subscriber.stream.wire))
        whole = fit == len(changes)
        subscriber.after = upto if whole else changes[fit - 1].version
        if after == 0:
            began = min([page.store_version for page in pages], default=0)
        return began, whole and not any(page.more for page in pages)

    def _collections(self) -> Sequence[Collection]:
        return [collection.storage for collection in self._registry.all()]

    def _join(self, subscriber: Subscriber) -> bool:
        """Makes a subscriber live, if what it lacks is at hand."""
        if not subscriber.names <= self._watched:
            self._restart(subscriber.after)
        if subscriber.after < self._floor:
            return False
        stream = subscriber.stream
        audience = self._audiences.setdefault((subscriber.names, stream.wire), Audience(subscriber.names, stream.wire))
        if subscriber.after < self._version:
            missed = audience.packed(event for event in self._recent if event.version > subscriber.after)
            if missed:
                stream.write(missed)
            subscriber.after = self._version
        audience.subscribers.add(subscriber)
        subscriber.following = None
        return True

    def _leave(self, subscriber: Subscriber) -> None:
        key = subscriber.names, subscriber.stream.wire
        if audience := self._audiences.get(key):
            audience.subscribers.discard(subscriber)
            if not audience.subscribers:
                del self._audiences[key]

    # Watching

    def _restart(self, after: int) -> None:
        """Watches all collections that there are now, from a version on; who was live follows until it has it."""
        self._unwatch()
        collections = self._collections()
        self._watched = frozenset([collection.name for collection in collections])
        self._floor = self._version = self._settled = after
        self._watch = asyncio.create_task(self._run(collections, after), name="live changes", context=Context())

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._watched = frozenset()
        self._recent.clear()
        self._recent_bytes = 0
        live = [subscriber for audience in self._audiences.values() for subscriber in audience.subscribers]
        self._audiences.clear()
        for subscriber in live:
            subscriber.after = max(subscriber.after, self._settled)
            self._follow(subscriber)

    async def _run(self, collections: Sequence[Collection], after: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                queue: asyncio.Queue[Change] = asyncio.Queue(_QUEUED)
                writing = group.create_task(self._write(queue))
                async for change in self._storage.watch(collections, after):
                    await queue.put(change)
                writing.cancel()  # the store is closed
        except* Exception:
            log.exception("live changes are interrupted")
            await asyncio.sleep(_RESTART_SECONDS)
            self._watch = None  # it is this task
            self._unwatch()

    async def _write(self, queue: asyncio.Queue[Change]) -> None:
        turns = Turns()
        while True:
            events = await _batch(queue)
            first, last = events[0].version, events[-1].version
            self._remember(events)
            for audience, subscriber, packed in self._deliveries(events):
                if subscriber not in audience.subscribers or subscriber.after >= last:
                    continue  # it left, or joined, when others had their turn
                if subscriber.stream.full:
                    subscriber.after = max(subscriber.after, self._settled)
                    self._leave(subscriber)
                    self._follow(subscriber)
                    continue
                if subscriber.after >= first:
                    packed = audience.packed(event for event in events if event.version > subscriber.after)
                subscriber.stream.write(packed)
                subscriber.after = last
                await turns.wrote(len(packed))
            self._settled = last

    def _deliveries(self, events: Sequence[Event]) -> Iterator[tuple[Audience, Subscriber, bytes]]:
        for audience in tuple(self._audiences.values()):
            if packed := audience.packed(events):
                for subscriber in tuple(audience.subscribers):
                    yield audience, subscriber, packed

    def _remember(self, events: Sequence[Event]) -> None:
        self._version = events[-1].version
        self._recent.extend(events)
        self._recent_bytes += sum([event.size for event in events])
        while len(self._recent) > _REMEMBERED or self._recent_bytes > _REMEMBERED_BYTES:
            oldest = self._recent.popleft()
            self._recent_bytes -= oldest.size
            self._floor = oldest.version


FANOUT = web.AppKey("fanout", Fanout)


async def _batch(queue: asyncio.Queue[Change]) -> list[Event]:
    """Waits for a change and takes what has come with it."""
    events = [Event(await queue.get())]
    size = events[0].size
    while size < _BATCH_BYTES and not queue.empty():
        events.append(Event(queue.get_nowait()))
        size += events[-1].size
    return events
