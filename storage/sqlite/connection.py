"""A connection to SQLite whose thread executes functions, and whose errors are the storage contract's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from ..errors import StorageDamaged, StorageError, StorageFull, StorageUnavailable

T = TypeVar("T")

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Connection(sqlite3.Connection):
    """A connection that executes functions of itself, so that a whole batch is one hop to aiosqlite's thread."""

    def execute(self, work: Any, parameters: Any = (), /) -> Any:
        return work(self) if callable(work) else super().execute(work, parameters)


async def on_thread(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Runs a function of the connection on its thread."""
    result: list[T] = []
    execute: Any = connection.execute  # typed for SQL alone; Connection takes a callable
    await execute(lambda db: result.append(work(db)))
    return result[0]


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns the driver's errors into the contract's."""
    try:
        yield
    except StorageDamaged as error:
        raise StorageDamaged(f"{path} {error}") from error
    except StorageError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull(f"{path}: the disk is full") from error
        if code in _DAMAGED:
            raise StorageDamaged(f"{path}: {error}") from error
        raise StorageUnavailable(f"{path}: {error}") from error
    except OSError as error:
        raise StorageUnavailable(f"{error.filename or path}: {error.strerror}") from error


def is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
