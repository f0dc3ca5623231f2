"""What a command and a running server say to each other about a store.

The two take turns: the caller's request, then messages of the server's that the caller answers one by one, until the
server says how the call ended. What may be long goes in parts of some 256 KiB. Collections go by name, since both sides
know them; ids that are only asked for as bytes, since they may be no text; versions and limits within 64 bits.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, TypeVar

import msgspec

from .. import errors, writes
from ..documents import InvalidDocument
from ..errors import Conflict, StorageUnavailable
from ..queries import Filter, Query
from ..records import Change, Collection, Floor, Record

T = TypeVar("T")

_PART_BYTES = 256 << 10
_ITEM_BYTES = 128
"""About what an item takes besides its document."""
_LAST = 2**63 - 1


class Message(msgspec.Struct, tag=True, array_like=True, forbid_unknown_fields=True):
    pass


# Requests


class Hello(Message):
    """Answered by `Welcome`."""


class Declare(Message):
    collections: tuple[Collection, ...]


class Get(Message):
    """Answered by `Records`."""

    collection: str
    ids: tuple[bytes, ...]


class Selection(Message):
    """A `Query`."""

    collection: str
    where: tuple[Filter, ...]
    sort: tuple[str, ...]
    limit: int | None
    after: str | None
    offset: int
    total: bool
    rank: bool

    @classmethod
    def of(cls, query: Query) -> Selection:
        page = query.limit, query.after, query.offset, query.total, query.rank
        return cls(query.collection.name, query.filters, query.sort, *page)

    def query(self, collections: Mapping[str, Collection]) -> Query:
        page = self.limit, self.after, self.offset, self.total, self.rank
        return Query(known(self.collection, collections), self.where, self.sort, *page)


class Find(Message):
    """Answered by `Records` and by the `Page` without them."""

    selection: Selection


class Count(Message):
    selection: Selection


class Commit(Message):
    """The caller sends `Writes`."""


class Forget(Message):
    """The purge of `Tombstones`."""

    collection: str
    up_to: int


class ChangesAfter(Message):
    """Answered by `Changed` and by the `Changes` without them."""

    collection: str
    after: int
    limit: int
    began: int


class Watch(Message):
    """Answered by `Changed`, a change each, until the store is closed."""

    collections: tuple[str, ...]
    after: int


class Load(Message):
    """The caller sends `Changed`; answered by the store's new id."""


class TakeSnapshot(Message):
    """Answered by `SnapshotTaken`, then `Changed`."""


class Ping(Message):
    pass


Request = Hello | Declare | Get | Find | Count | Commit | Forget | ChangesAfter | Watch | Load | TakeSnapshot | Ping


class Welcome(msgspec.Struct):
    """What a caller is told of the store."""

    id: str
    collections: tuple[Collection, ...]


# Parts of what is long


class Put(Message):
    collection: str
    id: str
    document: bytes
    if_version: int | None

    def write(self, collections: Mapping[str, Collection]) -> writes.Put:
        return writes.Put(known(self.collection, collections), self.id, self.document, self.if_version)


class Delete(Message):
    collection: str
    id: bytes
    if_version: int | None

    def write(self, collections: Mapping[str, Collection]) -> writes.Delete:
        return writes.Delete(known(self.collection, collections), text(self.id), self.if_version)


class DeleteWhere(Message):
    selection: Selection

    def write(self, collections: Mapping[str, Collection]) -> writes.DeleteWhere:
        return writes.DeleteWhere(self.selection.query(collections))


class Check(Message):
    collection: str
    id: bytes
    if_version: int

    def write(self, collections: Mapping[str, Collection]) -> writes.Check:
        return writes.Check(known(self.collection, collections), text(self.id), self.if_version)


def message_of(write: writes.Write) -> Put | Delete | DeleteWhere | Check:
    match write:
        case writes.Put():
            return Put(write.collection.name, write.id, write.document, _version(write.if_version))
        case writes.Delete():
            return Delete(write.collection.name, blob(write.id), _version(write.if_version))
        case writes.DeleteWhere():
            return DeleteWhere(Selection.of(write.query))
        case writes.Check():
            return Check(write.collection.name, blob(write.id), int64(write.if_version))


