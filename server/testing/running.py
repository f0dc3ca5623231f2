"""A server on a thread of its own, for tests in the same process; what the fixtures of `plugin` give."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop
from aiohttp import web

from ...storage import Put, Query, walk
from ...storage.documents import decode, encode
from ...storage.times import parse_time
from ..api_keys import API_KEYS, SCOPES
from ..apis.collections.ids import check_id, id_in
from ..apis.collections.records import kept, plain, without_meta
from ..apis.collections.registry import COLLECTIONS
from ..app import create_app
from ..errors import ApiError
from ..keys import STORAGE
from ..runner import Runner
from .control import Control
from .faults import Fault
from .journal import Asked

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from ..apis.collections.user_collection import UserCollection
    from ..config import Config

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds that anything may take."""
_DRAIN = 0.01
"""Seconds that answers under way are waited for, and as long again: the test that would want them is over."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Homeport:
    """A running server. Its methods may be called from any thread, also from asynchronous tests."""

    def __init__(self, url: str, app: web.Application, control: Control) -> None:
        self.url = url
        """Such as ``http://127.0.0.1:40123``, with ``base_path`` where there is one."""
        self.clock = ServerClock(self, control)
        self._app = app
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()

    @property
    def requests(self) -> list[Asked]:
        """What was asked, the oldest first; at most a thousand."""
        return self._on_loop(self._requests())

    def reset(self) -> None:
        """Every collection is back at its seed; all other data, requests, faults, limits and the clock's moves are
        gone."""
        self._on_loop(self._control.reset())

    def fail(
        self,
        path: str,
        *,
        method: str | None = None,
        status: int | None = None,
        delay_ms: int | None = None,
        disconnect: bool = False,
        times: int = 1,
    ) -> None:
        """Lets the next ``times`` requests for a path, or with ``/like/this/*`` for all below, meet a fault: a
        ``status``, a delay, or the end of the connection. Without ``method``, those of any but OPTIONS.

        Raises ValueError for what is not exactly one fault.
        """
        self._on_loop(self._fail(Fault(path, method, status, delay_ms, disconnect, times)))

    def load(self, collection: str, records: Iterable[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]) -> None:
        """Puts records, all or none; each by its ``id``, else its key in the mapping, else its place, from 1 on.

        Raises ValueError with what does not fit the schema, LookupError where there is no such collection.
        """
        self._on_loop(self._load(self._collection(collection), records))

    def records(self, collection: str) -> list[Any]:
        """All records as they were sent, in order of id. Raises LookupError where there is no such collection."""
        return self._on_loop(self._records(self._collection(collection)))

    def api_key(self, username: str, *scopes: str) -> str:
        """A new API key; without ``scopes``, one with all. Raises `ApiError` for a name or scope that cannot be."""
        return self._on_loop(self._app[API_KEYS].create(username, scopes or SCOPES))[1]

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)

    def _collection(self, name: str) -> UserCollection:
        for collection in self._app[COLLECTIONS].all() if COLLECTIONS in self._app else ():
            if collection.name == name:
                return collection
        raise LookupError(f"there is no collection {name}: give the fixture its schema, schemas/{name}.schema.json")

    async def _requests(self) -> list[Asked]:
        return [replace(asked) for asked in self._control.journal]

    async def _fail(self, fault: Fault) -> None:
        self._control.faults.add(fault)

    async def _load(self, collection: UserCollection, records: Any) -> None:
        by_name = records.items() if isinstance(records, Mapping) else enumerate(records, 1)
        now = self._control.clock.now()
        puts = [_put(collection, str(name), record, now) for name, record in by_name]
        if puts:
            await self._app[STORAGE].commit(puts)

    async def _records(self, collection: UserCollection) -> list[Any]:
        found = walk(self._app[STORAGE], Query(collection.storage))
        return [decode(plain(record.document)) async for record in found]


class ServerClock:
    """The clock of a server: it goes with the real one until it is moved, then it stands."""

    def __init__(self, server: Homeport, control: Control) -> None:
        self._server = server
        self._control = control

    @property
    def now(self) -> datetime:
        """What it shows, in UTC."""
        return _EPOCH + timedelta(microseconds=self._control.clock.now())

    def move_to(self, when: datetime | str | int) -> None:
        """Stops it at a time: an RFC 3339 text, or microseconds since 1970; without an offset or zone, in UTC.

        Raises ValueError for a time before 1970 or after 2999.
        """
        if isinstance(when, str):
            when = parse_time(when)
        elif isinstance(when, datetime):
            when = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
        self._server._on_loop(self._move_to(when))

    def advance(self, seconds: float | timedelta) -> None:
        """Stops it so much after the time that it shows. Raises ValueError as `move_to` does."""
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        if not math.isfinite(seconds):
            raise ValueError("seconds must be a number")
        self._server._on_loop(self._advance(seconds))

    def reset(self) -> None:
        """Lets it show the real time again."""
        self._server._on_loop(self._reset())

    async def _move_to(self, when: int) -> None:
        self._control.move_to(when)

    async def _advance(self, seconds: float) -> None:
        self._control.advance(seconds)

    async def _reset(self) -> None:
        self._control.clock.reset()


@contextmanager
def running(config: Config) -> Iterator[Homeport]:
    """Serves a configuration on a free port of 127.0.0.1. Raises what keeps the server from starting."""
    started: Future[Homeport] = Future()
    thread = Thread(target=_run, args=(config, started), name="homeport", daemon=True)
    thread.start()
    try:
        server = started.result(_PATIENCE)
    except BaseException:
        thread.join(_PATIENCE)
        raise
    try:
        yield server
    finally:
        server._stop()
        thread.join(_PATIENCE)
        if thread.is_alive():
            raise RuntimeError(f"the server did not stop within {_PATIENCE:g} seconds")


def _run(config: Config, started: Future[Homeport]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, started))
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _serve(config: Config, started: Future[Homeport]) -> None:
    control = Control()
    app = create_app(config, control=control)
    runner = Runner(app, shutdown_timeout=_DRAIN)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server = Homeport(f"http://{host}:{port}{config.server.base_path}", app, control)
        started.set_result(server)
        await server._stopping.wait()
    finally:
        await runner.cleanup()


def _put(collection: UserCollection, name: str, record: Mapping[str, Any], now: int) -> Put:
    try:
        body = without_meta(encode(record))
        document = decode(body)
        id = check_id(id_in(document) or name)
        collection.check(document)
    except ApiError as error:
        problems = "; ".join(f"{problem.field} {problem.message}" for problem in error.problems)
        raise ValueError(f"{collection.name}: record {name}: {problems or error.message}") from None
    return Put(collection.storage, id, kept(body, now))
