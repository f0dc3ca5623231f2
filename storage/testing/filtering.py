"""find and count: filters, on every type of field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ..base import Storage
from ..queries import Filter, Query, starts_with
from ..records import Field
from ..writes import Delete, Put
from .contract import Contract, ids, put
from .rows import BOTH, COMPARE, ordered, pages, rows_of

# JSON texts, in ascending order of value; those on one line are equal.
VALUES: dict[str, list[list[str]]] = {
    "n": [
        ["-9223372036854775808", "-9.223372036854775808e18"],
        ["-9223372036854775807"],
        ["-1", "-1.0", "-10e-1"],
        ["0", "-0", "-0.0", "0e5"],
        ["5", "5.0", "0.5e1"],
        ["9007199254740992"],
        ["9007199254740993"],
        ["9223372036854775806"],
        ["9223372036854775807"],
    ],
    "t": [
        ['""'],
        [r'"\u0001"'],
        ['" "'],
        [r'"\""'],
        ['"%"'],
        ['"\'"'],
        ['"10"'],
        ['"2"'],
        ['"A"', r'"\u0041"'],
        ['"Z"'],
        [r'"\\"'],
        ['"_"'],
        ['"a"'],
        ['"a "'],
        ['"aa"'],
        ['"e\u0301"'],
        [f'"{"x" * 5000}"'],
        [f'"{"x" * 5000}y"'],
        ['"é"'],
        ['"\ufeff"'],
        ['"\uffff"'],
        [r'"\ud83d\ude00"', '"😀"'],
        ['"\U0010ffff"'],
    ],
    "b": [["false"], ["true"]],
    "d": [
        ["-1.7976931348623157e308"],
        ["-1e308"],
        ["-1", "-1.0"],
        ["-5e-324"],
        ["0", "0.0", "-0.0", "1e-400"],
        ["5e-324"],
        ["0.1", "0.1000000000000000055"],
        ["1", "1.0"],
        ["9007199254740992", "9007199254740993", "9007199254740992.0"],
        ["9223372036854775808"],
        ["1e308", "1" + "0" * 308],
    ],
    "at": [
        ['"0001-01-01T00:00:00Z"'],
        ['"1969-12-31T23:59:59.999999Z"'],
        ['"1970-01-01T00:00:00Z"', '"1970-01-01 01:00:00+01:00"', '"1969-12-31t23:59:60z"'],
        ['"1970-01-01T00:00:00.000001Z"', '"1970-01-01T00:00:00.0000019"'],
        ['"2025-06-03T12:30:00.5+02:00"', '"2025-06-03T10:30:00.500Z"'],
        ['"9999-12-31T23:59:59.999999Z"'],
    ],
}


class Filtering(Contract):
    @BOTH
    @pytest.mark.parametrize("name", VALUES)
    async def test_every_operator_on_every_value(self, storage: Storage, kind: str, name: str) -> None:
        collection = self.of(kind)
        texts = [(rank, text) for rank, equals in enumerate(VALUES[name]) for text in equals]
        rows = [
            Put(collection, f"{number:02}", f'{{"{name}":{text}}}'.encode()) for number, (_, text) in enumerate(texts)
        ]
        missing = [Put(collection, "missing", {}), Put(collection, "null", {name: None})]
        await storage.commit([*missing, *rows])
        field = collection.by_name[name]
        operands = [field.value(json.loads(equals[0])) for equals in VALUES[name]]
        for rank, operand in enumerate(operands):
            for op, compare in COMPARE.items():
                found = await storage.find(Query(collection, (Filter(name, op, operand),)))  # type: ignore[arg-type]
                expected = [row.id for row, (its_rank, _) in zip(rows, texts, strict=True) if compare(its_rank, rank)]
                assert ids(found.records) == expected, f"{name} {op} {operand!r}"
        found = await storage.find(Query(collection, (Filter(name, "==", None),)))
        assert ids(found.records) == ["missing", "null"]
        found = await storage.find(Query(collection, (Filter(name, "in", (operands[0], None, operands[-1])),)))
        ends = [row.id for row, (rank, _) in zip(rows, texts, strict=True) if rank in (0, len(operands) - 1)]
        assert ids(found.records) == [*ends, "missing", "null"]
        ascending = await pages(storage, Query(collection, sort=(name,), limit=1))
        assert ascending == [["missing"], ["null"], *[[row.id] for row in rows]]
        descending = await pages(storage, Query(collection, sort=(f"-{name}",), limit=1))
        assert descending == [*[[row.id] for row in ordered(rows, [f"-{name}"])], ["missing"], ["null"]]

    @BOTH
    async def test_a_time_may_be_asked_for_in_words(self, storage: Storage, kind: str) -> None:
        collection = self.of(kind)
        await put(storage, collection, "a", at="2025-06-03T12:30:00+02:00")
        for asked in "2025-06-03T10:30:00Z", "2025-06-03 10:30:00", 1748946600_000000:
            assert await storage.count(Query(collection, (Filter("at", "==", asked),))) == 1

    @BOTH
    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            pytest.param([("n", ">=", 1), ("n", "<", 3)], "cdeh", id="both ends"),
            pytest.param([("n", ">", 1), ("n", ">", 2), ("n", "<=", 3)], "ag", id="the narrower of two"),
            pytest.param([("n", ">", 3), ("n", "<", 1)], "", id="no room"),
            pytest.param([("n", ">", 1), ("n", "<", 2)], "", id="between neighbours"),
            pytest.param([("n", "==", 1), ("n", "==", 2)], "", id="two values"),
            pytest.param([("n", "==", None), ("n", "<", 2)], "", id="missing and in a range"),
            pytest.param([("n", "==", 1), ("t", "==", "b")], "eh", id="two fields"),
            pytest.param([("t", ">=", "a"), ("n", "==", 1), ("b", "==", True)], "deh", id="three fields"),
            pytest.param([("n", "in", ()), ("t", "==", "b")], "", id="in nothing"),
            pytest.param([("n", "in", (1, 1, 99))], "deh", id="in, twice and unknown"),
            pytest.param([("n", "in", (None,))], "bfi", id="in missing"),
            pytest.param([("n", "in", (1, 3)), ("n", ">", 1)], "ag", id="in and a range"),
            pytest.param([("n", "in", (1, 3)), ("n", "in", (2, 3))], "ag", id="in and in"),
            pytest.param([("n", "in", (1, 2, None)), ("t", "in", ("b", "B"))], "cehi", id="in of two fields"),
            pytest.param([("d", "in", (0.0, 0.5))], "ehi", id="in doubles"),
            pytest.param([("b", "in", (True, None))], "bdefghij", id="in booleans"),
            pytest.param([("id", "==", "d")], "d", id="an id"),
            pytest.param([("id", "==", None)], "", id="no id"),
            pytest.param([("id", "in", ("d", "zz", "a", None))], "ad", id="in ids"),
            pytest.param([("id", ">", "b"), ("id", "<=", "f")], "cdef", id="range of ids"),
            pytest.param([("id", ">=", "d"), ("n", "==", 1)], "deh", id="range of ids and a field"),
            pytest.param([("n", "==", 1), ("id", "<", "h")], "de", id="a field and a range of ids"),
        ],
    )
    async def test_filters_together(
        self, storage: Storage, kind: str, where: Sequence[tuple[Any, Any, Any]], expected: str
    ) -> None:
        collection = self.of(kind)
        await storage.commit(rows_of(collection))
        filters = tuple(Filter(*condition) for condition in where)
        page = await storage.find(Query(collection, filters, total=True))
        assert (ids(page.records), page.total) == (list(expected), len(expected))
        assert await storage.count(Query(collection, filters)) == len(expected)

    async def test_in_takes_many_values(self, storage: Storage) -> None:
        await storage.commit([Put(self.indexed, f"{n}", {"n": n}) for n in range(0, 100_000, 1000)])
        many = tuple(range(40_000))
        assert await storage.count(Query(self.indexed, (Filter("n", "in", many),))) == 40
        assert await storage.count(Query(self.indexed, (Filter("id", "in", tuple(map(str, many))),))) == 40

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            pytest.param("a/", ["a/", "a/b", "a/é", "a/😀", "a/\U0010ffff"], id="folder"),
            pytest.param("a", ["a", "a.", "a/", "a/b", "a/é", "a/😀", "a/\U0010ffff", "a0"], id="letter"),
            pytest.param("\ud7ff", ["\ud7ff", "\ud7ffx"], id="before the surrogates"),
            pytest.param("\uffff", ["\uffff"], id="before the emoji"),
            pytest.param("%", ["%"], id="no pattern"),
            pytest.param("zz", [], id="none"),
        ],
    )
    async def test_ids_that_start_with_a_prefix(self, storage: Storage, prefix: str, expected: list[str]) -> None:
        names = ["a", "a.", "a/", "a/b", "a/é", "a/😀", "a/\U0010ffff", "a0", "A/b", "%", "b"]
        names += ["\ud7ff", "\ud7ffx", "\ue000", "\uffff", "😀"]
        await put(storage, self.notes, *names)
        page = await storage.find(Query(self.notes, starts_with(prefix), total=True))
        assert (ids(page.records), page.total) == (sorted(expected), len(expected))

    async def test_what_a_write_changes_is_found_at_once(self, storage: Storage) -> None:
        for collection in self.items, self.indexed:
            query = Query(collection, (Filter("n", ">=", 1),), ("-n",))
            await put(storage, collection, "a", n=1)
            await put(storage, collection, "b", n=2)
            assert ids((await storage.find(query)).records) == ["b", "a"]
            await put(storage, collection, "a", n=3)
            await put(storage, collection, "b", t="no n")
            assert ids((await storage.find(query)).records) == ["a"]
            await storage.commit([Delete(collection, "a")])
            assert await storage.count(query) == 0

    async def test_fields_and_collections_may_be_called_anything(self, storage: Storage) -> None:
        names = ["version", "document", "document_2", "DOCUMENT", "rowid", "n", "N", "order", "select", "a b", "a.b"]
        names += ['a"b', "a'b", "a`b", "[a]", "a;b", "%s", "?", ":n", "$1", "é", "É", "😀", "\n", " ", "x" * 200]
        fields = [Field(name, "integer", indexed=number % 2 == 0) for number, name in enumerate(names)]
        odd = [
            self.collection(name, *fields)
            for name in ("order", "a-b", "a_b", "a.b", "index", "data", "journal", "lock", "con", "x" * 63)
        ]
        await storage.declare(*odd)
        for number, collection in enumerate(odd):
            await put(storage, collection, "a", **{name: place + number for place, name in enumerate(names)})
            await put(storage, collection, "b", **dict.fromkeys(names, -1))
        for number, collection in enumerate(odd):
            for place, name in enumerate(names):
                found = await storage.find(Query(collection, (Filter(name, "==", place + number),), (f"-{name}",)))
                assert ids(found.records) == ["a"], name
                assert ids((await storage.find(Query(collection, sort=(name,)))).records) == ["b", "a"], name
