"""The back end of local development: a page on another port lists, creates and edits notes, and sees another tab's
edits as they happen, in a real browser."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from ..browser import Tab, chromium

SCHEMAS = Path(__file__).parent / "schemas"
PAGE = Path(__file__).parent / "notes.html"


@asynccontextmanager
async def page() -> AsyncIterator[str]:
    """The URL of the page, on a port of its own."""

    async def answer(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE)

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


@asynccontextmanager
async def homeport(folder: Path) -> AsyncIterator[str]:
    """The URL of `homeport serve --schemas schemas --watch` in a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOMEPORT_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "homeport", "serve", "--schemas", "schemas", "--watch", "--port", "0"),
        cwd=folder,
        env=environment | {"XDG_DATA_HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().split()[-1]
    process.terminate()
    assert await process.wait() == 0


async def shows(tab: Tab, *titles: str) -> None:
    """Waits until a tab shows just these notes."""
    shown = "[...document.querySelectorAll('li')].map(item => item.textContent)"
    await tab.until(f"JSON.stringify({shown}) === {json.dumps(json.dumps(titles, separators=(',', ':')))}")


async def test_two_tabs_share_their_notes(tmp_path: Path) -> None:
    shutil.copytree(SCHEMAS, tmp_path / "schemas")
    async with chromium(tmp_path / "profile") as browser, page() as url, homeport(tmp_path) as server:
        one, other = await browser.tab(), await browser.tab()
        for tab in (one, other):
            await tab.open(f"{url}?server={server}")
            await shows(tab, "Bread", "Milk")
        created = await one.run("call('POST', '', {title: 'Eggs'})")
        assert created["status"] == 201
        for tab in (one, other):
            await shows(tab, "Bread", "Eggs", "Milk")
        edited = await other.run("call('PATCH', '/n1', {title: 'Oat milk'})")
        assert edited["status"] == 200
        await shows(one, "Bread", "Eggs", "Oat milk")
        stale = await one.run("call('PUT', '/n1', {title: 'Rye'}, {'If-Match': '\"1\"'})")
        assert stale["status"] == 412
        assert (await one.run("call('PUT', '/n1', {title: ''})"))["status"] == 400
        assert (await one.run("call('DELETE', '/n2')"))["status"] == 204
        for tab in (one, other):
            await shows(tab, "Eggs", "Oat milk")
        # The browser itself tells of answers of 400 and more; of what it forbids it would tell as well.
        assert [error for error in one.errors + other.errors if "status of 4" not in error] == []


async def test_a_page_of_a_stranger_may_not_call(tmp_path: Path) -> None:
    shutil.copytree(SCHEMAS, tmp_path / "schemas")
    async with chromium(tmp_path / "profile") as browser, homeport(tmp_path) as server:
        tab = await browser.tab()
        await tab.open("data:text/html,<title>elsewhere</title>")  # its origin is null
        note = json.dumps(f"{server}/collections/note")
        asked = f"fetch({note}, {{method: 'POST', body: '{{}}'}}).then(() => 'answered', () => 'refused')"
        assert await tab.run(asked) == "refused"
