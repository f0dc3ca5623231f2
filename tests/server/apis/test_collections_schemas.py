"""Other people's schemas: what is read of them, what is refused, and that none makes the server think for long."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.collections.references import MAX_REFERENCES, SchemaError
from homeport.server.apis.collections.registry import Registry
from homeport.server.apis.collections.schemas import CompiledSchema
from homeport.server.config import ConfigError, load_config
from homeport.server.errors import InvalidBody

from .collected import Collections, serve_collections, write_schemas
from .conftest import Serve, on_memory


def compiled(folder: Path, schema: object, **others: object) -> CompiledSchema:
    write_schemas(folder, note=schema, **others)
    return CompiledSchema(folder / "note.schema.json", folder)


def refusal(folder: Path, schema: object, **others: object) -> str:
    """What is wrong with a schema, after the name of its file."""
    with pytest.raises(SchemaError) as caught:
        compiled(folder, schema, **others)
    return str(caught.value).partition(".schema.json: ")[2]


def found(schema: CompiledSchema, document: object) -> dict[str, str]:
    return {problem.pointer: problem.message for problem in schema.problems(document)}


# Which fields can be indexed


@pytest.mark.parametrize(
    ("schema", "type_"),
    [
        ({"type": "string"}, "text"),
        ({"type": "integer"}, "integer"),
        ({"type": "number"}, "double"),
        ({"type": "boolean"}, "boolean"),
        ({"type": ["integer", "null"]}, "integer"),
        ({"type": ["integer", "number"]}, "double"),
        ({"enum": ["a", "b", None]}, "text"),
        ({"const": 5}, "integer"),
        ({"enum": [1, 2.5]}, "double"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "double"),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, "integer"),
        ({"$ref": "#/$defs/name"}, "text"),
        ({"$ref": "other.schema.json"}, "boolean"),
        ({"type": "string", "format": "date-time"}, "text"),
        ({}, None),
        (True, None),
        ({"type": "object"}, None),
        ({"type": ["string", "integer"]}, None),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"type": "null"}, None),
        ({"enum": [[1]]}, None),
    ],
)
def test_the_type_of_a_field(tmp_path: Path, schema: Any, type_: str | None) -> None:
    root = {"properties": {"field": schema}, "$defs": {"name": {"type": "string"}}}
    assert compiled(tmp_path, root, other={"type": "boolean"}).fields == {"field": type_}


def test_fields_of_what_a_schema_refers_to(tmp_path: Path) -> None:
    root = {
        "allOf": [{"properties": {"a": {"type": "string"}}}],
        "$ref": "base.schema.json",
        "properties": {"b": {"type": "number"}},
    }
    fields = compiled(tmp_path, root, base={"properties": {"c": {"type": "boolean"}}}).fields
    assert fields == {"a": "text", "b": "double", "c": "boolean"}


# References


def test_references_between_files(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "types.json").write_text(
        '{"$defs": {"name": {"$ref": "#n"}, "n": {"$anchor": "n", "minLength": 2}}}'
    )
    schema = compiled(tmp_path, {"properties": {"name": {"$ref": "common/types.json#/$defs/name"}}})
    assert list(found(schema, {"name": "x"})) == ["/name"]
    assert schema.accepts({"name": "xy"})
    assert len(schema.documents) == 2


def test_references_by_id(tmp_path: Path) -> None:
    note = {
        "$id": "https://e.example/note.json",
        "properties": {"p": {"$ref": "person.json"}, "q": {"$ref": "base.json"}},
    }
    (tmp_path / "base.json").write_text('{"type": "integer"}')  # found by its name, as it says no $id
    schema = compiled(tmp_path, note, human={"$id": "https://e.example/person.json", "type": "string"})
    assert found(schema, {"p": 1, "q": "x"}) == {"/p": "must be a string", "/q": "must be an integer"}


def test_a_schema_may_be_recursive(tmp_path: Path) -> None:
    tree = {"properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#"}}}}
    schema = compiled(tmp_path, tree)
    document: dict[str, Any] = {"name": 1}
    for _ in range(60):
        document = {"children": [document], "name": "x"}
    assert list(found(schema, document)) == ["/children/0" * 60 + "/name"]


def test_a_schema_of_schemas(tmp_path: Path) -> None:
    schema = compiled(tmp_path, {"$ref": "https://json-schema.org/draft/2020-12/schema"})
    assert schema.accepts({"type": "string"})
    assert list(found(schema, {"type": "strin"})) == ["/type"]


@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-04/schema#"]
)
def test_a_schema_says_its_draft(tmp_path: Path, draft: str) -> None:
    schema = compiled(tmp_path, {"$schema": draft, "properties": {"p": {"items": [{"type": "string"}]}}})
    assert found(schema, {"p": [1]}) == {"/p/0": "must be a string"}


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (
            "http://127.0.0.1:9/x.json",
            "http://127.0.0.1:9/x.json is no file in FOLDER, and references are never fetched",
        ),
        ("file:///etc/passwd", "leaves the folder FOLDER"),
        ("../outside.json", "leaves the folder FOLDER"),
        ("link.json", "leaves the folder FOLDER"),
        ("missing.json", "there is no file FOLDER/missing.json"),
        ("#/$defs/nope", "there is nothing at #/$defs/nope"),
        ("#nope", "there is no anchor nope"),
        ("other.schema.json#/nope/0", "there is nothing at #/nope/0"),
        ("ftp://x/y", "ftp://x/y is no file in FOLDER, and references are never fetched"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, reference: str, reason: str) -> None:
    (tmp_path / "outside.json").write_text("{}")
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    told = refusal(folder, {"properties": {"a/b": {"$ref": reference}}}, other={})
    assert told == f"/properties/a~1b/$ref: {reason.replace('FOLDER', str(folder))}"


# What is wrong with a schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "is no JSON Schema, which is an object or a boolean"),
        ({"properties": {"a": {"minimum": "x"}}}, '/properties/a/minimum: "x" is not of type "number"'),
        ({"$schema": "https://x.example/s"}, "/$schema: is none of http"),
        ({"$schema": 5}, "/$schema: is none of http"),
        ({"x-homeport": []}, "/x-homeport: must be an object"),
        ({"x-homeport": {"index": []}}, "/x-homeport/index: unknown key; there are indexes and unique"),
        ({"x-homeport": {"indexes": "a"}}, '/x-homeport/indexes: must be a list of fields such as ["title"]'),
        (
            {"properties": {"a": {"pattern": "(?=x)"}}},
            "/properties/a/pattern: is no pattern that can be matched in linear",
        ),
        ({"pattern": r"(a)\1"}, "/pattern: is no pattern that can be matched in linear"),
        ({"patternProperties": {"(?!x)": {}}}, "/patternProperties"),
    ],
)
def test_what_is_wrong_with_a_schema(tmp_path: Path, schema: Any, reason: str) -> None:
    assert refusal(tmp_path, schema).startswith(reason)


def test_what_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "note.schema.json").write_text("{")
    with pytest.raises(SchemaError, match=r"note\.schema\.json: is not JSON"):
        CompiledSchema(tmp_path / "note.schema.json", tmp_path)
    with pytest.raises(SchemaError, match="cannot be read: No such file"):
        CompiledSchema(tmp_path / "none.schema.json", tmp_path)


@pytest.mark.parametrize(
    ("schema", "value", "problems"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 5, {"/a": "must be a string or null"}),
        (
            {"oneOf": [{"properties": {"v": {"type": "integer"}}}, {"type": "null"}]},
            {"v": "s"},
            {"/a/v": "must be an integer"},
        ),
        (
            {"oneOf": [{"type": "integer"}, {"minimum": 1}]},
            5,
            {"/a": "must fit one of the alternatives, and no second one"},
        ),
        ({"type": "string", "format": "email"}, "x", {"/a": "must be a string in the format email"}),
        ({"format": "date"}, "x", {"/a": "must be a date such as 2025-06-03"}),
        ({"format": "nobody knows it"}, "x", {}),
        ({"pattern": "^a"}, "x", {"/a": "must match the pattern ^a"}),
        ({"additionalProperties": False}, {"b": 1, "c": 1}, {"/a/b": "is not allowed", "/a/c": "is not allowed"}),
        ({"required": ["b", "c"]}, {}, {"/a/b": "is required", "/a/c": "is required"}),
        (False, 1, {"/a": "is not allowed"}),
        ({"errorMessage": "must be nice", "const": "nice"}, 1, {"/a": "must be nice"}),
    ],
)
def test_what_is_said_of_a_document(tmp_path: Path, schema: Any, value: object, problems: dict[str, str]) -> None:
    assert found(compiled(tmp_path, {"properties": {"a": schema}}), {"a": value}) == problems


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, "", "a", "ab", "additionalProperties"])
keys = st.sampled_from(["a", "b", "additionalProperties", "a/b"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A schema of some keywords, around others."""
    some = st.lists(inner, min_size=1, max_size=2)
    named = st.dictionaries(keys, inner, max_size=2)
    types = st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "array"])
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types | st.lists(types, min_size=1, max_size=2, unique=True),
            "properties": named,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$"]), inner, max_size=1),
            "additionalProperties": inner,
            "unevaluatedProperties": inner,
            "propertyNames": inner,
            "required": st.lists(keys, max_size=2, unique=True),
            "dependentRequired": st.dictionaries(keys, st.lists(keys, max_size=2, unique=True), max_size=1),
            "dependentSchemas": named,
            "items": inner,
            "prefixItems": some,
            "unevaluatedItems": inner,
            "contains": inner,
            "minContains": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "maxItems": st.integers(0, 2),
            "minProperties": st.integers(0, 2),
            "maxLength": st.integers(0, 1),
            "minimum": st.integers(-1, 1),
            "exclusiveMaximum": st.integers(-1, 1),
            "multipleOf": st.sampled_from([2, 0.5]),
            "const": scalars,
            "enum": st.lists(scalars, min_size=1, max_size=2),
            "format": st.sampled_from(["date", "email", "regex", "unknown"]),
            "anyOf": some,
            "oneOf": some,
            "allOf": some,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "$ref": st.just("other.schema.json#/$defs/x"),
            "errorMessage": st.just("must be nice"),
        },
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    schema=st.recursive(st.booleans() | st.just({}), keywords, max_leaves=8),
    other=st.booleans() | st.just({"type": "integer"}),
    tried=st.lists(documents, min_size=1, max_size=4),
)
def test_whatever_is_refused_is_explained(tmp_path: Path, schema: Any, other: Any, tried: list[Any]) -> None:
    note = compiled(tmp_path, schema, other={"$defs": {"x": other}})
    for document in tried:
        problems = note.problems(document)
        assert bool(problems) is not note.accepts(document)
        for problem in problems:
            assert problem.message
            assert resolves(document, problem.path[:-1])


