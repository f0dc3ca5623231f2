"""The records that were read last, held in memory: read again, or named by a commit, they cost no statement."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from ..commits import Key, Written
from ..records import Collection, Record, Value
from ..writes import Check, DeleteWhere, Write

MAX_RECORDS = 8192
MAX_DOCUMENT = 2048
"""Bytes of a document that is held."""

Held = Record | Written
"""A record as it was read, or written since."""


class Recent:
    """Some records of a store, as every reader would find them: what a batch is about to write is not among them.

    Between `take` and `give` a reader may find those as they were or as they are, but never the older after the newer.
    """

    def __init__(self, size: int = MAX_RECORDS) -> None:
        self._most = size
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._taken: dict[Key, Held | None] | None = {}
        """What a batch writes, as it was if it was here; None: whatever there is."""

    def get(self, collection: Collection, ids: Iterable[str]) -> dict[str, Record] | None:
        """The records with these ids, if all are here."""
        found = {}
        for id in ids:
            key = (collection.name, id)
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            found[id] = held if isinstance(held, Record) else held.record
        return found

    def add(self, collection: Collection, records: Iterable[Record]) -> None:
        """Holds what was just read."""
        for record in records:
            key = (collection.name, record.id)
            if self._taken is not None and key not in self._taken:
                self._hold(key, record)

    def take(self, batch: Sequence[Sequence[Write]]) -> Mapping[Key, Held]:
        """What is here of the records that a batch names; those that it writes are given up until `give`."""
        named: dict[Key, Held] = {}
        self._taken = {}
        for write in chain.from_iterable(batch):
            if isinstance(write, DeleteWhere):
                self.clear()
                self._taken = None
                return {}
            key = (write.collection.name, write.id)
            held = named.get(key) or self._held.get(key)
            if held is not None:
                named[key] = held
            if not isinstance(write, Check):
                self._taken[key] = held
        for key in self._taken.keys() & named.keys():
            del self._held[key]
        return named

    def give(self, written: Iterable[Written]) -> None:
        """What was taken is as the batch left it, which wrote this."""
        taken, self._taken = self._taken, {}
        if taken is None:
            return
        for write in written:
            key = (write.collection.name, write.id)
            if taken[key] is not None:
                taken[key] = write
        for key, held in taken.items():
            if held is not None:
                self._hold(key, held)

    def clear(self) -> None:
        self._held.clear()

    def _hold(self, key: Key, held: Held) -> None:
        document = _document(held)
        if document is not None and len(document) <= MAX_DOCUMENT:
            self._held[key] = held
            if len(self._held) > self._most:
                self._held.popitem(last=False)


def _document(held: Held) -> bytes | None:
    """None for a deletion."""
    if isinstance(held, Record):
        return held.document
    return held.put.document if held.put else None


def values_of(held: Held, collection: Collection) -> tuple[Value, ...]:
    """The declared fields of what is held."""
    if isinstance(held, Record):
        return collection.values(held.decode(), strict=False)
    assert held.put is not None  # no deletion is held
    return held.put.values
