"""One connection that the server writes to as things happen: server-sent events (WHATWG HTML, 9.2) or a WebSocket
(RFC 6455). It has no timer and no queue of its own but its transport's bounded buffer."""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from aiohttp import WSCloseCode, web

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

MAX_BUFFERED = 1 << 20
"""Bytes that may wait for a reader."""
STALLED_SECONDS = 10.0
"""How long a reader may take for what waits for it, before it is cut off."""
PARTING_SECONDS = 0.5
"""How long a reader may take for what waits for it, and to close, once the stream has ended."""

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
