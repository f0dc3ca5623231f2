"""Live changes to many: each once, in order, whatever its reader does."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any
from unittest.mock import patch

import aiohttp
import pytest

from homeport.server import live, streams
from homeport.server.apis.collections import fanout
from homeport.storage import StorageUnavailable

from .conftest import Launch, Serve, on_memory, until
from .synced import Events, Notes, note, open_notes


@pytest.fixture
async def notes(serve: Serve, tmp_path: Path) -> Notes:
    return await open_notes(serve, tmp_path)


async def write(notes: Notes, count: int, name: str = "n", text: str = "") -> list[int]:
    """Writes so many new records, some at a time; their versions."""
    versions: list[int] = []
    for begin in range(0, count, 50):
        places = range(begin, min(begin + 50, count))
        edits = [{"id": f"{name}{place}", "record": note(str(place), text=text)} for place in places]
        versions += [applied["version"] for applied in (await notes.sync(0, *edits))["applied"]]
    return versions


async def test_many_get_each_change_once_and_in_order(notes: Notes) -> None:
    async with AsyncExitStack() as stack:
        readers: list[Any] = []
        for _ in range(30):
            socket = await stack.enter_async_context(notes.socket())
            await socket.subscribe("notes", since=0)
            readers += [socket, await stack.enter_async_context(notes.events())]
        versions = await write(notes, 200)
        for reader in readers:
            assert await reader.versions(200) == versions


async def test_resuming_while_others_write(notes: Notes) -> None:
    """Clients that come and go have each change once, in order: a record is written once here."""
    chance = random.Random(7)
    writing = asyncio.create_task(write(notes, 600))

    async def by_events() -> list[int]:
        seen: list[int] = []
        while len(seen) < 600:
            headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
            async with notes.events(**headers) as events:
                seen += await events.versions(min(600 - len(seen), chance.randrange(1, 80)))
        return seen

    async def by_socket() -> list[int]:
        seen: list[int] = []
        while len(seen) < 600:
            async with notes.socket() as socket:
                await socket.subscribe("notes", since=seen[-1] if seen else 0)
                seen += await socket.versions(min(600 - len(seen), chance.randrange(1, 80)))
        return seen

    seen = await asyncio.gather(*(read() for read in (by_events, by_socket) * 4))
    versions = await writing
    assert all(each == versions for each in seen)


async def test_subscribing_anew_on_one_socket_while_others_write(notes: Notes) -> None:
    """What comes after a new subscription begins where that says, and lacks nothing."""
    writing = asyncio.create_task(write(notes, 400))
    async with notes.socket() as socket:
        seen: list[int] = []
        await socket.subscribe("notes", since=0)
        while len(seen) < 400:
            version = (await socket.next())["version"]
            if seen and version <= seen[-1]:
                continue  # of the subscription before, or of this one what is known
            seen.append(version)
            if len(seen) % 100 == 50:
                await socket.subscribe("notes", since=seen[-1])
        assert seen == await writing


@on_memory
async def test_who_says_too_much_is_not_heard(notes: Notes) -> None:
    async with notes.socket() as socket:
        for _ in range(live.MAX_MESSAGES):
            await socket.subscribe("notes", since=0)
        await socket.subscribe("none", since=0)
        refusal = {"type": "error", "status": 429, "message": "More than 100 messages in 10 seconds"}
        assert await socket.next() == refusal
        notes.server.clock.advance(seconds=10)
        await socket.subscribe("none", since=0)
        assert (await socket.next())["status"] == 404


@on_memory
async def test_a_slow_reader_is_waited_for(notes: Notes) -> None:
    """It gets more than may wait for it, since it reads the store at its own pace."""
    async with notes.events() as slow, notes.socket() as quick:
        await quick.subscribe("notes", since=0)
        versions = await write(notes, 300, text="x" * 50_000)
        assert await quick.versions(300) == versions
        assert await slow.versions(300) == versions
        last = await notes.put("last", note())
        assert await slow.versions(1) == await quick.versions(1) == [last]


@on_memory
async def test_large_documents_come_one_at_a_time(notes: Notes) -> None:
    """A page of them is more than is written before the reader has taken some."""
    versions = [await notes.put(f"n{number}", note(text="x" * 700_000)) for number in range(20)]
    async with notes.events() as events, notes.socket() as socket:
        await socket.subscribe("notes", since=0)
        assert await events.versions(20) == await socket.versions(20) == versions


@on_memory
async def test_who_reads_nothing_is_cut_off_and_resumes(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(streams, "PARTING_SECONDS", 0.1)
    url = notes.server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(url[0], int(url[2]), limit=1000)
    head = "GET /collections/notes/changes HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n"
    writer.write(head.encode())
    await reader.readuntil(b":\n\n")
    versions = await write(notes, 300, text="x" * 50_000)

    async def cut_off() -> bool:
        return b'kind="sse"} 0.0' in (await notes.server.get("/metrics")).content

    await until(cut_off)
    got = b""
    try:
        while part := await reader.read(1 << 20):
            got += part
    except ConnectionError:
        pass  # cut off, not ended in good order: it had been given the time
    writer.close()
    seen = [json.loads(event.partition(b"\ndata: ")[2])["version"] for event in got.split(b"\n\n")[:-1]]
    assert 0 < len(seen) < 300
    async with notes.events(**{"Last-Event-ID": str(seen[-1])}) as events:
        assert seen + await events.versions(300 - len(seen)) == versions


@on_memory
async def test_a_store_that_fails_for_a_moment(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch begins anew, and nobody misses anything."""
    monkeypatch.setattr(fanout, "_RESTART_SECONDS", 0.05)
    watch = notes.server.storage.watch
    failures = iter([True, False])

    async def failing(*what: Any) -> AsyncIterator[Any]:
        fails = next(failures, False)
        async for change in watch(*what):
            yield change
            if fails:
                raise StorageUnavailable("for a moment")

    with patch.object(notes.server.storage, "watch", failing):
        async with notes.socket() as socket, notes.events() as events:
            await socket.subscribed("notes")
            first = await write(notes, 3, "a")
            assert await events.versions(3) == await socket.versions(3) == first
            second = await write(notes, 3, "b")
            assert await events.versions(3) == await socket.versions(3) == second


