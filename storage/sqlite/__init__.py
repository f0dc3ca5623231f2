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
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from ..base import Storage
from ..commits import GroupCommit, Resolution, resolve
from ..disk import sync_folder
from ..errors import Conflict, NotEmpty, StorageDamaged, StorageError, StorageFull, StorageUnavailable
from ..lockfile import StoreLock
from ..queries import Page, Query, Tombstones
from ..records import Change, Changes, Collection, Floor, Record
from ..snapshots import Snapshot, in_pages
from ..writes import Commit, Write
from . import tables as tables
from .recent import Recent

T = TypeVar("T")

PASSIVE_BYTES = 16 << 20
TRUNCATE_BYTES = 64 << 20
CACHE_BYTES = 16 << 20
"""Of the writer. SQLite's own 2 MB do not hold the indexes of a large collection, which a commit of many records reads
and writes all over."""
_READERS = 2
_IDS_ON_THE_LOOP = 32
_LOAD_CHUNK = 500
_LOAD_CHUNK_BYTES = 4 << 20


class _Connection(sqlite3.Connection):
    """A connection that executes functions of itself, so that a whole batch is one hop to aiosqlite's thread."""

    def execute(self, work: Any, parameters: Any = (), /) -> Any:
        return work(self) if callable(work) else super().execute(work, parameters)