def resolves(document: Any, path: tuple[str | int, ...]) -> bool:
    """Whether there is something at a place of a document."""
    for step in path:
        document = document[step]
    return True


# Hostile ones


def doubling(depth: int) -> dict[str, Any]:
    """Each refers to the next twice."""
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": defs | {f"a{depth}": {"type": "object"}}}


CHAIN = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{n}": {"properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(MAX_REFERENCES)}
    | {f"a{MAX_REFERENCES}": {}},
}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#"}, "a $ref leads back to itself without end"),
        ({"allOf": [{"anyOf": [{"$ref": "#"}]}]}, "a $ref leads back to itself without end"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "a $ref leads back"),
        ({"$ref": "other.schema.json"}, "a $ref leads back to itself without end"),
        ({"$dynamicAnchor": "x", "not": {"$dynamicRef": "#x"}}, "a $ref leads back to itself without end"),
        (doubling(40), "a single value takes up to "),
        (CHAIN, f"has more than {MAX_REFERENCES} references"),
        ({"description": "x" * 2**20}, "is larger than 1,048,576 bytes"),
    ],
)
def test_schemas_without_end(tmp_path: Path, schema: Any, reason: str) -> None:
    begun = time.perf_counter()
    assert refusal(tmp_path, schema, other={"$ref": "note.schema.json"}).startswith(reason)
    assert time.perf_counter() - begun < 5


