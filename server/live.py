"""Connections that the server writes to as things happen: server-sent events (WHATWG HTML, 9.2) and WebSockets
(RFC 6455).

There may be thousands, nearly all of them idle: none has a timer or a queue of its own. What goes to many is packed
once, frame and all, and written to each one's transport, whose bounded buffer is the only queue.
"""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from aiohttp import WSCloseCode, web

from ..storage.times import SECOND
from .errors import ApiError, BadRequest, ServiceUnavailable
from .responses import HTTP_1_1

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from .clock import Clock
    from .request import ApiRequest

HEARTBEAT_SECONDS = 15.0
MAX_STREAMS = 20_000
MAX_BUFFERED = 1 << 20
"""Bytes that may wait for a reader."""
STALLED_SECONDS = 10.0
"""How long a reader may take for what waits for it, before it is cut off."""
MAX_MESSAGE = 64 * 1024
"""Bytes of a message from a client."""
MAX_MESSAGES = 100
_WINDOW = 10 * SECOND
"""How many messages a client may send, in a window that the first of them begins."""
WRONG_KEY = 4001
"""The code that closes the WebSocket of who may not open it: after the upgrade, since pages see no other refusal."""
PARTING_SECONDS = 0.5
"""How long a reader may take for what waits for it, and to close, once the stream has ended."""
_A_TURN = 256 * 1024
_A_WRITE = 16 * 1024
"""A write takes about as long as it takes to copy so many bytes."""

Wire = Literal["websocket", "sse", "sse/1.0"]
"""How bytes are packed: as frames of a WebSocket; as chunks of a body; or as they are, for HTTP/1.0."""


def text_frame(text: bytes) -> bytes:
    """A WebSocket message, as servers send it."""
    return _frame(0x1, text)


def _frame(opcode: int, payload: bytes) -> bytes:
    """A whole message in one frame, not masked (RFC 6455 5.2)."""
    first, size = 0x80 | opcode, len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def chunk(data: bytes) -> bytes:
    """A chunk of a body (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Turns:
    """Lets others have their turn on the loop every so many writes: a millisecond or so, when they are made."""

    def __init__(self) -> None:
        self._spent = 0

    async def wrote(self, size: int = 0) -> None:
        """To be called after each write of so many bytes."""
        self._spent += _A_WRITE + size
        if self._spent > _A_TURN:
            self._spent = 0
            await asyncio.sleep(0)


_COMMENT = b":\n\n"
_HEARTBEATS: dict[Wire, bytes] = {"websocket": _frame(0x9, b""), "sse": chunk(_COMMENT), "sse/1.0": _COMMENT}
"""A ping, or a comment."""


class Stream(ABC):
    """One connection, open until its client or the server ends it."""

    wire: Wire
    max_buffered = MAX_BUFFERED
    every = 1
    """How many heartbeats there are to a sign of life."""

    def __init__(self, transport: asyncio.Transport, writer: AbstractStreamWriter) -> None:
        self._transport = transport
        self._writer = writer
        self._written = 0
        self._taken = -1
        self._beats = 0

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    @property
    def full(self) -> bool:
        """Whether as much waits for the reader as may; then nothing more should be written until it has `drained`."""
        return self._transport.get_write_buffer_size() > self.max_buffered

    def write(self, packed: bytes) -> None:
        """Sends bytes that are packed for the stream's `wire`, if it is open."""
        if self.open:
            self._written += len(packed)
            self._transport.write(packed)

    async def drained(self) -> None:
        """Returns when little waits for the reader; one that takes too long is cut off."""
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._writer.drain()
        except TimeoutError:
            self._cut_off()
        except ConnectionError:
            return  # it is not open any more

    def beat(self) -> None:
        """Sends the sign of life, if it is time; cuts off a reader that has taken nothing of what waits since the
        last heartbeat."""
        waiting = self._transport.get_write_buffer_size()
        taken = self._written - waiting
        if waiting and taken <= self._taken:
            self._cut_off()
        self._taken = taken
        self._beats += 1
        if self._beats % self.every == 0 and not self.full:
            self.write(_HEARTBEATS[self.wire])

    def _cut_off(self) -> None:
        self.end(WSCloseCode.TRY_AGAIN_LATER, "reads too slowly")

    def end(self, code: int, reason: str) -> None:
        """Ends the stream. A WebSocket's client is told why: a code and up to 123 bytes (RFC 6455 7.4)."""
        if self.open:
            self._part(code, reason)
            asyncio.get_running_loop().call_later(PARTING_SECONDS, self._transport.abort)

    @abstractmethod
    def _part(self, code: int, reason: str) -> None: ...


class EventStream(Stream):
    """An answer of server-sent events."""

    def __init__(
        self, response: web.StreamResponse, wire: Wire, transport: asyncio.Transport, writer: AbstractStreamWriter
    ) -> None:
        super().__init__(transport, writer)
        self.response = response
        self.wire = wire
        self._gone = asyncio.get_running_loop().create_future()

    async def gone(self) -> None:
        """Returns when the connection is no more."""
        await self._gone

    def _part(self, code: int, reason: str) -> None:
        if self.wire == "sse":
            self._transport.write(b"0\r\n\r\n")
        self._transport.close()

    # What aiohttp asks of the parser of a connection's bytes; it alone is told that the connection is lost.

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Drops what a client sends after its request."""
        return False, b""

    def feed_eof(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)


class SocketStream(Stream):
    """A WebSocket. Its ``response`` receives; what is sent is written here."""

    wire = "websocket"

    def __init__(
        self, response: web.WebSocketResponse, transport: asyncio.Transport, writer: AbstractStreamWriter
    ) -> None:
        super().__init__(transport, writer)
        self.response = response
        self._parting = False

    @property
    def open(self) -> bool:
        return not (self._parting or self.response.closed or self._transport.is_closing())

    def _part(self, code: int, reason: str) -> None:
        # The connection stays until the client has answered, or its time is over: without it, some clients take the
        # closing frame for no more than a connection that broke.
        self._parting = True
        self._transport.write(_frame(0x8, struct.pack("!H", code) + reason.encode()))


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
        writer, transport = await _begin(response, request)
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
        if self._beating is None:
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
            stream.end(WSCloseCode.GOING_AWAY, "the server is stopping")
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
