"""Records in plain files, behind a journal.

The store is a folder. All of it is in memory, where reads are answered. A batch of commits is one line of the
`journal`, fsynced, before anybody sees it. When the journal has grown beyond the data, and when the store is closed, a
`checkpoint` folds it into the `datafiles`, which people may read and edit, while commits go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple
from uuid import uuid4

from sortedcontainers import SortedDict

from ..commits import GroupCommit, resolve
from ..disk import translated
from ..errors import Conflict, StorageError
from ..lockfile import StoreLock
from ..memory import TablesStorage
from ..queries import Tombstones
from ..records import Change, Collection, Floor
from ..table import Table
from ..tables import Tables
from ..writes import Commit, Write
from .checkpoint import Checkpoint, Folder, Kept, Manifest
from .datafiles import Documents, FilesWriter, LinesWriter
from .journal import Entry
from .recovery import recover

MIN_CHECKPOINT_BYTES = 16 << 20
"""A checkpoint begins when the journal has more bytes than this and than the data; commits wait at four times that."""
_MAX_BEHIND = 4
# Rows written at a time, for a quarter of a millisecond: a commit meanwhile waits for a few pieces of it.
_PIECE = 64

_log = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K", str, int)
Args = TypeVarTuple("Args")


class FileStorage(TablesStorage):
    """The store in a folder, which is made where there is none.

    After a write that failed and could not be undone, the store can only be read until that succeeds, which every write
    tries first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path = path.absolute()
        self._lock: StoreLock | None = None
        self._writing = asyncio.Lock()
        self._checkpointing = asyncio.Lock()

    # Opening and closing

    async def open(self) -> None:
        lock = StoreLock(self.path)
        lock.acquire()
        self._folder = Folder(self.path)
        # One thread makes commits durable; the other writes the data files meanwhile.
        self._threads = ThreadPoolExecutor(2, "homeport-file")
        self._background: asyncio.Task[StorageError | None] | None = None
        self._unfinished: Manifest | None = None
        try:
            with translated(f"open {self.path}"):
                store = await self._run(recover, self._folder)
            self.id, self._tables, self._dirty = store.id, store.tables, store.dirty
            self._kept, self._documents = store.kept, store.documents
            self._checkpoint_above = self._limit
            if store.edited:
                await self._checkpoint()
        except BaseException:
            self._let_go(lock)
            raise
        self.collections = {name: table.collection for name, table in self._tables.tables.items()}
        self._commits = GroupCommit(self._write, self._begin_due_checkpoint)
        self._lock = lock
        self._feed.open(self._tables.version)

    async def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            await self._commits.close()
            self._feed.close()
            if self._background is not None:
                await self._background
            if self._folder.journal.size:
                await self._try_checkpoint()
        finally:
            self._let_go(lock)

    def _let_go(self, lock: StoreLock) -> None:
        self._threads.shutdown()
        self._folder.journal.close()
        lock.release()

    async def ping(self) -> None:
        self._check_open()
        await self._run(self._folder.probe)

    # Writing

    async def declare(self, *collections: Collection) -> None:
        async with self._checkpointing, self._writing:
            self._check_open()
            new = [collection for collection in collections if self.collections.get(collection.name) != collection]
            if not new:
                return
            tables = await self._run(self._declared_anew, new)
            await self._append(Entry(self._tables.version, declared=new))
            self._tables.tables.update(tables)
            self._dirty.update(tables)
            self.collections.update({name: table.collection for name, table in tables.items()})

    def _declared_anew(self, collections: Sequence[Collection]) -> dict[str, Table]:
        known = self._tables.tables
        return {c.name: known[c.name].redeclared(c) if c.name in known else Table(c) for c in collections}

    async def commit(self, writes: Sequence[Write]) -> Commit:
        checked = self._checked(writes)  # first of all whether the store is open
        return await self._commits.submit(checked, self.observer)

    async def _write(self, batch: Sequence[Sequence[Write]]) -> Sequence[Commit | Conflict]:
        while self._folder.journal.size > _MAX_BEHIND * self._limit:
            if error := await asyncio.shield(self._begin_checkpoint()):
                raise error
        async with self._writing:
            outcomes, written, version = resolve(batch, self._tables, self._tables.version)
            if written:
                await self._append(Entry.of(written, version))
                self._tables.apply(written, version)
                self._dirty.update([write.collection.name for write in written])
                self._feed.publish(written, version)
        return outcomes

    async def _forget(self, what: Tombstones, limit: int) -> int:
        name = self._declared(what.collection).name
        async with self._writing:
            self._check_open()
            table = self._tables.tables[name]
            old = list(islice(table.tombstones.irange(maximum=what.up_to), limit))
            if not old:
                return 0
            await self._append(Entry(self._tables.version, forgotten={name: old[-1]}))
            self._dirty.add(name)
            return table.forget(old[-1])

    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        async with self._checkpointing, self._writing:
            self._check_open()
            tables = await self._loaded(changes)
            self._dirty.update(tables.tables)
            begun = await self._begin(tables, str(uuid4()))
            await self._fold(begun)
            self._tables, self.id = tables, begun.id
            self._feed.open(tables.version)
        await self._try_checkpoint()  # there is nothing to write, but the files are to be put in their places

    async def _append(self, entry: Entry) -> None:
        try:
            await self._run(self._folder.journal.append, entry)
        except asyncio.CancelledError:
            # The line may be written all the same, and memory would not know.
            self._folder.journal.failure = "a commit was interrupted: restart"
            raise

    def _run(self, function: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Calls a function off the loop."""
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # Checkpoints

    @property
    def _limit(self) -> int:
        return max(MIN_CHECKPOINT_BYTES, sum([kept.size for kept in self._kept.values()]))

    async def _begin_due_checkpoint(self) -> None:
        if self._folder.journal.size > self._checkpoint_above:
            self._begin_checkpoint()

    def _begin_checkpoint(self) -> asyncio.Task[StorageError | None]:
        """The checkpoint that is under way, or a new one."""
        if self._background is None or self._background.done():
            self._background = asyncio.create_task(self._try_checkpoint(), name="checkpoint")
        return self._background

    async def _try_checkpoint(self) -> StorageError | None:
        """A checkpoint that may fail: the journal has everything, so that nothing is lost but room."""
        try:
            await self._checkpoint()
        except StorageError as error:
            _log.warning("the journal could not be folded into the data files: %s", error)
            self._checkpoint_above = self._folder.journal.size + self._limit // 4
            return error
        self._checkpoint_above = self._limit
        return None

    async def _checkpoint(self) -> None:
        async with self._checkpointing:
            async with self._writing:
                begun = await self._begin(self._tables, self.id)
            await self._fold(begun)
            await self._finish()

    async def _begin(self, tables: Tables, id: str) -> _Begun:
        """Begins a checkpoint, between commits."""
        await self._finish()
        number = await self._run(self._folder.journal.rotate)
        begun = _Begun(Checkpoint(self._folder, number), tables, id, tables.version, self._dirty)
        self._dirty = set()
        return begun

    async def _fold(self, begun: _Begun) -> None:
        """Writes the data files of the collections that have changed.

        Commits may go on meanwhile. What of them comes into the files comes from the journal once more on the next
        start, in order, so that it does no harm.
        """
        checkpoint, tables, id, version, dirty = begun
        kept, documents = dict(self._kept), dict(self._documents)
        with translated(f"write {self.path}"):
            try:
                for name in [name for name in tables.tables if name in dirty]:
                    kept[name], documents[name] = await self._write_files(checkpoint, tables.tables[name])
                manifest = Manifest(id, version, checkpoint.number, list(kept.values()), checkpoint.removed)
                await self._run(checkpoint.commit, manifest)
            except BaseException as error:
                self._dirty |= dirty
                if checkpoint.decided and id != self.id:
                    self._folder.journal.failure = "the store may have been loaded, or not: restart"
                if isinstance(error, Exception):  # else a thread may be writing yet
                    await self._run(checkpoint.discard)
                raise
        self._kept, self._documents, self._unfinished = kept, documents, manifest

    async def _finish(self) -> None:
        """Puts the files of the last checkpoint in their places, if that is yet to be done."""
        if self._unfinished is not None:
            with translated(f"write {self.path}"):
                await self._run(self._folder.finish, self._unfinished)
            self._unfinished = None

    async def _write_files(self, checkpoint: Checkpoint, table: Table) -> tuple[Kept, Documents]:
        name = table.collection.name
        kind = FilesWriter if table.collection.layout == "files" else LinesWriter
        files = self._documents.get(name, {})
        writer = await self._run(kind, checkpoint, table.collection, self._kept.get(name), files)
        for rows in _pieces(table.rows):
            await self._run(writer.add, [row for _, row in rows])
        for tombstones in _pieces(table.tombstones):
            await self._run(writer.bury, tombstones)
        return await self._run(writer.done, table.floor), writer.documents


class _Begun(NamedTuple):
    checkpoint: Checkpoint
    tables: Tables
    id: str
    version: int
    dirty: set[str]


def _pieces(items: SortedDict[K, T]) -> Iterator[list[tuple[K, T]]]:
    """What a sorted dict holds, a little at a time; it may change in between."""
    keys = list(islice(items, _PIECE))
    while keys:
        yield [(key, items[key]) for key in keys]
        keys = list(islice(items.irange(keys[-1], inclusive=(False, True)), _PIECE))
