"""make_storage and open_storage: a store by its URL."""

from pathlib import Path

import pytest

from homeport.storage import (
    Collection,
    Conflict,
    Field,
    Put,
    Query,
    Storage,
    StorageUnavailable,
    make_storage,
    open_storage,
)

from .conftest import BackEnd

NOTES = Collection("notes")


def make_nothing() -> None:
    """No storage."""


async def test_a_store_is_opened_declared_to_and_closed(back_end: BackEnd, tmp_path: Path) -> None:
    async with open_storage(back_end.url(tmp_path / "deep" / "down" / "store"), [NOTES]) as storage:
        assert (await storage.commit([Put(NOTES, "a", {})])).version == 1
        assert isinstance(storage, Storage)
    with pytest.raises(StorageUnavailable):
        await storage.ping()


async def test_a_declaration_that_is_refused_leaves_the_store_free(durable: BackEnd, tmp_path: Path) -> None:
    url = durable.url(tmp_path / "store")
    async with open_storage(url, [NOTES]) as storage:
        await storage.commit([Put(NOTES, "a", {"t": "same"}), Put(NOTES, "b", {"t": "same"})])
    with pytest.raises(Conflict):
        async with open_storage(url, [Collection("notes", (Field("t", "text", unique=True),))]):
            pass
    async with open_storage(url, [NOTES]) as storage:
        assert await storage.count(Query(NOTES)) == 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        ":",
        "memory:x",
        "file:",
        "sqlite:",
        "data.db",
        "./data.db",
        "../data.db",
        "/var/lib/data.db",
        "mysql://localhost/x",
        "no.such.module:make",
        "homeport.storage:no_such_name",
        "homeport.storage:make_storage",
        "json:",
        "..:x",
    ],
)
def test_what_is_no_storage(url: str) -> None:
    with pytest.raises(ValueError, match="is no storage: use memory:, file:PATH, sqlite:PATH or module:factory"):
        make_storage(url)


def test_a_factory_that_makes_something_else() -> None:
    with pytest.raises(ValueError, match=r"did not make a homeport.storage.Storage"):
        make_storage(f"{__name__}:make_nothing")


@pytest.mark.parametrize("url", ["postgresql://localhost/x", "postgres:x"])
def test_what_is_to_come(url: str) -> None:
    with pytest.raises(ValueError, match=r"^postgres(ql)?: not available in this version$"):
        make_storage(url)
