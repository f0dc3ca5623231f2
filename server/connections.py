"""The connections of a server: how many there may be, how long their clients may take, and what becomes of those who
speak no HTTP.

aiohttp bounds the lines of a head and the queue of pipelined requests, and ends a connection that is idle. It knows no
deadline for heads, none for readers, and takes as many connections as come. Bodies have their own deadline, in
`bodies`; live streams theirs, in `live`; TLS handshakes theirs, in `tls`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from aiohttp import web
from aiohttp.hdrs import METH_CONNECT
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11, WebSocketReader
from aiohttp.http_exceptions import BadHttpMessage, InvalidURLError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from ..storage.documents import encode
from .masking import Masked

if TYPE_CHECKING:
    from .clients import Clients
    from .config import ServerConfig

log = logging.getLogger(__name__)

IDLE_SECONDS = 75.0
"""How long a connection may stay without a request."""
HEAD_SECONDS = 15.0
"""How long the head of a request may take, from its first byte."""
MAX_HEAD = 64 * 1024
"""Bytes of a head that comes in pieces."""
MAX_FIELD = 8190
"""Bytes of a request line, or of a header field."""
MAX_FIELDS = 100
"""Header fields of a request, those of a trailer among them."""
TAKE_SECONDS = 30.0
TAKE_RATE = 5_000
"""A reader may take half a minute for what waits for it, and as long as so many bytes a second take."""
_SWEEP_SECONDS = 1.0
_A_TURN = 1000
"""Connections that are looked at in one turn of the loop: under a millisecond."""
_LOOKS = 64
"""Connections among which room for another is looked for, when there is none."""
_DESCRIPTORS = 512
"""What the process needs besides connections: two a session, files, the store, tmux, push notifications."""
_RETRY_SECONDS = 10
_HEADERS = {"Server": "homeport", "Content-Type": "application/problem+json", "Connection": "close"}

Refusal = Literal["server", "address"]
"""Which cap a connection is above: that of all, or that of its client's address."""
Reason = Literal["head", "reader", "room", "malformed"]
"""Why a connection was ended: a head that took too long or grew too large, a reader that did not read, a newcomer that
needed its room, or that it spoke no HTTP."""


