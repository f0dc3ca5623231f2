"""The WebSocket under load and in odd company: what a session prints comes once, in order, soon, and to who reads."""

import asyncio
import gc
import json
import os
import re
import statistics
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.server import streams
from homeport.server.apis.sessions import messages
from homeport.server.apis.sessions.events import EVENTS
from homeport.server.apis.sessions.live import websocket
from homeport.server.apis.sessions.live.commands import hear
from homeport.server.apis.sessions.running import active
from homeport.server.apis.sessions.tmux import following
from homeport.server.apis.sessions.tmux.following import Tail
from homeport.server.apis.sessions.tmux.output import Output
from homeport.server.errors import ApiError
from homeport.storage.documents import encode

from .conftest import on_memory
from .sessions_kit import OpenDesk, until
from .sockets import SESSION_ID, Closed, Socket, Steered, connect, steered, text_of

TIMES = "import time\nfor n in range(20): print(f'at {time.time()}', flush=True); time.sleep(0.02)\nprint('end')\n"


@pytest.fixture
async def sessions(open_desk: OpenDesk, tmp_path: Path) -> Steered:
    return await steered(open_desk, tmp_path)


async def subscribe(socket: Socket, id: str, dialect: str = "flat") -> None:
    if dialect == "flat":
        await socket.flat("subscribe", sessionId=id)
    else:
        await socket.envelope("session:subscribe", sessionId=id)


def numbers(text: str) -> list[int]:
    return [int(line) for line in text.split("\n") if line.isdecimal()]


@on_memory
async def test_a_printed_line_comes_within_100_ms(sessions: Steered, tmp_path: Path) -> None:
    program = tmp_path / "times.py"
    program.write_text(TIMES)
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await subscribe(socket, id)
        await sessions.desk.type(id, f"run {sys.executable} -I -S {program}")
        took: list[float] = []
        text = ""
        while "end\n" not in text:
            *lines, text = (text + text_of(await socket.next())).split("\n")
            now = time.time()
            took += [now - float(line.removeprefix("at ")) for line in lines if line.startswith("at ")]
            text = "end\n" if "end" in lines else text
    assert len(took) == 20
    assert statistics.median(took) < 0.1


@on_memory
@pytest.mark.parametrize("dialect", ["flat", "envelope"])
async def test_who_subscribes_in_between_misses_nothing_and_gets_nothing_twice(sessions: Steered, dialect: str) -> None:
    id = await sessions.start()
    await sessions.desk.type(id, "lines 5000")

    async def read() -> list[int]:
        async with connect(sessions.server) as socket:
            await subscribe(socket, id, dialect)
            return numbers(await socket.printed("\n5000\n"))

    readers = []
    for _ in range(5):
        readers.append(asyncio.create_task(read()))
        await asyncio.sleep(0.01)
    assert all(seen == list(range(1, 5001)) for seen in await asyncio.gather(*readers))


