"""Device usage as its clients meet it: on real sockets, on every back end, with a clock that tests move.

Whatever a test does, no part of a user's key may be in the log afterwards: `log` sees to that.
"""

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, redirect_stderr
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from homeport.server.app import create_app
from homeport.server.clock import MovableClock
from homeport.server.config import load_config
from homeport.server.keys import STORAGE
from homeport.storage import Storage, make_storage
from homeport.storage.times import parse_time

from .bodies import changed
from .sessions_kit import desk, desk_folder, open_desk  # noqa: F401  # fixtures

NOW = "2025-06-03T12:00:00Z"
"""What the clock shows until a test moves it: an hour and a half after the contract's report."""
BACK_ENDS = ["memory", "file", "sqlite"]
_KEY_PART = 8
"""So many characters of a key in a log are too many."""
_secret: set[str] = set()


# What clients send


def user_key(name: str = "alice") -> str:
    """A user's key, the same for the same name; the log is searched for it."""
    key = sha256(name.encode()).hexdigest()
    _secret.update(_parts(key))
    return key


def _parts(text: str) -> Iterator[str]:
    return (text[at : at + _KEY_PART] for at in range(len(text) - _KEY_PART + 1))


KEY = user_key()
JSON = {"Content-Type": "application/json"}


_REPORT: dict[str, Any] = {
    "userKey": KEY,
    "hostname": "M4x.local",
    "timestamp": "2025-06-03T10:30:00Z",
    "usage": {
        "totalTokens": 2412018,
        "inputTokens": 1608012,
        "outputTokens": 402003,
        "cacheCreationTokens": 201501,
        "cacheReadTokens": 200502,
    },
    "sessions": {"total": 30, "active": 15, "averageDuration": 45.5},
    "costs": {"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 15.11},
    "hourlyUsage": [0] * 24,
    "version": "3.0.2",
}


def report(**changes: Any) -> dict[str, Any]:
    """The contract's report of the user `KEY`, `changed`."""
    return changed(_REPORT, changes)


# Who answers


class Answer(NamedTuple):
    status: int
    headers: Any
    content: bytes

    @property
    def json(self) -> Any:
        """The body; numbers with a fraction are exact."""
        return json.loads(self.content, parse_float=Decimal)


@dataclass
class Client:
    """Calls a server. Paths are sent as they are: what needs percent-encoding comes with it."""

    url: str
    session: aiohttp.ClientSession

    async def __call__(self, method: str, path: str, **request: Any) -> Answer:
        async with self.session.request(method, URL(self.url + path, encoded=True), **request) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **request: Any) -> Answer:
        return await self("GET", path, **request)

    async def sync(self, body: dict[str, Any] | None = None, **request: Any) -> Answer:
        """Posts a report, `report()` if none is given."""
        return await self("POST", "/api/sync", json=report() if body is None else body, **request)

    async def stats(self, key: str = KEY, **request: Any) -> Answer:
        return await self.get(f"/api/stats/{key}", **request)

    async def devices(self, key: str = KEY) -> list[str]:
        """The hostnames of a user's devices, the one heard last first."""
        answer = await self.get(f"/api/devices/{key}")
        assert answer.status == 200
        return [device["hostname"] for device in answer.json["data"]["devices"]]

    async def history(self, query: str = "", key: str = KEY) -> list[dict[str, Any]]:
        """All reports, page after page."""
        reports: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = await self.get(f"/api/history/{key}?{query}{cursor}")
            assert answer.status == 200, answer.content
            data = answer.json["data"]
            reports += data["reports"]
            if data["next"] is None:
                return reports
            cursor = f"&cursor={data['next']}"

    async def raw(self, *parts: bytes, answers: int = 1) -> list[Answer]:
        """Sends bytes, each part when the one before is on its way, and reads so many answers."""
        target = URL(self.url)
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            return [await _read_answer(reader) for _ in range(answers)]
        finally:
            writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.title(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("Content-Length", 0)))
    return Answer(int(head[0].split(" ")[1]), headers, content)


@dataclass
class Served(Client):
    """An application in this process, with what stands behind it."""

    clock: MovableClock
    storage: Storage
    app: web.Application

    def move_to(self, time: str) -> None:
        self.clock.move_to(parse_time(time))


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    """Tests that ask for it run on every back end; `@on_memory` is for those that come to no store."""
    return str(request.param)


