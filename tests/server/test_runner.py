"""server/runner.py: paths without parameters are answered past the router, as the router has them answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from homeport.server.app import create_app
from homeport.server.config import load_config
from homeport.server.keys import CONFIG
from homeport.server.routes import parameter_names
from homeport.server.runner import Runner

REFUSED_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "12"}


@asynccontextmanager
async def served(runner: web.AppRunner) -> AsyncIterator[aiohttp.ClientSession]:
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield session
    finally:
        await runner.cleanup()


def an_app() -> web.Application:
    app = create_app(load_config(environ={}, overrides={"storage.url": "memory:"}))
    app.router.add_get("/of/the/embedder", handle_of_the_embedder)
    return app


async def handle_of_the_embedder(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.match_info!r} {request.app[CONFIG].storage.url}")


async def answer_to(session: aiohttp.ClientSession, method: str, path: str, **how: object) -> tuple[object, ...]:
    async with session.request(method, URL(path, encoded=True), allow_redirects=False, **how) as answer:  # type: ignore[arg-type]  # of any of its parameters
        return answer.status, sorted(answer.headers), answer.content_type, (await answer.read())[:20]


WAYS = [
    pytest.param("GET", {}, id="GET"),
    pytest.param("HEAD", {}, id="HEAD"),
    pytest.param("OPTIONS", {}, id="OPTIONS"),
    pytest.param("POST", {"data": b"{", "headers": {"Content-Type": "application/json"}}, id="a broken body"),
    pytest.param("POST", {"json": {}, "expect100": True}, id="a client that waits to be told to go on"),
    pytest.param("PURGE", {}, id="another method"),
    pytest.param("GET", {"headers": REFUSED_UPGRADE}, id="an upgrade"),
]


@pytest.mark.parametrize(("method", "how"), WAYS)
async def test_answers_are_those_of_the_router(method: str, how: dict[str, object]) -> None:
    """Past which nothing goes that has a query."""
    ours, theirs = an_app(), an_app()
    resources = [resource.canonical for resource in ours.router.resources()]
    paths = [path for path in resources if not parameter_names(path)]
    assert len(paths) > 30
    async with served(Runner(ours)) as short, served(web.AppRunner(theirs, access_log=None)) as long:
        for path in paths:
            assert await answer_to(short, method, path, **how) == await answer_to(long, method, path, **how), path


async def test_a_middleware_sees_every_request() -> None:
    @web.middleware
    async def teapot(request: web.Request, handler: object) -> web.Response:
        return web.Response(status=418, text=request.path)

    app = an_app()
    app.middlewares.append(teapot)
    async with served(Runner(app)) as session, session.get("/api/health") as answer:
        assert (answer.status, await answer.text()) == (418, "/api/health")