class Connections:
    """The connections of an application, of those that `runner` serves."""

    def __init__(self, server: ServerConfig, clients: Clients) -> None:
        self.most = server.max_connections
        """How many there may be."""
        self.refused: dict[Refusal, int] = {"server": 0, "address": 0}
        self.ended: dict[Reason, int] = {"head": 0, "reader": 0, "room": 0, "malformed": 0}
        self._most_of_one = server.max_connections_per_address
        self._clients = clients
        self._open: OrderedDict[Connection, None] = OrderedDict()
        self._by_network: Counter[str] = Counter()
        self._told = -inf

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection, peer: str | None) -> Refusal | None:
        """Counts a connection in, or says why it is refused. ``peer``: an address; None for a Unix socket."""
        network = self._clients.counted(peer)
        if network is not None and self._by_network[network] >= self._most_of_one:
            return self._refuse("address", f"{network} has {self._most_of_one:,}, the most that an address may have")
        if len(self._open) >= self.most and not self._make_room():
            return self._refuse("server", f"there are {self.most:,}, the most that there may be")
        self._open[connection] = None
        connection.network = network
        if network is not None:
            self._by_network[network] += 1
        return None

    def leave(self, connection: Connection) -> None:
        """Counts a connection out, if it was in."""
        if connection not in self._open:
            return
        del self._open[connection]
        if (network := connection.network) is not None:
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]

    async def watch(self) -> None:
        """Ends the connections whose clients take too long, as long as it runs."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            for number, connection in enumerate(tuple(self._open), 1):
                connection.check(now)
                if number % _A_TURN == 0:
                    await asyncio.sleep(0)

    def _refuse(self, refusal: Refusal, why: str) -> Refusal:
        self.refused[refusal] += 1
        now = asyncio.get_running_loop().time()
        if now - self._told > 60:
            self._told = now
            log.warning("connections are refused: %s", why)
        return refusal

    def _make_room(self) -> bool:
        """Ends a connection that only waits for a request to come, or to come whole: of those with none since their
        last turn, the one whose turn it is (the clock algorithm).

        Who floods the server with such connections loses them to who has something to ask.
        """
        for _ in range(min(_LOOKS, len(self._open))):
            connection = next(iter(self._open))
            if connection.unused():
                self.ended["room"] += 1
                connection.abort()
                self.leave(connection)
                return True
            self._open.move_to_end(connection)
        return False


CONNECTIONS = web.AppKey("connections", Connections)


def room_for(connections: int) -> int:
    """How many of so many connections this process may have, for which it raises its limit of open files if need be."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _DESCRIPTORS
    if limit < needed and limit != resource.RLIM_INFINITY:
        limit = needed if most == resource.RLIM_INFINITY else min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return connections if limit == resource.RLIM_INFINITY else min(connections, max(limit - _DESCRIPTORS, limit // 2))


class Connection(RequestHandler):
    """One connection."""

    __slots__ = ("_closing", "_connections", "_deadline", "_head", "_last", "_wire", "network")

    def __init__(self, manager: web.Server, connections: Connections, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self.network: str | None = None
        """What it counts for, besides the server."""
        self._connections = connections
        self._wire: asyncio.Transport
        self._deadline = inf
        self._head = 0
        """Bytes of a head that is not whole."""
        self._closing = False
        self._last = 0.0
        """When it was to end for want of a request, as `unused` last saw it."""

    def unused(self) -> bool:
        """Whether nothing but the head of a request is under way, and no request came since it was last asked."""
        last, self._last = self._last, self._next_keepalive_close_time
        waits = not self._waiter.done() if self._waiter else not self._request_count  # none: it is not looked after yet
        return waits and last == self._last

    def check(self, now: float) -> None:
        """Ends the connection, if it is time."""
        if not self._closing and self._wire.is_closing():
            self._closing = True
            self._deadline = now + TAKE_SECONDS  # for what is still to be written: a transport waits for ever
        if now < self._deadline or (self._payload_parser is not None and not self._closing):
            return
        if self._closing or self._paused:
            self._connections.ended["reader"] += 1
            self.abort()
        else:
            self._end("head", 408, "The head of the request took too long")

    def abort(self) -> None:
        """Ends the connection at once."""
        self._wire.abort()

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if self._connections.admit(self, peer[0] if isinstance(peer, tuple) else None):
            self._wire.write(_answer(503, "There are too many connections", {"Retry-After": str(_RETRY_SECONDS)}))
            self._wire.close()
            self._force_close = True  # whatever comes is dropped
        else:
            super().connection_made(transport)
            self._last = self._next_keepalive_close_time

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._check_heads()
        elif data and self._waiter is not None and not self._force_close:
            if not self._head:
                self._deadline = self._loop.time() + HEAD_SECONDS
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._end("head", 431, "The head of the request is too large")

    def pause_writing(self) -> None:
        super().pause_writing()
        waiting = self._wire.get_write_buffer_size()
        self._deadline = self._loop.time() + TAKE_SECONDS + waiting / TAKE_RATE

    def resume_writing(self) -> None:
        super().resume_writing()
        self._deadline = inf

    # What aiohttp does with it

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Each body that is read to its end calls it, where nothing was paused and nothing waits to be parsed.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        if isinstance(parser, WebSocketReader):
            parser = Masked(parser)
        super().set_parser(parser, data_received_cb)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What is no HTTP is answered without being repeated, and not logged: it may hold a secret, and there may be
        much of it."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self._connections.ended["malformed"] += 1
        if isinstance(exc, LineTooLong):
            status, detail = 431, f"The request line, or a header field, is longer than {MAX_FIELD:,} bytes"
        elif isinstance(exc, InvalidURLError):
            detail = "Invalid URL"
        else:
            detail = re.split("[:\n]", exc.message, maxsplit=1)[0]
        response = web.Response(body=_problem(status, detail), status=status, headers=_HEADERS)
        response.force_close()
        return response

    def _check_heads(self) -> None:
        """Makes errors of the requests that aiohttp's parser takes, and we do not; there is a whole head now."""
        if self._head:
            self._head, self._deadline = 0, inf
        for place, (message, _) in enumerate(self._messages):
            if isinstance(message, _ErrInfo):
                continue
            if message.version is not HttpVersion11 and message.version is not HttpVersion10:
                self._messages[place] = _not_taken("Only HTTP/1.1 and HTTP/1.0 are spoken here")
            elif message.method == METH_CONNECT:
                self._messages[place] = _not_taken("This is no proxy")

    def _end(self, reason: Reason, status: int, detail: str) -> None:
        self._connections.ended[reason] += 1
        self._wire.write(_answer(status, detail))
        self.force_close()


def _not_taken(detail: str) -> tuple[_ErrInfo, StreamReader]:
    return _ErrInfo(400, BadHttpMessage(detail), detail), EMPTY_PAYLOAD


def _problem(status: int, detail: str) -> bytes:
    """RFC 9457."""
    return encode({"title": HTTPStatus(status).phrase, "status": status, "detail": detail})


def _answer(status: int, detail: str, more: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A whole answer, for a connection on which there is no request to answer."""
    body = _problem(status, detail)
    headers = {**_HEADERS, **more, "Date": formatdate(usegmt=True), "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
