"""Lives of stores, step by step, and what the back end in memory makes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from homeport.storage import (
    Changes,
    Collection,
    Delete,
    Field,
    Put,
    Storage,
    StorageUnavailable,
    Tombstones,
    Write,
)
from homeport.storage.file import FileStorage
from homeport.storage.memory import MemoryStorage

LINES = Collection("lines", (Field("n", "integer", indexed=True), Field("u", "text", unique=True)), tombstones=True)
PLAIN = Collection("plain")
FILES = Collection("files", tombstones=True, layout="files")
FORGETFUL = Collection("forgetful", layout="files")
COLLECTIONS = (LINES, PLAIN, FILES, FORGETFUL)

State = tuple[list[Changes], dict[str, Collection]]


async def state(storage: Storage) -> State:
    """All that a store holds and says."""
    known = storage.collections.values()
    return [await storage.changes(collection, 0, 1000) for collection in known], dict(storage.collections)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[FileStorage]:
    async with FileStorage(path) as storage:
        await storage.declare(*COLLECTIONS)
        yield storage


def put(collection: Collection, id: str, document: bytes = b"{}", if_version: int | None = None) -> Put:
    return Put(collection, id, document, if_version)


Step = Callable[[Storage], Awaitable[object]]


def declares(*collections: Collection) -> Step:
    return lambda storage: storage.declare(*collections)


def commits(*writes: Write) -> Step:
    return lambda storage: storage.commit(writes)


def purges(collection: Collection, up_to: int) -> Step:
    return lambda storage: storage.purge(Tombstones(collection, up_to))


async def opens(storage: Storage) -> None:
    await storage.open()


async def reopens(storage: Storage) -> None:
    """Closing a store writes its data files."""
    if isinstance(storage, FileStorage):
        await storage.close()
        await storage.open()


OTHER = Collection("lines", (Field("n", "integer"),), tombstones=True, layout="files")
LIFE: list[Step] = [
    declares(*COLLECTIONS),
    commits(put(LINES, "a", b' {"n":1,"u":"x"}'), put(PLAIN, "a"), put(FILES, "A/b", b'{"x":1}'), put(FORGETFUL, "a")),
    commits(put(LINES, "b", b'{"n":2}'), Delete(PLAIN, "a"), Delete(FILES, "A/b"), Delete(FORGETFUL, "a")),
    reopens,
    commits(put(LINES, "a", b'{"n":3,"u":"y"}'), put(FILES, "long" * 100), put(FORGETFUL, "b"), put(PLAIN, "b")),
    commits(Delete(LINES, "b"), put(FILES, "A/b", b'{"x":2}'), put(FORGETFUL, "c")),
    reopens,
    commits(Delete(FILES, "long" * 100), Delete(FORGETFUL, "b"), put(LINES, "c")),
    purges(LINES, 100),
    reopens,
    declares(OTHER),
    commits(put(OTHER, "d", b'{"n":4}'), Delete(OTHER, "c")),
    reopens,
    commits(put(OTHER, "d", b'{"n":5}')),
]


async def lived() -> list[State]:
    """What a store holds after each step, by the back end in memory."""
    async with MemoryStorage() as memory:
        states = [await state(memory)]
        for step in LIFE:
            await step(memory)
            states.append(await state(memory))
    return states


async def live(storage: Storage) -> int:
    """Leads the life until a step fails; returns how many succeeded."""
    done = 0
    try:
        await storage.open()
        for step in LIFE:
            await step(storage)
            done += 1
    except StorageUnavailable:
        return done
    return done
