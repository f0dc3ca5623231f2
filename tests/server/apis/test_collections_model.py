"""Whatever is sent comes back, a patch is RFC 7396's, and a list is what a small model says, on every back end."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.collections.patching import merged
from homeport.server.apis.collections.records import kept, plain, shown, without_meta
from homeport.storage import Record

from .collected import Collections, serve_collections
from .conftest import Serve, on_memory

quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: name != "id") | st.sampled_from(["_meta", "a", "b", "id_", "version", "\\u005fmeta"])
numbers = st.integers(-(2**70), 2**70) | st.sampled_from([-0.0, 1e308, 5e-324, 0.1]) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers.filter(lambda n: not isinstance(n, float) or math.isfinite(n)) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(names, values, max_size=5)
spellings = st.sampled_from([(None, (",", ":")), (None, (", ", " : ")), (2, (",", ": "))])


def spelled(document: Any, spelling: tuple[Any, Any], *, escaped: bool) -> bytes:
    """One of many ways to write a document; numbers as Python does, ``1e+308``."""
    indent, separators = spelling
    return json.dumps(document, indent=indent, separators=separators, ensure_ascii=escaped).encode()


def exactly(document: Any) -> str:
    """What tells apart what == does not: 1 and 1.0, 0.0 and -0.0, and the order of names."""
    return json.dumps(document)


@pytest.fixture
async def collections(serve: Serve, tmp_path: Path) -> Collections:
    return await serve_collections(serve, tmp_path / "schemas")


@quick
@given(document=documents, spelling=spellings, escaped=st.booleans())
async def test_what_was_sent_comes_back(
    collections: Collections, document: dict[str, Any], spelling: Any, escaped: bool
) -> None:
    body = spelled(document, spelling, escaped=escaped)
    written = await collections("PUT", "thing/a", body)
    assert written.status in (200, 201)
    read = await collections("GET", "thing/a")
    listed = await collections("GET", "thing")
    assert read.content == written.content
    assert listed.content.startswith(b'{"records":[' + read.content + b"]")
    answer = json.loads(read.content)
    assert answer.pop("_meta")["version"] == int(read.headers["ETag"].strip('"'))
    document.pop("_meta", None)
    assert exactly(answer) == exactly(document)


@given(document=documents, spelling=spellings, escaped=st.booleans(), now=st.integers(0, 2**51))
def test_what_is_kept_is_what_was_sent(document: dict[str, Any], spelling: Any, escaped: bool, now: int) -> None:
    body = spelled(document, spelling, escaped=escaped)
    stored = kept(body, now)
    if "_meta" not in document:
        assert without_meta(body) == plain(stored) == body  # byte for byte
    document.pop("_meta", None)
    assert exactly(json.loads(plain(stored))) == exactly(document)
    record = json.loads(shown(Record("x", 7, stored)))
    assert record.pop("_meta").keys() == {"id", "version", "updated_at"}
    assert exactly(record) == exactly(document)
    assert list(json.loads(stored))[-1] == "_meta"


def test_what_a_person_edited_in_the_stores_files() -> None:
    for edited, shown_as in [
        (b'{"a":1}', b'{"a":1,"_meta":{"id":"x","version":7,"updated_at":null}}'),
        (b'{"_meta":5,"a":1.0}', b'{"a":1.0,"_meta":{"id":"x","version":7,"updated_at":null}}'),
        (b'{"_meta": {"updated_at": "t"}}', b'{"_meta":{"id":"x","version":7,"updated_at":"t"}}'),
    ]:
        assert shown(Record("x", 7, edited)) == shown_as


def rfc7396(target: Any, patch: Any) -> Any:
    """The algorithm of section 2, word by word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = rfc7396(result.get(name), value)
    return result


@given(target=documents, patch=documents, spelling=spellings)
def test_a_patch_is_merged_as_rfc_7396_says(target: dict[str, Any], patch: dict[str, Any], spelling: Any) -> None:
    found = merged(spelled(target, spelling, escaped=True), spelled(patch, spelling, escaped=False))
    assert exactly(json.loads(found)) == exactly(rfc7396(target, patch))


def test_the_examples_of_rfc_7396() -> None:
    for target, patch, result in [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ]:
        assert merged(target.encode(), patch.encode()).decode() == result


# Lists


