"""Where data lives: one interface, several back ends. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from .base import Storage
from .documents import InvalidDocument
from .errors import (
    Conflict,
    Gone,
    InvalidQuery,
    NotEmpty,
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageUnavailable,
)
from .queries import Filter, Operator, Page, Query, Tombstones, starts_with
from .records import ABSENT, Change, Changes, Collection, Field, Floor, Record
from .retry import retry
from .snapshots import Snapshot
from .walking import walk
from .writes import Check, Commit, Delete, DeleteWhere, Put, Write

__all__ = [
    "ABSENT",
    "Change",
    "Changes",
    "Check",
    "Collection",
    "Commit",
    "Conflict",
    "Delete",
    "DeleteWhere",
    "Field",
    "Filter",
    "Floor",
    "Gone",
    "InvalidDocument",
    "InvalidQuery",
    "NotEmpty",
    "Operator",
    "Page",
    "Put",
    "Query",
    "Record",
    "Snapshot",
    "Storage",
    "StorageDamaged",
    "StorageError",
    "StorageFull",
    "StorageLocked",
    "StorageUnavailable",
    "Tombstones",
    "Write",
    "make_storage",
    "open_storage",
    "retry",
    "starts_with",
    "walk",
]


def make_storage(url: str) -> Storage:
    """The back end of a storage URL, not yet open: ``memory:``, ``file:PATH``, ``sqlite:PATH``, or
    ``package.module:factory`` for somebody else's, whose factory takes no arguments. Raises ValueError."""
    scheme, _, rest = url.partition(":")
    match scheme:
        case "memory" if not rest:
            from .memory import MemoryStorage

            return MemoryStorage()
        case "file" if rest:
            from .file import FileStorage

            return FileStorage(Path(rest))
        case "sqlite" if rest:
            from .sqlite import SqliteStorage

            return SqliteStorage(Path(rest))
        case "postgres" | "postgresql":
            raise ValueError(f"{scheme}: not available in this version")
    try:
        storage = getattr(import_module(scheme), rest)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{url!r} is no storage: use memory:, file:PATH, sqlite:PATH or module:factory") from error
    if not isinstance(storage, Storage):
        raise ValueError(f"{url!r} did not make a homeport.storage.Storage")
    return storage


def open_storage(url: str, collections: Iterable[Collection] = ()) -> _Opened:
    """``async with open_storage("sqlite:data.db", [NOTES]) as storage``: opens the store of a URL, see `make_storage`,
    and declares collections to it."""
    return _Opened(make_storage(url), tuple(collections))


class _Opened:
    def __init__(self, storage: Storage, collections: tuple[Collection, ...]) -> None:
        self._storage = storage
        self._collections = collections

    async def __aenter__(self) -> Storage:
        await self._storage.open()
        try:
            await self._storage.declare(*self._collections)
        except BaseException:
            await self._storage.close()
            raise
        return self._storage

    async def __aexit__(self, *_: object) -> None:
        await self._storage.close()