@on_memory
@pytest.mark.parametrize(("module", "step"), [(os, "mkfifo"), (following, "load")], ids=["recorded", "followed"])
async def test_who_subscribes_to_a_session_that_is_starting_hears_it(
    sessions: Steered, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    """However far it is: it has a record, but its output is not read yet."""
    do, reached, go_on = getattr(module, step), threading.Event(), threading.Event()

    def wait(*arguments: Any) -> Any:
        reached.set()
        go_on.wait(30)
        return do(*arguments)

    monkeypatch.setattr(module, step, wait)
    starting = asyncio.create_task(sessions.start())
    await asyncio.to_thread(reached.wait, 30)
    [session] = await sessions.desk.call("GET", "/sessions")
    async with connect(sessions.server) as socket:
        await subscribe(socket, session["id"])
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await socket.next()
        go_on.set()
        await starting
        text = ""
        while "ready\n" not in text:
            text += text_of(await socket.until("session:output"))


@on_memory
async def test_one_that_begins_is_told_with_a_status_that_clients_know(sessions: Steered) -> None:
    async with connect(sessions.server) as socket:
        await socket.envelope("ping")
        assert (await socket.next())["type"] == "pong"
        id = await sessions.start()
        payload = (await socket.until("session:status"))["payload"]
        told = {"sessionId": id, "previousStatus": "running", "newStatus": "running"}
        assert payload == told | {"timestamp": payload["timestamp"]}


@on_memory
async def test_subscribing_again_begins_again(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await subscribe(socket, id)
        await socket.printed("ready\n")
        await subscribe(socket, id)
        await socket.printed("ready\n")
        await sessions.desk.type(id, "once")
        assert (await socket.printed("got once\n")).count("got once") == 1
        await socket.flat("unsubscribe", sessionId=id)
        await sessions.desk.type(id, "unheard")
        await sessions.desk.printed(id, "got unheard")
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"


@on_memory
async def test_an_ended_session_shows_what_it_printed(sessions: Steered) -> None:
    id = await sessions.start()
    await sessions.desk.type(id, "bye")
    await sessions.desk.ended(id)
    async with connect(sessions.server) as socket:
        await subscribe(socket, id, "envelope")
        assert "ready" in (await socket.next())["payload"]["bufferLines"]
        await socket.envelope("session:input", sessionId=id, text="x")
        assert (await socket.next())["payload"]["code"] == "CONFLICT"
        await socket.envelope("session:keys", sessionId=id, keys="no-such-key")
        assert (await socket.next())["payload"]["code"] == "INVALID_MESSAGE"


@on_memory
async def test_what_an_ended_session_printed_does_not_stay_in_memory(
    sessions: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await sessions.start()
    await sessions.desk.type(id, "bye")
    await sessions.desk.ended(id)
    read: list[weakref.ref[Output]] = []

    def watched(folder: Path) -> tuple[Output, Tail]:
        found, tail = following.load(folder)
        read.append(weakref.ref(found))
        return found, tail

    monkeypatch.setattr(active, "load", watched)

    async def released() -> bool:
        await sessions.desk.lines(id)
        return bool(read)

    await until(released)
    async with connect(sessions.server) as socket:
        read.clear()
        await subscribe(socket, id)
        assert "ready" in text_of(await socket.next())
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"

        async def let_go() -> bool:
            gc.collect()
            return [output() for output in read] == [None]

        await until(let_go)
        await socket.flat("unsubscribe", sessionId=id)
        await socket.flat("ping")
        assert (await socket.next())["type"] == "pong"


@on_memory
@pytest.mark.parametrize("dialect", ["flat", "envelope"])
async def test_what_is_kept_comes_in_pieces_that_clients_take(
    sessions: Steered, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_PIECE", 2000)
    id = await sessions.start()
    await sessions.desk.type(id, "lines 3000")
    await sessions.desk.printed(id, "3000")
    async with connect(sessions.server) as socket:
        await subscribe(socket, id, dialect)
        text, messages = "", 0
        while not text.endswith("\n3000\n"):
            piece = text_of(await socket.next())
            assert len(piece.encode()) <= 2000
            text, messages = text + piece, messages + 1
        assert numbers(text) == list(range(1, 3001))
        assert messages > 5


@given(st.text(alphabet=st.sampled_from("aé🙂\n"), max_size=200), st.integers(min_value=4, max_value=40))
def test_pieces_are_the_text(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "_PIECE", size)
        pieces = list(websocket._pieces(text))
    assert "".join(pieces) == text
    assert pieces
    assert all(len(piece.encode()) <= size for piece in pieces)


def _json() -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["subscribe", "ping", "session:input", "pty:attach", "pty:detach", "x"])
    leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    fields = st.dictionaries(st.sampled_from(["sessionId", "text", "cols", "rows", "keys"]), leaves)
    return st.fixed_dictionaries({}, optional={"type": kinds | leaves, "payload": fields | leaves, "sessionId": leaves})


@given(st.binary(max_size=50) | _json().map(json.dumps))
def test_any_message_is_understood_or_refused(data: str | bytes) -> None:
    code: str | None = ""
    try:
        hear(data).command()
    except ApiError as error:
        code = error.code
    assert code in ("", "PARSE_ERROR", "INVALID_MESSAGE")


# Who does not read


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_BUFFERED", 10_000)
    monkeypatch.setattr(streams, "PARTING_SECONDS", 5)


@on_memory
async def test_who_reads_too_slowly_is_cut_off_and_nobody_else(sessions: Steered, impatient: None) -> None:
    id = await sessions.start()
    url = re.sub("^http://", "", sessions.server.url)
    host, _, port = url.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: {url}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    events = sessions.server.app[EVENTS]
    async with connect(sessions.server) as quick:
        await subscribe(quick, id)
        await quick.printed("ready\n")
        assert len(events) == 2

        for _ in range(40):  # 16 MB: more than the kernel takes for who does not read
            for _ in range(200):
                events.waiting(id, True, "x" * 2000)
            for _ in range(200):
                await quick.until("session:waiting")
        await quick.flat("ping")
        await quick.until("pong")
    end = b""
    while not end.endswith(b"\x03\xf5reads too slowly"):  # 1013
        part = await reader.read(1 << 16)
        assert part
        end = (end + part)[-100:]
    writer.close()


@on_memory
async def test_there_are_only_so_many_clients(sessions: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_CLIENTS", 1)
    async with connect(sessions.server):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(sessions.server):
                pass
        assert refused.value.status == 503


@on_memory
async def test_there_are_only_so_many_subscriptions(sessions: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_SUBSCRIPTIONS", 1)
    ids = [await sessions.start(), await sessions.start()]
    async with connect(sessions.server) as socket:
        await subscribe(socket, ids[0])
        await subscribe(socket, ids[1])
        assert (await socket.until("error"))["code"] == "CONFLICT"
        await socket.flat("unsubscribe", sessionId=ids[0])
        await subscribe(socket, ids[1])
        await socket.printed("ready\n")


@on_memory
async def test_fragments_and_bytes_are_messages_too(sessions: Steered) -> None:
    async with connect(sessions.server) as socket:
        await socket.client.send_bytes(b'{"type":"ping"}')
        assert (await socket.next())["type"] == "pong"
        for opcode, part, last in ((1, b'{"type"', False), (0, b':"ping"', False), (0, b"}", True)):
            await send_frame(socket, opcode, part, last=last)
        assert (await socket.next())["type"] == "pong"


@on_memory
async def test_fragments_count_together(sessions: Steered) -> None:
    async with connect(sessions.server) as socket:
        await send_frame(socket, 1, b"x" * 40_000, last=False)
        await send_frame(socket, 0, b"x" * 40_000, last=True)
        with pytest.raises(Closed, match="1009"):
            await socket.next()


async def send_frame(socket: Socket, opcode: int, payload: bytes, *, last: bool) -> None:
    """A masked frame (RFC 6455 5.2), its key four zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    head = bytes([(0x80 if last else 0) | opcode]) + length + bytes(4)
    socket.client._response.connection.transport.write(head + payload)  # type: ignore[union-attr]


@on_memory
async def test_messages_of_many_at_once(sessions: Steered) -> None:
    """What one client waits for holds up no other."""
    id = await sessions.start()

    async def steer(number: int) -> None:
        async with connect(sessions.server) as socket:
            await socket.envelope("session:subscribe", sessionId=id)
            await socket.until("subscribed")
            await socket.envelope("session:input", sessionId=id, text=f"client {number}")
            await socket.printed(f"got client {number}\n")

    await asyncio.gather(*map(steer, range(8)))


@on_memory
async def test_an_event_is_made_once_for_each_dialect(sessions: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def counted(value: Any) -> bytes:
        made.append(value)
        return encode(value)

    monkeypatch.setattr(messages, "encode", counted)
    async with connect(sessions.server) as one, connect(sessions.server) as two, connect(sessions.server) as three:
        await until_heard(sessions, 3)
        sessions.server.app[EVENTS].status(SESSION_ID, "running", "paused")
        for socket in (one, two, three):
            await socket.next()
        assert len(made) == 1


async def until_heard(sessions: Steered, count: int) -> None:
    async def heard() -> bool:
        return len(sessions.server.app[EVENTS]) == count

    await until(heard)
