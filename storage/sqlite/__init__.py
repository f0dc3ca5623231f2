"""Records in one SQLite file.

One connection writes and checkpoints, on a thread of its own, a batch of commits a hop. Before SQLite 3.51.3 two
connections that do so lose data, and nothing but this process's SQLite library may open the database, its ``-wal`` or
its ``-shm``: closing any other descriptor of them drops the process's locks. Readers open read-only and close before
the writer.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import aiosqlite

from ..base import Storage
from ..commits import GroupCommit, Resolution, resolve
from ..disk import sync_folder
from ..errors import Conflict, NotEmpty, StorageFull, StorageUnavailable
from ..lockfile import StoreLock
from ..queries import Page, Query, Tombstones
from ..records import Change, Changes, Collection, Floor, Record
from ..snapshots import Snapshot, in_pages
from ..writes import Commit, Write
from . import reading, schema, writing
from .connection import Connection, is_busy, on_thread, translated
from .gate import Gate
from .present import Present
from .recent import Recent
from .sql import Sql

T = TypeVar("T")

PASSIVE_BYTES = 16 << 20
TRUNCATE_BYTES = 64 << 20
CACHE_BYTES = 16 << 20
"""Of the writer. SQLite's own 2 MB do not hold the indexes of a large collection, which a commit of many records reads
and writes all over."""
_READERS = 2
_IDS_ON_THE_LOOP = 64
_BYTES_ON_THE_LOOP = 1 << 20
"""Were all documents as large as the largest of their collection that was read."""
_LOAD_CHUNK = 500
_LOAD_CHUNK_BYTES = 4 << 20


class SqliteStorage(Storage):
    """``path``: the database; made, with its folder, where there is none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path = path.absolute()
        self._wal = self.path.with_name(self.path.name + "-wal")
        self._lock = StoreLock(self.path)
        self._sqls: dict[str, Sql] = {}
        self._version = 0
        self._recent = Recent()
        self._snapshots: set[aiosqlite.Connection] = set()
        self._checkpointed = 0  # the size of the WAL when it was last written back whole

    # Opening and closing

    async def open(self) -> None:
        with translated(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
        try:
            await self._connect()
        except BaseException:
            self._lock.release()
            raise
        self._commits = GroupCommit(self._write, between=self._checkpoint)
        self._writing = asyncio.Lock()
        self._reading = Gate()
        self._feed.open(self._version)

    async def _connect(self) -> None:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # before SQLite has it open
        with translated(self.path):
            # aiosqlite passes a factory on to sqlite3.
            self._writer = await aiosqlite.connect(self.path, factory=Connection, isolation_level=None)
            try:
                self.id, self._version = await on_thread(self._writer, self._prepare)
                self._on_loop = sqlite3.connect(self._read_only, uri=True, isolation_level=None, timeout=0)
                self._readers = [
                    await aiosqlite.connect(self._read_only, uri=True, factory=Connection, isolation_level=None)
                    for _ in range(_READERS)
                ]
            except BaseException:
                await self._writer.close()
                raise
        self._next_reader = cycle(self._readers)

    @property
    def _read_only(self) -> str:
        # A mere query_only connection would checkpoint.
        return f"{self.path.as_uri()}?mode=ro"

    def _prepare(self, db: sqlite3.Connection) -> tuple[str, int]:
        version = schema.schema_version(db)
        if version < len(schema.MIGRATIONS) and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            with schema.transaction(db):
                pass  # raises where another program is writing, before a backup is made at every attempt
            self._back_up(db, f"{self.path.name}.before-schema-{len(schema.MIGRATIONS)}-{int(time.time())}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        if version < len(schema.MIGRATIONS):
            schema.migrate(db)
        self._declared_anew(schema.declared(db))
        return schema.identity(db)

    def _declared_anew(self, collections: dict[str, Collection]) -> None:
        self.collections.update(collections)
        self._sqls.update({name: Sql(collection) for name, collection in collections.items()})

    def _back_up(self, db: sqlite3.Connection, name: str) -> None:
        """Copies the database beside itself, for its owner alone; the copy has its name when it is whole."""
        draft = self.path.with_name(f"{self.path.name}.backup")
        for leftover in (draft, Path(f"{draft}-journal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(draft)) as copy:
            db.backup(copy)
        draft.replace(draft.with_name(name))
        sync_folder(draft.parent)

    async def close(self) -> None:
        if self._feed.closed:
            return
        await self._commits.close()
        self._feed.close()
        async with self._writing, self._reading.shut():
            self._on_loop.close()
            for reader in [*self._snapshots, *self._readers]:
                await reader.close()
            await self._writer.close()
        self._lock.release()

    async def declare(self, *collections: Collection) -> None:
        def work(db: sqlite3.Connection) -> None:
            with schema.transaction(db):
                for collection in collections:
                    schema.declare(db, collection)

        self._check_open()
        async with self._writing, self._reading.shut():
            await self._write_hop(work)
            self._declared_anew({collection.name: collection for collection in collections})
            self._recent.clear()

    # Reading

    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        recent = self._recent.get(self._declared(collection), ids)
        if recent is not None:
            return recent
        sql = self._sqls[collection.name]
        few = len(ids) <= _IDS_ON_THE_LOOP and len(ids) * sql.largest <= _BYTES_ON_THE_LOOP
        if few and not self._reading.closed:
            try:
                with translated(self.path):
                    found = reading.get(self._on_loop, sql, ids)
                self._recent.add(collection, found.values())
                return found
            except StorageUnavailable as error:
                if not is_busy(error.__cause__):
                    raise
        return await self._read(lambda db: reading.get(db, sql, ids))

    async def find(self, query: Query) -> Page:
        sql = self._sqls[self._declared(query.collection).name]
        return await self._read(lambda db: reading.find(db, sql, query))

    async def count(self, query: Query) -> int:
        sql = self._sqls[self._declared(query.collection).name]
        return await self._read(lambda db: reading.count(db, sql, query.filters))

    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        sql = self._sqls[self._declared(collection).name]
        return await self._read(lambda db: reading.changes(db, sql, after, limit, began))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A read transaction on a connection of its own, which holds up no commit.

        Rather than SQLite's backup API, which needs room for a second database before the first record can be read. The
        price is that the WAL cannot begin anew meanwhile: it grows by what is written until the snapshot is let go.
        """
        async with self._reading.passed():
            self._check_open()
            with translated(self.path):
                db = await aiosqlite.connect(self._read_only, uri=True, factory=Connection, isolation_level=None)
            self._snapshots.add(db)
        try:
            version, collections = await self._read(reading.begin_snapshot, db)
            sqls = {collection.name: Sql(collection) for collection in collections}

            async def read(collection: Collection, after: int, limit: int) -> Changes:
                sql = sqls[collection.name]
                return await self._read(lambda db: reading.changes(db, sql, after, limit, version), db)

            yield Snapshot(version, collections, in_pages(collections, read))
        finally:
            self._snapshots.discard(db)
            await db.close()

    async def _read(self, work: Callable[[sqlite3.Connection], T], connection: aiosqlite.Connection | None = None) -> T:
        async with self._reading.passed():
            self._check_open()
            with translated(self.path):
                return await on_thread(connection or next(self._next_reader), work)

    # Writing

    async def commit(self, writes: Sequence[Write]) -> Commit:
        writes = self._checked(writes)
        return await self._commits.submit(writes, self.observer)

    async def _write(self, batch: Sequence[Sequence[Write]]) -> Sequence[Commit | Conflict]:
        def work(db: sqlite3.Connection) -> Resolution:
            with schema.transaction(db):
                resolution = resolve(batch, Present(db, self._sqls, known), self._version)
                if resolution.written:
                    writing.write(db, resolution, self._sqls)
                return resolution

        async with self._writing:
            known = self._recent.take(batch)
            resolution = await self._write_hop(work)
            self._version = resolution.version
            self._recent.give(resolution.written)
            self._feed.publish(resolution.written, resolution.version)
        return resolution.outcomes

    async def _forget(self, what: Tombstones, limit: int) -> int:
        self._declared(what.collection)

        def work(db: sqlite3.Connection) -> int:
            with schema.transaction(db):
                return writing.forget(db, what, limit)

        async with self._writing:
            return await self._write_hop(work)

    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        self._check_open()
        async with self._writing:
            if self._version:
                raise NotEmpty("the store is not empty")
            await self._write_hop(lambda db: db.execute("BEGIN IMMEDIATE"))
            try:
                async for chunk in _chunks(changes):
                    await self._write_hop(partial(writing.restore, changes=chunk, sqls=self._sqls))
                await self._write_hop(self._loaded)
            except BaseException:
                await self._write_hop(lambda db: db.in_transaction and db.execute("ROLLBACK"))
                self._feed.open(self._version)  # who is cancelled at the very end has loaded it all the same
                raise
            self._feed.open(self._version)

    def _loaded(self, db: sqlite3.Connection) -> None:
        for sql in self._sqls.values():
            schema.check_unique(db, sql)
        schema.new_identity(db)
        db.execute("COMMIT")
        # On the writer's thread, so that whatever it does next knows, were the caller cancelled meanwhile.
        self.id, self._version = schema.identity(db)

    async def ping(self) -> None:
        self._check_open()

        def work(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
            system = os.statvfs(self.path)  # nothing was written, so that the disk has not been asked
            if system.f_flag & os.ST_RDONLY:
                raise StorageUnavailable(f"{self.path}: the file system is read-only")
            if not system.f_bavail:
                raise StorageFull(f"{self.path}: the disk is full")

        async with self._writing:
            await self._write_hop(work)

    async def _write_hop(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        with translated(self.path):
            return await on_thread(self._writer, work)

    async def _checkpoint(self) -> None:
        """Writes the WAL back into the database when it has grown; runs between two batches.

        A WAL that was written back whole begins anew and keeps its size, so it has grown when it exceeds that. While
        there is a snapshot it could not begin anew, and to truncate it would wait for the snapshot.
        """
        if self._snapshots:
            return
        size = self._wal.stat().st_size
        if size >= TRUNCATE_BYTES:
            async with self._writing, self._reading.shut():
                await self._write_hop(lambda db: _checkpoint(db, "TRUNCATE"))
            self._checkpointed = 0
        elif size > max(PASSIVE_BYTES, self._checkpointed):
            async with self._writing:
                if await self._write_hop(lambda db: _checkpoint(db, "PASSIVE")):
                    self._checkpointed = size


def _checkpoint(db: sqlite3.Connection, mode: str) -> bool:
    """Whether all of the WAL was written back."""
    _, pages, written = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return bool(pages == written)


async def _chunks(changes: AsyncIterable[Change | Floor]) -> AsyncIterator[list[Change | Floor]]:
    chunk: list[Change | Floor] = []
    size = 0
    async for change in changes:
        chunk.append(change)
        size += change.size
        if len(chunk) == _LOAD_CHUNK or size > _LOAD_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk
