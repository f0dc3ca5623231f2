"""What might be done to a store next: writes and questions that are likely to meet in a small world."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any

from homeport.storage import Check, Collection, Delete, DeleteWhere, Field, Filter, Put, Query, Write
from homeport.storage.queries import Operator
from homeport.storage.records import FieldType, Value

from .stranger.dictstore import Shelf

IDS = ["a", "A", "b/1", "..", "😀"]
VALUES: dict[str, list[Any]] = {
    "n": [1, 2, 2.0, 2**63 - 1],
    "t": ["", "b", "B", "😀"],
    "b": [False, True],
    "d": [0, -0.0, 0.5, 2, 1e308],
    "at": ["2025-01-01T00:00:00Z", "2025-01-01T01:00:00+01:00", "1969-12-31T23:59:59.999999Z"],
}
OPERATORS: list[Operator] = ["==", "<", "<=", ">", ">=", "in"]


def every(*, indexed: bool) -> tuple[Field, ...]:
    types: dict[str, FieldType] = {"n": "integer", "t": "text", "b": "boolean", "d": "double", "at": "time"}
    return tuple(Field(name, type_, indexed) for name, type_ in types.items())


DECLARATIONS = {
    "notes": [
        Collection("notes", (Field("n", "integer"), Field("t", "text", indexed=True))),
        Collection("notes", (Field("t", "text"), Field("n", "integer", indexed=True)), tombstones=True),
        Collection("notes"),
    ],
    "items": [
        Collection("items", every(indexed=False), tombstones=True, layout="files"),
        Collection("items", every(indexed=True), tombstones=True),
        Collection("items", (Field("n", "double", indexed=True), Field("t", "time")), tombstones=True, layout="files"),
    ],
    "people": [
        Collection("people", (Field("n", "integer", unique=True), Field("t", "text", unique=True)), tombstones=True),
        Collection("people", (Field("t", "text", unique=True), Field("b", "boolean", indexed=True))),
        Collection("people", (Field("n", "integer"), Field("t", "text", indexed=True)), tombstones=True),
    ],
}
"""By name, what a collection may be declared as."""


class Choices:
    """Choices by a seed, for a store in this state whose collections are declared so."""

    def __init__(self, seed: int, shelf: Shelf, declared: dict[str, Collection]) -> None:
        self.rng = Random(seed)
        self._shelf = shelf
        self._declared = list(declared.values())

    def collection(self) -> Collection:
        return self.rng.choice(self._declared)

    def commits(self, count: int) -> list[list[Write]]:
        """Half of the time all to one collection, where they meet more often."""
        collections = [self.collection()] if self.rng.random() < 0.5 else self._declared
        return [
            [self._write(self.rng.choice(collections)) for _ in range(self.rng.choice([0, 1, 2, 2, 3, 4, 5]))]
            for _ in range(count)
        ]

    def _write(self, collection: Collection) -> Write:
        kind = self.rng.choice([Put, Put, Put, Delete, Check, DeleteWhere])
        if kind is DeleteWhere:
            return DeleteWhere(Query(collection, self.where(collection), limit=self.limit()))
        id = self.rng.choice(IDS)
        record = self._shelf.records.get((collection.name, id))
        present = record.version if record else 0
        if kind is Check:
            return Check(collection, id, self.rng.choice([present, present, present, 0, present + 1]))
        if_version = self.rng.choice([None, None, None, None, present, present, present, 0, max(0, present - 1), 2**70])
        if kind is Delete:
            return Delete(collection, id, if_version)
        return Put(collection, id, self._document(collection), if_version)

    def _document(self, collection: Collection) -> dict[str, Any]:
        names = [name for name in VALUES if self.rng.random() < 0.7]
        document = {name: self.rng.choice([None, *VALUES[name]]) for name in names}
        for field in collection.fields:
            if _value(field, document.get(field.name)) is None:
                document.pop(field.name, None)  # a text that is no time, where the declaration makes it one
        return document

    def where(self, collection: Collection) -> tuple[Filter, ...]:
        return tuple(self._filter(collection) for _ in range(self.rng.choice([0, 0, 1, 1, 2])))

    def _filter(self, collection: Collection) -> Filter:
        name = self.rng.choice(["id", *collection.by_name])
        operator = self.rng.choice(OPERATORS)
        values: list[Value] = [*IDS]
        if name != "id":
            values = [value for raw in VALUES[name] if (value := _value(collection.by_name[name], raw)) is not None]
        if operator == "in":
            return Filter(name, operator, tuple(self.rng.choices([None, *values], k=self.rng.randint(0, 3))))
        if operator == "==" or not values:
            return Filter(name, "==", self.rng.choice([None, *values]))
        return Filter(name, operator, self.rng.choice(values))

    def limit(self) -> int | None:
        return self.rng.choice([None, 1, 2, 3])

    def query(self) -> Query:
        collection = self.collection()
        names = ["id", *collection.by_name]
        return Query(
            collection,
            self.where(collection),
            tuple(self.rng.choices([*names, *[f"-{name}" for name in names]], k=self.rng.randint(0, 3))),
            self.limit(),
            offset=self.rng.choice([0, 0, 0, 1, 5]),
            total=self.rng.random() < 0.5,
            rank=self.rng.random() < 0.5,
        )

    def version(self, *telling: int) -> int:
        """One that was reached, or the next; most often one that is next to a telling one."""
        last = self._shelf.version
        near = [version + by for version in (*telling, last) for by in (-1, 0, 1)]
        return self.rng.choice([self.rng.randint(0, last), *[version for version in near if 0 <= version <= last + 1]])

    def some(self, of: Sequence[str]) -> list[str]:
        return self.rng.sample(of, self.rng.randint(1, len(of)))


def _value(field: Field, raw: object) -> Value:
    with suppress(ValueError):
        return field.value(raw)
    return None
