"""Terminals: full-screen programs in them, what they are given and take, and what is left of them: nothing."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from homeport.server.apis.sessions.live import terminal as terminal_module
from homeport.server.apis.sessions.live import terminals
from homeport.server.apis.sessions.live.terminal import Terminal
from homeport.server.apis.sessions.live.terminals import Terminals
from homeport.server.apis.sessions.messages import Message

from .conftest import on_memory
from .sessions_kit import OpenDesk, until
from .sockets import Closed, Socket, Steered, connect, steered


@pytest.fixture
async def sessions(open_desk: OpenDesk, tmp_path: Path) -> Steered:
    return await steered(open_desk, tmp_path)


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """Neither a process nor a descriptor of a terminal outlives it."""
    before = descriptors()
    yield

    async def gone() -> bool:
        return descriptors() <= before and not attached()

    await until(gone)


def descriptors() -> set[str]:
    """The descriptors of this process that are terminals' ends."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if re.search("/pts/|/ptmx$", str(descriptor.readlink())):
                found.add(descriptor.name)
    return found


def attached() -> list[int]:
    """The processes that this one began for terminals, and zombies of them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, name, rest = re.split(r"[()]", stat.read_text(), maxsplit=2)
            command = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid() and name.startswith("tmux") and (state == "Z" or b"link-window" in command):
            found.append(int(stat.parent.name))
    return found


async def attach(socket: Socket, id: str, columns: int = 80, rows: int = 24) -> None:
    await socket.envelope("pty:attach", sessionId=id, cols=columns, rows=rows)
    payload = {"sessionId": id, "cols": columns, "rows": rows}
    assert await socket.until("pty:attached") == {"type": "pty:attached", "payload": payload}


async def press(socket: Socket, id: str, data: str) -> None:
    await socket.envelope("pty:data", sessionId=id, data=data)


async def exit_code(socket: Socket) -> Any:
    return (await socket.until("pty:exit"))["payload"]["exitCode"]


# Full-screen programs


@on_memory
async def test_less(sessions: Steered, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("".join(f"line-{number}-\n" for number in range(1, 1001)))
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id, 80, 24)
        await press(socket, id, f"run less {text}\r")
        screen = await socket.shown("line-23-")
        assert "line-24-" not in screen  # the last row is less's own
        await press(socket, id, " ")
        await socket.shown("line-46-")
        await press(socket, id, "/line-500-\r")
        await socket.shown("line-522-")
        await socket.envelope("pty:resize", sessionId=id, cols=100, rows=40)
        screen = await socket.shown("line-538-")  # 16 lines more than before
        assert "line-539-" not in screen
        await press(socket, id, "q")
        await socket.insist(id, "back\r", "got back")


@on_memory
@pytest.mark.skipif(shutil.which("top") is None, reason="needs top")
async def test_top(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id, 100, 30)
        await press(socket, id, "run top -d 0.1\r")
        await socket.shown("PID")
        await socket.shown("top - ")  # and it goes on
        await press(socket, id, "q")
        await socket.insist(id, "back\r", "got back")  # top drops what is typed as it ends


@on_memory
async def test_text_is_whole_however_it_is_cut(sessions: Steered) -> None:
    """Characters of several bytes come in one piece, also where a read ends within one."""
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id, 200, 100)
        for _ in range(5):
            await press(socket, id, "日本語🙂ü" * 18 + "\r")
            screen = await socket.shown("got 日本語")
            assert "�" not in screen


# Several, and coming and going


@on_memory
async def test_two_clients_see_one_session(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as one, connect(sessions.server) as other:
        await attach(one, id)
        await attach(other, id)
        await press(one, id, "from one\r")
        await other.shown("got from one")
        await press(other, id, "from the other\r")
        await one.shown("got from the other")
        await one.envelope("pty:detach", sessionId=id)
        await one.until("pty:detached")
        await press(other, id, "alone\r")
        await other.shown("got alone")


@on_memory
async def test_one_client_sees_two_sessions(sessions: Steered) -> None:
    ids = [await sessions.start(), await sessions.start()]
    async with connect(sessions.server) as socket:
        for id in ids:
            await attach(socket, id)
        for id in ids:
            await press(socket, id, f"this is {id}\r")
        seen: dict[str, str] = dict.fromkeys(ids, "")
        while not all(f"got this is {id}" in seen[id] for id in ids):
            payload = (await socket.until("pty:output"))["payload"]
            seen[payload["sessionId"]] += payload["data"]
        assert ids[1] not in seen[ids[0]]
        assert ids[0] not in seen[ids[1]]
        await socket.envelope("pty:detach")
        assert {(await socket.until("pty:detached"))["payload"]["sessionId"] for _ in ids} == set(ids)


@on_memory
async def test_attaching_again_shows_the_screen_again(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id)
        await press(socket, id, "marker\r")
        await socket.shown("got marker")
        await attach(socket, id, 90, 30)
        await socket.shown("got marker")
        await socket.measured(id, rows=30, columns=90)


@on_memory
async def test_a_session_is_seen_alone(sessions: Steered) -> None:
    """When it ends its terminal ends, and does not show the next window of the project."""
    secret, id = await sessions.start(), await sessions.start()
    await sessions.desk.type(secret, "a secret")
    await sessions.desk.printed(secret, "got a secret")
    async with connect(sessions.server) as socket:
        await attach(socket, id)
        await socket.shown("ready")
        await press(socket, id, "bye\r")
        shown = ""
        while (message := await socket.next())["type"] != "pty:exit":
            shown += message["payload"].get("data", "") if message["type"] == "pty:output" else ""
        assert message["payload"] == {"sessionId": id, "exitCode": 0}
        assert "secret" not in shown
        await press(socket, id, "x")
        assert (await socket.until("error"))["payload"]["code"] == "NOT_SUBSCRIBED"
        await sessions.desk.ended(id)
        await socket.envelope("pty:attach", sessionId=id, cols=80, rows=24)
        assert (await socket.until("error"))["payload"]["code"] == "CONFLICT"
        await attach(socket, secret)
        await socket.shown("got a secret")


@on_memory
async def test_a_terminal_takes_nothing_from_who_looks_elsewhere(sessions: Steered) -> None:
    """The project's own tmux session shows what it showed, in the same window."""
    first, second = await sessions.start(), await sessions.start()
    shown = "#{window_id} #{session_windows}"
    before = sessions.desk.tmux("display-message", "-p", "-t", "work", shown)
    async with connect(sessions.server) as socket:
        for id in (first, second):
            await attach(socket, id)
            await socket.shown("ready")
        assert sessions.desk.tmux("display-message", "-p", "-t", "work", shown) == before
        assert await sessions.desk.call("GET", "/tmux/sessions") == {
            "data": [{"name": "work", "windows": 2, "attached": 0}]
        }


