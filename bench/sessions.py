"""Sessions: 50 programs in tmux, each printing 1,000 lines of 80 bytes a second, with two WebSockets listening to each:
whether all of it came, how late, and what that did to the server's loop and memory.

python -m bench sessions                      measures
python -m bench.sessions serve PORT FOLDER    serves sessions, and tells at SIGUSR1 how late its loop was
python -m bench.sessions listen PORT ID…      subscribes twice to each session, and tells what came when all have ended
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import ClientSession, web

from bench.live import delays, watch
from bench.processes import cpu_microseconds, free_port, next_line, resident, wait_for
from homeport.server.app import create_app
from homeport.server.cli.serve import collect_seldom
from homeport.server.config import load_config

SESSIONS, SUBSCRIBERS = 50, 2
RATE, SECONDS = 1_000, 15
"""Lines a second, and seconds, of each session."""
LINE = 80
PRINTER = f"""
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
begin = time.monotonic()
for tick in range({SECONDS * 100}):
    time.sleep(max(0, begin + tick / 100 - time.monotonic()))
    now = time.time()
    lines = (f"{{number:08}} {{now:.6f}}" for number in range(tick * {RATE // 100}, (tick + 1) * {RATE // 100}))
    os.write(1, "".join(line.ljust({LINE - 1}, ".") + "\\n" for line in lines).encode())
"""
"""Prints once the file exists that it is told of: each line has its number and when it was printed."""

_STAMP = re.compile(r"\n\d{8} (\d{10}\.\d{6})\.")


async def serve(port: int, folder: str) -> None:
    overrides = {
        "storage.url": f"sqlite:{folder}/store.db",
        "apis.enabled": ["sessions"],
        "apis.sessions.tmux_socket": f"{folder}/tmux",
        "apis.sessions.output_folder": f"{folder}/output",
        "apis.sessions.session_command": f"{sys.executable} -I -S {folder}/printer.py {folder}/go",
        "log.level": "error",
    }
    runner = web.AppRunner(create_app(load_config(environ={}, overrides=overrides)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    collect_seldom()
    await watch()


# Those who listen


class Listener(asyncio.Protocol):
    """One subscriber: what a session printed, and how late the first line of each message was."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._data = b""
        self._open = False
        self.pieces: list[str] = []
        self.late: list[float] = []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            _, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            self._open, self._data = True, rest
            body = json.dumps({"type": "subscribe", "sessionId": self._session_id}).encode()
            self._transport.write(bytes((0x81, 0x80 | len(body), 0, 0, 0, 0)) + body)  # masked with zeros
        at, data, now = 0, self._data, time.time()
        while len(data) >= at + 10:
            size, begin = data[at + 1], at + 2
            if size > 125:
                wide = 2 if size == 126 else 8
                size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
            if len(data) < begin + size:
                break
            if data[at] == 0x81:
                self._take(json.loads(data[begin : begin + size]), now)
            at = begin + size
        self._data = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(f"the connection was lost: {exc}")

    def _take(self, message: dict[str, Any], now: float) -> None:
        if message["type"] == "session:output":
            text: str = message["output"]
            self.pieces.append(text)
            if stamp := _STAMP.search(text):
                self.late.append(now - float(stamp[1]))
        elif message["type"] == "session:status" and message["sessionId"] == self._session_id:
            asyncio.get_running_loop().call_later(2, self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result("")


async def listen(port: int, ids: list[str]) -> None:
    loop = asyncio.get_running_loop()
    listeners = [Listener(id) for id in ids for _ in range(SUBSCRIBERS)]
    for listener in listeners:
        await loop.create_connection(lambda listener=listener: listener, "127.0.0.1", port)  # type: ignore[misc]  # mypy: a default for a lambda
    print("ready", flush=True)
    problems = [problem for listener in listeners if (problem := await listener.ended)]
    expected = [f"{number:08}" for number in range(RATE * SECONDS)]
    lost = doubled = 0
    for listener in listeners:
        numbers = [line[:8] for line in "".join(listener.pieces).splitlines()]
        if numbers != expected:
            lost += len(set(expected) - set(numbers))
            doubled += len(numbers) - len(set(numbers))
    late = sorted(seconds for listener in listeners for seconds in listener.late)
    print(json.dumps({"problems": problems, "lost": lost, "doubled": doubled, "late": late}), flush=True)


# What measures


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.sessions", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def _sessions(port: int, folder: str) -> list[str]:
    """Starts them; their ids."""
    async with ClientSession(f"http://127.0.0.1:{port}/api/") as session:
        body = {"name": "bench", "repoPath": folder, "tmuxSession": "bench"}
        async with session.post("projects", json=body) as answer:
            project = (await answer.json())["id"]
        ids = []
        for _ in range(SESSIONS):
            async with session.post(f"projects/{project}/sessions") as answer:
                ids.append((await answer.json())["id"])
    return ids


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "printer.py").write_text(PRINTER)
        port = free_port()
        server = _start("serve", port, folder)
        try:
            wait_for(port, server)
            _measure(server, port, folder)
        finally:
            server.terminate()
            server.wait(10)
            subprocess.run(("tmux", "-S", f"{folder}/tmux", "kill-server"), check=False)


def _measure(server: subprocess.Popen[str], port: int, folder: str) -> None:
    ids = asyncio.run(_sessions(port, folder))
    crowd = _start("listen", port, *ids)
    next_line(crowd)
    time.sleep(1)
    delays(server)
    before, used, begin = resident(server.pid), cpu_microseconds(server.pid), time.monotonic()
    (Path(folder) / "go").touch()
    most = before
    while time.monotonic() < begin + SECONDS:
        time.sleep(0.5)
        most = max(most, resident(server.pid))
    used = (cpu_microseconds(server.pid) - used) / 1_000_000 / (time.monotonic() - begin)
    print(f"loop while all print    {delays(server)}")
    told = json.loads(crowd.communicate()[0].splitlines()[-1])
    if told["problems"]:
        raise SystemExit(told["problems"][0])
    print(f"{SESSIONS} sessions of {RATE:,} lines/s, {SUBSCRIBERS} subscribers each: {used:.0%} of a processor")
    print(f"memory                  {before >> 20} MiB before, {most >> 20} MiB at most")
    print(f"lines lost {told['lost']}, doubled {told['doubled']}")
    percentiles = statistics.quantiles(told["late"], n=100)
    latest = max(told["late"])
    p50, p99 = percentiles[49], percentiles[98]
    print(f"printed to received     p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, most {latest * 1000:.0f} ms")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, folder]:
            uvloop.run(serve(int(port), folder))
        case ["listen", port, *ids]:
            uvloop.run(listen(int(port), ids))
        case _:
            main()
