"""Who may start programs on this machine: keys, hosts, origins, paths; from a browser's point of view, too."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from homeport.server.apis.sessions import api
from homeport.server.app import create_app
from homeport.server.config import ConfigError, load_config
from homeport.server.operation import Operation

from ...browser import chromium
from .conftest import Launch, Serve, Served, user_key

KEY, WRONG = user_key("the key of sessions"), user_key("a key of somebody else")
UNAUTHORIZED = {"error": "Unauthorized", "message": "Missing or invalid API key"}
KEYED = {"apis.sessions.api_key": KEY}
PROXIED = {**KEYED, "server.trusted_proxies": ["127.0.0.1"]}
ELSEWHERE = {"X-Forwarded-For": "192.0.2.1"}
OPERATIONS = [operation for operation in api.operations if not operation.websocket]


def path_of(operation: Operation) -> str:
    return operation.path.replace("{name}", "register").replace("{token}", "0" * 64).replace("{id}", "0" * 8)


@pytest.fixture
def back_end() -> str:
    """Nothing here comes to the store."""
    return "memory"


@pytest.fixture
async def serve_here(serve: Serve, tmp_path: Path) -> Serve:
    """Serves with a tmux server of its own, which nothing starts."""
    own = {"apis.sessions.tmux_socket": str(tmp_path / "tmux"), "apis.sessions.output_folder": str(tmp_path / "output")}

    async def start(settings: dict[str, Any] | None = None) -> Served:
        return await serve({**own, **(settings or {})})

    return start


# Keys


async def test_every_operation_asks_who_calls(serve_here: Serve) -> None:
    server = await serve_here({**PROXIED, "apis.sessions.key_on_loopback": True})
    for number, operation in enumerate(OPERATIONS):
        elsewhere = {"X-Forwarded-For": f"192.0.2.{number}"}
        for headers in (elsewhere, elsewhere | {"X-API-Key": WRONG}, {}, {"X-API-Key": WRONG}, {"X-API-Key": ""}):
            answer = await server(operation.method, path_of(operation), headers=headers)
            assert (answer.status, answer.json) == (401, UNAUTHORIZED), (operation, headers)
        for headers in (elsewhere, {}):
            answer = await server(operation.method, path_of(operation), headers=headers | {"X-API-Key": KEY})
            assert answer.status in (200, 400, 404, 503), (operation, answer.content)


@pytest.mark.parametrize(
    ("settings", "headers", "steer", "devices"),
    [
        pytest.param({}, {}, 200, 200, id="no key set, on this machine"),
        pytest.param({}, {"X-API-Key": KEY}, 401, 401, id="no key set, one sent"),
        pytest.param({}, {"X-API-Key": "None"}, 401, 401, id="an unset key is not None"),
        pytest.param({}, ELSEWHERE, 401, 401, id="no key set, from elsewhere"),
        pytest.param(KEYED, {}, 200, 401, id="on this machine"),
        pytest.param(KEYED, {"X-API-Key": KEY}, 200, 200, id="on this machine with the key"),
        pytest.param(KEYED, {"X-API-Key": WRONG}, 401, 401, id="on this machine with a wrong key"),
        pytest.param(KEYED, {"X-API-Key": KEY[:-1]}, 401, 401, id="on this machine with part of the key"),
        pytest.param(KEYED, {"X-API-Key": KEY.upper()}, 401, 401, id="on this machine with the key in upper case"),
        pytest.param(KEYED, ELSEWHERE, 401, 401, id="from elsewhere"),
        pytest.param(KEYED, ELSEWHERE | {"X-API-Key": KEY}, 200, 200, id="from elsewhere with the key"),
        pytest.param(KEYED, ELSEWHERE | {"X-API-Key": WRONG}, 401, 401, id="from elsewhere with a wrong key"),
        pytest.param(KEYED, {"Forwarded": "for=127.0.0.1"}, 401, 401, id="through a proxy, from anywhere"),
        pytest.param(PROXIED, {"X-Forwarded-For": "127.0.0.1"}, 401, 401, id="through a trusted proxy"),
        pytest.param({**KEYED, "apis.sessions.key_on_loopback": True}, {}, 401, 401, id="closed on this machine"),
        pytest.param(
            {**KEYED, "apis.sessions.key_on_loopback": True}, {"X-API-Key": KEY}, 200, 200, id="closed, with the key"
        ),
        pytest.param({"apis.sessions.key_on_loopback": True}, {}, 401, 401, id="closed, and no key set"),
    ],
)
async def test_who_may_call(
    serve_here: Serve, settings: dict[str, Any], headers: dict[str, str], steer: int, devices: int
) -> None:
    server = await serve_here(settings)
    listed = await server.get("/api/sessions", headers=headers)
    registered = await server("POST", "/api/devices/register", json={"token": "0" * 64}, headers=headers)
    assert (listed.status, registered.status) == (steer, devices)
    for answer in (listed, registered):
        assert answer.status == 200 or answer.json == UNAUTHORIZED


async def test_who_fails_too_often_is_not_listened_to(serve_here: Serve) -> None:
    server = await serve_here(PROXIED)
    for _ in range(10):
        assert (await server.get("/api/sessions", headers=ELSEWHERE | {"X-API-Key": WRONG})).status == 401
    answer = await server.get("/api/sessions", headers=ELSEWHERE | {"X-API-Key": KEY})
    assert (answer.status, answer.json["error"]) == (429, "Too many requests")
    assert answer.headers["Retry-After"] == "60"
    other = {"X-Forwarded-For": "192.0.2.2", "X-API-Key": KEY}
    assert (await server.get("/api/sessions", headers=other)).status == 200
    server.clock.advance(60)
    assert (await server.get("/api/sessions", headers=ELSEWHERE | {"X-API-Key": KEY})).status == 200


# Exposed


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"server.host": "0.0.0.0"}, id="host"),
        pytest.param({"server.listen": ["127.0.0.1:8000", "[::]:8000"]}, id="listen"),
        pytest.param({"server.public_url": "https://sync.example.com"}, id="public_url"),
        pytest.param({"server.allowed_hosts": ["sync.example.com"]}, id="allowed_hosts"),
        pytest.param({"server.trusted_proxies": ["127.0.0.1"]}, id="trusted_proxies"),
    ],
)
def test_an_exposed_server_needs_the_key(settings: dict[str, Any]) -> None:
    def load(**more: Any) -> None:
        create_app(load_config(environ={}, overrides={"storage.url": "memory:", **settings, **more}))

    with pytest.raises(ConfigError, match=r"apis\.sessions\.api_key.*API_KEY"):
        load()
    load(**KEYED)
    load(**{"apis.enabled": ["device_usage"]})


async def test_an_exposed_server_without_the_key_does_not_start(launch: Launch) -> None:
    process = await launch("--host", "0.0.0.0", "--port", "0", "--storage", "memory:")
    async with asyncio.timeout(60):
        assert await process.process.wait() == 2
    assert "apis.sessions.api_key" in process.log
    assert "Traceback" not in process.log


async def test_an_exposed_server_with_the_key_starts(launch: Launch) -> None:
    arguments = ("--host", "0.0.0.0", "--port", "0", "--storage", "memory:")
    process = await launch(*arguments, API_KEY=KEY)
    await process.ready()
    process.url = process.url.replace("0.0.0.0", "127.0.0.1")
    assert (await process.get("/api/sessions", headers=ELSEWHERE)).status == 401
    assert (await process.get("/api/sessions", headers=ELSEWHERE | {"X-API-Key": KEY})).status == 200
    assert await process.stop() == 0


# What pages may do

FOREIGN = {"Origin": "https://evil.example"}
NULL = {"Origin": "null"}
REBOUND = {"Host": "evil.example"}
NOBODY: dict[str, str] = {}
OURS = {"Origin": "http://localhost:3000"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(FOREIGN, 403, id="foreign origin"),
        pytest.param(NULL, 403, id="no origin"),
        pytest.param(REBOUND, 421, id="foreign host"),
        pytest.param(REBOUND | OURS, 421, id="foreign host, own origin"),
    ],
)
async def test_a_foreign_page_is_refused_everywhere(serve_here: Serve, headers: dict[str, str], status: int) -> None:
    server = await serve_here()
    for operation in OPERATIONS:
        for method in (operation.method, "OPTIONS"):
            answer = await server(method, path_of(operation), headers=headers)
            assert answer.status == status, (method, operation.path)
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_what_a_page_may_send_without_asking_is_refused(serve_here: Serve, media_type: str | None) -> None:
    server = await serve_here()
    headers = {"Content-Type": media_type} if media_type else {}
    skip = () if media_type else ("Content-Type",)
    body = b'{"name": "x", "repoPath": "/", "tmuxSession": "x"}'
    for operation in OPERATIONS:
        if operation.content_types:
            for origin, status in ((NOBODY, 415), (OURS, 415), (FOREIGN, 403)):
                answer = await server(
                    operation.method,
                    path_of(operation),
                    data=body,
                    headers=headers | origin,
                    skip_auto_headers=skip,
                )
                assert answer.status == status, (operation.path, origin)


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:5173", "tauri://localhost"])
async def test_pages_of_this_machine_may_call(serve_here: Serve, origin: str) -> None:
    server = await serve_here()
    answer = await server.get("/api/sessions", headers={"Origin": origin})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)


@pytest.mark.parametrize("path", ["/", "/ws"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(FOREIGN, 403, id="foreign origin"),
        pytest.param(NULL, 403, id="no origin"),
        pytest.param(REBOUND, 421, id="foreign host"),
    ],
)
async def test_a_foreign_page_opens_no_websocket(
    serve_here: Serve, path: str, headers: dict[str, str], status: int
) -> None:
    server = await serve_here(KEYED)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await server.session.ws_connect(f"{server.url}{path}?apiKey={KEY}", headers=headers)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("settings", "query", "headers", "close"),
    [
        pytest.param({}, "", {}, None, id="on this machine"),
        pytest.param({}, "", ELSEWHERE, 4001, id="from elsewhere, no key set"),
        pytest.param(KEYED, "", {}, None, id="on this machine, key set"),
        pytest.param({**KEYED, "apis.sessions.key_on_loopback": True}, "", {}, 4001, id="closed on this machine"),
        pytest.param(KEYED, "", ELSEWHERE, 4001, id="from elsewhere"),
        pytest.param(KEYED, f"?apiKey={KEY}", ELSEWHERE, None, id="key in the query"),
        pytest.param(KEYED, "", ELSEWHERE | {"X-API-Key": KEY}, None, id="key in the header"),
        pytest.param(KEYED, f"?apiKey={WRONG}", ELSEWHERE, 4001, id="wrong key in the query"),
        pytest.param(KEYED, f"?apiKey={WRONG}", {}, 4001, id="wrong key, on this machine"),
        pytest.param(KEYED, "", {"X-API-Key": WRONG}, 4001, id="wrong key in the header, on this machine"),
    ],
)
async def test_who_may_open_a_websocket(
    serve_here: Serve, settings: dict[str, Any], query: str, headers: dict[str, str], close: int | None
) -> None:
    server = await serve_here(settings)
    async with server.session.ws_connect(f"{server.url}/ws{query}", headers=headers) as socket:
        await socket.send_str('{"type": "ping"}')
        async with asyncio.timeout(30):
            message = await socket.receive()
        if close is None:
            assert json.loads(message.data)["type"] == "pong"
        else:
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, close)


@asynccontextmanager
async def page() -> AsyncIterator[str]:
    """A page on a server of its own; its port."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(text="<title>elsewhere</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", show)
    async with TestServer(app) as server:
        yield str(server.port)


