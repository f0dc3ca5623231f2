"""Chromium without a window, driven through the DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",  # it refuses to have one where it runs as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
)


class Tab:
    """A page that is open. Everything that it writes to its console as an error is in ``errors``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise's, once it has one."""
        done = await self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise AssertionError(done["exceptionDetails"])
        return done["result"].get("value")

    async def until(self, condition: str) -> None:
        """Returns when an expression is true in the page."""
        async with asyncio.timeout(20):
            while not await self.run(condition):
                await asyncio.sleep(0.02)

    async def open(self, url: str) -> None:
        await self._call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def resize(self, width: int, height: int) -> None:
        """Makes the page so many pixels wide and high."""
        size = {"width": width, "height": height}
        await self._call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=True)

    async def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(20):
            return await answer

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told.get("result") or {"exceptionDetails": told})
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(told["params"]["entry"]["text"])

    async def begin(self) -> None:
        await self._call("Page.enable")
        await self._call("Log.enable")

    async def close(self) -> None:
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._socket.close()


class Browser:
    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address
        self.tabs: list[Tab] = []

    async def tab(self) -> Tab:
        """A new one."""
        async with self._session.put(f"http://{self._address}/json/new?about:blank") as answer:
            target = await answer.json()
        tab = Tab(await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        self.tabs.append(tab)
        await tab.begin()
        return tab


@asynccontextmanager
async def chromium(profile: Path, *arguments: str) -> AsyncIterator[Browser]:
    """A browser with an empty profile and further arguments; skips the test where there is none."""
    command = next(filter(None, map(shutil.which, _NAMES)), None)
    if command is None:
        pytest.skip("needs chromium")
    process = await asyncio.create_subprocess_exec(
        *(command, *_QUIET, *arguments, f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            assert process.stderr is not None
            while not (found := re.search(rb"DevTools listening on ws://([^/]+)/", await process.stderr.readline())):
                assert process.returncode is None, "chromium ended"
            browser = Browser(session, found[1].decode())
            yield browser
            for tab in browser.tabs:
                await tab.close()
    finally:
        process.kill()
        await process.communicate()
