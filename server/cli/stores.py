"""Whether the store that a configuration names can be used."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...storage import StorageDamaged, StorageError, StorageLocked, StorageUnavailable, make_storage
from ...storage.lockfile import StoreLock
from ...storage.remote import RemoteStorage
from ...storage.sqlite.schema import MIGRATIONS
from .findings import Finding

if TYPE_CHECKING:
    from ...storage import Storage
    from ..config import Config

_PATIENCE = 5.0
"""Seconds that a running server may take to answer."""
_LET_WRITE = "let this user write there, on a local disk that has room"
_RESTORE = "keep a copy of it as it is, and put a backup in its place"


def usable_store(config: Config) -> Finding:
    """Whether the store opens, takes writes and is whole. Makes none, and changes none that is of another version."""
    url = config.storage.url
    backend, _, place = url.partition(":")
    path = Path(place)
    if backend == "memory":
        return Finding("note", "storage", "memory: the data is gone when the server stops")
    if backend in ("file", "sqlite") and not path.exists():
        return _new_store(url, path)
    try:
        if backend == "sqlite" and (finding := _database(path)):
            return finding
        asyncio.run(_open(make_storage(url)))
    except StorageLocked as error:
        return asyncio.run(_in_use(url, error))
    except StorageDamaged as error:
        return Finding("fatal", "storage", str(error), _RESTORE)
    except StorageError as error:
        return Finding("fatal", "storage", str(error), _LET_WRITE)
    except ValueError as error:
        return Finding("fatal", "storage", str(error), "correct storage.url")
    return Finding("ok", "storage", url)


async def _open(storage: Storage) -> None:
    async with storage:
        await storage.ping()


async def _in_use(url: str, locked: StorageLocked) -> Finding:
    """What the server that has the store says of it."""
    path = make_storage(url).path
    if path is not None:
        with suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(_PATIENCE), RemoteStorage(path) as storage:
                try:
                    await storage.ping()
                except StorageError as error:
                    return Finding("warning", "storage", f"{locked}, a server, which says: {error}", _LET_WRITE)
                return Finding("ok", "storage", f"{locked}, a server, which answers")
    return Finding("note", "storage", f"{locked}, so it was not looked into", "stop that server to have it checked")


def _new_store(url: str, path: Path) -> Finding:
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        return Finding("fatal", "storage", f"{path} cannot be made: {folder} is not a folder", "give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("fatal", "storage", f"{path} cannot be made: {folder} is not writable", _LET_WRITE)
    return Finding("ok", "storage", f"{url}, made at the first start")


def _database(path: Path) -> Finding | None:
    """What is wrong with an SQLite database, or to be known before it is opened to write."""
    lock = StoreLock(path)
    lock.acquire()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            damage = [row[0] for row in db.execute("PRAGMA integrity_check(3)")]
            version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        return Finding("fatal", "storage", f"{path}: {error}", _RESTORE)
    finally:
        lock.release()
    if damage != ["ok"]:
        return Finding("fatal", "storage", f"{path}: {'; '.join(damage)}", _RESTORE)
    if version < len(MIGRATIONS):
        return Finding(
            "note", "storage", f"{path} is of an earlier version; a start backs it up and brings it up to date"
        )
    return None