def test_nesting_too_deep_to_read(tmp_path: Path) -> None:
    (tmp_path / "note.schema.json").write_text('{"not":' * 5000 + "{}" + "}" * 5000)
    with pytest.raises(SchemaError, match="nested deeper"):
        CompiledSchema(tmp_path / "note.schema.json", tmp_path)


def test_a_pattern_that_others_need_years_for(tmp_path: Path) -> None:
    schema = compiled(tmp_path, {"properties": {"a": {"pattern": "^(a+)+$"}}})
    begun = time.perf_counter()
    assert not schema.accepts({"a": "a" * 100_000 + "b"})
    assert time.perf_counter() - begun < 1


def test_steps_that_double_with_the_depth_of_a_document(tmp_path: Path) -> None:
    branch = {"properties": {"next": {"$ref": "#"}}, "required": ["last"]}
    schema = compiled(tmp_path, {"anyOf": [branch, branch]})
    document: dict[str, Any] = {}
    for _ in range(5):
        document = {"next": document}
    assert found(schema, document)  # a shallow one is checked
    for _ in range(90):
        document = {"next": document}
    begun = time.perf_counter()
    assert found(schema, document) == {"": "is too large, or nested too deeply, to be checked against this schema"}
    assert time.perf_counter() - begun < 1


def test_of_a_large_document_the_first_error_is_told(tmp_path: Path) -> None:
    schema = compiled(tmp_path, {"properties": {"a": {"items": {"type": "string"}}}})
    begun = time.perf_counter()
    assert list(found(schema, {"a": [1] * 500_000})) == ["/a/0"]
    assert time.perf_counter() - begun < 2