async def _on(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Runs a function of the connection on its thread."""
    result: list[T] = []
    execute: Any = connection.execute  # typed for SQL alone; _Connection takes a callable
    await execute(lambda db: result.append(work(db)))
    return result[0]


class SqliteStorage(Storage):
    """``path``: the database; made, with its folder, where there is none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path = path.absolute()
        self._wal = self.path.with_name(self.path.name + "-wal")
        self._lock = StoreLock(self.path)
        self._sqls: dict[str, tables.Sql] = {}
        self._version = 0
        self._recent = Recent()
        self._snapshots: set[aiosqlite.Connection] = set()
        self._checkpointed = 0  # the size of the WAL when it was last written back whole

    # Opening and closing

    async def open(self) -> None:
        with _translated(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
        try:
            await self._connect()
        except BaseException:
            self._lock.release()
            raise
        self._commits = GroupCommit(self._write, between=self._checkpoint)
        self._writing = asyncio.Lock()
        self._reading = _Gate()
        self._feed.open(self._version)

    async def _connect(self) -> None:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))  # before SQLite has it open
        with _translated(self.path):
            # aiosqlite passes a factory on to sqlite3.
            self._writer = await aiosqlite.connect(self.path, factory=_Connection, isolation_level=None)
            try:
                self.id, self._version = await _on(self._writer, self._prepare)
                self._on_loop = sqlite3.connect(self._read_only, uri=True, isolation_level=None, timeout=0)
                self._readers = [
                    await aiosqlite.connect(self._read_only, uri=True, factory=_Connection, isolation_level=None)
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
        version = tables.schema_version(db)
        if version < len(tables.MIGRATIONS) and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            with tables.transaction(db):
                pass  # raises where another program is writing, before a backup is made at every attempt
            self._back_up(db, f"{self.path.name}.before-schema-{len(tables.MIGRATIONS)}-{int(time.time())}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        if version < len(tables.MIGRATIONS):
            tables.migrate(db)
        self._declared_anew(tables.declared(db))
        return tables.identity(db)

    def _declared_anew(self, collections: dict[str, Collection]) -> None:
        self.collections.update(collections)
        self._sqls.update({name: tables.Sql(collection) for name, collection in collections.items()})

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
            with tables.transaction(db):
                for collection in collections:
                    tables.declare(db, collection)

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
        if len(ids) <= _IDS_ON_THE_LOOP and not self._reading.closed:
            try:
                with _translated(self.path):
                    found = tables.get(self._on_loop, sql, ids)
                self._recent.add(collection, found.values())
                return found
            except StorageUnavailable as error:
                if not _is_busy(error.__cause__):
                    raise
        return await self._read(lambda db: tables.get(db, sql, ids))

    async def find(self, query: Query) -> Page:
        sql = self._sqls[self._declared(query.collection).name]
        return await self._read(lambda db: tables.find(db, sql, query))

    async def count(self, query: Query) -> int:
        sql = self._sqls[self._declared(query.collection).name]
        return await self._read(lambda db: tables.count(db, sql, query.filters))

    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        sql = self._sqls[self._declared(collection).name]
        return await self._read(lambda db: tables.changes(db, sql, after, limit, began))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A read transaction on a connection of its own, which holds up no commit.

        Rather than SQLite's backup API, which needs room for a second database before the first record can be read. The
        price is that the WAL cannot begin anew meanwhile: it grows by what is written until the snapshot is let go.
        """
        async with self._reading.passed():
            self._check_open()
            with _translated(self.path):
                db = await aiosqlite.connect(self._read_only, uri=True, factory=_Connection, isolation_level=None)
            self._snapshots.add(db)
        try:
            version, collections = await self._read(tables.begin_snapshot, db)
            sqls = {collection.name: tables.Sql(collection) for collection in collections}

            async def read(collection: Collection, after: int, limit: int) -> Changes:
                sql = sqls[collection.name]
                return await self._read(lambda db: tables.changes(db, sql, after, limit, version), db)

            yield Snapshot(version, collections, in_pages(collections, read))
        finally:
            self._snapshots.discard(db)
            await db.close()

    async def _read(self, work: Callable[[sqlite3.Connection], T], connection: aiosqlite.Connection | None = None) -> T:
        async with self._reading.passed():
            self._check_open()
            with _translated(self.path):
                return await _on(connection or next(self._next_reader), work)

    # Writing

    async def commit(self, writes: Sequence[Write]) -> Commit:
        writes = self._checked(writes)
        return await self._commits.submit(writes, self.observer)

    async def _write(self, batch: Sequence[Sequence[Write]]) -> Sequence[Commit | Conflict]:
        def work(db: sqlite3.Connection) -> Resolution:
            with tables.transaction(db):
                resolution = resolve(batch, tables.Present(db, self._sqls, known), self._version)
                if resolution.written:
                    tables.write(db, resolution, self._sqls)
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
            with tables.transaction(db):
                return tables.forget(db, what, limit)

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
                    await self._write_hop(partial(tables.restore, changes=chunk, sqls=self._sqls))
                await self._write_hop(self._loaded)
            except BaseException:
                await self._write_hop(lambda db: db.in_transaction and db.execute("ROLLBACK"))
                self._feed.open(self._version)  # who is cancelled at the very end has loaded it all the same
                raise
            self._feed.open(self._version)

    def _loaded(self, db: sqlite3.Connection) -> None:
        for sql in self._sqls.values():
            tables.check_unique(db, sql)
        tables.new_identity(db)
        db.execute("COMMIT")
        # On the writer's thread, so that whatever it does next knows, were the caller cancelled meanwhile.
        self.id, self._version = tables.identity(db)

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
        with _translated(self.path):
            return await _on(self._writer, work)

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


class _Gate:
    """Lets readers pass, save while somebody has it shut."""

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        while self.closed:
            async with self._changed:
                await self._changed.wait_for(lambda: not self.closed)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self.closed:
                async with self._changed:
                    self._changed.notify_all()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Holds readers back, from when the last of them has come out."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.closed)
            self.closed = True
            await self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            async with self._changed:
                self.closed = False
                self._changed.notify_all()


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns the driver's errors into the contract's."""
    try:
        yield
    except StorageDamaged as error:
        raise StorageDamaged(f"{path} {error}") from error
    except StorageError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(f"{path}: the disk is full") from error
        if code in _DAMAGED:
            raise StorageDamaged(f"{path}: {error}") from error
        raise StorageUnavailable(f"{path}: {error}") from error
    except OSError as error:
        raise StorageUnavailable(f"{error.filename or path}: {error.strerror}") from error


def _is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
