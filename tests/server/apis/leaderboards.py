"""What the leaderboard's tests share: what clients send, and a server whose users have keys."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from unittest.mock import patch

from homeport.server import bcrypt_pool
from homeport.server.api_keys import DEFAULT_SCOPES, ApiKeys
from homeport.server.clock import Clock
from homeport.storage import Storage

from .conftest import Answer, Serve, Served

NOW = "2025-12-21T12:00:00Z"
"""What the clock shows until a test moves it: an hour and a half after the contract's entry, on a Sunday."""
TODAY = "2025-12-21"
ENDLESS = {"apis.leaderboard.rate_limit": "1000000/hour"}
LARGEST_COUNT = 2**53 - 1


def entry(**changes: Any) -> dict[str, Any]:
    """The contract's entry; with ``...`` a member is left out."""
    whole: dict[str, Any] = {
        "username": "alice",
        "date": "2025-12-21",
        "totalTokens": 11681277,
        "totalCost": 9.30,
        "inputTokens": 19756,
        "outputTokens": 448,
        "cacheCreationTokens": 583432,
        "cacheReadTokens": 11077641,
        "modelsUsed": ["claude-opus-4-5-20251101"],
        "timestamp": "2025-12-21T10:30:00.000Z",
    }
    return {name: value for name, value in (whole | changes).items() if value is not ...}


def upload(*entries: Any, **changes: Any) -> dict[str, Any]:
    """A sync's body, with the contract's entry if none is given; with ``...`` a member is left out."""
    whole = {"entries": list(entries) or [entry()], "source": "ccusage", "version": "1.0.0"}
    return {name: value for name, value in (whole | changes).items() if value is not ...}


@dataclass
class Board:
    """A server and the keys of its users, which are made when they are first needed."""

    server: Served
    texts: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    async def key(self, username: str = "alice", *scopes: str) -> str:
        """A user's key. Its hash takes a millisecond: bcrypt at its cost has tests of its own."""
        scopes = scopes or DEFAULT_SCOPES
        if (username, scopes) not in self.texts:
            async with api_keys(self.server.storage, self.server.clock) as keys:
                self.texts[username, scopes] = (await keys.create(username, scopes))[1]
        return self.texts[username, scopes]

    async def call(
        self, method: str, path: str, *, key: str | None = None, username: str = "alice", **request: Any
    ) -> Answer:
        """With a user's key."""
        headers = {"Authorization": f"Bearer {key or await self.key(username)}"} | request.pop("headers", {})
        return await self.server(method, path, headers=headers, **request)

    async def post(self, body: Any, **call: Any) -> Answer:
        """A sync whose body is given, as bytes, a stream of them, or what becomes JSON."""
        data = body if isinstance(body, bytes | BytesIO) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | call.pop("headers", {})
        return await self.call("POST", "/v1/sync", data=data, headers=headers, **call)

    async def sync(self, *entries: dict[str, Any]) -> Answer:
        """Entries of one user, with a key of that user's; they are taken in."""
        posted = upload(*entries)
        answer = await self.post(posted, username=posted["entries"][0]["username"])
        assert answer.status == 200, answer.content
        assert answer.json["entriesProcessed"] == len(posted["entries"])
        return answer

    async def ranking(self, query: str = "") -> Any:
        """A page of the leaderboard."""
        answer = await self.server.get(f"/v1/leaderboard?{query}")
        assert answer.status == 200, answer.content
        return answer.json

    async def user(self, username: str = "alice") -> Any:
        """A user's page, or None."""
        answer = await self.server.get(f"/v1/user/{username}")
        assert answer.status in (200, 404), answer.content
        return answer.json if answer.status == 200 else None

    async def data(self, username: str = "alice") -> Any:
        """What a user may download."""
        answer = await self.call("GET", "/v1/user/data", username=username)
        assert answer.status == 200, answer.content
        return answer.json

    async def rows(self, username: str = "alice") -> list[dict[str, Any]]:
        """What is kept of a user's entries."""
        entries: list[dict[str, Any]] = (await self.data(username))["entries"]
        return entries


@asynccontextmanager
async def api_keys(storage: Storage, clock: Clock) -> AsyncIterator[ApiKeys]:
    """The keys on a store, as another process has them, hashed at the least cost that bcrypt knows."""
    keys = ApiKeys(storage, clock)
    with patch.object(bcrypt_pool, "COST", 4):
        yield keys
    keys.close()


async def open_board(serve: Serve, settings: dict[str, Any] | None = None, **more: Any) -> Board:
    """A server of the leaderboard alone, with these settings, where it is `NOW`."""
    return Board(await serve({"apis.enabled": ["leaderboard"]} | (settings or {}), **({"now": NOW} | more)))