class Writes(Message):
    items: tuple[Put | Delete | DeleteWhere | Check, ...]

    def writes(self, collections: Mapping[str, Collection]) -> list[writes.Write]:
        return [item.write(collections) for item in self.items]


class Records(Message):
    items: tuple[Record, ...]


class Changed(Message):
    items: tuple[Change, ...]
    floors: tuple[Floor, ...] = ()

    @classmethod
    def of(cls, items: Iterable[Change | Floor]) -> Changed:
        changes: list[Change] = []
        floors: list[Floor] = []
        for item in items:
            if isinstance(item, Floor):
                floors.append(item)
            else:
                changes.append(item)
        return cls(tuple(changes), tuple(floors))

    def __iter__(self) -> Iterator[Change | Floor]:
        return chain(self.floors, self.items)


class SnapshotTaken(Message):
    version: int
    collections: tuple[Collection, ...]


Part = Writes | Records | Changed | SnapshotTaken


class GoOn(Message):
    """The answer to a part, and what the server says where it waits for one."""


class End(Message):
    """There are no more parts."""


async def in_parts(items: AsyncIterable[T]) -> AsyncIterator[tuple[T, ...]]:
    """Items, as many at a time as a message should have."""
    part: list[T] = []
    size = 0
    async for item in items:
        part.append(item)
        size += _ITEM_BYTES + len(getattr(item, "document", None) or b"")
        if size >= _PART_BYTES:
            yield tuple(part)
            part, size = [], 0
    if part:
        yield tuple(part)


async def each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


# The end of a call


class Done(Message):
    result: msgspec.Raw

    @classmethod
    def with_result(cls, result: object) -> Done:
        return cls(msgspec.Raw(msgspec.msgpack.encode(result)))


class Failed(Message):
    """An error that has but a message; ``kind`` is its class."""

    kind: str
    message: str

    def error(self) -> Exception:
        return _ERRORS.get(self.kind, StorageUnavailable)(self.message)


class Conflicted(Message):
    index: int
    collection: str
    id: bytes
    reason: Literal["version", "unique"]
    version: int
    field: str | None

    def error(self) -> Exception:
        return Conflict(self.index, self.collection, text(self.id), self.reason, self.version, self.field)


class Invalid(Message):
    """An `InvalidDocument`."""

    message: str
    field: str | None

    def error(self) -> Exception:
        return InvalidDocument(self.message, self.field)


_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        errors.StorageUnavailable,
        errors.StorageFull,
        errors.StorageLocked,
        errors.StorageDamaged,
        errors.NotEmpty,
        errors.Gone,
        errors.InvalidQuery,
        errors.StorageError,
        ValueError,
    )
}


def failure(error: Exception) -> Failed | Conflicted | Invalid | None:
    """An error as the caller is told of it; None for one that is no part of the storage contract."""
    match error:
        case Conflict():
            return Conflicted(error.index, error.collection, blob(error.id), error.reason, error.version, error.field)
        case InvalidDocument():
            return Invalid(_printable(error.message), error.field)
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return Failed(kind.__name__, _printable(str(error)))
    return None


ANYTHING: Any = Request | Part | GoOn | End | Done | Failed | Conflicted | Invalid


# Values


def known(name: str, collections: Mapping[str, Collection]) -> Collection:
    try:
        return collections[name]
    except KeyError:
        raise ValueError(f"collection {name} was not declared to this store, or differently") from None


def int64(number: int) -> int:
    """A version, place or limit that is as good as a number: no store goes beyond 64 bits."""
    return max(-_LAST, min(number, _LAST))


def _version(version: int | None) -> int | None:
    return None if version is None else int64(version)


def blob(id: str) -> bytes:
    return id.encode("utf-8", "surrogatepass")


def text(id: bytes) -> str:
    return id.decode("utf-8", "surrogatepass")


def _printable(message: str) -> str:
    """A message that may name a path of any bytes."""
    return message.encode("utf-8", "backslashreplace").decode()