async def views(sessions: Steered) -> int:
    """How many tmux sessions there are that terminals look through."""
    return sessions.desk.tmux("list-sessions", "-F", "#{session_name}").count("homeport-view")


@on_memory
@pytest.mark.parametrize("how", ["close", "abort", "detach"])
async def test_who_leaves_leaves_nothing(sessions: Steered, how: str) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id)
        await socket.shown("ready")
        assert len(attached()) == await views(sessions) == 1
        if how == "close":
            await socket.client.close()
        elif how == "abort":
            socket.client._response.connection.transport.abort()  # type: ignore[union-attr]
        else:
            await socket.envelope("pty:detach", sessionId=id)
            await socket.until("pty:detached")

        async def nothing() -> bool:
            return not attached() and await views(sessions) == 0

        await until(nothing)
    assert (await sessions.desk.session(id))["status"] == "running"


@on_memory
async def test_a_tmux_that_dies(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id)
        await socket.shown("ready")
        sessions.desk.tmux("kill-server")
        assert await exit_code(socket) == 1

        async def ended() -> bool:
            return bool((await sessions.desk.session(id))["status"] == "error")

        await until(ended)
        await socket.envelope("pty:attach", sessionId=id, cols=80, rows=24)
        assert (await socket.until("error"))["payload"]["code"] == "CONFLICT"
        await socket.envelope("ping")
        await socket.until("pong")


@on_memory
async def test_a_server_that_stops_lets_go(sessions: Steered) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id)
        await socket.shown("ready")
        await sessions.server.app.shutdown()
        with pytest.raises(Closed, match="1001"):
            await socket.until("never")

    async def nothing() -> bool:
        return not attached()

    await until(nothing)


@on_memory
@pytest.mark.parametrize("columns", [1, 1000])
async def test_the_bounds_of_a_terminal(sessions: Steered, columns: int) -> None:
    id = await sessions.start()
    async with connect(sessions.server) as socket:
        await attach(socket, id, columns, columns)
        await socket.until("pty:output")


@on_memory
async def test_there_are_only_so_many(sessions: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminals, "MAX_TERMINALS", 1)
    ids = [await sessions.start(), await sessions.start()]
    async with connect(sessions.server) as socket:
        await attach(socket, ids[0])
        await socket.envelope("pty:attach", sessionId=ids[1], cols=80, rows=24)
        assert (await socket.until("error"))["payload"]["code"] == "CONFLICT"
        await attach(socket, ids[0])


# A process in a terminal, by itself


async def run(code: str, columns: int = 80, rows: int = 24) -> Terminal:
    return await Terminal.open((sys.executable, "-I", "-S", "-c", code), columns, rows)


