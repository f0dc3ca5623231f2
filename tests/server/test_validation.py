"""Schemas: what fits, and what is said of what does not; the two validators agree."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homeport.server import formats
from homeport.server.explanations import explain
from homeport.server.validation import FORMATS, SCHEMAS, Schemas

Check = Callable[[dict[str, Any], Any], list[tuple[str, str]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """What is wrong with a value by a schema: field and message of each problem."""

    def check(schema: dict[str, Any], value: Any) -> list[tuple[str, str]]:
        (tmp_path / "x.json").write_text(
            json.dumps({"$defs": {"X": schema, "Count": {"type": "integer", "minimum": 0}}})
        )
        checker = Schemas(tmp_path).checker("x#/$defs/X")
        if checker.is_valid(value):
            return []
        problems = checker.problems(value)
        assert problems
        return [(problem.field, problem.message) for problem in problems]

    return check


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        pytest.param({"type": "integer"}, "1", "must be an integer", id="integer"),
        pytest.param({"type": "integer"}, True, "must be an integer", id="true is no integer"),
        pytest.param({"type": "integer", "minimum": 0}, -1, "must be an integer of at least 0", id="at least"),
        pytest.param(
            {"type": "integer", "minimum": 0}, 0.5, "must be an integer of at least 0", id="type and range in one"
        ),
        pytest.param({"type": "integer", "maximum": 9}, 10, "must be an integer of at most 9", id="at most"),
        pytest.param(
            {"type": "number", "minimum": 0, "maximum": 100}, 101, "must be a number from 0 to 100", id="between"
        ),
        pytest.param({"type": "number", "exclusiveMinimum": 0}, 0, "must be a number above 0", id="above"),
        pytest.param(
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            1,
            "must be a number above 0 and below 1",
            id="open range",
        ),
        pytest.param({"type": "string"}, 1, "must be a string", id="string"),
        pytest.param(
            {"type": "string", "minLength": 1}, "", "must be a string of at least 1 character", id="1 character"
        ),
        pytest.param(
            {"type": "string", "minLength": 1, "maxLength": 255},
            "",
            "must be a string of 1 to 255 characters",
            id="length",
        ),
        pytest.param(
            {"type": "string", "maxLength": 3}, "abcd", "must be a string of at most 3 characters", id="too long"
        ),
        pytest.param(
            {"type": "array", "minItems": 24, "maxItems": 24}, [], "must be a list of exactly 24 items", id="exactly"
        ),
        pytest.param({"type": "array", "uniqueItems": True}, [1, 1], "must not hold the same item twice", id="unique"),
        pytest.param({"type": "object"}, [], "must be an object", id="object"),
        pytest.param(
            {"type": "object", "minProperties": 1}, {}, "must be an object of at least 1 member", id="members"
        ),
        pytest.param({"type": "boolean"}, "true", "must be true or false", id="boolean"),
        pytest.param({"type": ["string", "null"]}, 1, "must be a string or null", id="two types"),
        pytest.param({"enum": ["a", 1, None]}, "b", 'must be one of "a", 1, null', id="enum"),
        pytest.param({"const": "x"}, "y", 'must be "x"', id="const"),
        pytest.param({"pattern": "^[a-z]"}, "1", "must match the pattern ^[a-z]", id="pattern"),
        pytest.param({"multipleOf": 5}, 6, "must be a multiple of 5", id="multiple"),
        pytest.param({"not": {"type": "null"}}, None, "is not allowed", id="not"),
        pytest.param({"$ref": "#/$defs/Count"}, -1, "must be an integer of at least 0", id="reference"),
        pytest.param(
            {"type": "string", "format": "instant"},
            "yesterday",
            "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z",
            id="instant",
        ),
        pytest.param(
            {"type": "string", "format": "hex", "minLength": 64, "maxLength": 64},
            "g" * 64,
            "must be a string of exactly 64 hexadecimal digits",
            id="hex",
        ),
        pytest.param(
            {"type": "string", "format": "plain-text", "maxLength": 9},
            "a\nb",
            "must be a string of at most 9 characters without control characters",
            id="plain text",
        ),
        pytest.param(
            {"type": "string", "format": "date"}, "2025-02-30", "must be a date such as 2025-06-03", id="date"
        ),
        pytest.param(
            {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0}]},
            "x",
            "must be null or an integer of at least 0",
            id="alternatives",
        ),
        pytest.param(
            {"type": "number", "maximum": 100, "errorMessage": "must be 0-100"},
            101,
            "must be 0-100",
            id="words of its own",
        ),
    ],
)
def test_messages(check: Check, schema: dict[str, Any], value: Any, message: str) -> None:
    assert check(schema, value) == [("body", message)]
    assert check({"properties": {"it": schema}}, {"it": value}) == [("it", message)]
    assert check({"items": {"properties": {"a.b": schema}}}, [{}, {"a.b": value}]) == [("[1].a.b", message)]


NESTED = {
    "type": "object",
    "required": ["usage", "entries"],
    "properties": {
        "usage": {"type": "object", "required": ["total"], "additionalProperties": False, "properties": {"total": {}}},
        "entries": {"type": "array", "items": {"$ref": "#/$defs/Count"}},
    },
}


@pytest.mark.parametrize(
    "becomes",
    [
        pytest.param(None, id="gone"),
        pytest.param(b"{", id="half written"),
        pytest.param(b'{"$defs": {"Renamed": {"minimum": 9}}}', id="another version's"),
    ],
)
def test_a_file_that_does_not_stay_as_it_was(tmp_path: Path, becomes: bytes | None) -> None:
    """A new version may be installed over a server that runs: it goes on with what it began with."""
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"$defs": {"X": {"$ref": "#/$defs/Count"}, "Count": {"type": "integer", "minimum": 0}}}))
    checker = Schemas(tmp_path).checker("x#/$defs/X")
    if becomes is None:
        file.unlink()
    else:
        file.write_bytes(becomes)
    [problem] = checker.problems(-1)
    assert problem.message == "must be an integer of at least 0"


def test_every_problem_names_its_field(check: Check) -> None:
    assert check(NESTED, {}) == [("usage", "is required"), ("entries", "is required")]
    assert check(NESTED, {"usage": {"x": 1}, "entries": [0, -1, "a"]}) == [
        ("usage.total", "is required"),
        ("usage.x", "is not allowed"),
        ("entries[1]", "must be an integer of at least 0"),
        ("entries[2]", "must be an integer of at least 0"),
    ]


def test_the_alternative_that_was_meant_is_explained(check: Check) -> None:
    schema = {
        "properties": {
            "it": {"anyOf": [{"type": "null"}, {"required": ["a"], "properties": {"a": {"type": "string"}}}]}
        }
    }
    assert check(schema, {"it": {"a": 1}}) == [("it.a", "must be a string")]


def test_pointers(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        '{"$defs": {"X": {"properties": {"a/b~": {"items": {"$ref": "#/$defs/N"}}}}, "N": {"type": "null"}}}'
    )
    [problem] = Schemas(tmp_path).checker("x#/$defs/X").problems({"a/b~": [None, 1]})
    assert problem.path == ("a/b~", 1)
    assert (problem.pointer, problem.schema_pointer) == ("/a~1b~0/1", "/properties/a~1b~0/items/type")
    assert problem.keyword == "type"


def test_the_first_hundred_problems_are_told(check: Check) -> None:
    problems = check({"items": {"type": "string"}}, list(range(1000)))
    assert [field for field, _ in problems] == [f"[{place}]" for place in range(100)]


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        pytest.param(["x"] * 300_000, 100, id="nothing but errors"),
        pytest.param([0] * 300_000 + ["x"], 1, id="an error at the end"),
    ],
)
def test_a_large_value_is_explained_in_time(check: Check, value: list[Any], fields: int) -> None:
    start = time.monotonic()
    problems = check({"type": "array", "items": {"$ref": "#/$defs/Count"}}, value)
    assert time.monotonic() - start < 5  # all of it would take a minute
    assert len(problems) == fields
    assert {message for _, message in problems} == {"must be an integer of at least 0"}


@pytest.mark.parametrize(
    ("name", "document"),
    [
        pytest.param("x#/$defs/Y", {"$defs": {"X": {}}}, id="no such definition"),
        pytest.param("y#", {}, id="no such file"),
        pytest.param("x#", {"type": "text"}, id="no schema"),
        pytest.param("x#", {"format": "no-such-format"}, id="unknown format"),
        pytest.param("x#", {"$ref": "http://127.0.0.1:9/schema.json"}, id="reference to a server"),
        pytest.param("x#", {"$ref": "file:///etc/passwd"}, id="reference to the disk"),
    ],
)
def test_bad_schemas(tmp_path: Path, name: str, document: object) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"\S"):
        Schemas(tmp_path).checker(name)


# The two validators


def definitions() -> Iterator[str]:
    for file in SCHEMAS.glob("*.json"):
        if file.stem != "config":
            for name in json.loads(file.read_text()).get("$defs", {}):
                yield f"{file.stem}#/$defs/{name}"


OURS = Schemas()
DEFINITIONS = sorted(definitions())
ODD_VALUES: tuple[Any, ...] = (
    *(0, -0.0, 1, -1, 24, 25, 1.0, 1.5, -1e-300, 1e308, 5e-324, 1e9, 1e9 + 0.001, 1e16, 2.0**53),
    *(2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400, 10**9, 10**9 + 1),
    *(True, False, None, "", [], {}, [None], {"": 0}, [0] * 24, [0] * 25),
    *(
        "a" * 64,
        "A" * 64,
        "g" * 64,
        "a" * 63,
        "a" * 64 + "\n",
        "é" * 255,
        "\U0001f600" * 255,
        "a" * 256,
        "a\0b",
        "\x85",
    ),
    *("2025-06-03T10:30:00Z", "2025-06-03T10:30:00", "2025-06-03 10:30:00.123456789+05:30", "2025-06-03T10:30:00z\n"),
    *("2025-06-30T23:59:60Z", "2025-06-03T24:00:00Z", "2025-02-30T10:30:00Z", "0000-01-01T00:00:00Z", "2025-06-03"),
    *("2025-06-03T10:30:00+24:00", "9999-12-31T23:59:59-01:00", "٢٠٢٥-06-03T10:30:00Z", "2025-W23-2", "20250603"),
)


def json_values() -> st.SearchStrategy[Any]:
    """What `decode` may give: no NaN, no half surrogates."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(0, 100)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.sampled_from(ODD_VALUES)
    )
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
    )
    return values.map(copy.deepcopy)  # some are changed


