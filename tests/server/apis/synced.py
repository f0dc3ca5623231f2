"""What the tests of syncing share: a server of two collections, and how its clients hear of changes."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from .conftest import JSON, Answer, Serve, Served

NOTE = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 100}, "tag": {"type": "string"}},
    "required": ["title"],
    "x-homeport": {"unique": ["tag"]},
}
TASK: dict[str, Any] = {"type": "object"}


def note(title: str = "Milk", **more: Any) -> dict[str, Any]:
    return {"title": title, **more}


@dataclass
class Notes:
    """A server with the collections ``notes`` and ``tasks``."""

    server: Served

    async def put(self, id: str, record: dict[str, Any], collection: str = "notes") -> int:
        """The version that it took."""
        answer = await self.server("PUT", f"/collections/{collection}/{id}", json=record)
        assert answer.status in (200, 201), answer.content
        version: int = answer.json["_meta"]["version"]
        return version

    async def delete(self, id: str, collection: str = "notes") -> None:
        assert (await self.server("DELETE", f"/collections/{collection}/{id}")).status == 204

    async def ask(self, query: str = "", collection: str = "notes", **request: Any) -> Answer:
        return await self.server.get(f"/collections/{collection}/changes?{query}", **request)

    async def changes(self, query: str = "", collection: str = "notes") -> Any:
        answer = await self.ask(query, collection)
        assert answer.status == 200, answer.content
        return answer.json

    async def post(
        self, since: int, *changes: dict[str, Any], query: str = "", headers: Mapping[str, str] | None = None
    ) -> Answer:
        body = BytesIO(json.dumps({"since": since, "changes": changes}).encode())
        return await self.server(
            "POST", f"/collections/notes/sync?{query}", data=body, headers=JSON | dict(headers or {})
        )

    async def sync(self, since: int, *changes: dict[str, Any]) -> Any:
        answer = await self.post(since, *changes)
        assert answer.status == 200, answer.content
        return answer.json

    async def state(self) -> dict[str, dict[str, Any]]:
        """All notes as a client has them that began with nothing; by id."""
        state: dict[str, dict[str, Any]] = {}
        since, more = 0, True
        while more:
            answer = await self.changes(f"since={since}&limit=1000")
            since, more = answer["version"], answer["more"]
            apply(state, answer["changes"])
        return state

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator["Socket"]:
        async with self.server.session.ws_connect(self.server.url + "/changes", max_msg_size=0, **options) as client:
            yield Socket(client)

    @asynccontextmanager
    async def events(self, query: str = "", collection: str = "notes", **headers: str) -> AsyncIterator["Events"]:
        url = f"{self.server.url}/collections/{collection}/changes?{query}"
        timeout = aiohttp.ClientTimeout()
        async with self.server.session.get(
            url, headers={"Accept": "text/event-stream"} | headers, timeout=timeout, read_bufsize=2**20
        ) as answer:
            yield Events(answer)


def apply(state: dict[str, dict[str, Any]], changes: Sequence[dict[str, Any]]) -> None:
    """What a client does with changes."""
    for change in changes:
        if change["deleted"]:
            state.pop(change["id"], None)
        else:
            state[change["id"]] = change["record"]


@dataclass
class Socket:
    client: aiohttp.ClientWebSocketResponse

    async def subscribe(self, *collections: str, since: int | None = None) -> None:
        message: dict[str, Any] = {"type": "subscribe", "collections": collections}
        await self.client.send_json(message if since is None else message | {"since": since})

    async def subscribed(self, *collections: str, since: int | None = None) -> None:
        """Subscribes, and returns when the server has taken notice."""
        await self.subscribe(*collections, since=since)
        await self.client.send_str("?")
        assert (await self.next())["type"] == "error"

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self.client.receive_json()

    async def versions(self, count: int) -> list[int]:
        return [(await self.next())["version"] for _ in range(count)]


@dataclass
class Events:
    answer: aiohttp.ClientResponse
    last_id: str = "0"

    async def next(self) -> Any:
        """The data of the next event; comments are skipped. Raises EOFError at the end of the stream."""
        async with asyncio.timeout(10):
            while line := await self.answer.content.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    self.last_id = value
                elif name == "data":
                    return json.loads(value)
        raise EOFError

    async def versions(self, count: int) -> list[int]:
        return [(await self.next())["version"] for _ in range(count)]


async def open_notes(serve: Serve, folder: Path, settings: dict[str, Any] | None = None, **more: Any) -> Notes:
    """A server of collections alone."""
    for name, schema in {"notes": NOTE, "tasks": TASK}.items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema))
    given = {"apis.enabled": ["collections"], "apis.collections.schemas": str(folder), **(settings or {})}
    return Notes(await serve(given, **more))
