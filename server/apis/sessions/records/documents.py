"""Documents in the store, whatever they are of: found by their ids, and changed.

Every id is a UUIDv7, so that order of id is order of time, and "newest first" is the order of falling ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .....storage import Collection, Put, Record, Storage, Write, retry
from ....errors import NotFound


def identified(record: Record) -> dict[str, Any]:
    """A document, with its ``id``."""
    return {"id": record.id, **record.decode()}


async def find(storage: Storage, collection: Collection, id: str) -> Record:
    """The record of an id, which clients may write in capitals. Raises `NotFound`."""
    record = (await storage.get(collection, [id.lower()])).get(id.lower())
    if record is None:
        kind = collection.name.removeprefix("sessions_").removesuffix("s")
        raise NotFound(f"{kind.capitalize()} not found")
    return record


async def get(storage: Storage, collection: Collection, id: str) -> dict[str, Any]:
    """A document, with its ``id``. Raises `NotFound`."""
    return identified(await find(storage, collection, id))


async def get_all(storage: Storage, collection: Collection, ids: Iterable[str | None]) -> dict[str, dict[str, Any]]:
    """Documents by id; without those that are gone."""
    found = await storage.get(collection, list({id for id in ids if id is not None}))
    return {id: record.decode() for id, record in found.items()}


async def change(
    storage: Storage, collection: Collection, id: str, changes: Mapping[str, Any], *also: Write
) -> dict[str, Any]:
    """Writes some members of a document, and ``also`` in the same commit; returns it, with its ``id``. Raises
    `NotFound`."""

    async def attempt() -> dict[str, Any]:
        record = await find(storage, collection, id)
        document: dict[str, Any] = record.decode() | changes
        await storage.commit([Put(collection, record.id, document, record.version), *also])
        return {"id": record.id, **document}

    return await retry(storage, [lock(collection, id)], attempt)


def lock(collection: Collection, id: str) -> str:
    """What writes of a document take turns on."""
    return f"{collection.name}/{id.lower()}"
