"""A server's side of `RemoteStorage`: its store, for commands of the same user, on a socket beside the store."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..base import Storage
from ..errors import StorageLocked, StorageUnavailable
from ..queries import Tombstones
from ..records import Change, Collection, Floor
from ..writes import Write
from . import messages as m
from .link import READ_BYTES, Link, not_understood, socket_of

T = TypeVar("T")
P = TypeVar("P", bound=m.Part)

MAX_PATH_BYTES = 107
"""What fits into a socket's address (unix(7))."""
MAX_CALLERS = 128
MAX_COMMIT_BYTES = 64 << 20
_PATIENCE = 60.0
"""Seconds that a caller may take for its turn; one that watches, any time."""
_GRACE = 0.5
"""Seconds that the calls that are under way may take when the server ends."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def serve_storage(storage: Storage, path: Path) -> AsyncIterator[None]:
    """Lets commands of this user reach the open store at ``path``, of which this process holds the lock.

    Where there can be no socket that is logged, and commands must do without. Callers do not hold up the end: calls
    under way have half a second to finish.
    """
    beside = socket_of(path)
    try:
        listener, place = _bind(beside)
    except OSError as error:
        _log.warning("commands cannot reach this server: no socket at %s: %s", beside, error.strerror or error)
        yield
        return
    calls = _Calls(storage)
    server = await asyncio.start_unix_server(calls.begin, sock=listener, backlog=MAX_CALLERS, limit=READ_BYTES)
    try:
        yield
    finally:
        server.close()
        await calls.end()
        for name in {place, beside}:
            _remove(name)


def _bind(beside: Path) -> tuple[socket.socket, Path]:
    """A socket that this user alone can connect to, and where it is: beside the store, or in the runtime folder with a
    link beside the store."""
    place = beside
    if len(os.fsencode(beside)) > MAX_PATH_BYTES:
        place = _runtime_folder() / f"{hashlib.sha256(os.fsencode(beside)).hexdigest()[:32]}.sock"
    for name in {place, beside}:
        _remove(name)  # left behind by a server that was killed: the store's lock is ours
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(place))
        place.chmod(0o600)  # before it listens: until then nobody can connect
        if place != beside:
            beside.symlink_to(place)
    except BaseException:
        listener.close()
        raise
    return listener, place


def _runtime_folder() -> Path:
    """``$XDG_RUNTIME_DIR/homeport``, or one for temporary files; raises OSError unless it is this user's alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "homeport") if runtime else Path(tempfile.gettempdir(), f"homeport-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EACCES, f"{folder} is not this user's alone")
    return folder


def _remove(place: Path) -> None:
    """Removes a socket or a link to one; what else is there stays."""
    with suppress(FileNotFoundError):
        mode = place.lstat().st_mode
        if stat.S_ISSOCK(mode) or stat.S_ISLNK(mode):
            place.unlink()