counts = st.none() | st.integers(-2, 2)
titles = st.sampled_from(["", "a", "b", "B", "ü"])
notes = st.lists(st.tuples(titles, counts), max_size=8)
orders = st.lists(st.sampled_from(["title", "-title", "count", "-count", "id", "-id"]), max_size=3)
conditions = st.lists(
    st.tuples(st.just("count"), st.sampled_from(["", "__gt", "__gte", "__lt", "__lte", "__in"]), st.integers(-2, 2))
    | st.tuples(st.just("title"), st.sampled_from(["", "__gt", "__gte", "__lt", "__lte", "__in"]), titles),
    max_size=2,
    unique_by=lambda condition: condition[:2],
)


def fits(note: dict[str, Any], name: str, operator: str, value: Any) -> bool:
    held = note.get(name)
    if held is None:
        return False
    return bool(
        {
            "": held == value,
            "__in": held in (value, value),
            "__gt": held > value,
            "__gte": held >= value,
            "__lt": held < value,
            "__lte": held <= value,
        }[operator]
    )


def in_order(found: dict[str, dict[str, Any]], order: list[str]) -> list[str]:
    """The ids, missing values first, ties by id."""
    ids = sorted(found)
    for term in reversed(order):
        name = term.removeprefix("-")

        def key(id: str, name: str = name) -> Any:
            value = id if name == "id" else found[id].get(name)
            return (value is not None, value) if value is not None else (False, 0)

        ids.sort(key=key, reverse=term.startswith("-"))
    return ids


@quick
@given(held=notes, order=orders, where=conditions, limit=st.integers(1, 4))
async def test_a_list_is_the_models(
    collections: Collections, held: list[Any], order: list[str], where: list[Any], limit: int
) -> None:
    everything = [record["_meta"]["id"] for record in (await collections("GET", "note?limit=1000")).json["records"]]
    model = {
        f"{n}": {"title": title} | ({} if count is None else {"count": count}) for n, (title, count) in enumerate(held)
    }
    operations = [{"op": "delete", "id": id} for id in everything if id not in model]
    operations += [{"op": "put", "id": id, "record": record} for id, record in model.items()]
    assert (await collections("POST", "note/batch", {"operations": operations})).status == 200
    found = {id: record for id, record in model.items() if all(fits(record, *condition) for condition in where)}
    query = f"limit={limit}&sort={','.join(order)}"
    query += "".join(f"&{name}{operator}={quote(str(value))}" for name, operator, value in where)
    assert await collections.ids(query) == in_order(found, [term for n, term in enumerate(order) if first(order, n)])


def first(order: list[str], place: int) -> bool:
    """Whether a field stands in an order for the first time."""
    return order[place].removeprefix("-") not in [term.removeprefix("-") for term in order[:place]]


# At once


async def test_of_writers_with_one_version_one_wins(collections: Collections) -> None:
    version = await collections.put("note/a", {"title": "x", "count": 0})
    answers = await asyncio.gather(
        *(
            collections(method, "note/a", {"title": "x", "count": n}, If_Match=f'"{version}"')
            for n, method in enumerate(["PUT", "PATCH"] * 8)
        )
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 15
    winner = next(answer for answer in answers if answer.status == 200)
    assert {answer.json["version"] for answer in answers if answer.status == 412} == {winner.json["_meta"]["version"]}
    assert (await collections("GET", "note/a")).content == winner.content


@on_memory
async def test_everybody_counts_with_if_match(collections: Collections) -> None:
    await collections.put("note/a", {"title": "x", "count": 0})

    async def count() -> None:
        while True:
            read = await collections("GET", "note/a")
            body = {"title": "x", "count": read.json["count"] + 1}
            if (await collections("PUT", "note/a", body, If_Match=read.headers["ETag"])).status == 200:
                return

    await asyncio.gather(*(count() for _ in range(20)))
    assert (await collections("GET", "note/a")).json["count"] == 20


async def test_unconditional_writers_of_one_record_all_succeed(collections: Collections) -> None:
    answers = await asyncio.gather(*(collections("PUT", "note/a", {"title": f"{n}"}) for n in range(20)))
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    patches = await asyncio.gather(*(collections("PATCH", "note/a", {f"n{n}": n}) for n in range(20)))
    assert {answer.status for answer in patches} == {200}
    assert len((await collections("GET", "note/a")).json) == 22
