"""Offline clients: they edit without a connection, lose answers, come back, and end with exactly the server's state."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homeport.storage import Query

from .conftest import Serve
from .synced import Notes, apply, open_notes

IDS = [f"n{number}" for number in range(6)]
ABSENT = 0


@dataclass
class Request:
    """A sync that was sent and not answered: it is sent again as it was, under its key."""

    key: str
    since: int
    edits: dict[str, dict[str, Any]]


@dataclass
class Client:
    """What an app keeps on its device: the records, by id, as it was told of them; its own edits; the version."""

    name: str
    notes: Notes
    chance: random.Random
    keyed: bool
    """Whether it deletes; it then sends keys, since a record that others deleted would come back if it was created
    again."""
    since: int = 0
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    edits: dict[str, dict[str, Any]] = field(default_factory=dict)
    unanswered: Request | None = None
    made: int = 0
    refused: int = 0

    def version(self, id: str) -> int:
        record = self.known.get(id)
        return record["_meta"]["version"] if record else ABSENT

    def edit(self) -> None:
        id = self.chance.choice(IDS)
        base = self.edits[id]["if_version"] if id in self.edits else self.version(id)
        change: dict[str, Any] = {"id": id, "if_version": base}
        if self.keyed and self.chance.random() < 0.3:
            self.edits[id] = change | {"deleted": True}
        else:
            self.made += 1
            self.edits[id] = change | {"record": {"title": f"{self.name} {self.made}"}}

    async def sync(self) -> None:
        """Sends what it has; or what it sent before, where it does not know what became of that."""
        request = self.unanswered
        if request is None:
            request = Request(f"{self.name} {self.chance.random()}", self.since, dict(self.edits))
        match self.chance.choice(["answered", "answered", "lost on the way", "answer lost"]):
            case "answered":
                answer = await self._send(request)
                self.unanswered = None
                self._learn(request, answer)
            case "lost on the way":
                self.unanswered = request
            case "answer lost":
                await self._send(request)
                self.unanswered = request

    async def _send(self, request: Request) -> Any:
        answer = await self.notes.post(request.since, *request.edits.values(), headers={"Idempotency-Key": request.key})
        assert answer.status == 200, answer.content
        return answer.json

    def _learn(self, request: Request, answer: Any) -> None:
        apply(self.known, answer["changes"])
        self.since = answer["version"]
        for applied in answer["applied"]:
            self._settle(request.edits[applied["id"]], applied["version"])
        for conflict in answer["conflicts"]:  # what is there wins
            id = conflict["id"]
            self.refused += 1
            apply(self.known, [conflict | {"deleted": "record" not in conflict}])
            if self.edits.get(id) == request.edits[id]:
                del self.edits[id]
            elif id in self.edits:
                self.edits[id]["if_version"] = conflict["version"]

    def _settle(self, edit: dict[str, Any], version: int) -> None:
        """It is as this client wanted it, unless somebody wrote since, which the answer's changes say."""
        id = edit["id"]
        deleted = "record" not in edit
        if self.edits.get(id) == edit:
            del self.edits[id]
        elif id in self.edits:
            self.edits[id]["if_version"] = ABSENT if deleted else version
        if deleted and self.version(id) < version:
            self.known.pop(id, None)
        elif not deleted and self.version(id) < version:
            self.known[id] = edit["record"] | {"_meta": {"id": id, "version": version}}


async def pull(client: Client) -> None:
    more = True
    while more:
        answer = await client.notes.changes(f"since={client.since}&limit=2")
        apply(client.known, answer["changes"])
        client.since, more = answer["version"], answer["more"]


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("seed", range(6))
async def test_all_converge_and_nothing_is_applied_twice(serve: Serve, tmp_path: Path, seed: int, keyed: bool) -> None:
    chance = random.Random(seed)
    notes = await open_notes(serve, tmp_path)
    clients = [Client(name, notes, random.Random(chance.random()), keyed) for name in ("anna", "ben", "carl")]
    history: list[dict[str, Any]] = []
    async with notes.socket() as socket:
        await socket.subscribed("notes", since=0)
        for _ in range(80):
            client = chance.choice(clients)
            if chance.random() < 0.6:
                client.edit()
            elif chance.random() < 0.8:
                await client.sync()
            else:
                await pull(client)
        for _ in range(60):
            for client in clients:
                if client.edits or client.unanswered:
                    await client.sync()
        for client in clients:
            assert not client.edits
            await pull(client)
        end = await notes.put("end", {"title": "end"})
        while not history or history[-1]["version"] < end:
            history.append(await socket.next())
    for client in clients:
        await pull(client)
        assert titles(client.known) == titles(await notes.state())
        assert client.since == (await notes.changes())["version"]
    written = Counter(change["record"]["title"] for change in history if not change["deleted"])
    assert max(written.values()) == 1, "an edit was applied twice"
    storage = notes.server.storage
    records = await storage.find(Query(storage.collections["collections_notes"]))
    assert {record.id for record in records.records} == set(clients[0].known)


def titles(records: dict[str, dict[str, Any]]) -> dict[str, tuple[str, int]]:
    return {id: (record["title"], record["_meta"]["version"]) for id, record in records.items()}