def examples_in(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield from schema.get("examples", ())
        for inner in schema.values():
            yield from examples_in(inner)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


ALIKE: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-1, 2**53),
    float: st.floats(-1, 1e9, allow_nan=False) | st.integers(0, 10**9),
    str: st.text(max_size=70) | st.datetimes().map(lambda at: at.isoformat() + "Z") | st.from_regex("[0-9a-f]{64}"),
}


@st.composite
def near(draw: st.DrawFn, value: Any) -> Any:
    """A value with a few changes: something replaced, removed or added."""
    value = {"": copy.deepcopy(value)}  # a place around it, so that it can be replaced whole
    for _ in range(draw(st.integers(0, 3))):
        *outer, last = draw(st.sampled_from([path for path in places(value) if path]))
        holder = value
        for step in outer:
            holder = holder[step]
        match draw(st.sampled_from(["tweak", "tweak", "tweak", "replace", "remove", "add", "spoil"])):
            case "tweak" if type(holder[last]) in ALIKE:
                holder[last] = draw(ALIKE[type(holder[last])])
            case "remove" if outer:
                del holder[last]
            case "add" if isinstance(holder[last], dict):
                holder[last][draw(st.text(max_size=3))] = draw(json_values())
            case "add" if isinstance(holder[last], list):
                holder[last].append(draw(json_values()))
            case "spoil" if isinstance(holder[last], str):
                place = draw(st.integers(0, len(holder[last])))
                holder[last] = (
                    holder[last][:place] + draw(st.characters(exclude_categories=["Cs"])) + holder[last][place:]
                )
            case _:
                holder[last] = draw(json_values())
    return value[""]