class _Calls:
    """The calls that are under way; at most 128."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._declaring = asyncio.Lock()
        self._calls: dict[Link, asyncio.Task[None]] = {}
        self._finite: set[Link] = set()
        """Those that end by themselves: no watches, nor callers that have not asked yet."""

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes the call of a connection."""
        link = Link(reader, writer, _PATIENCE)
        self._calls[link] = asyncio.create_task(self._answer(link))

    async def end(self) -> None:
        await asyncio.sleep(0)  # a task that has not begun would not close its connection
        for link, call in self._calls.items():
            if link not in self._finite:
                call.cancel()
        if self._calls:
            await asyncio.wait([*self._calls.values()], timeout=_GRACE)
        for call in self._calls.values():
            call.cancel()
        if self._calls:
            await asyncio.wait([*self._calls.values()])

    async def _answer(self, link: Link) -> None:
        try:
            with suppress(StorageUnavailable):  # a caller that has gone away needs no answer
                await link.send(await self._outcome(link))
        finally:
            await link.close()
            self._finite.discard(link)
            del self._calls[link]

    async def _outcome(self, link: Link) -> m.Message:
        try:
            if len(self._calls) > MAX_CALLERS:
                raise StorageUnavailable(f"the server has {MAX_CALLERS} commands to answer already")
            request = await link.receive()
            if not isinstance(request, m.Watch):
                self._finite.add(link)
            return m.Done.with_result(await self._result(request, link))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told, and the server goes on
            failure = m.failure(error)
            if failure is None:
                _log.exception("a command's call failed")
                failure = m.Failed(StorageUnavailable.__name__, "the server failed; its log says why")
            return failure

    async def _result(self, request: m.Request, link: Link) -> object:
        storage, collections = self._storage, self._storage.collections
        match request:
            case m.Hello():
                return m.Welcome(storage.id, tuple(collections.values()))
            case m.Declare():
                await self._declare(request.collections)
            case m.Get():
                ids = [m.text(id) for id in request.ids]
                records = await storage.get(m.known(request.collection, collections), ids)
                await _give(link, m.Records, m.each(records.values()))
            case m.Find():
                page = await storage.find(request.selection.query(collections))
                await _give(link, m.Records, m.each(page.records))
                return replace(page, records=())
            case m.Count():
                return await storage.count(request.selection.query(collections))
            case m.Commit():
                return await storage.commit(await self._writes(link))
            case m.Forget():
                return await storage.purge(Tombstones(m.known(request.collection, collections), request.up_to))
            case m.ChangesAfter():
                collection = m.known(request.collection, collections)
                changes = await storage.changes(collection, request.after, request.limit, began=request.began)
                await _give(link, m.Changed, m.each(changes.changes))
                return replace(changes, changes=())
            case m.Watch():
                await self._watch(link, [m.known(name, collections) for name in request.collections], request.after)
            case m.Load():
                await storage.load(_changes(link))
                return storage.id
            case m.TakeSnapshot():
                async with storage.snapshot() as snapshot:
                    await link.send(m.SnapshotTaken(snapshot.version, snapshot.collections))
                    await _await(link, m.GoOn)
                    await _give(link, m.Changed.of, snapshot.changes)
            case m.Ping():
                await storage.ping()
            case _:
                raise not_understood()
        return None

    async def _declare(self, collections: Iterable[Collection]) -> None:
        async with self._declaring:
            present = self._storage.collections
            new = [collection for collection in collections if present.get(collection.name) != collection]
            for collection in new:
                if collection.name in present:
                    # The server's own code would no longer be understood by its store.
                    raise StorageLocked(
                        f"the running server knows {collection.name} differently: restart it with this version"
                    )
            await self._storage.declare(*new)

    async def _writes(self, link: Link) -> list[Write]:
        """The writes of a commit, made of messages elsewhere than on the loop: their documents are decoded anew."""
        collections = dict(self._storage.collections)
        writes: list[Write] = []
        async for part in _take(link, m.Writes):
            if link.received > MAX_COMMIT_BYTES:
                raise ValueError(f"a commit through a running server has at most {MAX_COMMIT_BYTES >> 20} MiB")
            writes += await asyncio.to_thread(part.writes, collections)
        return writes

    async def _watch(self, link: Link, collections: Sequence[Collection], after: int) -> None:
        link.patience = None
        changes = self._storage.watch(collections, after)
        while (change := await _next(changes, link)) is not None:
            await link.send(m.Changed((change,)))
            await _await(link, m.GoOn)


async def _next(changes: AsyncIterator[Change], link: Link) -> Change | None:
    """The next change, None at the end of a watch; raises `StorageUnavailable` when the caller goes away before it."""
    change = asyncio.ensure_future(anext(changes, None))
    gone = asyncio.create_task(link.receive())  # it is the server's turn: nothing but an end can come
    try:
        await asyncio.wait([change, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise gone.exception() or not_understood()
        return change.result()
    finally:
        change.cancel()
        gone.cancel()
        await asyncio.gather(change, gone, return_exceptions=True)


async def _give(link: Link, made: Callable[[tuple[T, ...]], m.Part], items: AsyncIterable[T]) -> None:
    """Sends parts, each when the caller has had the one before."""
    async for part in m.in_parts(items):
        await link.send(made(part))
        await _await(link, m.GoOn)


async def _take(link: Link, kind: type[P]) -> AsyncIterator[P]:
    """The parts that the caller sends."""
    while True:
        await link.send(m.GoOn())
        match await link.receive():
            case m.End():
                return
            case part if isinstance(part, kind):
                yield part
            case _:
                raise not_understood()


async def _changes(link: Link) -> AsyncIterator[Change | Floor]:
    async for part in _take(link, m.Changed):
        for change in part:
            yield change


async def _await(link: Link, kind: type[m.Message]) -> None:
    if not isinstance(await link.receive(), kind):
        raise not_understood()
