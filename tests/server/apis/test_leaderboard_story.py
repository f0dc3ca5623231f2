"""What the leaderboard is for, from the first key to the last trace, with the command and the server as people run
them."""

import asyncio
import json
import sys
from typing import Any

import pytest

from .conftest import Launch, Process
from .leaderboards import entry, upload

WEEK = "/v1/leaderboard?period=weekly&metric=tokens&date=2025-12-21"


async def keys_create(username: str, storage: str) -> str:
    """What `homeport keys create` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "homeport", "keys", "create", username, "--storage", storage),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().strip()


async def call(server: Process, method: str, path: str, key: str | None = None, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with server.session.request(method, server.url + path, headers=headers, json=body) as answer:
        document = json.loads(await answer.read())
        assert answer.status == 200, document
        return document


def ten_days(username: str, tokens: int) -> list[dict[str, Any]]:
    return [entry(username=username, date=f"2025-12-{day}", totalTokens=tokens) for day in range(12, 22)]


@pytest.mark.parametrize("backend", ["sqlite", "file"])
async def test_from_the_first_key_to_the_last_trace(backend: str, launch: Launch, tmp_path: Any) -> None:
    storage = f"{backend}:{tmp_path}/store"
    server = await launch("--port", "0", "--storage", storage)
    await server.ready()
    alice, bob = [await keys_create(name, storage) for name in ("alice", "bob")]

    synced = await call(server, "POST", "/v1/sync", alice, upload(*ten_days("alice", 1000)))
    assert synced == {
        "success": True,
        "message": "Successfully synced 10 entries",
        "entriesProcessed": 10,
        "leaderboardUrl": f"{server.url}/user/alice",
    }
    await call(server, "POST", "/v1/sync", bob, upload(*ten_days("bob", 1001)))
    ranked = (await call(server, "GET", WEEK))["entries"]
    assert [(row["rank"], row["username"], row["totalTokens"]) for row in ranked] == [
        (1, "bob", 7007),
        (2, "alice", 7000),
    ]

    newer = ten_days("alice", 1000)
    newer[-1] |= {"totalTokens": 5000, "timestamp": "2025-12-21T11:00:00Z"}
    await call(server, "POST", "/v1/sync", alice, upload(*newer))
    ranked = (await call(server, "GET", WEEK))["entries"]
    assert [(row["rank"], row["username"], row["totalTokens"], row["daysCounted"]) for row in ranked] == [
        (1, "alice", 11000, 7),
        (2, "bob", 7007, 7),
    ]

    assert (await call(server, "DELETE", "/v1/user/data", alice))["entriesDeleted"] == 10
    assert [row["username"] for row in (await call(server, "GET", WEEK))["entries"]] == ["bob"]
    async with server.session.get(f"{server.url}/v1/user/alice") as answer:
        assert answer.status == 404
    assert (await call(server, "GET", "/v1/user/data", alice))["entries"] == []
    assert await server.stop() == 0
