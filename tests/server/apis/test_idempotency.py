"""``Idempotency-Key`` where requests end with their clients, as an embedder may have it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from homeport.server.apis.metering.ledger import Ledger
from homeport.server.apis.metering.licenses import Licenses
from homeport.server.app import create_app
from homeport.server.clock import Clock
from homeport.server.config import load_config
from homeport.storage import Commit, Write
from homeport.storage.memory import MemoryStorage

from .collected import ANYTHING, write_schemas
from .licensed import bearer


class SlowStorage(MemoryStorage):
    """A store whose commits, like those of a disk, go on where who waits for them is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = asyncio.Event()
        self.fast.set()
        self.asked = asyncio.Event()
        self.version = 0

    async def commit(self, writes: Sequence[Write]) -> Commit:
        async def slowly() -> Commit:
            await self.fast.wait()
            commit = await MemoryStorage.commit(self, writes)
            self.version = commit.version
            return commit

        self.asked.set()
        return await asyncio.shield(asyncio.create_task(slowly()))


@asynccontextmanager
async def _embedded(app: web.Application) -> AsyncIterator[tuple[str, web.AppRunner]]:
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", runner
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("/api/tokens/consume", {"tokens_amount": 1000}, 200, id="tokens are spent"),
        pytest.param("/api/tokens/consume", {"tokens_amount": 10**9}, 402, id="tokens are refused"),
        pytest.param("/collections/thing", {"name": "one"}, 201, id="a record is made"),
        pytest.param(
            "/collections/thing/batch",
            {"operations": [{"op": "put", "id": "one", "record": {}, "if_version": 0}]},
            200,
            id="a batch",
        ),
        pytest.param(
            "/collections/thing/sync", {"since": 0, "changes": [{"id": "one", "record": {}}]}, 200, id="a sync"
        ),
    ],
)
async def test_a_client_that_hangs_up_while_it_is_written(
    tmp_path: Path, path: str, body: dict[str, Any], status: int
) -> None:
    """Until the commit is done the key is running; after it, there is the first answer."""
    write_schemas(tmp_path, thing=ANYTHING)
    settings = {
        "apis.enabled": ["collections", "metering"],
        "apis.collections.schemas": str(tmp_path),
        "apis.metering.rate_limit": "1000000/minute",
    }
    config = load_config(environ={}, overrides={"storage.url": "memory:", **settings})
    async with SlowStorage() as storage:
        app = create_app(config, storage=storage)
        async with _embedded(app) as (url, runner), aiohttp.ClientSession() as session:
            clock = Clock()
            _, key = await Licenses(storage, clock, Ledger(storage, clock, config.apis.metering)).create("a@b.example")
            headers = {**bearer(key), "Idempotency-Key": "one", "Connection": "close"}

            async def ask() -> tuple[int, bytes]:
                async with session.post(url + path, json=body, headers=headers) as answer:
                    return answer.status, await answer.read()

            storage.asked.clear()
            storage.fast.clear()
            version = storage.version
            first = asyncio.create_task(ask())
            await storage.asked.wait()
            first.cancel()
            async with asyncio.timeout(30):
                while runner.server is not None and runner.server.connections:  # nothing tells
                    await asyncio.sleep(0.01)
                refused, _ = await ask()
                storage.fast.set()
                while (again := await ask())[0] == 409:
                    await asyncio.sleep(0.01)
            assert (refused, again[0]) == (409, status)
            after = storage.version
            assert after > version
            assert await ask() == again
            assert storage.version == after