ATTACK = """
(async (server, project) => {
  const ask = (path, options) => fetch(server + path, options).then(() => 'answered', () => 'refused');
  const body = JSON.stringify(project);
  const json = {'Content-Type': 'application/json'};
  const told = {
    read: await ask('/api/projects'),
    plain: await ask('/api/projects', {method: 'POST', headers: {'Content-Type': 'text/plain'}, body}),
    form: await ask('/api/projects', {method: 'POST', body: new URLSearchParams(project)}),
    blind: await ask('/api/projects', {method: 'POST', mode: 'no-cors', body}),
    json: await ask('/api/projects', {method: 'POST', headers: json, body}),
    remove: await ask('/api/notifications', {method: 'DELETE'}),
  };
  told.socket = await new Promise(done => {
    const socket = new WebSocket(server.replace('http', 'ws') + '/ws');
    socket.onopen = () => done('opened');
    socket.onclose = event => done(event.code);
  });
  return told;
})
"""


async def test_in_a_browser(serve_here: Serve, tmp_path: Path) -> None:
    server = await serve_here()
    port = URL(server.url).port
    project = {"name": "x", "repoPath": str(tmp_path), "tmuxSession": "x"}
    attack = f"({ATTACK})('http://localhost:{port}', {json.dumps(project)})"
    rules = "--host-resolver-rules=MAP *.example 127.0.0.1"
    async with chromium(tmp_path / "profile", rules) as browser, page() as elsewhere:
        tab = await browser.tab()
        await tab.open(f"http://evil.example:{elsewhere}/")
        refused = dict.fromkeys(("read", "plain", "form", "json", "remove"), "refused")
        # Without CORS a page is told nothing, not even that it was refused.
        assert await tab.run(attack) == {**refused, "blind": "answered", "socket": 1006}
        await tab.open(f"http://evil.example:{port}/api/health")  # its name leads to this machine now
        asked = f"fetch('/api/projects', {{method: 'POST', body: '{json.dumps(project)}'}})"
        assert await tab.run(f"{asked}.then(answer => answer.status)") == 421
        assert (await server.get("/api/projects")).json == []
        await tab.open(f"http://localhost:{elsewhere}/")  # and this one is ours
        allowed = await tab.run(attack)
        assert allowed["read"] == allowed["json"] == "answered"
        assert allowed["socket"] == "opened"
    assert [one["name"] for one in (await server.get("/api/projects")).json] == ["x"]


