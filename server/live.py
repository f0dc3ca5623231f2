"""The connections of an application that it writes to as things happen.

There may be thousands, nearly all of them idle: one task sends the signs of life of all. What goes to many is packed
once, frame and all, and written to each one's transport.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, web

from ..storage.times import SECOND
from .errors import ApiError, BadRequest, ServiceUnavailable
from .responses import HTTP_1_1
from .streams import MAX_BUFFERED, PARTING_SECONDS, EventStream, SocketStream
from .turns import Turns

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from .clock import Clock
    from .request import ApiRequest
    from .streams import Stream

HEARTBEAT_SECONDS = 15.0
MAX_STREAMS = 20_000
MAX_MESSAGE = 64 * 1024
"""Bytes of a message from a client."""
MAX_MESSAGES = 100
_WINDOW = 10 * SECOND
"""How many messages a client may send, in a window that the first of them begins."""
WRONG_KEY = 4001
"""The code that closes the WebSocket of who may not open it: after the upgrade, since pages see no other refusal."""
_STOPPING = "the server is stopping"


class MessageRate:
    """How many messages a client of a WebSocket sent, in the window that the first of them began."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0
        self._end = 0

    def count(self) -> None:
        """Counts a message; raises `ApiError` 429 for one above the limit."""
        now = self._clock.now()
        if now >= self._end:
            self._count, self._end = 0, now + _WINDOW
        self._count += 1
        if self._count > MAX_MESSAGES:
            message = f"More than {MAX_MESSAGES} messages in {_WINDOW // SECOND} seconds"
            raise ApiError(message, status=429, code="RATE_LIMITED")


class Live:
    """The streams of an application."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self._beating: asyncio.Task[None] | None = None
        self._stopped = False

    def count(self) -> Counter[str]:
        """How many are open, by kind: ``websocket`` and ``sse``."""
        return Counter("websocket" if stream.wire == "websocket" else "sse" for stream in self._streams)

    @asynccontextmanager
    async def events(self, request: ApiRequest) -> AsyncIterator[EventStream]:
        """Begins an answer of server-sent events; the handler returns its ``response`` once it is `gone`."""
        self._admit()
        raw = request.raw
        response = web.StreamResponse(
            headers={
                **request.headers,
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would hold events back
            }
        )
        writer, transport = await _begin(response, request)
        stream = EventStream(response, "sse" if raw.version >= HTTP_1_1 else "sse/1.0", transport, writer)
        raw.protocol.set_parser(stream)  # type: ignore[arg-type]  # all that it is asked is what ours answers
        stream.beat()  # so that clients and proxies see at once that it is open
        with self._kept(stream):
            yield stream

    @asynccontextmanager
    async def socket(
        self, request: ApiRequest, *, max_buffered: int = MAX_BUFFERED, every: int = 1
    ) -> AsyncIterator[SocketStream]:
        """Accepts a WebSocket; the handler returns its ``response`` once that receives no more.

        ``max_buffered``: bytes that may wait for its reader. ``every``: how many heartbeats there are to a ping.
        """
        self._admit()
        response = web.WebSocketResponse(
            compress=False,
            max_msg_size=MAX_MESSAGE + 1,  # aiohttp refuses what has as much
            timeout=PARTING_SECONDS,
        )
        response.headers.update(request.headers)
        try:
            writer, transport = await _begin(response, request)
        except web.HTTPBadRequest as error:
            raise ApiError(
                "This is no handshake of a WebSocket, version 13 (RFC 6455 4.2.1)",
                status=error.status,
                headers={"Sec-WebSocket-Version": "13"},
            ) from error
        stream = SocketStream(response, transport, writer)
        stream.max_buffered, stream.every = max_buffered, every
        with self._kept(stream):
            yield stream

    def _admit(self) -> None:
        if self._stopped:
            raise ServiceUnavailable("The server is stopping")
        if len(self._streams) >= MAX_STREAMS:
            raise ServiceUnavailable("There are too many live connections")

    @contextmanager
    def _kept(self, stream: Stream) -> Iterator[None]:
        self._streams.add(stream)
        if self._stopped:  # since it was admitted
            stream.end(WSCloseCode.GOING_AWAY, _STOPPING)
        elif self._beating is None:
            self._beating = asyncio.create_task(self._beat(), name="heartbeat of live streams", context=Context())
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            turns = Turns()
            for stream in tuple(self._streams):
                stream.beat()
                await turns.wrote()

    async def stop(self, _: web.Application) -> None:
        """Ends every stream; a signal handler for the application's shutdown."""
        self._stopped = True
        if self._beating is not None:
            self._beating.cancel()
        turns = Turns()
        for stream in tuple(self._streams):
            stream.end(WSCloseCode.GOING_AWAY, _STOPPING)
            await turns.wrote()


LIVE = web.AppKey("live", Live)


async def _begin(response: web.StreamResponse, request: ApiRequest) -> tuple[AbstractStreamWriter, asyncio.Transport]:
    """Sends the head of an answer."""
    raw = request.raw
    transport = raw.transport
    try:
        writer = await response.prepare(raw)
    except ConnectionError:
        writer = None
    if writer is None or transport is None:
        raise BadRequest("The client has gone")
    request.began = perf_counter()
    return writer, transport
