"""nginx and Caddy as deploy/ configures them: real ones, that speak HTTPS, in front of a real server."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .tools import tool

DEPLOY = Path(__file__).parents[2] / "deploy"
HOST = "sync.example.com"
"""The name that stands in the files."""
CA = trustme.CA()
NOTE = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}}
MB = 2**20
PATIENCE = 30.0
CLIENT = "127.0.0.2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*command: str, port: int, log: Path, **env: str) -> Iterator[None]:
    """A program that listens on a port, from when it does."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | env) as process:
        try:
            give_up = time.monotonic() + PATIENCE
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


@dataclass
class Server:
    port: int
    log: Path
    auth: dict[str, str]
    """The headers of a user who may read and write."""

    async def logged(self, request_id: str) -> Any:
        """What the log has of a request."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for line in self.log.read_text().splitlines():
                    if f'"requestId":"{request_id}"' in line:
                        return json.loads(line)
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trusts its proxy and takes HTTPS alone."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "note.schema.json").write_text(json.dumps(NOTE))
    store = ("--storage", f"sqlite:{folder}/homeport.db")
    homeport = (sys.executable, "-m", "homeport")
    port = free_port()
    settings = {
        "HOMEPORT_SERVER__PUBLIC_URL": f"https://{HOST}",
        "HOMEPORT_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
        "HOMEPORT_SERVER__REQUIRE_HTTPS": "true",
        "HOMEPORT_APIS__ENABLED": '["collections", "metering"]',
    }
    serve = (*homeport, "serve", "--port", str(port), *store, "--schemas", str(folder), "--log-format", "json")
    with running(*serve, port=port, log=folder / "log", **settings):
        scopes = ("--scope", "collections:read", "--scope", "collections:write")
        create = (*homeport, "keys", "create", "alice", *scopes, *store)
        key = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
        yield Server(port, folder / "log", {"Authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def nginx(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Its ports, for HTTPS and for HTTP."""
    nginx, folder = tool("nginx"), tmp_path_factory.mktemp("nginx")
    https, http = free_port(), free_port()
    CA.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(folder / "pair.pem"))
    ours = adapted(
        DEPLOY / "nginx.conf",
        {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{server.port};",
            "listen 80;": f"listen 127.0.0.1:{http};",
            "listen 443 ": f"listen 127.0.0.1:{https} ",
            f"/etc/letsencrypt/live/{HOST}/fullchain.pem": f"{folder}/pair.pem",
            f"/etc/letsencrypt/live/{HOST}/privkey.pem": f"{folder}/pair.pem",
        },
    )
    folders = "".join(f"{of}_temp_path {folder}/{of};" for of in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off; master_process off; pid {folder}/pid; events {{}} http {{ access_log off; {folders}\n{ours} }}"
    (folder / "nginx.conf").write_text(main)
    command = (nginx, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"))
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with running(*command, port=https, log=folder / "log"):
        yield https, http


@pytest.fixture(scope="module")
def caddy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port for HTTPS. It gets no certificate of its own: there is nobody here to ask for one."""
    caddy, folder = tool("caddy"), tmp_path_factory.mktemp("caddy")
    port = free_port()
    CA.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(folder / "pair.pem"))
    ours = adapted(
        DEPLOY / "Caddyfile",
        {
            "reverse_proxy 127.0.0.1:8000": f"reverse_proxy 127.0.0.1:{server.port}",
            f"\n{HOST} {{": f"\nhttps://{HOST}:{port} {{\n\ttls {folder}/pair.pem {folder}/pair.pem",
        },
    )
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{ours}")
    homes = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with running(caddy, "run", "--config", str(folder / "Caddyfile"), port=port, log=folder / "log", **homes):
        yield port


def adapted(file: Path, changes: dict[str, str]) -> str:
    """A configuration with this test's ports and paths in it."""
    text = file.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class _Here(AbstractResolver):
    """Finds every name on this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Leaves no connection behind: TLS would let each wait for the other side's farewell."""
    sockets = []

    def make(address: aiohttp.AddrInfoType) -> socket.socket:
        sockets.append(socket.socket(*address[:3]))
        sockets[-1].setblocking(False)
        return sockets[-1]

    trusting = ssl.create_default_context()
    CA.configure_trust(trusting)
    connector = aiohttp.TCPConnector(resolver=_Here(), ssl=trusting, local_addr=(CLIENT, 0), socket_factory=make)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
        yield session
    while left := [made for made in sockets if made.fileno() >= 0]:
        for made in left:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(0.01)


@pytest.fixture(params=["nginx", "caddy"])
def url(request: pytest.FixtureRequest) -> URL:
    """Where clients find the server."""
    found = request.getfixturevalue(request.param)
    return URL(f"https://{HOST}:{found if isinstance(found, int) else found[0]}")


async def test_a_client_is_known_by_its_address(url: URL, client: aiohttp.ClientSession, server: Server) -> None:
    """Whatever it claims; and that it speaks HTTPS, which the server itself is not spoken to with."""
    claims = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    async with client.get(url / "api/health", headers=claims) as answer:
        assert answer.status == 200
        assert (await server.logged(answer.headers["X-Request-ID"]))["ipAddress"] == CLIENT
    async with client.get(f"http://127.0.0.1:{server.port}/api/health") as direct:
        assert direct.status == 403


async def test_a_change_reaches_a_websocket(url: URL, client: aiohttp.ClientSession, server: Server) -> None:
    async with client.ws_connect(url / "changes", headers=server.auth, origin=str(url)) as listener:
        await listener.send_json({"type": "subscribe", "collections": ["note"]})
        await listener.send_str("?")
        assert (await listener.receive_json(timeout=PATIENCE))["type"] == "error"  # so it has read both
        created = await _create(url, client, server)
        assert (await listener.receive_json(timeout=PATIENCE))["id"] == created


async def test_a_change_reaches_an_event_stream(url: URL, client: aiohttp.ClientSession, server: Server) -> None:
    """While it goes on: nothing waits for more."""
    headers = {"Accept": "text/event-stream", **server.auth}
    async with client.get(url / "collections/note/changes", headers=headers) as stream:
        assert stream.status == 200
        created = await _create(url, client, server)
        async with asyncio.timeout(PATIENCE):
            async for line in stream.content:
                if line.startswith(b"data: ") and json.loads(line[6:])["id"] == created:
                    break


async def _create(url: URL, client: aiohttp.ClientSession, server: Server) -> str:
    """Makes a note; its id."""
    async with client.post(url / "collections/note", json={"title": "Milk"}, headers=server.auth) as answer:
        assert answer.status == 201, await answer.text()
        return answer.headers["Location"].rpartition("/")[2]


async def test_the_largest_body_reaches_the_server(url: URL, client: aiohttp.ClientSession, server: Server) -> None:
    """A recording's 25 MB; here to an operation that refuses as much, in its own words."""
    body, headers = BytesIO(bytes(25 * MB)), {"Content-Type": "application/json", **server.auth}
    async with client.post(url / "collections/note/batch", data=body, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (413, "application/problem+json")


async def test_plain_http_is_sent_to_https(nginx: tuple[int, int], client: aiohttp.ClientSession) -> None:
    url = URL(f"http://{HOST}:{nginx[1]}/v1/leaderboard?period=weekly")
    async with client.get(url, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (301, f"https://{HOST}{url.raw_path_qs}")
