"""The storage contract: ten verbs, what goes into them and what comes out.

A *record* is a JSON document with an id, in a *collection*. One counter per store gives every write a *version* of
its own, and a record carries the version that last wrote it: version is the ETag, the cursor of `changes` and the
precondition of a write. Documents are kept as the bytes that came; what may be queried, sorted or must be unique is
declared by the collection, and is a pure function of the document.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import InvalidQuery, StorageUnavailable
from .feed import Feed
from .locks import KeyedLocks
from .observing import Observer
from .queries import Page, Query, Tombstones
from .records import Change, Changes, Collection, Floor, Record
from .snapshots import Snapshot, in_pages
from .writes import Check, Commit, DeleteWhere, Write

_CATCH_UP_PAGE = 500
_PURGE_CHUNK = 500


class Storage(ABC):
    """Where records live. An async context manager: entering opens the store, leaving closes it.

    Readers see durable state only, and each verb one snapshot. Every verb raises `StorageUnavailable` where the store
    cannot answer, and ValueError for a collection that it was not told of. Only one event loop may use a store.
    """

    id: str
    """A UUID, new with every store that is created, or filled by `load`."""
    path: Path | None = None
    """Where it is on this machine's disk, if it is; its lock and a server's socket are beside it."""
    observer: Observer | None = None
    """Is told of each commit, where a back end queues them."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.locks = KeyedLocks()
        self._feed = Feed()

    @abstractmethod
    async def open(self) -> None:
        """Makes the store ready; creates it where there is none. Raises `StorageLocked` or `StorageDamaged`."""

    @abstractmethod
    async def close(self) -> None:
        """Finishes the commits that wait, ends watches and lets the store go. Closing twice is no error."""

    @abstractmethod
    async def declare(self, *collections: Collection) -> None:
        """Tells the store of collections, before they are used; a store remembers them in ``collections``.

        Declaring one anew with other fields derives their values from the documents (None for one that cannot be
        indexed). Raises `Conflict` where a field becomes unique and is not.
        """

    @abstractmethod
    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        """The records with these ids; those that do not exist are left out."""

    @abstractmethod
    async def find(self, query: Query) -> Page:
        """A page of records."""

    @abstractmethod
    async def count(self, query: Query) -> int:
        """How many records match; paging is disregarded."""

    @abstractmethod
    async def commit(self, writes: Sequence[Write]) -> Commit:
        """Does all of the writes or none, and returns when they are durable.

        Each write takes the next version. A commit is a set: it names an id at most once (ValueError), preconditions
        and queries are judged on the state before it, uniqueness on the state after it. Raises `Conflict`,
        `StorageFull`. A commit whose answer was lost may have happened.
        """

    async def purge(self, what: Query | Tombstones) -> int:
        """Removes what a query matches (paging disregarded) or old tombstones, in chunks between other commits; returns
        how many."""
        removed = 0
        while done := await self._purge_chunk(what):
            removed += done
            await asyncio.sleep(0)  # a store in memory commits at once
        return removed

    async def _purge_chunk(self, what: Query | Tombstones) -> int:
        if isinstance(what, Tombstones):
            return await self._forget(what, _PURGE_CHUNK)
        chunk = DeleteWhere(Query(what.collection, what.where, limit=_PURGE_CHUNK))
        return (await self.commit([chunk])).counts[0]

    @abstractmethod
    async def _forget(self, what: Tombstones, limit: int) -> int:
        """Drops the oldest of these tombstones, at most so many; returns how many."""

    @abstractmethod
    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        """What changed since a version; deletions included, for collections with tombstones.

        A reader that has nothing begins at 0 and may give the store's version at that time as ``began`` for the pages
        that follow: deletions up to then cannot concern it. Raises `Gone` where deletions after ``after`` (or
        ``began``, if that is later) are not remembered, or where the store never reached ``after``.
        """

    async def watch(self, collections: Sequence[Collection], after: int) -> AsyncIterator[Change]:
        """What changed in some collections since a version, then what changes, as it happens, in order of version.

        Ends when the store is closed. A reader that lags may be given only the latest of a record's changes. Raises
        `Gone` as `changes` does.
        """
        names = {self._declared(collection).name for collection in collections}
        began = 0
        while not self._feed.closed:
            recent = self._feed.since(after)
            if recent is None:
                pages = [await self.changes(c, after, _CATCH_UP_PAGE, began=began) for c in collections]
                began = began or (min(page.store_version for page in pages) if after == 0 else 0)
                after = min(page.version for page in pages)
                missed = chain.from_iterable(page.changes for page in pages)
                recent = sorted((c for c in missed if c.version <= after), key=lambda change: change.version)
            elif recent:
                after = recent[-1].version
            for change in recent:
                if change.collection in names:
                    yield change
            await self._feed.beyond(after)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """All that the store holds at one version, for as long as the context lasts.

        This one reads page by page, and so raises `StorageUnavailable` where the store is written to meanwhile. A back
        end that servers run on should hold a version while commits go on, as Homeport's own do.
        """
        self._check_open()
        collections = tuple(self.collections.values())
        version = (await self.changes(collections[0], 0, 1)).store_version if collections else 0

        async def read(collection: Collection, after: int, limit: int) -> Changes:
            page = await self.changes(collection, after, limit, began=version)
            if page.store_version != version:
                raise StorageUnavailable("the store was written to while it was read: stop its server first")
            return page

        yield Snapshot(version, collections, in_pages(collections, read))

    @abstractmethod
    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        """Fills an empty store with records and tombstones, versions kept: all, or nothing. Raises `NotEmpty`."""

    @abstractmethod
    async def ping(self) -> None:
        """Returns if the store can answer and could write; else raises `StorageUnavailable`."""

    def _check_open(self) -> None:
        if self._feed.closed:
            raise StorageUnavailable("the store is closed")

    def _declared(self, collection: Collection) -> Collection:
        """The collection, if the store is open and was told of it."""
        self._check_open()
        known = self.collections.get(collection.name)
        if known is not collection and known != collection:
            raise ValueError(f"collection {collection.name} was not declared to this store, or differently")
        return collection

    def _checked(self, writes: Sequence[Write]) -> Sequence[Write]:
        """The writes of a commit, if the store is open and they may stand in one."""
        self._check_open()
        named: set[tuple[str, str]] = set()
        declared = None
        for write in writes:
            if isinstance(write, DeleteWhere):
                query = write.query
                self._declared(query.collection)
                if query.sort or query.offset or query.after is not None:
                    raise InvalidQuery("a DeleteWhere has no order, offset or cursor: a limit counts in order of id")
                continue
            collection = write.collection
            if collection is not declared:  # a thousand writes in a row are of one collection
                declared = self._declared(collection)
            if not isinstance(write, Check):
                key = (collection.name, write.id)
                if key in named:
                    raise ValueError(f"a commit names {collection.name}/{write.id} twice")
                named.add(key)
        return writes

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