EXAMPLES = {name: list(examples_in(OURS.checker(name).lookup(f"homeport:{name}"))) for name in DEFINITIONS}


WITH_EXAMPLES = [name for name in DEFINITIONS if EXAMPLES[name]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Any]:
    if draw(st.integers(0, 3)):
        name = draw(st.sampled_from(WITH_EXAMPLES))
        return name, draw(near(draw(st.sampled_from(EXAMPLES[name]))))
    return draw(st.sampled_from(DEFINITIONS)), draw(json_values())


@settings(max_examples=3 * settings().max_examples)
@given(cases())
def test_the_validators_agree(case: tuple[str, Any]) -> None:
    name, value = case
    checker = OURS.checker(name)
    problems = explain(checker.uri, OURS.documents, FORMATS, value)
    assert checker.is_valid(value) == (not problems)


def test_the_examples_are_valid() -> None:
    assert any(EXAMPLES.values())
    for name, examples in EXAMPLES.items():
        for value in examples:
            assert OURS.checker(name).is_valid(value), name


@pytest.mark.parametrize("name", FORMATS)
@given(value=st.sampled_from(ODD_VALUES) | st.text() | json_values())
def test_the_validators_agree_on_formats(name: str, value: Any) -> None:
    """A format says nothing of what is no text."""
    if not isinstance(value, str):
        assert FORMATS[name](value)


CONFIG = json.loads((SCHEMAS / "config.json").read_text())


@given(near({"server": {"host": "::1", "port": 1, "listen": ["[::1]:1"], "cors_origins": ["http://a"]}, "apis": {}}))
@example({"server": {"port": 65536}})
@example({"server": {"port": 8000.0}})
def test_the_validators_agree_on_the_configuration(value: Any) -> None:
    valid = {name: form.valid for name, form in formats.FORMATS.items()}
    checker = jsonschema.FormatChecker(formats=())
    for name, form in valid.items():
        checker.checks(name)(lambda text, form=form: not isinstance(text, str) or form(text))
    ours = jsonschema_rs.Draft202012Validator(CONFIG, formats=valid, validate_formats=True)
    assert ours.is_valid(value) == jsonschema.Draft202012Validator(CONFIG, format_checker=checker).is_valid(value)


def formats_in(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("format"), str):
            yield schema["format"]
        for inner in schema.values():
            yield from formats_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from formats_in(inner)


def test_our_schemas_use_our_formats_alone() -> None:
    for name, document in OURS.documents.items():
        known = formats.FORMATS if name == "homeport:config" else FORMATS
        assert set(formats_in(document)) <= set(known), name
