"""Streams: what is sent, what ends them, and that none waits for another."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from homeport.server import live, streams
from homeport.server.app import assemble
from homeport.server.config import load_config
from homeport.server.live import LIVE, Live
from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.server.streams import Stream, chunk, text_frame
from homeport.server.validation import Schemas
from homeport.storage import make_storage

api = Api("streams")
opened: list[Stream] = []


@api.get("/events")
async def events(request: ApiRequest) -> web.StreamResponse:
    async with request.app[LIVE].events(request) as stream:
        opened.append(stream)
        await stream.gone()
    return stream.response


@api.get("/shared")
async def page(_: ApiRequest) -> dict[str, str]:
    return {"this is": "a page"}


@api.websocket("/shared")
@api.websocket("/socket")
async def echo(request: ApiRequest) -> web.StreamResponse:
    async with request.app[LIVE].socket(request) as stream:
        opened.append(stream)
        async for message in stream.response:
            if message.type is aiohttp.WSMsgType.TEXT:
                stream.write(text_frame(message.data.encode()))
    return stream.response


HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@api.websocket("/patient")
async def patient(request: ApiRequest) -> web.StreamResponse:
    async with request.app[LIVE].socket(request, max_buffered=1000, every=3) as stream:
        opened.append(stream)
        async for _ in stream.response:
            pass
    return stream.response


class Served(NamedTuple):
    server: TestServer
    session: aiohttp.ClientSession
    live: Live

    async def connect(self, path: str = "/socket", **options: Any) -> aiohttp.ClientWebSocketResponse:
        socket: aiohttp.ClientWebSocketResponse = await self.session.ws_connect(self.server.make_url(path), **options)
        return socket

    async def get(self, path: str, **headers: str) -> tuple[int, str | None, bytes]:
        async with self.session.get(self.server.make_url(path), headers=headers) as answer:
            return answer.status, answer.headers.get("Upgrade"), await answer.read()

    async def events(self) -> aiohttp.ClientResponse:
        return await self.session.get(self.server.make_url("/events"), timeout=aiohttp.ClientTimeout())

    async def raw(self, path: str = "/events", version: str = "1.1", headers: str = "") -> tuple[socket.socket, bytes]:
        """A connection that reads no more than it is told to, and the head of its answer."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, (self.server.host, self.server.port))
        await loop.sock_sendall(sock, f"GET {path} HTTP/{version}\r\nHost: localhost\r\n{headers}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += await loop.sock_recv(sock, 1)
        return sock, head


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    opened.clear()
    config = load_config(environ={}, overrides={"storage.url": "memory:", "log.level": "error"})
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(make_storage("memory:"))
        app = assemble(config, [api], Schemas(), storage=storage)
        server = TestServer(app)
        await stack.enter_async_context(server)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield Served(server, session, app[LIVE])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
async def test_messages_of_every_size(served: Served, size: int) -> None:
    async with await served.connect(max_msg_size=0) as client:
        await until(lambda: bool(opened))
        opened[0].write(text_frame(b"x" * size))
        assert await client.receive_str() == "x" * size


async def test_a_message_from_a_client(served: Served) -> None:
    async with await served.connect() as client:
        await client.send_str("Grüße")
        assert await client.receive_str() == "Grüße"


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024])
async def test_a_message_may_have_64_kb(served: Served, size: int) -> None:
    async with await served.connect() as client:
        await client.send_str("x" * size)
        assert await client.receive_str() == "x" * size


async def test_a_path_shared_with_a_page(served: Served) -> None:
    async with await served.connect("/shared") as client:
        await client.send_str("here")
        assert await client.receive_str() == "here"
    assert await served.get("/shared") == (200, None, b'{"this is":"a page"}')
    assert await served.get("/shared", Upgrade="h2c", Connection="Upgrade") == (200, None, b'{"this is":"a page"}')


async def test_a_path_for_sockets_alone(served: Served) -> None:
    status, upgrade, _ = await served.get("/socket")
    assert (status, upgrade) == (426, "websocket")
    async with served.session.post(served.server.make_url("/socket")) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no Connection"),
        pytest.param({"Connection": "Upgrade", "Sec-WebSocket-Version": "12"}, id="another version"),
        pytest.param({"Connection": "Upgrade", "Sec-WebSocket-Version": "13"}, id="no key"),
    ],
)
async def test_a_handshake_that_is_none(served: Served, headers: dict[str, str]) -> None:
    url = served.server.make_url("/socket")
    async with served.session.get(url, headers={"Upgrade": "websocket", **headers}) as answer:
        assert (answer.status, answer.headers["Sec-WebSocket-Version"]) == (400, "13")
        problem = await answer.json(content_type="application/problem+json")
    assert problem["detail"] == "This is no handshake of a WebSocket, version 13 (RFC 6455 4.2.1)"


async def test_a_message_that_is_too_long_closes(served: Served) -> None:
    async with await served.connect() as client:
        await client.send_str("x" * (64 * 1024 + 1))
        message = await client.receive()
        assert (message.type, client.close_code) == (aiohttp.WSMsgType.CLOSE, 1009)


