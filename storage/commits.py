"""Group commit: many waiting commits, one durable write.

While one batch is being made durable the next gathers, so that what limits a store is the disk's fsyncs a second, not
its commits a second. `resolve` decides what each commit of a batch does; `GroupCommit` gathers the batches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

from . import errors, records
from .errors import Conflict
from .observing import CommitTimes, Observer, Outcome
from .queries import Query
from .records import ABSENT, Change, Value
from .writes import Commit, Delete, DeleteWhere, Put, Write

Key = tuple[str, str]
"""Collection and id."""
UniqueValue = tuple[str, int, Value]
"""Collection, place of the field in it, value."""


class State(Protocol):
    """What a store holds before a batch."""

    def versions(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """The versions of the records that exist."""

    def holders(self, values: Collection[UniqueValue]) -> Mapping[UniqueValue, str]:
        """The ids of the records that hold these values of unique fields."""

    def select(self, query: Query) -> Sequence[str]:
        """The ids that a query finds, in order of id; of its paging, only the limit counts."""


class Written(NamedTuple):
    """One write that took a version; ``put`` is None for a deletion."""

    collection: records.Collection
    id: str
    version: int
    put: Put | None

    @property
    def size(self) -> int:
        """Bytes of the document."""
        return len(self.put.document) if self.put else 0

    @property
    def record(self) -> records.Record:
        """What was written, where that is no deletion."""
        assert self.put is not None
        return records.Record(self.id, self.version, self.put.document)

    @property
    def change(self) -> Change:
        return Change(self.collection.name, self.id, self.version, self.put.document if self.put else None)


class Resolution(NamedTuple):
    """What a batch comes to: each commit's outcome, every write in order of version, and the store's new version."""

    outcomes: list[Commit | Conflict]
    written: list[Written]
    version: int

    def latest(self) -> Collection[Written]:
        """The last write to each record."""
        return {(write.collection.name, write.id): write for write in self.written}.values()

    def floors(self) -> dict[str, int]:
        """The last deletion in each collection that does not remember its deletions."""
        return {
            write.collection.name: write.version
            for write in self.written
            if write.put is None and not write.collection.tombstones
        }


def resolve(batch: Sequence[Sequence[Write]], state: State, version: int) -> Resolution:
    """Decides the commits of a batch in order of arrival: of two that exclude each other the first wins.

    Only the batch's first commit may hold a `DeleteWhere`, because it is judged on the state alone.
    """
    return _Resolver(batch, state, version).resolve()


class _Resolver:
    def __init__(self, batch: Sequence[Sequence[Write]], state: State, version: int) -> None:
        self._batch = batch
        self._state = state
        self._version = version
        self._written: list[Written] = []
        # What the batch has done so far lies over the state: the last write to each record, and who was given a
        # unique value.
        self._overlay: dict[Key, Written] = {}
        self._given: dict[UniqueValue, list[str]] = {}

    def resolve(self) -> Resolution:
        asked: set[Key] = set()
        values: set[UniqueValue] = set()
        for writes in self._batch:
            for write in writes:
                if isinstance(write, DeleteWhere):
                    continue
                if write.if_version is not None or isinstance(write, Delete):
                    asked.add((write.collection.name, write.id))
                if isinstance(write, Put) and write.collection.unique:
                    values.update(_unique_values(write))
        self._versions = self._state.versions(asked) if asked else {}
        self._holders = self._state.holders(values) if values else {}
        outcomes: list[Commit | Conflict] = []
        for writes in self._batch:
            try:
                outcomes.append(self._one(writes))
            except Conflict as conflict:
                outcomes.append(conflict)
        return Resolution(outcomes, self._written, self._version)

    def _one(self, writes: Sequence[Write]) -> Commit:
        version = self._version
        staged: dict[Key, Written] = {}
        versions, counts = [], []
        unique = False
        for index, write in enumerate(writes):
            before = version
            if isinstance(write, DeleteWhere):
                for id in self._selected(write.query, writes, staged):
                    version += 1
                    staged[write.query.collection.name, id] = Written(write.query.collection, id, version, None)
            else:
                collection = write.collection
                key = (collection.name, write.id)
                if write.if_version is not None and write.if_version != self._present(key):
                    raise Conflict(index, *key, "version", self._present(key))
                if isinstance(write, Put):
                    version += 1
                    staged[key] = Written(collection, write.id, version, write)
                    unique = unique or bool(collection.unique)
                elif isinstance(write, Delete) and self._present(key):
                    version += 1
                    staged[key] = Written(collection, write.id, version, None)
            versions.append(version if version > before else 0)
            counts.append(version - before)
        if unique:
            self._check_unique(writes, staged)
        self._overlay.update(staged)
        self._written += staged.values()
        self._version = version
        return Commit(version, tuple(versions), tuple(counts))

    def _present(self, key: Key) -> int:
        if over := self._overlay.get(key):
            return over.version if over.put else ABSENT
        return self._versions.get(key, ABSENT)

    def _selected(self, query: Query, writes: Sequence[Write], staged: Mapping[Key, Written]) -> list[str]:
        if self._overlay:
            raise AssertionError("a DeleteWhere must come in its batch's first commit")
        name = query.collection.name
        spared = {w.id for w in writes if isinstance(w, Put | Delete) and w.collection.name == name}
        return [id for id in self._state.select(query) if id not in spared and (name, id) not in staged]

    def _check_unique(self, writes: Sequence[Write], staged: Mapping[Key, Written]) -> None:
        """Takes the unique values that a commit gives to its records, unless another record holds one after it."""
        given: dict[UniqueValue, str] = {}
        for index, write in enumerate(writes):
            if not isinstance(write, Put):
                continue
            for value in _unique_values(write):
                name, place, _ = value
                others = [*self._given.get(value, ())]
                others += [self._holders[value]] if value in self._holders else []
                if value in given or any(other != write.id and self._holds(other, value, staged) for other in others):
                    raise Conflict(index, name, write.id, "unique", field=write.collection.fields[place].name)
                given[value] = write.id
        for value, id in given.items():
            self._given.setdefault(value, []).append(id)

    def _holds(self, id: str, value: UniqueValue, staged: Mapping[Key, Written]) -> bool:
        """Whether a record holds a value that it once did: before the commit and after it."""
        name, place, operand = value
        writes = self._overlay.get((name, id)), staged.get((name, id))
        return all(write is None or (write.put is not None and write.put.values[place] == operand) for write in writes)


def _unique_values(put: Put) -> list[UniqueValue]:
    name, values = put.collection.name, put.values
    return [(name, place, values[place]) for place, _ in put.collection.unique if values[place] is not None]


MAX_BATCH_COMMITS = 1024
MAX_BATCH_BYTES = 4 << 20
MAX_WAITING_BYTES = 64 << 20
_BYTES_A_WRITE = 256


@dataclass(slots=True)
class _Waiting:
    writes: Sequence[Write]
    size: int
    future: asyncio.Future[Commit]
    taken: float = 0.0
    """When its batch began."""


class GroupCommit:
    """Gathers commits into batches for ``write``, which makes a batch durable and returns each commit's outcome.

    ``write`` is never called again before it has returned. Where it raises, every commit of the batch raises. Beyond
    64 MiB of waiting documents further committers wait before they queue. ``between`` is awaited after each batch, when
    its committers have their outcomes, and must not raise.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Sequence[Write]]], Awaitable[Sequence[Commit | Conflict]]],
        between: Callable[[], Awaitable[None]],
    ) -> None:
        self._write = write
        self._between = between
        self._queue: deque[_Waiting] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._closed = False

    async def submit(self, writes: Sequence[Write], observe: Observer | None = None) -> Commit:
        """Returns when the commit is durable, or raises what became of it; ``observe`` is told first.

        A committer that is cancelled may have committed all the same.
        """
        asked = perf_counter()
        size = sum([len(w.document) for w in writes if isinstance(w, Put)]) + _BYTES_A_WRITE * len(writes)
        while self._size and self._size + size > MAX_WAITING_BYTES:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise errors.StorageUnavailable("the store is closed")
        future: asyncio.Future[Commit] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(writes, size, future)
        self._queue.append(waiting)
        self._size += size
        if self._task is None:
            # It works for everybody, so that it has nothing of the context of who happens to come first.
            self._task = asyncio.create_task(self._drain(), name="group commit", context=Context())
        if observe is None:
            return await future
        outcome: Outcome = "failed"
        try:
            commit = await future
            outcome = "done"
            return commit
        except Conflict:
            outcome = "conflict"
            raise
        finally:
            now = perf_counter()
            taken = waiting.taken or now
            observe(CommitTimes(taken - asked, now - taken, outcome))

    async def close(self) -> None:
        """Lets the waiting commits finish and takes no more."""
        self._closed = True
        self._room.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        try:
            while self._queue:
                batch = self._take()
                now = perf_counter()
                for waiting in batch:
                    waiting.taken = now
                try:
                    outcomes = await self._write([waiting.writes for waiting in batch])
                except BaseException as error:
                    for waiting in batch:
                        _fail(waiting.future, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    for waiting, outcome in zip(batch, outcomes, strict=True):
                        if waiting.future.done():
                            continue
                        if isinstance(outcome, Conflict):
                            waiting.future.set_exception(outcome)
                        else:
                            waiting.future.set_result(outcome)
                self._size -= sum(waiting.size for waiting in batch)
                self._room.set()
                await self._between()
        finally:
            self._task = None
            while self._queue:
                _fail(self._queue.popleft().future, errors.StorageUnavailable("the store was stopped"))
            self._size = 0
            self._room.set()

    def _take(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        size = batch[0].size
        while self._queue and len(batch) < MAX_BATCH_COMMITS:
            waiting = self._queue[0]
            size += waiting.size
            if size > MAX_BATCH_BYTES or any(isinstance(write, DeleteWhere) for write in waiting.writes):
                break
            batch.append(self._queue.popleft())
        return batch


def _fail(future: asyncio.Future[Commit], error: BaseException) -> None:
    """Gives a committer an error of its own, so that tracebacks do not pile up in a shared one."""
    if future.done():
        return
    if not isinstance(error, Exception):
        error = errors.StorageUnavailable("the store was stopped")
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    future.set_exception(twin)
