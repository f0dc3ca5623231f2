"""What a store raises on its own account."""

from __future__ import annotations

from typing import Literal


class StorageError(Exception):
    """The root of everything that a store raises on its own account."""


class StorageUnavailable(StorageError):
    """The store cannot answer now: a failing disk, a closed store. Nothing was acknowledged; trying later may help."""


class StorageFull(StorageUnavailable):
    """There is no room to write. Reads go on, and writes again once there is room."""


class StorageLocked(StorageError):
    """Another server owns the store."""


class StorageDamaged(StorageError):
    """What is on disk is not what a store wrote; the message names the file and the place."""


class NotEmpty(StorageError):
    """`Storage.load` was asked to fill a store that holds something."""


class Gone(StorageError):
    """`Storage.changes` was asked for changes that are not remembered, or from a version never reached: start over."""


class InvalidQuery(StorageError, ValueError):
    """A query on a field that is not declared, with a value of another type, or with another query's cursor."""


class Conflict(StorageError):
    """A commit's precondition did not hold, and nothing of it was done.

    ``index`` is the write's place in the commit; ``reason`` is ``version``, with the record's present version (0 where
    there is none), or ``unique``, with the field whose value another record holds.
    """

    def __init__(
        self,
        index: int,
        collection: str,
        id: str,
        reason: Literal["version", "unique"],
        version: int = 0,
        field: str | None = None,
    ) -> None:
        detail = f"{field} is taken" if reason == "unique" else f"it is at version {version}"
        super().__init__(f"write {index} to {collection}/{id}: {detail}")
        self.index = index
        self.collection = collection
        self.id = id
        self.reason = reason
        self.version = version
        self.field = field