async def test_events_begin_at_once(served: Served) -> None:
    async with await served.events() as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert await answer.content.readline() == b":\n"


async def test_http_1_0_has_no_chunks(served: Served) -> None:
    sock, head = await served.raw(version="1.0")
    with sock:
        assert b"chunked" not in head
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b":\n\n"
        opened[0].write(b"data: 1\n\n")
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"data: 1\n\n"
        opened[0].end(1001, "")
        assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""


async def test_who_leaves_is_forgotten(served: Served) -> None:
    answer, client = await served.events(), await served.connect()
    await until(lambda: len(opened) == 2)
    assert served.live.count() == {"sse": 1, "websocket": 1}
    answer.close()
    await until(lambda: served.live.count() == {"websocket": 1})
    await client.close()
    await until(lambda: not served.live.count())
    opened[0].write(b"nobody reads this")


async def test_heartbeats(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.02)
    answer, client = await served.events(), await served.connect(autoping=False)
    assert (await client.receive()).type == aiohttp.WSMsgType.PING
    for _ in range(3):
        assert await answer.content.readline() == b":\n"
        assert await answer.content.readline() == b"\n"
    await client.close()
    answer.close()


async def test_not_every_heartbeat_is_a_ping(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.02)
    often, rare = await served.connect(autoping=False), await served.connect("/patient", autoping=False)
    pings = 0
    reading = asyncio.create_task(rare.receive())
    while not reading.done():
        await often.receive()
        pings += 1
    assert (await reading).type == aiohttp.WSMsgType.PING
    assert pings >= 3
    await often.close()
    await rare.close()


async def test_a_stop_ends_all_at_once(served: Served) -> None:
    answers = [await served.events() for _ in range(20)]
    clients = [await served.connect() for _ in range(20)]
    received = [asyncio.create_task(client.receive()) for client in clients]
    sock, _ = await served.raw("/socket", headers=HANDSHAKE)  # it answers nothing, and never closes
    with sock:
        begin = monotonic()
        await served.server.close()
        assert monotonic() - begin < 1
    for answer in answers:
        assert await answer.read() == b":\n\n"  # an end in good order
    for message in await asyncio.gather(*received):
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert message.extra == "the server is stopping"
    await until(lambda: not served.live.count())


async def test_no_stream_begins_after_the_stop(served: Served) -> None:
    await served.live.stop(web.Application())
    async with await served.events() as answer:
        assert answer.status == 503


async def test_one_that_begins_while_all_are_stopped_is_ended_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = live._begin

    async def late(*given: Any) -> Any:
        begun = await begin(*given)
        await served.live.stop(served.server.app)
        return begun

    monkeypatch.setattr(live, "_begin", late)
    socket = await served.connect()
    async with asyncio.timeout(30):
        message = await socket.receive()
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)


async def test_there_are_only_so_many(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS", 1)
    async with await served.connect(), await served.events() as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize("path", ["/events", "/socket"])
async def test_who_does_not_read_is_cut_off(served: Served, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(streams, "PARTING_SECONDS", 0.1)
    sock, _ = await served.raw(path, headers=HANDSHAKE if path == "/socket" else "")
    with sock:
        stream = opened[0]
        block = chunk(b"x" * 65_000)
        written = 0
        while not stream.full:
            stream.write(block)
            written += len(block)
        assert written < streams.MAX_BUFFERED + 8 * 1024 * 1024  # what the kernel takes
        await stream.drained()
        assert not stream.open
        await until(lambda: not served.live.count())


async def test_who_reads_nothing_is_cut_off_however_little_waits(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(streams, "PARTING_SECONDS", 0.02)
    sock, _ = await served.raw()
    with sock:
        while not opened[0]._transport.get_write_buffer_size():
            opened[0].write(chunk(b"x" * 65_000))
        assert not opened[0].full
        await until(lambda: not served.live.count())


async def test_less_may_wait_for_some(served: Served) -> None:
    sock, _ = await served.raw("/patient", headers=HANDSHAKE)
    with sock:
        while not opened[0].full:
            opened[0].write(text_frame(b"x" * 1000))
        assert opened[0]._transport.get_write_buffer_size() < 100_000


async def test_who_reads_slowly_is_waited_for(served: Served) -> None:
    async with await served.connect(max_msg_size=0) as client:
        await until(lambda: bool(opened))
        stream = opened[0]
        while not stream.full:
            stream.write(text_frame(b"x" * 100_000))
        reading = asyncio.create_task(_read_until(client, "end"))
        await stream.drained()
        assert stream.open
        assert not stream.full
        stream.write(text_frame(b"end"))
        await reading


async def _read_until(client: aiohttp.ClientWebSocketResponse, text: str) -> None:
    while await client.receive_str() != text:
        await asyncio.sleep(0)


async def test_too_slow_has_a_code(served: Served) -> None:
    async with await served.connect() as client:
        await until(lambda: bool(opened))
        opened[0].end(1013, "reads too slowly")
        await client.receive()
        assert client.close_code == 1013


async def test_another_page_gets_no_socket(served: Served) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await served.connect(headers={"Origin": "https://elsewhere.example"})
    assert refused.value.status == 403
