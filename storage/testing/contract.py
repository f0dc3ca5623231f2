"""What the parts of the contract share: the hook that a back end fills in, the store under test, its collections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import pytest_asyncio

from ..base import Storage
from ..errors import Conflict
from ..records import Change, Changes, Collection, Field, FieldType, Record
from ..writes import Commit, Put, Write

SOON = 60.0
"""Seconds within which what must happen has happened."""


@pytest.mark.asyncio
class Contract:
    """``durable``: what was acknowledged is there when the store is opened again.

    ``layout``: that of the collections.
    """

    durable: ClassVar[bool] = True
    layout: ClassVar[Literal["lines", "files"]] = "lines"

    def make(self, path: Path) -> Storage:
        """A store, not open, at a path where nothing is yet but its folder; one path is one store."""
        raise NotImplementedError

    # Collections

    def collection(self, name: str, *fields: Field, tombstones: bool = False) -> Collection:
        return Collection(name, fields, tombstones, self.layout)

    @cached_property
    def notes(self) -> Collection:
        """No fields; forgets its deletions."""
        return self.collection("notes")

    @cached_property
    def items(self) -> Collection:
        """A field of every type; remembers its deletions."""
        types: dict[str, FieldType] = {"n": "integer", "t": "text", "b": "boolean", "d": "double", "at": "time"}
        return self.collection("items", *[Field(*field) for field in types.items()], tombstones=True)

    @cached_property
    def indexed(self) -> Collection:
        """`items` with an index on each field."""
        fields = [replace(field, indexed=True) for field in self.items.fields]
        return self.collection("indexed", *fields, tombstones=True)

    @cached_property
    def people(self) -> Collection:
        """Two unique fields."""
        fields = Field("email", "text", unique=True), Field("number", "integer", unique=True)
        return self.collection("people", *fields, tombstones=True)

    def of(self, kind: str) -> Collection:
        return {"items": self.items, "indexed": self.indexed}[kind]

    @property
    def collections(self) -> Sequence[Collection]:
        return self.notes, self.items, self.indexed, self.people

    # Stores

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    @pytest_asyncio.fixture
    async def storage(self, path: Path) -> AsyncIterator[Storage]:
        """An empty store that knows the collections."""
        async with self.make(path) as storage:
            await storage.declare(*self.collections)
            yield storage

    @asynccontextmanager
    async def reopened(self, storage: Storage, path: Path) -> AsyncIterator[Storage]:
        """Closes a store and opens it anew."""
        await storage.close()
        async with self.make(path) as again:
            await again.declare(*self.collections)
            yield again

    @pytest.fixture
    def needs_durable(self) -> None:
        if not self.durable:
            pytest.skip("the back end is not durable")


# What tests say often


async def put(storage: Storage, collection: Collection, *ids: str, **document: object) -> Commit:
    """Writes the same document under some ids, in one commit."""
    return await storage.commit([Put(collection, id, dict(document)) for id in ids])


async def at_once(storage: Storage, *commits: Sequence[Write]) -> list[Commit | Conflict]:
    """What becomes of commits that arrive in this order before the first is done."""
    outcomes = await asyncio.gather(*map(storage.commit, commits), return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, Commit | Conflict):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Commit | Conflict)]


async def all_changes(storage: Storage, collection: Collection, after: int = 0) -> Changes:
    return await storage.changes(collection, after, 1_000_000)


async def everything(storage: Storage, *collections: Collection) -> list[Changes]:
    """All that a store holds, tombstones and floors included."""
    return [await all_changes(storage, collection) for collection in collections]


def ids(records: Iterable[Record | Change | Put]) -> list[str]:
    return [record.id for record in records]