@on_memory
async def test_the_store_is_watched_while_somebody_listens(notes: Notes) -> None:
    def watching() -> int:
        return sum(task.get_name() == "live changes" for task in asyncio.all_tasks())

    assert watching() == 0
    async with notes.events() as one:
        await write(notes, 1)
        await one.versions(1)
        assert watching() == 1
        async with notes.socket() as another:
            await another.subscribed("notes", "tasks")
            await notes.put("t", {}, "tasks")
            assert (await another.next())["collection"] == "tasks"
            assert watching() == 1

    async def ended() -> bool:
        return watching() == 0

    await until(ended)


async def test_a_stop_with_open_streams_is_quick(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "notes.schema.json").write_text("{}")
    process = await launch("--port", "0", "--storage", "memory:", "--schemas", str(folder))
    await process.ready()
    notes = Notes(process)  # type: ignore[arg-type]  # it has no storage here
    async with notes.socket() as socket, notes.events() as events:
        await socket.subscribed("notes")
        version = await notes.put("a", note())
        assert await socket.versions(1) == await events.versions(1) == [version]
        begin = monotonic()
        closing = asyncio.create_task(socket.client.receive())
        process.process.send_signal(signal.SIGTERM)
        message = await closing
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert await _rest(events) == b""
        assert await process.process.wait() == 0
        assert monotonic() - begin < 2


async def _rest(events: Events) -> bytes:
    """What is left of a stream that ended in good order."""
    return (await events.answer.content.read()).replace(b":\n\n", b"").strip()
