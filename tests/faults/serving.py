"""A `homeport serve` that things happen to, clients that go on writing to it, and what is in its store afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from homeport.storage import Query, open_storage, walk

PATIENCE = 60.0
"""Seconds that anything may take on a loaded machine."""
CLIENTS = 8
_PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_START") if name in os.environ}


class Server:
    """A server in a folder, on a port of its own, with a collection ``pair``.

    ``storage``: the URL of its store. ``environ``: what its environment has besides.
    """

    def __init__(self, folder: Path, storage: str, port: int, environ: Mapping[str, str]) -> None:
        (folder / "schemas").mkdir()
        (folder / "schemas" / "pair.schema.json").write_text('{"type": "object"}')
        self.folder = folder
        self.storage = storage
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "homeport", "serve", "--schemas", "schemas", "--storage", storage]
        self._command += ["--port", str(port)]
        self._environ = {**_PLAIN, **environ}
        self.start()

    def start(self) -> None:
        """Returns when it is ready."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=self._environ, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith(b"homeport "), (self.folder / "log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


class Refusal(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


class Load:
    """Clients that write pairs, each of two records in one batch, for as long as the context lasts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.acknowledged: set[str] = set()
        self.refused: dict[str, Refusal] = {}
        self.unanswered: set[str] = set()
        """Of those nobody knows."""

    async def __aenter__(self) -> Load:
        self.session = aiohttp.ClientSession(
            self._server.url, timeout=aiohttp.ClientTimeout(total=PATIENCE), headers={"Connection": "keep-alive"}
        )
        self._clients = [asyncio.create_task(self._write(client)) for client in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.cancel()
        results = await asyncio.gather(*self._clients, return_exceptions=True)
        await self.session.close()
        for result in results:
            assert isinstance(result, asyncio.CancelledError), result

    @property
    def answers(self) -> Counter[int]:
        """How many there were of each status."""
        return Counter({200: len(self.acknowledged)}) + Counter(refusal.status for refusal in self.refused.values())

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not happened():
                for client in self._clients:
                    if client.done():
                        client.result()
                await asyncio.sleep(0.01)

    async def acknowledges(self, more: int = 50) -> None:
        """Returns when so many further pairs were acknowledged."""
        enough = len(self.acknowledged) + more
        await self.until(lambda: len(self.acknowledged) >= enough)

    async def refuses(self, more: int = 20) -> list[Refusal]:
        """So many further refusals."""
        before = len(self.refused)
        await self.until(lambda: len(self.refused) >= before + more)
        return list(self.refused.values())[before:]

    async def _write(self, client: int) -> None:
        number = version = 0
        while True:
            number += 1
            pair = f"{client}-{number}"
            record = {"pair": pair, "text": "x" * 2000}
            operations = [{"op": "put", "id": f"{pair}-{side}", "record": record} for side in ("left", "right")]
            self.unanswered.add(pair)
            try:
                async with self.session.post("/collections/pair/batch", json={"operations": operations}) as answer:
                    body = await answer.json(content_type=None)
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.02)
                continue
            self.unanswered.remove(pair)
            if answer.status == 200:
                assert body["version"] > version
                version = body["version"]
                self.acknowledged.add(pair)
            else:
                self.refused[pair] = Refusal(answer.status, answer.headers, body)
                await asyncio.sleep(0.02)

    async def read(self, pair: str) -> int:
        """The status of a record's answer."""
        async with self.session.get(f"/collections/pair/{pair}-left") as answer:
            if answer.status == 200:
                assert (await answer.json())["pair"] == pair
            return answer.status

    async def get(self, path: str) -> tuple[int, Any]:
        """On a connection of its own."""
        async with (
            aiohttp.ClientSession(self._server.url, timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(path) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def ready(self, *statuses: int) -> None:
        """Returns when /health/ready answers one of these."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(aiohttp.ClientError):
                    if (await self.get("/health/ready"))[0] in statuses:
                        return
                await asyncio.sleep(0.1)


async def check(server: Server, load: Load) -> None:
    """Kills the server: what it acknowledged is there, nothing of what it refused, and no half of anything."""
    server.kill()
    sides: dict[str, set[str]] = {}
    async with open_storage(server.storage) as storage:
        async for record in walk(storage, Query(storage.collections["collections_pair"])):
            pair, _, side = record.id.rpartition("-")
            assert record.decode()["pair"] == pair
            sides.setdefault(pair, set()).add(side)
    assert {pair for pair, found in sides.items() if found != {"left", "right"}} == set()
    assert load.acknowledged - sides.keys() == set()
    assert sides.keys() & load.refused.keys() == set()
    assert sides.keys() <= load.acknowledged | load.unanswered