# From the configuration


def registry(folder: Path, tables: str = "", *, server: str = "", schemas: bool = True) -> Registry:
    file = folder / "homeport.toml"
    file.write_text(f"[server]\n{server}\n{tables}")
    overrides = {"apis.collections.schemas": str(folder)} if schemas else {}
    return Registry(load_config(file, {}, overrides))


def wrong(folder: Path, tables: str, *, server: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        registry(folder, tables, server=server, schemas=False)
    return [problem.replace(str(folder), "FOLDER") for problem in caught.value.problems]


def table(folder: Path, **settings: object) -> str:
    given = {"name": "notes", "schema": str(folder / "note.schema.json")} | settings
    return "[[collections]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())


SCHEMA = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "object"}, "id": {}}}


def test_a_table(tmp_path: Path) -> None:
    write_schemas(tmp_path, note=SCHEMA)
    notes = registry(tmp_path, table(tmp_path, indexes=["b"], unique=["a"]), schemas=False).get("notes")
    assert [(f.name, f.type, f.indexed, f.unique) for f in notes.storage.fields] == [
        ("b", "integer", True, False),
        ("a", "text", True, True),
    ]
    assert notes.storage.name == "collections_notes"
    assert notes.storage.tombstones
    assert (notes.read, notes.write, notes.keep_deleted_days, notes.seed) == ("public", "public", 90, None)


def test_a_folder(tmp_path: Path) -> None:
    hints = {"x-homeport": {"unique": ["b"]}}
    write_schemas(tmp_path, note=SCHEMA | hints, other={})
    (tmp_path / "note.jsonl").write_text("")
    found = registry(tmp_path)
    assert [collection.name for collection in found.all()] == ["note", "other"]
    assert [(f.name, f.unique) for f in found.get("note").storage.fields] == [("b", True), ("a", False)]
    assert found.get("note").seed == tmp_path / "note.jsonl"


def test_who_may_where_the_server_is_exposed(tmp_path: Path) -> None:
    write_schemas(tmp_path, note={})
    exposed = 'allowed_hosts = ["a.example"]'
    notes = registry(tmp_path, table(tmp_path, read="public"), server=exposed).get("notes")
    assert (notes.read, notes.write) == ("public", "key")
    assert wrong(tmp_path, table(tmp_path, write="public"), server=exposed) == [
        'collections[0].write: notes is "public", and the server is exposed (server.allowed_hosts has a.example);'
        ' set it to "key"'
    ]


def test_wrong_tables(tmp_path: Path) -> None:
    write_schemas(tmp_path, note=SCHEMA)
    cannot = "collections[0].indexes: {} cannot be indexed: {}"
    assert wrong(tmp_path, table(tmp_path, indexes=["b", "c"], unique=["z"])) == [
        cannot.format(
            "c", "the schema does not say that it is a string, an integer, a number or a boolean, and one of these"
        ),
        cannot.format("z", "the schema has no such property"),
    ]
    assert wrong(tmp_path, table(tmp_path) + table(tmp_path)) == [
        "collections[1].name: there is a collection notes already; give another name"
    ]
    assert wrong(tmp_path, table(tmp_path, schema="/nowhere/x.json")) == [
        "/nowhere/x.json: cannot be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('nmae = "x"', "collections[0].nmae: unknown key; did you mean collections[0].name?"),
        ("zzz = 1", "collections[0].zzz: unknown key; [[collections]] has name, schema, indexes, unique, seed, read,"),
        ('read = "all"', 'collections[0].read: "all" is not one of public, key'),
        ("keep_deleted_days = 0", "collections[0].keep_deleted_days: 0 is not a whole number from 1 to 36500"),
        ('indexes = "a"', 'collections[0].indexes: "a" is not a list such as ["title"]'),
        ('unique = ["id"]', 'collections[0].unique[0]: "id" is not the name of a field other than id and _meta'),
        ('name = "No"', 'collections[0].name: "No" is not a name of up to 50 of a-z, 0-9, _ and -, first a letter,'),
    ],
)
def test_wrong_settings_of_a_table(tmp_path: Path, line: str, problem: str) -> None:
    text = "[[collections]]\n" + ("" if line.startswith("name") else 'name = "notes"\n') + f'schema = "x"\n{line}\n'
    file = f"{tmp_path}/homeport.toml: "
    (Path(file[:-2])).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file[:-2], {})
    assert [found.startswith(file + problem) for found in caught.value.problems] == [True], caught.value.problems


