"""The storage contract: nine verbs, what goes into them and what comes out.

A *record* is a JSON document with an id, in a *collection*. One counter per store gives every write a *version* of
its own, and a record carries the version that last wrote it: version is the ETag, the cursor of `changes` and the
precondition of a write. Documents are kept as the bytes that came; what may be queried, sorted or must be unique is
declared by the collection, and is a pure function of the document.
"""

from __future__ import annotations

import asyncio
import base64
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from .documents import InvalidDocument, decode, encode
from .feed import Feed
from .locks import KeyedLocks
from .times import parse_time

MAX_ID_BYTES = 2048
ABSENT = 0
"""As ``if_version``: the record must not exist."""

Value = str | int | float | bool | None
"""What a declared field holds: a time as microseconds since the epoch; None where the document has none."""
FieldType = Literal["integer", "text", "boolean", "double", "time"]

_INT64 = range(-(2**63), 2**63)
_COLLECTION_NAME = re.compile(r"(?!homeport|sqlite_)[a-z][a-z0-9_.-]{0,62}")
_CATCH_UP_PAGE = 500
_PURGE_CHUNK = 500
_MAX_PAGING = 2**53 - 1


# Errors


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
        version: int = ABSENT,
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


# Collections


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level member of a collection's documents that may be filtered, sorted by, or must be unique.

    Every declared field can be filtered and sorted by; one that is ``indexed`` (or ``unique``) without a scan, for some
    20 microseconds a write. A ``time`` is an RFC 3339 text in the document and microseconds since the epoch in queries.
    """

    name: str
    type: FieldType
    indexed: bool = False
    unique: bool = False

    def value(self, raw: object) -> Value:
        """The indexed value of a document's member; raises `InvalidDocument` where it cannot be indexed."""
        if raw is None:
            return None
        match self.type:
            case "text":
                if isinstance(raw, str):
                    if "\0" in raw:
                        raise InvalidDocument("must not contain U+0000", self.name)
                    return raw
            case "boolean":
                if isinstance(raw, bool):
                    return raw
            case "time":
                if isinstance(raw, str):
                    try:
                        return parse_time(raw)
                    except ValueError as error:
                        raise InvalidDocument(str(error), self.name) from error
            case "integer":
                if isinstance(raw, float) and raw.is_integer():
                    raw = int(raw)
                if isinstance(raw, int) and not isinstance(raw, bool):
                    if raw not in _INT64:
                        raise InvalidDocument("must be an integer within 64 bits", self.name)
                    return raw
            case "double":
                if isinstance(raw, int | float) and not isinstance(raw, bool):
                    try:
                        return float(raw)
                    except OverflowError as error:
                        raise InvalidDocument("must be a number that a double can hold", self.name) from error
        raise InvalidDocument(f"must be {'an' if self.type == 'integer' else 'a'} {self.type} or null", self.name)


@dataclass(frozen=True)
class Collection:
    """A set of records that one API owns, declared once.

    ``name``: lower-case letters, digits, ``_``, ``-`` and ``.``, at most 63, first a letter; ``homeport…`` and
    ``sqlite_…`` are taken. ``tombstones``: whether a
    deletion is remembered for `Storage.changes`. ``layout``: how the file back end keeps it, as ``lines`` of one file
    or as one file a record (``files``, for small collections that other tools read).
    """

    name: str
    fields: tuple[Field, ...] = ()
    tombstones: bool = False
    layout: Literal["lines", "files"] = "lines"

    def __post_init__(self) -> None:
        if not _COLLECTION_NAME.fullmatch(self.name):
            raise ValueError(
                f"collection name {self.name!r}: lower-case letters, digits, '_', '-' and '.', at most 63, no homeport…"
            )
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names) or "id" in names:
            raise ValueError(f"collection {self.name}: a field is declared twice, or is called 'id'")
        if not all(name and name[0] != "-" and "\0" not in name and is_text(name) for name in names):
            raise ValueError(f"collection {self.name}: a field needs a name, without U+0000 and not first '-'")

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def unique(self) -> tuple[tuple[int, str], ...]:
        """Place and name of the unique fields."""
        return tuple((place, field.name) for place, field in enumerate(self.fields) if field.unique)

    def values(self, document: Mapping[str, Any], *, strict: bool = True) -> tuple[Value, ...]:
        """The values of the declared fields, in order; not ``strict``: None for one that cannot be indexed."""
        try:
            return tuple([field.value(document.get(field.name)) for field in self.fields])
        except InvalidDocument:
            if strict:
                raise
            return tuple([self._lenient(field, document) for field in self.fields])

    @staticmethod
    def _lenient(field: Field, document: Mapping[str, Any]) -> Value:
        try:
            return field.value(document.get(field.name))
        except InvalidDocument:
            return None


