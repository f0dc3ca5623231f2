"""Live changes: how long until the last of 1,000 WebSockets and 1,000 event streams has a change, what a subscriber
costs, and what 10,000 idle ones do to the server's loop.

python -m bench live                       measures
python -m bench.live serve PORT FOLDER     serves a collection, and tells at SIGUSR1 how late its loop was
python -m bench.live listen PORT COUNT     subscribes, half by WebSocket, and tells what came at the end of its input
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import cast

import uvloop
from aiohttp import ClientSession, web

from bench.processes import free_port, next_line, resident, wait_for
from homeport.server.app import create_app
from homeport.server.cli.serve import collect_seldom
from homeport.server.config import load_config
from homeport.server.runner import Runner

SUBSCRIBERS, IDLE = 2_000, 10_000
CHANGES, BURST = 200, 1_000
HEARTBEATS = 17.0
"""Seconds in which every stream has one."""
EVERY = 0.002
_VERSION = re.compile(rb'"version":(\d+),"deleted"')
_SOCKET = (
    b"GET /changes HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_EVENTS = b"GET /collections/notes/changes HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
_SUBSCRIBE = b'{"type":"subscribe","collections":["notes"],"since":0}'
_SUBSCRIBED = bytes((0x81, 0x80 | len(_SUBSCRIBE), 0, 0, 0, 0)) + _SUBSCRIBE  # masked with zeros


# The server


async def serve(port: int, folder: str) -> None:
    overrides = {
        "storage.url": f"sqlite:{folder}/store.db",
        "apis.collections.schemas": folder,
        "apis.enabled": ["collections"],
        "log.level": "error",
    }
    runner = Runner(create_app(load_config(environ={}, overrides=overrides)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    collect_seldom()
    await watch()


async def watch() -> None:
    """Tells at SIGUSR1 how late the loop was, and how long it was busy between two looks at it."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    busy: list[float] = []

    def tell() -> None:
        print(json.dumps([f(seconds) for seconds in (late, busy) for f in (_nearly_most, max)]), flush=True)
        late.clear()
        busy.clear()

    loop.add_signal_handler(signal.SIGUSR1, tell)
    while True:
        due, used = loop.time() + EVERY, time.thread_time()
        await asyncio.sleep(EVERY)
        late.append(loop.time() - due)
        busy.append(time.thread_time() - used)


def _nearly_most(values: list[float]) -> float:
    return statistics.quantiles(values, n=1000)[-1]


# The subscribers


class Listener(asyncio.Protocol):
    """One subscriber: the versions that it was told of, in order."""

    def __init__(self, hub: Hub, first: bytes, then: bytes) -> None:
        self._hub = hub
        self._first, self._then = first, then
        self._rest = b""
        self.versions: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        if self._then and b"\r\n\r\n" in data:
            self._transport.write(self._then)
            self._then = b""
        data = self._rest + data
        end = 0
        for match in _VERSION.finditer(data):
            self.versions.append(int(match[1]))
            self._hub.got(int(match[1]))
            end = match.end()
        self._rest = data[end:][-64:]


