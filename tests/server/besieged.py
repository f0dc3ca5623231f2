"""A small server, and clients that speak to it in bytes."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from homeport.server import connections
from homeport.server.app import assemble
from homeport.server.bodies import stream_body
from homeport.server.config import load_config
from homeport.server.connections import CONNECTIONS, Connections
from homeport.server.live import LIVE
from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.server.runner import Runner
from homeport.server.streams import text_frame
from homeport.server.validation import Schemas

PATIENCE = 20.0
"""Seconds after which what should have happened has not."""
BIG = 8_000_000
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

api = Api("besieged")


class Held(asyncio.Event):
    """What requests wait for. ``count``: how many did."""

    count = 0

    async def by(self, count: int) -> None:
        """Returns when so many wait."""
        async with asyncio.timeout(PATIENCE):
            while self.count < count:
                await asyncio.sleep(0.01)


HELD = web.AppKey("held", Held)


@api.get("/")
async def small(_: ApiRequest) -> object:
    return {"fine": True}


@api.get("/big")
async def big(_: ApiRequest) -> object:
    return {"text": "x" * BIG}


@api.get("/hold")
async def hold(request: ApiRequest) -> object:
    request.app[HELD].count += 1
    await request.app[HELD].wait()
    return {"held": True}


@api.get("/drop")
async def drop(request: ApiRequest) -> web.StreamResponse:
    """Leaves a closed connection with much to write."""
    assert request.raw.transport is not None
    request.raw.transport.write(b"x" * BIG)
    request.raw.transport.close()
    return web.Response()


@api.post("/body", content_types=("text/plain",), max_body=100_000)
async def body(request: ApiRequest) -> object:
    return {"bytes": len(request.body)}


@api.post("/stream", content_types=("text/plain",), streamed=True)
async def stream(request: ApiRequest) -> object:
    return {"bytes": sum([len(part) async for part in stream_body(request.raw, 100_000)])}


@api.websocket("/socket")
async def echo(request: ApiRequest) -> web.StreamResponse:
    async with request.app[LIVE].socket(request) as socket:
        async for message in socket.response:
            socket.write(text_frame(str(message.data).encode()))
    return socket.response


class Client:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes, pause: float = 0) -> None:
        """Sends parts one by one, until the server wants no more of them."""
        for part in parts:
            self._writer.write(part)
            try:
                await self._writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(pause)

    async def rest(self) -> bytes:
        """What comes until the connection ends, of itself or broken off."""
        received = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while part := await self._reader.read(1 << 20):
                    received += part
            except ConnectionError:
                pass
        return received

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readuntil(text)

    def stop_reading(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # of what reads

    def read_again(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]  # of what reads

    def close(self) -> None:
        self._writer.transport.abort()


class Besieged(NamedTuple):
    """A server, and what it tells of its connections."""

    connections: Connections
    held: Held
    connect: Callable[[], "asyncio.Future[Client]"]

    async def ask(self, *parts: bytes, pause: float = 0) -> bytes:
        """What a connection answers to some bytes before it ends."""
        client = await self.connect()
        sending = asyncio.create_task(client.send(*parts, pause=pause))
        try:
            return await client.rest()
        finally:
            sending.cancel()

    async def lets_go(self) -> None:
        """Returns when there is no connection."""
        async with asyncio.timeout(PATIENCE):
            while len(self.connections):
                await asyncio.sleep(0.01)


Besiege = Callable[..., "asyncio.Future[Besieged]"]


@pytest.fixture
async def besiege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Besiege]:
    """Starts servers, with settings; what is due is looked for often."""
    monkeypatch.setattr(connections, "_SWEEP_SECONDS", 0.05)
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> Besieged:
            overrides = {f"server.{name}": value for name, value in settings.items()}
            config = load_config(environ={}, overrides={"storage.url": "memory:", "log.level": "error", **overrides})
            app = assemble(config, [api], Schemas(tmp_path))
            app[HELD] = Held()
            runner = Runner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]

            async def connect() -> Client:
                client = Client(*await asyncio.open_connection("127.0.0.1", port, limit=2 * BIG))
                stack.callback(client.close)
                return client

            return Besieged(app[CONNECTIONS], app[HELD], connect)  # type: ignore[arg-type]  # awaitable is enough

        yield start  # type: ignore[misc]  # awaitable is enough


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(match[1]) if match else 0


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size)) + bytes(4) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2) + bytes(4) + payload
    return bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8) + bytes(4) + payload