def is_text(text: str) -> bool:
    """Whether a text is free of lone surrogates, that is: has an encoding."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_id(id: str) -> None:
    """Raises `InvalidDocument` unless an id is 1 to 2,048 bytes of UTF-8 without U+0000."""
    if id.isascii() and 0 < len(id) <= MAX_ID_BYTES and "\0" not in id:
        return
    if not is_text(id):
        raise InvalidDocument("holds half of a surrogate pair", "id")
    if not 0 < len(id.encode()) <= MAX_ID_BYTES or "\0" in id:
        raise InvalidDocument(f"must be 1 to {MAX_ID_BYTES} bytes without U+0000", "id")


# Records and writes


class Record(NamedTuple):
    id: str
    version: int
    document: bytes

    def decode(self) -> Any:
        """The document as a dict."""
        return decode(self.document)


class Put:
    """Write a record, whole. ``document``: a JSON object as bytes, or as a dict such as `documents.decode` makes.

    Bytes are kept as they are, save that line breaks between tokens become blanks. ``if_version``: the version that
    the record must have, or `ABSENT`. Raises `InvalidDocument`.
    """

    __slots__ = ("collection", "document", "id", "if_version", "values")

    def __init__(
        self, collection: Collection, id: str, document: bytes | dict[str, Any], if_version: int | None = None
    ) -> None:
        check_id(id)
        if isinstance(document, bytes):
            value = decode(document)
            if not isinstance(value, dict):
                raise InvalidDocument("must be a JSON object")
            if b"\n" in document or b"\r" in document:
                document = document.translate(_LINE_BREAKS_TO_BLANKS)
        else:
            try:
                value, document = document, encode(document)
            except UnicodeEncodeError as error:
                raise InvalidDocument("holds half of a surrogate pair") from error
        self.collection = collection
        self.id = id
        self.document = document
        self.if_version = if_version
        self.values = collection.values(value)

    def __repr__(self) -> str:
        return f"Put({self.collection.name}/{self.id}, if_version={self.if_version})"


# A raw line break cannot stand inside a JSON string.
_LINE_BREAKS_TO_BLANKS = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a record; one that is not there is no error, unless ``if_version`` asks for it."""

    collection: Collection
    id: str
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Remove the records that a query finds before the commit, save those that the same commit names."""

    query: Query


@dataclass(frozen=True, slots=True)
class Check:
    """A precondition on a record that the commit does not write."""

    collection: Collection
    id: str
    if_version: int


Write = Put | Delete | DeleteWhere | Check


class Commit(NamedTuple):
    """What a commit did: the store's version after it and, for each of its writes, the last version that it took (0
    where it changed nothing) and how many records it changed."""

    version: int
    versions: tuple[int, ...]
    counts: tuple[int, ...]


class Change(NamedTuple):
    """A record as a version left it; ``document`` is None where it was deleted."""

    collection: str
    id: str
    version: int
    document: bytes | None

    @property
    def deleted(self) -> bool:
        return self.document is None


class Floor(NamedTuple):
    """Deletions in a collection up to this version are not remembered."""

    collection: str
    version: int


@dataclass(frozen=True, slots=True)
class Changes:
    """A page of what changed: in order of version, each record once.

    ``version``: the cursor for the next call. ``more``: whether that call will find something now. ``store_version``:
    the store's. ``floor``: deletions up to it are not remembered.
    """

    changes: tuple[Change, ...]
    version: int
    more: bool
    store_version: int
    floor: int


# Queries

Operator = Literal["==", "<", "<=", ">", ">=", "in"]


class Filter(NamedTuple):
    """A condition on ``id`` or a declared field; ``in`` takes a tuple.

    A missing value equals None and nothing else, and is in no range.
    """

    field: str
    op: Operator
    value: Value | tuple[Value, ...]


def starts_with(prefix: str) -> tuple[Filter, ...]:
    """The filters for ids that begin with a text that is not empty and ends below U+10FFFF."""
    last = ord(prefix[-1]) + 1
    after_surrogates = 0xE000 if last == 0xD800 else last
    return Filter("id", ">=", prefix), Filter("id", "<", prefix[:-1] + chr(after_surrogates))


@dataclass(frozen=True)
class Query:
    """Records of a collection, filtered, sorted, paged.

    ``sort``: field names, ``-`` in front for descending; a missing value sorts below every other; ties by id. Text
    sorts by code point. ``after``: a page's ``next``, for the page that follows, however the store has changed since.
    ``total``, ``rank``: whether the page is to say so. Raises `InvalidQuery`.
    """

    collection: Collection
    where: tuple[Filter, ...] = ()
    sort: tuple[str, ...] = ()
    limit: int | None = None
    after: str | None = None
    offset: int = 0
    total: bool = False
    rank: bool = False
    filters: tuple[Filter, ...] = field(init=False, compare=False)
    order: tuple[tuple[str, bool], ...] = field(init=False, compare=False)
    """Field and whether descending; ends with the id."""
    position: tuple[Value, ...] | None = field(init=False, compare=False)
    """The values of ``order`` after which the page begins."""

    def __post_init__(self) -> None:
        if (self.limit is not None and not 1 <= self.limit <= _MAX_PAGING) or not 0 <= self.offset <= _MAX_PAGING:
            raise InvalidQuery(f"limit must be 1 to {_MAX_PAGING} and offset 0 to {_MAX_PAGING}")
        if self.after is not None and self.offset:
            raise InvalidQuery("a page begins at a cursor or at an offset, not both")
        order: dict[str, bool] = {}
        for name in self.sort:
            order.setdefault(name.removeprefix("-"), name.startswith("-"))
            self._type(name.removeprefix("-"))
        order.setdefault("id", False)
        place = list(order).index("id") + 1
        set_ = object.__setattr__  # the dataclass is frozen for its users
        set_(self, "order", tuple(order.items())[:place])
        set_(self, "filters", tuple([self._filter(*condition) for condition in self.where]))
        set_(self, "position", None if self.after is None else self._position(self.after))

    def preceding(self, value: Value) -> tuple[tuple[int, tuple[Filter, ...]], ...]:
        """How many records come before one with this value of the first sort field: the sum of the counts of these
        filters, each times its factor."""
        name, descending = self.order[0]
        missing = (*self.filters, Filter(name, "==", None))
        if descending:
            if value is None:
                return (1, self.filters), (-1, missing)
            return ((1, (*self.filters, Filter(name, ">", value))),)
        if value is None:
            return ()
        return (1, missing), (1, (*self.filters, Filter(name, "<", value)))

    def cursor(self, values: Sequence[Value]) -> str:
        """The ``after`` of the page that follows a record with these values of ``order``."""
        return base64.urlsafe_b64encode(encode([self.order, list(values)])).rstrip(b"=").decode()

    def _position(self, cursor: str) -> tuple[Value, ...]:
        try:
            order, values = decode(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
            if [tuple(item) for item in order] == list(self.order) and len(values) == len(order):
                return tuple(self._operand(name, value) for (name, _), value in zip(self.order, values, strict=True))
        except (ValueError, TypeError) as error:
            raise InvalidQuery("the cursor is not one of this query's") from error
        raise InvalidQuery("the cursor is not one of this query's")

    def _type(self, name: str) -> FieldType:
        if name == "id":
            return "text"
        try:
            return self.collection.by_name[name].type
        except KeyError:
            declared = ", ".join(["id", *self.collection.by_name])
            raise InvalidQuery(f"{name} cannot be queried; these can: {declared}") from None

    def _filter(self, name: str, op: Operator, value: Any) -> Filter:
        if op == "in":
            return Filter(name, op, tuple([self._operand(name, item) for item in value]))
        if op not in ("==", "<", "<=", ">", ">="):
            raise InvalidQuery(f"{op} is no operator")
        if value is None and op != "==":
            raise InvalidQuery(f"{name} {op} null: a missing value is in no range")
        return Filter(name, op, self._operand(name, value))

    def _operand(self, name: str, value: object) -> Value:
        type_ = self._type(name)
        if type_ == "time" and isinstance(value, int):
            type_ = "integer"
        elif type_ == "integer" and isinstance(value, float):
            raise InvalidQuery(f"{name} must be an integer or null")
        try:
            operand = Field(name, type_).value(value)
        except InvalidDocument as error:
            raise InvalidQuery(str(error)) from error
        if isinstance(operand, str) and not is_text(operand):
            raise InvalidQuery(f"{name} holds half of a surrogate pair")
        return operand


@dataclass(frozen=True, slots=True)
class Page:
    """Records that a query found. ``next``: the cursor of the page that follows, None on the last. ``version``: the
    store's, of the same snapshot. ``total``: how many match in all. ``rank``: 1 + how many of them come before the
    page's first record by the first sort field alone (None on an empty page)."""

    records: tuple[Record, ...]
    next: str | None
    version: int
    total: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Tombstones:
    """For `Storage.purge`: what is remembered of deletions up to a version."""

    collection: Collection
    up_to: int


