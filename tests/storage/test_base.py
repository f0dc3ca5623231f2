"""storage/base.py: what may be declared, written and asked for, whatever the back end."""

import base64
import json
from typing import Any

import pytest

from homeport.storage import (
    Collection,
    Conflict,
    Field,
    Filter,
    InvalidDocument,
    InvalidQuery,
    Put,
    Query,
    starts_with,
)

FIELDS = (
    Field("n", "integer"),
    Field("t", "text", indexed=True),
    Field("b", "boolean"),
    Field("d", "double", indexed=True),
    Field("at", "time"),
)
ITEMS = Collection("items", FIELDS, tombstones=True)


# Collections


@pytest.mark.parametrize("name", ["a", "a-b_c.d9", "x" * 63, "sqlite", "home"])
def test_names_of_collections(name: str) -> None:
    assert Collection(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "9a",
        "_a",
        "-a",
        ".",
        "..",
        "a/b",
        "a b",
        "a\n",
        "é",
        "a\0",
        "x" * 64,
        "homeport",
        "homeport_x",
        "sqlite_x",
    ],
    ids=ascii,
)
def test_what_no_collection_is_called(name: str) -> None:
    with pytest.raises(ValueError, match="collection name"):
        Collection(name)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([Field("a", "integer"), Field("a", "text")], id="twice"),
        pytest.param([Field("id", "text")], id="id"),
        pytest.param([Field("", "text")], id="no name"),
        pytest.param([Field("-a", "text")], id="like a descending order"),
        pytest.param([Field("a\0", "text")], id="U+0000"),
        pytest.param([Field("\ud800", "text")], id="half of a surrogate pair"),
    ],
)
def test_what_no_field_is_called(fields: list[Field]) -> None:
    with pytest.raises(ValueError, match="collection items: a field"):
        Collection("items", tuple(fields))


# Documents and ids


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "1", 1),
        ("n", "-0.0", 0),
        ("n", "1e3", 1000),
        ("n", "9223372036854775807", 2**63 - 1),
        ("n", "-9223372036854775808", -(2**63)),
        ("n", "null", None),
        ("t", '""', ""),
        ("t", r'"\ud83d\ude00"', "😀"),
        ("b", "false", False),
        ("d", "1", 1.0),
        ("d", "-0.0", -0.0),
        ("d", "9007199254740993", 9007199254740992.0),
        ("d", "1" + "0" * 308, 1e308),
        ("at", '"1970-01-01T00:00:01Z"', 1_000_000),
        ("at", "null", None),
    ],
)
def test_the_values_of_a_document(name: str, text: str, value: object) -> None:
    put = Put(ITEMS, "a", f'{{"{name}":{text}}}'.encode())
    found = dict(zip(ITEMS.by_name, put.values, strict=True))
    assert found == {**dict.fromkeys(ITEMS.by_name), name: value}
    assert (type(found[name]), str(found[name])) == (type(value), str(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n", "9223372036854775808", "n must be an integer within 64 bits"),
        ("n", "-9223372036854775809", "n must be an integer within 64 bits"),
        ("n", "1e308", "n must be an integer within 64 bits"),
        ("n", "9" * 4000, "n must be an integer within 64 bits"),
        ("n", "1.5", "n must be an integer or null"),
        ("n", "true", "n must be an integer or null"),
        ("n", '"1"', "n must be an integer or null"),
        ("n", "[]", "n must be an integer or null"),
        ("t", r'"a\u0000"', r"t must not contain U\+0000"),
        ("t", "1", "t must be a text or null"),
        ("t", "{}", "t must be a text or null"),
        ("b", "0", "b must be a boolean or null"),
        ("b", '"true"', "b must be a boolean or null"),
        ("d", '"1"', "d must be a double or null"),
        ("d", "false", "d must be a double or null"),
        ("d", "9" * 400, "d must be a number that a double can hold"),
        ("at", "1", "at must be a time or null"),
        ("at", '"soon"', "at must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"),
        ("at", '"2025-02-30T00:00:00Z"', "at must be a date and time that exist"),
    ],
)
def test_what_cannot_be_indexed(name: str, text: str, message: str) -> None:
    document = f'{{"{name}":{text}}}'.encode()
    with pytest.raises(InvalidDocument, match=f"^{message}$") as caught:
        Put(ITEMS, "a", document)
    assert caught.value.field == name
    assert Put(Collection("notes"), "a", document).document == document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(b"[]", "must be a JSON object", id="a list"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(b"", "is not JSON", id="nothing"),
        pytest.param(b'{"a":NaN}', "is not JSON", id="NaN"),
        pytest.param(b'{"a":"\xff"}', "is not UTF-8", id="not UTF-8"),
        pytest.param(rb'{"a":"\ud800"}', "half of a surrogate pair", id="half of a surrogate pair"),
        pytest.param({"a": "\ud800"}, "half of a surrogate pair", id="in a dict"),
        pytest.param({"\udc00": 1}, "half of a surrogate pair", id="in a name of a dict"),
        pytest.param(b'{"a":%b%b}' % (b"[" * 128, b"]" * 128), "nested deeper than 128 levels", id="too deep"),
    ],
)
def test_what_is_no_document(document: Any, message: str) -> None:
    with pytest.raises(InvalidDocument, match=message):
        Put(Collection("notes"), "a", document)


@pytest.mark.parametrize(
    ("id", "message"),
    [
        pytest.param("", "must be 1 to 2048 bytes without U\\+0000", id="empty"),
        pytest.param("a\0", "must be 1 to 2048 bytes without U\\+0000", id="U+0000"),
        pytest.param("x" * 2049, "must be 1 to 2048 bytes without U\\+0000", id="one byte too many"),
        pytest.param("é" * 1025, "must be 1 to 2048 bytes without U\\+0000", id="two bytes too many"),
        pytest.param("\ud800", "holds half of a surrogate pair", id="half of a surrogate pair"),
    ],
)
def test_what_is_no_id(id: str, message: str) -> None:
    with pytest.raises(InvalidDocument, match=f"^id {message}$") as caught:
        Put(Collection("notes"), id, {})
    assert caught.value.field == "id"


def test_a_conflict_says_what_it_is_about() -> None:
    assert str(Conflict(2, "notes", "a", "version", 7)) == "write 2 to notes/a: it is at version 7"
    assert str(Conflict(0, "people", "b", "unique", field="email")) == "write 0 to people/b: email is taken"


# Queries


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param({"where": (Filter("x", "==", 1),)}, "^x cannot be queried; these can: id, n, t", id="field"),
        pytest.param({"sort": ("x",)}, "^x cannot be queried", id="order"),
        pytest.param({"sort": ("-x",)}, "^x cannot be queried", id="descending order"),
        pytest.param({"sort": ("",)}, "cannot be queried", id="order by nothing"),
        pytest.param({"where": (("n", "!=", 1),)}, "!= is no operator", id="operator"),
        pytest.param({"where": (("n", "> 0 OR 1 ==", 1),)}, "is no operator", id="SQL"),
        *[
            pytest.param(
                {"where": (Filter("n", op, None),)}, f"n {op} null: a missing value is in no range", id=f"{op} null"
            )
            for op in ("<", "<=", ">", ">=")
        ],
        pytest.param({"where": (Filter("n", "==", "1"),)}, "n must be an integer or null", id="text for an integer"),
        pytest.param({"where": (Filter("n", "==", 1.0),)}, "n must be an integer or null", id="double for an integer"),
        pytest.param(
            {"where": (Filter("n", "==", True),)}, "n must be an integer or null", id="boolean for an integer"
        ),
        pytest.param({"where": (Filter("n", "<", 2**63),)}, "n must be an integer within 64 bits", id="beyond 64 bits"),
        pytest.param({"where": (Filter("b", "==", 1),)}, "b must be a boolean or null", id="integer for a boolean"),
        pytest.param({"where": (Filter("t", "==", 1),)}, "t must be a text or null", id="integer for a text"),
        pytest.param({"where": (Filter("t", "==", "\0"),)}, r"t must not contain U\+0000", id="U+0000"),
        pytest.param({"where": (Filter("t", "==", "\ud800"),)}, "t holds half of a surrogate pair", id="surrogate"),
        pytest.param({"where": (Filter("id", "==", "\ud800"),)}, "id holds half of a surrogate pair", id="in an id"),
        pytest.param({"where": (Filter("id", ">", 1),)}, "id must be a text or null", id="integer for an id"),
        pytest.param({"where": (Filter("at", ">", "soon"),)}, "at must be an RFC 3339", id="no time"),
        pytest.param({"where": (Filter("at", ">", 1.5),)}, "at must be a time or null", id="double for a time"),
        pytest.param({"where": (Filter("d", "==", 10**400),)}, "d must be a number that", id="beyond a double"),
        pytest.param({"where": (Filter("n", "==", (1, 2)),)}, "n must be an integer or null", id="some values"),
        pytest.param({"where": (Filter("n", "in", (1, "2")),)}, "n must be an integer or null", id="one of them"),
        pytest.param({"limit": 0}, "^limit must be 1 to", id="no limit"),
        pytest.param({"limit": 2**53}, "^limit must be 1 to", id="a great limit"),
        pytest.param({"offset": -1}, "offset 0 to", id="negative offset"),
        pytest.param({"offset": 2**53}, "offset 0 to", id="a great offset"),
        pytest.param({"after": Query(ITEMS).cursor(["a"]), "offset": 1}, "at a cursor or at an offset", id="both"),
    ],
)
def test_what_cannot_be_asked(query: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidQuery, match=message) as caught:
        Query(ITEMS, **query)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        pytest.param((), [("id", False)], id="none"),
        pytest.param(("-id",), [("id", True)], id="ids"),
        pytest.param(("n", "-t"), [("n", False), ("t", True), ("id", False)], id="ties by id"),
        pytest.param(("n", "-n", "t"), [("n", False), ("t", False), ("id", False)], id="the first of two"),
        pytest.param(("n", "-id", "t"), [("n", False), ("id", True)], id="nothing behind the id"),
    ],
)
def test_the_order_of_a_query(sort: tuple[str, ...], order: list[tuple[str, bool]]) -> None:
    assert list(Query(ITEMS, sort=sort).order) == order


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1, "a", True, 0.5, 0, "id"], id="one of each"),
        pytest.param([None, None, None, None, None, "id"], id="missing"),
        pytest.param([-(2**63), "\U0010ffff'\"", False, 1e308, -(10**15), "😀/.."], id="odd ones"),
        pytest.param([2**63 - 1, "", True, -0.0, 2**53 + 1, "x" * 2048], id="the greatest"),
    ],
)
def test_a_cursor_keeps_values_exactly(values: list[Any]) -> None:
    query = Query(ITEMS, sort=("n", "-t", "b", "d", "at"))
    cursor = query.cursor(values)
    assert cursor.isascii()
    assert "=" not in cursor
    position = Query(ITEMS, sort=query.sort, after=cursor).position
    assert repr(list(position or ())) == repr(values)


def forged(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


FORGED: list[Any] = [
    None,
    1,
    {},
    [],
    [[], []],
    ["n", "id"],
    [[["n", False], ["id", False]]],
    [[["n", False], ["id", False]], 1],
    [[["n", False], ["id", False]], []],
    [[["n", False], ["id", False]], [1]],
    [[["n", False], ["id", False]], [1, "a", 2]],
    [[["n", False], ["id", False]], ["1", "a"]],
    [[["n", False], ["id", False]], [1.5, "a"]],
    [[["n", False], ["id", False]], [2**63, "a"]],
    [[["n", False], ["id", False]], [1, 2]],
    [[["n", False], ["id", False]], [1, "\0"]],
    [[["n", True], ["id", False]], [1, "a"]],
    [[["t", False], ["id", False]], ["a", "a"]],
    [[["n", False], ["t", False], ["id", False]], [1, "a", "a"]],
]


@pytest.mark.parametrize(
    "cursor",
    [
        pytest.param("", id="empty"),
        pytest.param("x", id="one character"),
        pytest.param("!!!!", id="not base64"),
        pytest.param("é", id="not ASCII"),
        pytest.param("\ud800", id="half of a surrogate pair"),
        pytest.param("AAAA", id="not JSON"),
        pytest.param("W1td", id="cut off"),
        pytest.param("W" * 100_000, id="long"),
        pytest.param(base64.urlsafe_b64encode(b"[" * 3000).decode(), id="deep"),
        *[pytest.param(forged(value), id=json.dumps(value)[:40]) for value in FORGED],
    ],
)
def test_what_is_no_cursor(cursor: str) -> None:
    with pytest.raises(InvalidQuery, match=r"^the cursor is not one of this query's$"):
        Query(ITEMS, sort=("n",), after=cursor)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        pytest.param("a", "b", id="letter"),
        pytest.param("user/", "user0", id="folder"),
        pytest.param("\x7f", "\x80", id="into two bytes"),
        pytest.param("a\ud7ff", "a\ue000", id="over the surrogates"),
        pytest.param("\uffff", "\U00010000", id="into four bytes"),
    ],
)
def test_the_range_of_a_prefix(prefix: str, end: str) -> None:
    assert starts_with(prefix) == (Filter("id", ">=", prefix), Filter("id", "<", end))
    Query(ITEMS, starts_with(prefix))
