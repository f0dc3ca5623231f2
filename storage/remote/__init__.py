"""The store of a running server, as its owner's commands use it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import msgspec

from ..base import Storage
from ..errors import StorageUnavailable
from ..queries import Page, Query, Tombstones
from ..records import Change, Changes, Collection, Floor, Record
from ..snapshots import Snapshot
from ..writes import Commit, Write
from . import messages as m
from .link import READ_BYTES, Link, not_understood, socket_of

T = TypeVar("T")
_Said = AsyncGenerator[m.Records | m.Changed | m.SnapshotTaken | m.Done]

_MAX_CALLS = 32


class RemoteStorage(Storage):
    """The store at ``path``, through the socket of the server that runs on it.

    A collection that the server knows cannot be declared differently: `declare` then raises `StorageLocked`. Watches
    and whatever the server has not answered end with `StorageUnavailable` when the server ends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path = path
        self._slots = asyncio.Semaphore(_MAX_CALLS)
        self._committing = asyncio.Lock()
        self._streams: set[Link] = set()
        """What watches and snapshots come by."""

    async def open(self) -> None:
        """Raises `StorageUnavailable` where no server answers."""
        _, welcome = await self._call(m.Hello(), m.Welcome)
        self.id = welcome.id
        self.collections = {collection.name: collection for collection in welcome.collections}
        self._feed.open(0)

    async def close(self) -> None:
        self._feed.close()
        async with self._committing:
            for _ in range(_MAX_CALLS):  # whoever has all of them is alone
                await self._slots.acquire()
        self._slots = asyncio.Semaphore(_MAX_CALLS)
        for link in [*self._streams]:
            await link.close()

    async def declare(self, *collections: Collection) -> None:
        self._check_open()
        await self._call(m.Declare(collections), NoneType)
        self.collections.update({collection.name: collection for collection in collections})

    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        request = m.Get(self._declared(collection).name, tuple([m.blob(id) for id in ids]))
        records, _ = await self._call(request, NoneType)
        return {record.id: record for record in records}

    async def find(self, query: Query) -> Page:
        self._declared(query.collection)
        records, page = await self._call(m.Find(m.Selection.of(query)), Page)
        return replace(page, records=tuple(records))

    async def count(self, query: Query) -> int:
        self._declared(query.collection)
        _, count = await self._call(m.Count(m.Selection.of(query)), int)
        return count

    async def commit(self, writes: Sequence[Write]) -> Commit:
        """Raises ValueError for more than 64 MiB."""
        items = m.each([m.message_of(write) for write in self._checked(writes)])
        async with self._committing:  # one after the other, so that a short one does not overtake a long one
            _, commit = await self._call(m.Commit(), Commit, (m.Writes(part) async for part in m.in_parts(items)))
        return commit

    async def _forget(self, what: Tombstones, limit: int) -> int:
        # All of them: the server that is asked does it in chunks.
        request = m.Forget(self._declared(what.collection).name, m.int64(what.up_to))
        _, forgotten = await self._call(request, int)
        return forgotten

    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        places = m.int64(after), m.int64(limit), m.int64(began)
        changes, page = await self._call(m.ChangesAfter(self._declared(collection).name, *places), Changes)
        return replace(page, changes=tuple(changes))

    async def watch(self, collections: Sequence[Collection], after: int) -> AsyncIterator[Change]:
        self._check_open()
        request = m.Watch(tuple([self._declared(collection).name for collection in collections]), m.int64(after))
        async with self._streamed(request) as said:
            try:
                async for part in said:
                    for change in part.items if isinstance(part, m.Changed) else ():
                        yield change
            except StorageUnavailable:
                if not self._feed.closed:
                    raise

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        self._check_open()
        async with self._streamed(m.TakeSnapshot()) as said:
            taken = await anext(said)
            if not isinstance(taken, m.SnapshotTaken):
                raise not_understood()
            yield Snapshot(taken.version, taken.collections, _changes(said))

    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        self._check_open()
        _, self.id = await self._call(m.Load(), str, (m.Changed.of(part) async for part in m.in_parts(changes)))

    async def ping(self) -> None:
        self._check_open()
        await self._call(m.Ping(), NoneType)

    async def _call(
        self, request: m.Request, returns: type[T], sending: AsyncGenerator[m.Part] | None = None
    ) -> tuple[list[Any], T]:
        """The items of the answer's parts, and what is returned at its end."""
        items: list[Any] = []
        async with self._slots, self._connected() as link, aclosing(_ask(link, request, sending)) as said:
            async for part in said:
                if isinstance(part, m.Done):
                    return items, msgspec.msgpack.decode(part.result, type=returns)
                if isinstance(part, m.Records | m.Changed):
                    items += part.items
        raise AssertionError("an answer ends with Done")

    @asynccontextmanager
    async def _streamed(self, request: m.Request) -> AsyncIterator[_Said]:
        """An answer of which `close` does not wait for the end."""
        async with self._connected() as link, aclosing(_ask(link, request)) as said:
            self._streams.add(link)
            try:
                yield said
            finally:
                self._streams.discard(link)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Link]:
        place = _place(self.path)
        try:
            link = Link(*await asyncio.open_unix_connection(place, limit=READ_BYTES))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise StorageUnavailable(f"no server answers at {place}") from error
        except OSError as error:
            raise StorageUnavailable(f"cannot connect to {place}: {error.strerror or error}") from error
        try:
            yield link
        finally:
            await link.close()


def _place(store: Path) -> str:
    return os.path.realpath(socket_of(store))


async def _ask(link: Link, request: m.Request, sending: AsyncGenerator[m.Part] | None = None) -> _Said:
    """The parts of the answer and, last, `Done`; sends the parts of the request as they are asked for."""
    async with aclosing(sending or _nothing()) as parts:
        await link.send(request)
        while True:
            match await link.receive():
                case m.GoOn():
                    await link.send(await anext(parts, m.End()))
                case m.Records() | m.Changed() | m.SnapshotTaken() as part:
                    yield part
                    await link.send(m.GoOn())
                case m.Done() as done:
                    yield done
                    return
                case m.Failed() | m.Conflicted() | m.Invalid() as failed:
                    raise failed.error()
                case _:
                    raise not_understood()


async def _nothing() -> AsyncGenerator[m.Part]:
    return
    yield


async def _changes(said: _Said) -> AsyncIterator[Change | Floor]:
    async for part in said:
        for change in part if isinstance(part, m.Changed) else ():
            yield change