# Paths


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"repoPath": "relative"}, id="relative"),
        pytest.param({"repoPath": "~"}, id="home"),
        pytest.param({"repoPath": ""}, id="empty"),
        pytest.param({"repoPath": "{folder}/missing"}, id="missing"),
        pytest.param({"repoPath": "{folder}/file"}, id="a file"),
        pytest.param({"repoPath": "{folder}\0"}, id="U+0000"),
        pytest.param({"repoPath": 5}, id="no text"),
        pytest.param({"ticketsPath": "../elsewhere"}, id="tickets beside it"),
        pytest.param({"ticketsPath": "docs/../../elsewhere"}, id="tickets beside it, on the way"),
        pytest.param({"ticketsPath": "/etc"}, id="tickets anywhere"),
        pytest.param({"ticketsPath": "out"}, id="tickets behind a link"),
        pytest.param({"handoffPath": "../handoff.md"}, id="handoff beside it"),
        pytest.param({"handoffPath": "/tmp/handoff.md"}, id="handoff anywhere"),
        pytest.param({"handoffPath": "out/handoff.md"}, id="handoff behind a link"),
    ],
)
async def test_paths_of_projects(serve_here: Serve, tmp_path: Path, changes: dict[str, Any]) -> None:
    server = await serve_here()
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "file").touch()
    (folder / "out").symlink_to(tmp_path)
    body = {"name": "x", "repoPath": "{folder}", "tmuxSession": "x"} | changes
    sent = {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in body.items()}
    answer = await server("POST", "/api/projects", json=sent)
    assert (answer.status, answer.json["error"]) == (400, "Validation error")
    assert str(tmp_path) not in answer.json["message"].replace(str(sent["repoPath"]), "")
