"""The records that were read last, held in memory: read again, or named by a commit, they cost no statement."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..commits import Key, Written
from ..records import Collection, Record, Value
from ..writes import Check, DeleteWhere, Put, Write

MAX_BYTES = 16 << 20
_BYTES_A_RECORD = 600
"""Besides its document."""


class Held(NamedTuple):
    """``values``: of the declared fields, where there is one that is unique."""

    record: Record
    values: tuple[Value, ...] | None


class Recent:
    """Some records of a store, as every reader would find them: what a batch is about to write is not among them.

    Between `take` and `give` a reader may find those as they were or as they are, but never the older after the newer.
    """

    def __init__(self, size: int = MAX_BYTES) -> None:
        self._most = size
        self._size = 0
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._taken: dict[Key, Held | None] | None = {}  # None: whatever there is

    def get(self, collection: Collection, ids: Iterable[str]) -> dict[str, Record] | None:
        """The records with these ids, if all are here."""
        found = {}
        for id in ids:
            key = (collection.name, id)
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            found[id] = held.record
        return found

    def add(self, collection: Collection, records: Iterable[Record]) -> None:
        """Holds what was just read."""
        if self._taken is None:
            return
        for record in records:
            key = (collection.name, record.id)
            if key not in self._taken:
                unique = bool(collection.unique)
                self._hold(key, Held(record, collection.values(record.decode(), strict=False) if unique else None))

    def take(self, batch: Sequence[Sequence[Write]]) -> Mapping[Key, Held]:
        """What is here of the records that a batch names; those that it writes are given up until `give`."""
        named: dict[Key, Held] = {}
        self._taken = {}
        for writes in batch:
            for write in writes:
                if isinstance(write, DeleteWhere):
                    self.clear()
                    self._taken = None
                    return {}
                key = (write.collection.name, write.id)
                if isinstance(write, Check):
                    held = self._held.get(key)
                elif key not in self._taken:
                    held = self._taken[key] = self._drop(key)
                else:
                    continue
                if held is not None:
                    named[key] = held
        return named

    def give(self, written: Iterable[Written]) -> None:
        """What was taken is as the batch left it, which wrote this."""
        taken, self._taken = self._taken or {}, {}
        for collection, id, version, put in written:
            key = (collection.name, id)
            if taken.get(key) is not None:
                taken[key] = None if put is None else _held(id, version, put)
        for key, held in taken.items():
            if held is not None:
                self._hold(key, held)

    def clear(self) -> None:
        self._held.clear()
        self._size = 0

    def _hold(self, key: Key, held: Held) -> None:
        self._drop(key)
        self._held[key] = held
        self._size += _size(held)
        while self._size > self._most:
            _, oldest = self._held.popitem(last=False)
            self._size -= _size(oldest)

    def _drop(self, key: Key) -> Held | None:
        held = self._held.pop(key, None)
        if held is not None:
            self._size -= _size(held)
        return held


def _held(id: str, version: int, put: Put) -> Held:
    return Held(Record(id, version, put.document), put.values if put.collection.unique else None)


def _size(held: Held) -> int:
    return len(held.record.document) + _BYTES_A_RECORD