def test_a_table_without_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[[collections]]\n[[collections]]\nname = 'a'")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "x.toml", {})
    assert [problem.partition("; ")[0] for problem in caught.value.problems] == [
        f"{tmp_path}/x.toml: collections[0].name: is not set",
        f"{tmp_path}/x.toml: collections[0].schema: is not set",
        f"{tmp_path}/x.toml: collections[1].schema: is not set",
    ]


def test_tables_in_the_environment(tmp_path: Path) -> None:
    write_schemas(tmp_path, note=SCHEMA)
    tables = [{"name": "notes", "schema": str(tmp_path / "note.schema.json")}]
    config = load_config(None, {"HOMEPORT_COLLECTIONS": json.dumps(tables)}, {"storage.url": "memory:"})
    assert [collection.name for collection in Registry(config).all()] == ["notes"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"apis\.collections\.schemas: /nowhere is no folder"):
        Registry(load_config(None, {}, {"apis.collections.schemas": "/nowhere", "storage.url": "memory:"}))
    write_schemas(tmp_path, Note={})
    with pytest.raises(ConfigError, match=r"Note.schema.json: a collection's name is up to 50 of a-z"):
        registry(tmp_path)


def test_what_check_says(tmp_path: Path) -> None:
    write_schemas(tmp_path, note=SCHEMA)
    note = registry(tmp_path).get("note")
    note.check({"a": "x"})
    with pytest.raises(InvalidBody) as caught:
        note.check({"a": 1})
    assert [(p.pointer, p.message, p.schema_pointer) for p in caught.value.problems] == [
        ("/a", "must be a string", "/properties/a/type")
    ]


# Seeds


@pytest.mark.parametrize(
    ("file", "content", "ids"),
    [
        ("note.json", '[{"a": "x"}, {"a": "y", "id": "second"}, {"id": 3}]', ["1", "3", "second"]),
        ("note.json", '{"first": {"a": "x"}, "second": {}}', ["first", "second"]),
        ("note.jsonl", '{"a": "x"}\n\n{"b": 1, "id": "s"}\n', ["1", "s"]),
        ("note/one.json", '{"a": "x", "_meta": {"version": 9}}', ["one"]),
    ],
)
async def test_seeds(serve: Serve, tmp_path: Path, file: str, content: str, ids: list[str]) -> None:
    write_schemas(tmp_path / "s", note=SCHEMA)
    (tmp_path / "s" / "note").mkdir()
    (tmp_path / "s" / file).write_text(content)
    given = {"apis.enabled": ["collections"], "apis.collections.schemas": str(tmp_path / "s")}
    collections = Collections(await serve(given), tmp_path / "s")
    assert await collections.ids("") == ids
    assert (await collections("DELETE", f"note/{ids[0]}")).status == 204
    again = Collections(await serve(given), tmp_path / "s")
    assert await again.ids("") == ids[1:] or ids[1:] == []  # an empty one is filled again


@on_memory
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"a": 1}]', "note.json: record 1: a must be a string"),
        ('[{"id": "x"}, {"id": "x"}]', "note.json: record 2: there is a record x already"),
        ('[{"id": "a/b"}]', "note.json: record 1: id must be 1 to 255 bytes"),
        ("[5]", "note.json: record 1: body must be an object"),
        ('[{"b": 9223372036854775808}]', "note.json: record 1: b must be an integer within 64 bits"),
        ("[", "note.json: "),
        ('[{"a": "x", "id": 1}, {"a": "x", "id": 2}]', "note.json: 2: a is taken"),
    ],
)
async def test_wrong_seeds(serve: Serve, tmp_path: Path, content: str, problem: str) -> None:
    folder = write_schemas(tmp_path / "s", note=SCHEMA | {"x-homeport": {"unique": ["a"]}})
    (folder / "note.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        await serve({"apis.enabled": ["collections"], "apis.collections.schemas": str(folder)})
    assert caught.value.problems[0].removeprefix(f"{folder}/").startswith(problem)


async def test_an_edited_schema_and_what_does_not_fit_it(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    collections = await serve_collections(serve, folder)
    await collections.put("note/old", {"title": "x", "count": 1})
    write_schemas(folder, note={"properties": {"title": {"type": "integer"}, "new": {"type": "string"}}})
    again = Collections(await serve({"apis.enabled": ["collections"], "apis.collections.schemas": str(folder)}), folder)
    assert (await again("GET", "note/old")).json["title"] == "x"
    assert (await again("PATCH", "note/old", {"new": "y"})).status == 400
    assert await again.ids("title=1") == []
    assert (await again("PATCH", "note/old", {"title": 1, "new": "y"})).status == 200
    assert await again.ids("new=y") == ["old"]
