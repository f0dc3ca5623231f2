"""A store through the socket of the server that runs on it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from homeport.storage import (
    Collection,
    Conflict,
    Field,
    Gone,
    InvalidDocument,
    InvalidQuery,
    NotEmpty,
    Put,
    Query,
    Record,
    Storage,
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageUnavailable,
)
from homeport.storage.memory import MemoryStorage
from homeport.storage.remote import RemoteStorage, link, serving
from homeport.storage.remote.serving import serve_storage
from homeport.storage.testing import StorageContract

NOTES = Collection("notes", (Field("n", "integer"),), tombstones=True)


class Reached(RemoteStorage):
    """A remote store together with the one that it reaches, which is opened and closed with it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._server = AsyncExitStack()

    async def open(self) -> None:
        async with AsyncExitStack() as server:
            storage = await server.enter_async_context(MemoryStorage())
            await server.enter_async_context(serve_storage(storage, self.path))
            await super().open()
            self._server = server.pop_all()

    async def close(self) -> None:
        await super().close()
        await self._server.aclose()


DECLARING_DIFFERENTLY = {
    "test_a_new_field_is_derived_from_the_documents",
    "test_a_field_changes_its_type",
    "test_a_field_that_is_no_longer_declared",
    "test_a_field_becomes_unique",
    "test_a_collection_forgets_its_tombstones",
    "test_a_collection_changes_its_layout",
}


class TestContract(StorageContract):
    durable = False

    @pytest.fixture(autouse=True)
    def _what_a_server_declares_stands(self, request: pytest.FixtureRequest) -> None:
        if request.function.__name__ in DECLARING_DIFFERENTLY:
            pytest.skip("what a running server declares stands")

    def make(self, path: Path) -> Storage:
        return Reached(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
async def store() -> AsyncIterator[Storage]:
    """The store that is served."""
    async with MemoryStorage() as store:
        await store.declare(NOTES)
        yield store


@pytest.fixture
async def served(store: Storage, path: Path) -> AsyncIterator[Storage]:
    async with serve_storage(store, path):
        yield store


@pytest.fixture
async def remote(served: Storage, path: Path) -> AsyncIterator[Storage]:
    async with RemoteStorage(path) as remote:
        yield remote


# Declaring


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(replace(NOTES, fields=()), id="fields"),
        pytest.param(replace(NOTES, fields=(Field("n", "integer", unique=True),)), id="unique"),
        pytest.param(replace(NOTES, tombstones=False), id="tombstones"),
        pytest.param(replace(NOTES, layout="files"), id="layout"),
    ],
)
async def test_what_the_server_declares_stands(served: Storage, remote: Storage, other: Collection) -> None:
    assert remote.collections == {"notes": NOTES}
    with pytest.raises(StorageLocked, match="the running server knows notes differently"):
        await remote.declare(Collection("further"), other)
    assert served.collections == remote.collections == {"notes": NOTES}
    await remote.declare(NOTES, Collection("further"))
    assert served.collections == remote.collections == {"notes": NOTES, "further": Collection("further")}


# Errors


ERRORS = [
    Conflict(3, "notes", "a", "version", 7),
    Conflict(0, "notes", "\ud800é", "unique", 0, "email"),
    InvalidDocument("must be an integer", "n"),
    InvalidDocument("is not JSON"),
    *[kind("a \udcff path") for kind in (StorageUnavailable, StorageFull, StorageLocked, StorageDamaged)],
    *[kind("why") for kind in (NotEmpty, Gone, InvalidQuery, StorageError, ValueError)],
]


class Failing(MemoryStorage):
    """A store that answers a count with an error."""

    error: BaseException

    async def count(self, query: Query) -> int:
        raise self.error


@pytest.mark.parametrize("error", [pytest.param(error, id=ascii(error)) for error in ERRORS])
async def test_an_error_is_the_stores(path: Path, error: Exception) -> None:
    async with Failing() as store, serve_storage(store, path), RemoteStorage(path) as remote:
        store.error = error
        await remote.declare(NOTES)
        with pytest.raises(type(error)) as caught:
            await remote.count(Query(NOTES))
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert str(caught.value) == str(error).replace("\udcff", "\\udcff")


async def test_an_error_that_nobody_foresaw_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Failing() as store, serve_storage(store, path), RemoteStorage(path) as remote:
        store.error = ZeroDivisionError("secret")
        await remote.declare(NOTES)
        with pytest.raises(StorageUnavailable, match="the server failed; its log says why"):
            await remote.count(Query(NOTES))
        await remote.ping()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


# Sizes


async def test_long_answers_come_whole(served: Storage, remote: Storage) -> None:
    long = {f"{n}": b'{"text":"%b"}' % (b"x" * (n * 100_000)) for n in range(12)}
    await remote.commit([Put(NOTES, id, document) for id, document in long.items()])
    expected = {id: Record(id, n, document) for n, (id, document) in enumerate(long.items(), 1)}
    assert await served.get(NOTES, [*long]) == expected
    assert await remote.get(NOTES, [*long]) == expected
    assert await remote.find(Query(NOTES, total=True)) == await served.find(Query(NOTES, total=True))
    assert await remote.changes(NOTES, 0, 1000) == await served.changes(NOTES, 0, 1000)


async def test_a_commit_has_a_bound(remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_COMMIT_BYTES", 1_000_000)
    text = "x" * 300_000
    with pytest.raises(ValueError, match="a commit through a running server has at most"):
        await remote.commit([Put(NOTES, f"{n}", {"text": text}) for n in range(4)])
    assert await remote.count(Query(NOTES)) == 0
    await remote.commit([Put(NOTES, f"{n}", {"text": text}) for n in range(3)])


async def test_a_message_has_a_bound(remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_FRAME_BYTES", 1 << 20)
    for asked in remote.commit([Put(NOTES, "a", {"text": "x" * (1 << 20)})]), remote.get(NOTES, ["x" * 2000] * 600):
        with pytest.raises(ValueError, match="1 MiB cannot be said"):
            await asked
    assert await remote.get(NOTES, ["x" * 2000] * 500) == {}