on_memory = pytest.mark.parametrize("back_end", ["memory"])


@pytest.fixture
def storage_url(back_end: str) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        yield {"memory": "memory:", "file": f"file:{folder}/files", "sqlite": f"sqlite:{folder}/homeport.db"}[back_end]


@pytest.fixture
async def storage(storage_url: str) -> AsyncIterator[Storage]:
    """An open store, that outlives the applications on it."""
    async with make_storage(storage_url) as store:
        yield store


SESSIONS_KEY = "an exposed server has to have one"
_EXPOSING = {"server.host", "server.listen", "server.public_url", "server.allowed_hosts", "server.trusted_proxies"}


def _setting(name: str) -> str:
    return name if "." in name or name == "collections" else f"apis.device_usage.{name}"


@pytest.fixture
async def serve(storage: Storage, storage_url: str, log: "Log") -> AsyncIterator[Serve]:
    """Starts an application on the test's store, or has it open the one that its settings name.

    Settings are dotted names or, without a dot, device usage's.
    """
    async with AsyncExitStack() as stack:

        async def start(settings: dict[str, Any] | None = None, *, now: str = NOW, opens_store: bool = False) -> Served:
            given = {_setting(name): value for name, value in (settings or {}).items()}
            if given.keys() & _EXPOSING:
                given.setdefault("apis.sessions.api_key", SESSIONS_KEY)
            config = load_config(environ={}, overrides={"storage.url": storage_url, "log.format": "json", **given})
            clock = MovableClock(parse_time(now))
            application = create_app(config, storage=None if opens_store else storage, clock=clock)
            listening = TestServer(application)
            with redirect_stderr(log.stream):
                await stack.enter_async_context(listening)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            return Served(str(listening.make_url("")).rstrip("/"), session, clock, application[STORAGE], application)

        yield start


@pytest.fixture
async def server(serve: Serve) -> Served:
    """An application as it is configured without a configuration."""
    return await serve()


async def until(condition: Callable[[], Awaitable[bool]], every: float = 0.005) -> None:
    """Waits, at most 30 seconds, for what becomes true without telling anybody."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(every)


# What is told of it


def key_parts(text: str) -> set[str]:
    """The parts of users' keys that a text holds. Request ids and addresses of objects may look like one."""
    text = re.sub(r'"requestid":"[0-9a-f]{16}"| 0x[0-9a-f]+>', "", text.lower())
    runs = re.findall(rf"[0-9a-f]{{{_KEY_PART},}}", text)
    return {part for run in runs for part in _parts(run)} & _secret


class Log:
    """What the servers of a test write to standard error."""

    def __init__(self) -> None:
        self.stream = StringIO()


@pytest.fixture
def log() -> Iterator[Log]:
    """Fails the test where the log, or what any logger says at any level, holds a part of a key."""
    log = Log()
    root, handler = logging.getLogger(), logging.StreamHandler(log.stream)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield log
    root.setLevel(level)
    root.removeHandler(handler)
    assert not key_parts(log.stream.getvalue())


# Whole processes


@dataclass
class Process(Client):
    """`homeport serve`, as people run it."""

    process: asyncio.subprocess.Process
    stderr: Path

    @property
    def log(self) -> str:
        return self.stderr.read_text()

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return await self.process.wait()

    async def ready(self) -> None:
        """Waits until it says that it is, and knows its URL then."""
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        assert " ready on " in line, self.log
        self.url = line.rpartition(" ")[2].strip()


Launch = Callable[..., Awaitable[Process]]


@pytest.fixture
async def launch(tmp_path: Path, log: Log) -> AsyncIterator[Launch]:
    """Starts `homeport serve` with arguments and environment variables; kills it in the end. It may not be ready."""
    processes: list[Process] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def start(*arguments: str, **environment: str) -> Process:
            stderr = tmp_path / f"stderr-{len(processes)}"
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOMEPORT_")}
            with stderr.open("wb") as file:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "homeport", "serve", *arguments),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=file,
                    cwd=tmp_path,
                    env=inherited | {"XDG_DATA_HOME": str(tmp_path)} | environment,
                )
            processes.append(Process("", session, process, stderr))
            return processes[-1]

        yield start
        for process in processes:
            if process.process.returncode is None:
                await process.kill()
            log.stream.write(process.log)
