"""/docs: whole, true to /openapi.json, without scripts, and readable on a phone."""

import asyncio
import base64
import hashlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pytest_aiohttp import AiohttpClient

from homeport import create_app, load_config
from homeport.server.keys import OPENAPI

from ..browser import Tab, chromium

CONFIG = load_config(environ={}, overrides={"storage.url": "memory:"})
DOCUMENT = create_app(CONFIG)[OPENAPI]()
OPERATIONS = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]

Client = TestClient[web.Request, web.Application]


class Page(HTMLParser):
    """What there is to go to, what leads there, the tags, and what is in a <pre>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)
        self.close()
        self.shown = [unescape(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", html, re.DOTALL)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        given = dict(attrs)
        self.ids += [id] if (id := given.get("id")) else []
        self.links |= {href} if tag == "a" and (href := given.get("href")) else set()


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_app(CONFIG))


async def read(client: Client) -> Page:
    answer = await client.get("/docs")
    assert (answer.status, answer.content_type) == (200, "text/html")
    return Page(await answer.text())


async def test_everything_is_there_and_every_link_leads_somewhere(client: Client) -> None:
    page = await read(client)
    assert len(page.ids) == len(set(page.ids))
    assert {operation["operationId"] for operation in OPERATIONS} <= {*page.ids}
    assert {f"schema:{name}" for name in DOCUMENT["components"]["schemas"]} <= {*page.ids}
    assert page.links - {f"#{id}" for id in page.ids} == {"openapi.json"}


async def test_it_runs_nothing_and_fetches_nothing(client: Client) -> None:
    answer = await client.get("/docs")
    html = await answer.text()
    page = Page(html)
    assert page.tags & {"script", "iframe", "object", "img", "base", "form", "style"} == {"style"}
    assert {name for name in page.attributes if name.startswith("on")} | page.attributes & {"style", "src"} == set()
    sheets = [hashlib.sha256(text.encode()).digest() for text in re.findall("<style>(.*?)</style>", html, re.DOTALL)]
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in sheets)
    assert answer.headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src {sources}; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


async def test_what_a_client_has_is_not_sent_again(client: Client) -> None:
    for path in ("/docs", "/openapi.json"):
        first = await client.get(path)
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"
        again = await client.get(path, headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).status == 200
        assert (await client.head(path)).status == 200


async def test_the_lines_to_copy_are_lines_of_a_shell(client: Client) -> None:
    lines = [text for text in (await read(client)).shown if text.startswith("curl ")]
    assert len(lines) == len(OPERATIONS)
    checked = subprocess.run(("bash", "-n"), input="\n".join(lines), text=True, capture_output=True, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")


async def test_a_line_to_copy_works(client: Client) -> None:
    """Port and host are those of the configuration, which here are not where the server is."""
    (line,) = [text for text in (await read(client)).shown if text.startswith("curl ") and "/api/sync" in text]
    line = line.replace("http://127.0.0.1:8000", str(client.make_url("")).rstrip("/"))
    process = await asyncio.create_subprocess_exec("bash", "-c", f"{line} --silent", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert json.loads(said) == {
        "status": "success",
        "message": "Data synced successfully for M4x.local",
        "data": {"hostname": "M4x.local", "tokens": 2412018, "timestamp": "2025-06-03T10:30:00Z"},
    }


async def test_below_a_prefix(aiohttp_client: AiohttpClient) -> None:
    config = load_config(environ={}, overrides={"storage.url": "memory:", "server.base_path": "/sync"})
    client = await aiohttp_client(create_app(config))
    answer = await client.get("/sync/docs")
    assert "http://127.0.0.1:8000/sync/api/sync" in await answer.text()
    document = await (await client.get("/sync/openapi.json")).json()
    assert document["externalDocs"]["url"] == "/sync/docs"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with chromium(tmp_path) as browser:
        yield await browser.tab()


async def test_it_fits_screens_of_every_width(tab: Tab) -> None:
    async with TestServer(create_app(CONFIG)) as server:
        await tab.open(f"{server.make_url('/docs')}#metering.transcribe")
        assert 0 <= await tab.run("document.querySelector(':target').getBoundingClientRect().top") < 100
        for width in (320, 400, 800, 1300):
            await tab.resize(width, 800)
            assert await tab.run("document.documentElement.scrollWidth") == width
    assert tab.errors == []