class Hub:
    """When the last of the subscribers had each version."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._had: Counter[int] = Counter()
        self.last: dict[int, float] = {}

    def got(self, version: int) -> None:
        self._had[version] += 1
        if self._had[version] == self._count:
            self.last[version] = time.monotonic()


async def listen(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    hub = Hub(count)
    listeners: list[Listener] = []
    for number in range(count):
        listener = Listener(hub, *((_SOCKET, _SUBSCRIBED) if number % 2 else (_EVENTS, b"")))
        await loop.create_connection(lambda listener=listener: listener, "127.0.0.1", port)  # type: ignore[misc]  # mypy: a default for a lambda
        listeners.append(listener)
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    orders = {tuple(listener.versions) for listener in listeners}
    in_order = orders == {tuple(sorted(hub.last))}
    print(json.dumps({"same": in_order, "last": hub.last}), flush=True)


# What measures


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.live", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def delays(server: subprocess.Popen[str]) -> str:
    """How late the loop was since that was last asked for, and how long it was busy between two looks at it, which
    other work on the machine disturbs less."""
    server.send_signal(signal.SIGUSR1)
    late, latest, busy, busiest = (f"{seconds * 1000:.1f}" for seconds in json.loads(next_line(server)))
    return f"late: p99.9 {late} ms, most {latest} ms; busy: p99.9 {busy} ms, most {busiest} ms"


async def _write(port: int) -> tuple[dict[int, float], float, list[int]]:
    """Single changes and when each was acknowledged; then many at once, when that began, and their versions."""
    url = f"http://127.0.0.1:{port}/collections/notes"
    acknowledged: dict[int, float] = {}
    async with ClientSession() as session:
        for number in range(CHANGES):
            async with session.put(f"{url}/n{number}", json={"title": "Milk", "text": "x" * 200}) as answer:
                version = (await answer.json())["_meta"]["version"]
                acknowledged[version] = time.monotonic()
            await asyncio.sleep(0.05)
        edits = [{"id": f"b{number}", "record": {"title": "Milk", "text": "x" * 200}} for number in range(BURST)]
        begin = time.monotonic()
        async with session.post(f"{url}/sync", json={"since": 0, "changes": edits}) as answer:
            applied = (await answer.json())["applied"]
    return acknowledged, begin, [change["version"] for change in applied]


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "notes.schema.json").write_text("{}")
        port = free_port()
        server = _start("serve", port, folder)
        try:
            wait_for(port, server)
            _measure(server, port)
        finally:
            server.terminate()
            server.wait(10)


def _measure(server: subprocess.Popen[str], port: int) -> None:
    asyncio.run(_warm(port))
    time.sleep(5)
    print(f"loop, nobody there      {delays(server)}")
    before = resident(server.pid)
    crowd = _start("listen", port, SUBSCRIBERS)
    next_line(crowd)
    time.sleep(1)
    print(f"memory of a subscriber  {(resident(server.pid) - before) / SUBSCRIBERS / 1024:6.1f} KiB")
    delays(server)
    acknowledged, begin, burst = asyncio.run(_write(port))
    time.sleep(2)
    print(f"loop while it tells     {delays(server)}")
    told = json.loads(crowd.communicate()[0].splitlines()[-1])
    last = {int(version): when for version, when in told["last"].items()}
    if not told["same"] or not set(acknowledged) | set(burst) <= set(last):
        raise SystemExit("not every subscriber was told of each change once, in order")
    took = sorted((last[version] - when) * 1000 for version, when in acknowledged.items())
    percentiles = statistics.quantiles(took, n=100)
    print(f"commit to the last of {SUBSCRIBERS:,}: p50 {percentiles[49]:.1f} ms, p99 {percentiles[98]:.1f} ms")
    rate = BURST * SUBSCRIBERS / (max(last[version] for version in burst) - begin)
    print(f"{BURST:,} changes at once to {SUBSCRIBERS:,}: {rate:,.0f} messages/s")
    time.sleep(1)
    _idle(server, port)


def _idle(server: subprocess.Popen[str], port: int) -> None:
    before = resident(server.pid)
    crowds = [_start("listen", port, IDLE // 2) for _ in range(2)]
    for crowd in crowds:
        next_line(crowd)
    print(f"memory of a subscriber  {(resident(server.pid) - before) / IDLE / 1024:6.1f} KiB, of {IDLE:,}")
    time.sleep(3)
    delays(server)
    time.sleep(HEARTBEATS)
    print(f"loop, {IDLE:,} idle      {delays(server)}")
    for crowd in crowds:
        crowd.kill()
        crowd.wait()


async def _warm(port: int) -> None:
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/collections/notes/changes") as answer:
        await answer.read()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, folder]:
            uvloop.run(serve(int(port), folder))
        case ["listen", port, count]:
            uvloop.run(listen(int(port), int(count)))
        case _:
            main()
