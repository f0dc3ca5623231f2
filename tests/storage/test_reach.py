"""A store, whoever owns it."""

import asyncio
import os
from pathlib import Path

import pytest

from homeport.storage import Collection, Put, Query, StorageLocked, open_storage
from homeport.storage.lockfile import StoreLock
from homeport.storage.remote import RemoteStorage, reach
from homeport.storage.remote.reach import reach_storage
from homeport.storage.remote.serving import serve_storage

from .conftest import FILE, SQLITE, BackEnd

NOTES = Collection("notes")


@pytest.fixture(params=[SQLITE, FILE], ids=lambda back_end: back_end.name)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    back_end: BackEnd = request.param
    return back_end.url(tmp_path / "store")


def path_of(url: str) -> Path:
    return Path(url.partition(":")[2])


async def note(url: str, id: str) -> type:
    """Writes a note; the kind of store that took it."""
    async with reach_storage(url, [NOTES]) as storage:
        await storage.commit([Put(NOTES, id, {})])
        return type(storage)


async def test_where_no_server_runs_it_is_opened(url: str) -> None:
    assert await note(url, "a") is not RemoteStorage
    async with open_storage(url, [NOTES]) as storage:
        assert await storage.count(Query(NOTES)) == 1


async def test_where_a_server_runs_it_is_asked(url: str) -> None:
    async with open_storage(url) as storage, serve_storage(storage, path_of(url)):
        assert await note(url, "a") is RemoteStorage
        assert await storage.count(Query(NOTES)) == 1
    async with open_storage(url, [NOTES]) as storage:
        assert await storage.count(Query(NOTES)) == 1


async def test_an_owner_may_take_a_moment(url: str) -> None:
    """A server that starts has the lock before its socket, one that stops after it."""
    async with open_storage(url) as storage:
        command = asyncio.create_task(note(url, "a"))
        await asyncio.wait([command], timeout=0.1)
        async with serve_storage(storage, path_of(url)):
            assert await command is RemoteStorage
        command = asyncio.create_task(note(url, "b"))
        await asyncio.wait([command], timeout=0.1)
    assert await command is not RemoteStorage


async def test_commands_at_once_take_turns(url: str) -> None:
    await asyncio.gather(*[note(url, f"{n}") for n in range(5)])
    async with open_storage(url, [NOTES]) as storage:
        assert await storage.count(Query(NOTES)) == 5


async def test_an_owner_that_does_not_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "PATIENCE", 0.1)
    lock = StoreLock(path_of(url))
    lock.acquire()
    try:
        with pytest.raises(StorageLocked) as caught:
            await note(url, "a")
    finally:
        lock.release()
    path = path_of(url)
    assert str(caught.value) == f"{path} is in use by process {os.getpid()}; no server answers at {path}.sock"


async def test_what_fails_leaves_nothing_open(url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with reach_storage(url, [NOTES]):
            raise ZeroDivisionError
    async with open_storage(url, [NOTES]) as storage, serve_storage(storage, path_of(url)):
        with pytest.raises(StorageLocked, match="the running server knows notes differently"):
            async with reach_storage(url, [Collection("notes", tombstones=True)]):
                raise AssertionError("it was reached")
        await storage.ping()