# The interface


class Storage(ABC):
    """Where records live. An async context manager: entering opens the store, leaving closes it.

    Readers see durable state only, and each verb one snapshot. Every verb raises `StorageUnavailable` where the store
    cannot answer, and ValueError for a collection that it was not told of. Only one event loop may use a store.
    """

    id: str
    """A UUID, new with every store that is created, or filled by `load`."""
    path: Path | None = None
    """Where it is on this machine's disk, if it is; its lock and a server's socket are beside it."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.locks = KeyedLocks()
        self._feed = Feed()

    @abstractmethod
    async def open(self) -> None:
        """Makes the store ready; creates it where there is none. Raises `StorageLocked` or `StorageDamaged`."""

    @abstractmethod
    async def close(self) -> None:
        """Finishes the commits that wait, ends watches and lets the store go. Closing twice is no error."""

    @abstractmethod
    async def declare(self, *collections: Collection) -> None:
        """Tells the store of collections, before they are used; a store remembers them in ``collections``.

        Declaring one anew with other fields derives their values from the documents (None for one that cannot be
        indexed). Raises `Conflict` where a field becomes unique and is not.
        """

    @abstractmethod
    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Record]:
        """The records with these ids; those that do not exist are left out."""

    @abstractmethod
    async def find(self, query: Query) -> Page:
        """A page of records."""

    @abstractmethod
    async def count(self, query: Query) -> int:
        """How many records match; paging is disregarded."""

    @abstractmethod
    async def commit(self, writes: Sequence[Write]) -> Commit:
        """Does all of the writes or none, and returns when they are durable.

        Each write takes the next version. A commit is a set: it names an id at most once (ValueError), preconditions
        and queries are judged on the state before it, uniqueness on the state after it. Raises `Conflict`,
        `StorageFull`. A commit whose answer was lost may have happened.
        """

    async def purge(self, what: Query | Tombstones) -> int:
        """Removes what a query matches (paging disregarded) or old tombstones, in chunks between other commits; returns
        how many."""
        if isinstance(what, Tombstones):
            return await self._purge_tombstones(what)
        chunk = DeleteWhere(Query(what.collection, what.where, limit=_PURGE_CHUNK))
        removed = 0
        while done := (await self.commit([chunk])).counts[0]:
            removed += done
            await asyncio.sleep(0)  # a store in memory commits at once
        return removed

    @abstractmethod
    async def _purge_tombstones(self, what: Tombstones) -> int: ...

    @abstractmethod
    async def changes(self, collection: Collection, after: int, limit: int, *, began: int = 0) -> Changes:
        """What changed since a version; deletions included, for collections with tombstones.

        A reader that has nothing begins at 0 and may give the store's version at that time as ``began`` for the pages
        that follow: deletions up to then cannot concern it. Raises `Gone` where deletions after ``after`` (or
        ``began``, if that is later) are not remembered, or where the store never reached ``after``.
        """

    async def watch(self, collections: Sequence[Collection], after: int) -> AsyncIterator[Change]:
        """What changed in some collections since a version, then what changes, as it happens, in order of version.

        Ends when the store is closed. A reader that lags may be given only the latest of a record's changes. Raises
        `Gone` as `changes` does.
        """
        names = {self._declared(collection).name for collection in collections}
        began = 0
        while not self._feed.closed:
            recent = self._feed.since(after)
            if recent is None:
                pages = [await self.changes(c, after, _CATCH_UP_PAGE, began=began) for c in collections]
                began = began or (min(page.store_version for page in pages) if after == 0 else 0)
                after = min(page.version for page in pages)
                missed = chain.from_iterable(page.changes for page in pages)
                recent = sorted((c for c in missed if c.version <= after), key=lambda change: change.version)
            elif recent:
                after = recent[-1].version
            for change in recent:
                if change.collection in names:
                    yield change
            await self._feed.beyond(after)

    @abstractmethod
    async def load(self, changes: AsyncIterable[Change | Floor]) -> None:
        """Fills an empty store with records and tombstones, versions kept: all, or nothing. Raises `NotEmpty`."""

    @abstractmethod
    async def ping(self) -> None:
        """Returns if the store can answer and could write; else raises `StorageUnavailable`."""

    def _check_open(self) -> None:
        if self._feed.closed:
            raise StorageUnavailable("the store is closed")

    def _declared(self, collection: Collection) -> Collection:
        """The collection, if the store is open and was told of it."""
        self._check_open()
        known = self.collections.get(collection.name)
        if known is not collection and known != collection:
            raise ValueError(f"collection {collection.name} was not declared to this store, or differently")
        return collection

    def _checked(self, writes: Sequence[Write]) -> Sequence[Write]:
        """The writes of a commit, if the store is open and they may stand in one."""
        self._check_open()
        named: set[tuple[str, str]] = set()
        for write in writes:
            if isinstance(write, DeleteWhere):
                self._declared(write.query.collection)
                continue
            collection = self._declared(write.collection)
            if not isinstance(write, Check):
                key = (collection.name, write.id)
                if key in named:
                    raise ValueError(f"a commit names {collection.name}/{write.id} twice")
                named.add(key)
        return writes

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