async def end(terminal: Terminal) -> None:
    terminal.close()
    await terminal.exit_code()


async def read_all(terminal: Terminal) -> str:
    text = ""
    async with asyncio.timeout(30):
        while more := await terminal.read():
            text += more
    return text


async def test_all_that_is_printed_comes_in_order_and_whole() -> None:
    terminal = await run("import sys; sys.stdout.write(''.join(f'{n} ü🙂\\n' for n in range(30_000)))")
    try:
        text = await read_all(terminal)
        assert text.replace("\r\n", "\n") == "".join(f"{n} ü🙂\n" for n in range(30_000))
        assert await terminal.exit_code() == 0
    finally:
        await end(terminal)


async def test_what_is_no_utf_8_is_replaced() -> None:
    terminal = await run(r"import os; os.write(1, b'a\xff\xc3')")
    try:
        assert await read_all(terminal) == "a��"
    finally:
        await end(terminal)


async def test_all_that_is_typed_arrives() -> None:
    """More than the terminal takes at once."""
    code = (
        "import hashlib, sys, tty; tty.setraw(0); print('go', flush=True);"
        "print(hashlib.sha256(sys.stdin.buffer.read(200_000)).hexdigest())"
    )
    terminal = await run(code)
    try:
        assert (await terminal.read()).startswith("go")
        text = "".join(map(str, range(60_000)))[:200_000]
        await terminal.write(text)
        assert sha256(text.encode()).hexdigest() in await read_all(terminal)
    finally:
        await end(terminal)


async def test_a_program_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_module, "_TAKES_NOTHING_SECONDS", 0.2)
    terminal = await run("import tty, time; tty.setraw(0); print('go', flush=True); time.sleep(60)")
    try:
        await terminal.read()
        with pytest.raises(TimeoutError):
            await terminal.write("x" * 200_000)
    finally:
        await end(terminal)


async def test_a_program_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_module, "_EXIT_SECONDS", 0.2)
    terminal = await run(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP,"
        " signal.SIG_IGN); print('go', flush=True); time.sleep(60)"
    )
    await terminal.read()
    await end(terminal)
    assert await terminal.exit_code() == -signal.SIGKILL


async def test_a_terminal_waits_for_its_reader() -> None:
    """No more than one piece is read of it until that is taken; then nothing is missing."""

    class Reader:
        def __init__(self) -> None:
            self.takes = asyncio.Event()

        async def drained(self) -> None:
            await self.takes.wait()

    reader, told = Reader(), list[dict[str, Any]]()
    terminals = Terminals(reader, lambda message: told.append(json.loads(payload_of(message))))  # type: ignore[arg-type]
    code = "import time; print(*range(100_000), sep='\\n', flush=True); time.sleep(60)"
    await terminals.attach("id", (sys.executable, "-I", "-S", "-c", code), 80, 24)

    async def shown() -> str:
        return "".join(message["payload"]["data"] for message in told if message["type"] == "pty:output")

    async def begun() -> bool:
        return bool(await shown())

    async def whole() -> bool:
        return (await shown()).endswith("99999\r\n")

    await until(begun)
    await asyncio.sleep(0.3)  # in which it would all have come
    assert [message["type"] for message in told] == ["pty:attached", "pty:output"]
    reader.takes.set()
    await until(whole)
    assert (await shown()).split() == [*map(str, range(100_000))]
    terminals.detach_all()


def payload_of(message: Message) -> bytes:
    """The text of a message, after the head of its frame."""
    frame = message.frame("envelope")
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


async def test_one_that_nobody_waits_for_any_more_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, spawned, go_on = terminal_module._spawn, threading.Event(), threading.Event()

    def slowly(*given: Any) -> Any:
        made = spawn(*given)
        spawned.set()
        go_on.wait(30)
        return made

    monkeypatch.setattr(terminal_module, "_spawn", slowly)
    opening = asyncio.create_task(Terminal.open(("sleep", "60"), 80, 24))
    await asyncio.to_thread(spawned.wait, 30)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()


async def test_what_cannot_be_run_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        await Terminal.open(("nothing-like-this",), 80, 24)


async def test_the_size_is_told() -> None:
    code = (
        "import os, signal, time;"
        "signal.signal(signal.SIGWINCH, lambda *_: os.write(1, str(os.get_terminal_size(0)).encode()));"
        "os.write(1, str(os.get_terminal_size(0)).encode()); time.sleep(60)"
    )
    terminal = await run(code, 91, 31)
    try:
        assert "columns=91, lines=31" in await terminal.read()
        terminal.resize(120, 40)
        assert "columns=120, lines=40" in await terminal.read()
    finally:
        await end(terminal)
