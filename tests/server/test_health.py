"""GET /api/health, and those of /health: what it asks, how often, and whom it answers."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from homeport import __version__
from homeport.server import health
from homeport.server.app import create_app
from homeport.server.clock import MovableClock
from homeport.server.config import load_config
from homeport.server.health import TMUX
from homeport.storage import StorageUnavailable
from homeport.storage.memory import MemoryStorage
from homeport.storage.times import parse_time

NOW = "2025-12-30T17:00:00.000Z"
HEALTHY = {
    "status": "healthy",
    "uptime": 3600,
    "version": __version__,
    "database": "connected",
    "tmux": "available",
    "timestamp": "2025-12-30T18:00:00.000Z",
}
OTHERS = ["device_usage"]


class Asked:
    """What stands behind the server, and how often it was asked."""

    def __init__(self) -> None:
        self.store = MemoryStorage()
        self.pings = 0
        self.probes = 0
        self.works = True
        self.ping = self.store.ping
        self.store.ping = self._ping  # type: ignore[method-assign]
        self.ping_delay = self.probe_delay = 0.0

    async def _ping(self) -> None:
        self.pings += 1
        await asyncio.sleep(self.ping_delay)
        await self.ping()

    async def probe(self) -> bool:
        self.probes += 1
        await asyncio.sleep(self.probe_delay)
        return self.works


class Server:
    def __init__(
        self, app: web.Application, url: str, session: aiohttp.ClientSession, clock: MovableClock, asked: Asked
    ) -> None:
        self.app = app
        self.url = url
        self.session = session
        self.clock = clock
        self.asked = asked

    async def health(self, query: str = "", **request: Any) -> tuple[int, Any]:
        async with self.session.get(f"{self.url}/api/health{query}", **request) as answer:
            return answer.status, await answer.json(content_type=None)


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Serve]:
    """A server with a store of its own and, where the sessions API is on, with a tmux as the test wants it. On PATH
    there is a tmux, and nothing else."""
    (tmp_path / "tmux").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with AsyncExitStack() as stack:

        async def start(settings: dict[str, Any] | None = None, *, sessions: bool = True) -> Server:
            enabled = [*OTHERS, *(["sessions"] if sessions else [])]
            config = load_config(environ={}, overrides={"apis.enabled": enabled, **(settings or {})})
            asked = Asked()
            await stack.enter_async_context(asked.store)
            clock = MovableClock(parse_time(NOW))
            app = create_app(config, storage=asked.store, clock=clock)
            if sessions:

                async def probed(app: web.Application) -> None:
                    app[TMUX] = asked.probe

                app.on_startup.append(probed)
            listening = await stack.enter_async_context(TestServer(app))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            clock.move_to(parse_time(HEALTHY["timestamp"]))  # type: ignore[arg-type]
            return Server(app, str(listening.make_url("")).rstrip("/"), session, clock, asked)

        yield start


async def test_the_contracts_example(serve: Serve) -> None:
    assert await (await serve()).health() == (200, HEALTHY)


async def test_without_the_sessions_api(serve: Serve) -> None:
    server = await serve(sessions=False)
    assert await server.health() == (200, HEALTHY)


async def test_without_tmux(serve: Serve) -> None:
    server = await serve()
    server.asked.works = False
    degraded = {**HEALTHY, "status": "degraded", "tmux": "unavailable"}
    assert await server.health() == (200, degraded)
    assert await server.health("?strict=1") == (503, degraded)


async def test_without_tmux_and_without_the_sessions_api(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await serve(sessions=False)
    monkeypatch.setenv("PATH", os.devnull)
    assert await server.health("?strict=1") == (200, {**HEALTHY, "tmux": "unavailable"})


async def test_tmux_that_does_not_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    server = await serve()
    server.asked.probe_delay = 3600
    assert await server.health() == (200, {**HEALTHY, "status": "degraded", "tmux": "unavailable"})


@pytest.mark.parametrize("sessions", [True, False])
async def test_a_store_that_does_not_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch, sessions: bool) -> None:
    async def gone() -> None:
        raise StorageUnavailable("no disk")

    server = await serve(sessions=sessions)
    monkeypatch.setattr(server.asked, "ping", gone)
    degraded = {**HEALTHY, "status": "degraded", "database": "disconnected"}
    assert await server.health() == (200, degraded)
    assert await server.health("?strict=1") == (503, degraded)


async def test_a_store_that_takes_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    server = await serve()
    server.asked.ping_delay = 3600
    status, report = await server.health("?strict=1")
    assert (status, report["database"]) == (503, "disconnected")


async def test_it_heals(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH", 0.0)
    server = await serve()
    server.asked.works = False
    assert (await server.health("?strict=1"))[0] == 503
    server.asked.works = True
    assert (await server.health("?strict=1"))[0] == 200


async def test_many_who_ask_are_answered_by_one_question(serve: Serve) -> None:
    server = await serve()
    server.asked.ping_delay = 0.05
    answers = await asyncio.gather(*(server.health() for _ in range(50)))
    assert answers == [(200, HEALTHY)] * 50
    assert server.asked.pings == server.asked.probes == 1


async def test_time_goes_on_while_an_answer_is_kept(serve: Serve) -> None:
    server = await serve()
    await server.health()
    server.clock.advance(2.9)
    _, report = await server.health()
    assert (report["uptime"], report["timestamp"]) == (3602, "2025-12-30T18:00:02.900Z")
    assert server.asked.pings == 1


async def test_a_clock_that_is_set_back(serve: Serve) -> None:
    server = await serve()
    server.clock.move_to(parse_time("2020-01-01T00:00:00Z"))
    assert (await server.health())[1]["uptime"] == 0


EXPOSED = {"server.public_url": "https://sync.example.com", "apis.sessions.api_key": "correct horse"}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="from loopback"),
        pytest.param({"X-Forwarded-For": "192.0.2.1"}, id="from elsewhere"),
        pytest.param({"X-API-Key": "wrong"}, id="with a wrong key"),
        pytest.param({"X-Forwarded-For": "192.0.2.1", "Host": "sync.example.com"}, id="by its name"),
    ],
)
async def test_it_never_needs_a_key(serve: Serve, headers: dict[str, str]) -> None:
    server = await serve({**EXPOSED, "server.trusted_proxies": ["127.0.0.1"], "apis.sessions.key_on_loopback": True})
    for _ in range(15):  # more than anybody may guess at keys
        assert await server.health(headers=headers) == (200, HEALTHY)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("?strict=0", 200),
        ("?strict=false", 200),
        ("?strict=", 200),
        ("?strict=true", 503),
        ("?strict=2", 400),
    ],
)
async def test_strict(serve: Serve, query: str, status: int) -> None:
    server = await serve()
    server.asked.works = False
    assert (await server.health(query))[0] == status


async def test_other_methods(serve: Serve) -> None:
    server = await serve()
    async with server.session.head(f"{server.url}/api/health") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Cache-Control"] == "no-store"
    async with server.session.post(f"{server.url}/api/health") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await answer.json())["error"] == "Method not allowed"


async def test_a_wrong_method_while_the_sessions_api_is_off(serve: Serve) -> None:
    server = await serve(sessions=False)
    async with server.session.post(f"{server.url}/api/health") as answer:
        assert (answer.status, answer.content_type) == (405, "application/problem+json")


# For what starts servers and sends them requests


async def asked(server: Server, path: str) -> tuple[int, Any]:
    async with server.session.get(f"{server.url}{path}") as answer:
        assert answer.headers["Cache-Control" if answer.status == 200 else "Retry-After"] in ("no-store", "5")
        return answer.status, await answer.json(content_type=None)


READY = (200, {"status": "ready"})
AWAY = {
    "title": "Service Unavailable",
    "status": 503,
    "detail": "The store does not answer, or cannot be written to",
}


@pytest.mark.parametrize("sessions", [True, False])
async def test_alive_and_ready(serve: Serve, sessions: bool) -> None:
    server = await serve(sessions=sessions)
    assert await asked(server, "/health/live") == (200, {"status": "alive"})
    assert await asked(server, "/health/ready") == READY


async def test_a_server_whose_store_is_away_is_alive_and_not_ready(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_FRESH", 0.0)
    server = await serve()

    async def gone() -> None:
        raise StorageUnavailable("no disk at /var/lib")

    with monkeypatch.context() as broken:
        broken.setattr(server.asked, "ping", gone)
        assert await asked(server, "/health/ready") == (503, AWAY)
        assert await asked(server, "/health/live") == (200, {"status": "alive"})
        async with server.session.get(f"{server.url}/health/ready") as answer:
            assert answer.content_type == "application/problem+json"
    assert await asked(server, "/health/ready") == READY


async def test_readiness_does_not_wait_for_ever(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    server = await serve()
    server.asked.ping_delay = 3600
    assert await asked(server, "/health/ready") == (503, AWAY)


async def test_readiness_does_not_wait_for_tmux(serve: Serve) -> None:
    server = await serve()
    server.asked.probe_delay = 3600
    assert await asked(server, "/health/ready") == READY
    assert server.asked.probes == 0


async def test_many_who_ask_whether_it_is_ready(serve: Serve) -> None:
    server = await serve()
    server.asked.ping_delay = 0.05
    answers = await asyncio.gather(*(asked(server, "/health/ready") for _ in range(50)), server.health())
    assert answers == [READY] * 50 + [(200, HEALTHY)]
    assert server.asked.pings == 1


async def test_a_server_that_is_stopping_is_not_ready(serve: Serve) -> None:
    server = await serve()
    server.app[health.HEALTH].stopping = True
    assert await asked(server, "/health/ready") == (503, {**AWAY, "detail": "The server is stopping"})
    assert await asked(server, "/health/live") == (200, {"status": "alive"})


async def test_whoever_asks_whether_it_is_ready_needs_no_key(serve: Serve) -> None:
    server = await serve({**EXPOSED, "server.trusted_proxies": ["127.0.0.1"], "apis.sessions.key_on_loopback": True})
    for path in ("/health/live", "/health/ready"):
        async with server.session.get(f"{server.url}{path}", headers={"X-Forwarded-For": "192.0.2.1"}) as answer:
            assert answer.status == 200
