"""contracts/collections.md, sentence by sentence; what it says of syncing is in test_collections_sync.py."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from homeport.server.api_keys import ApiKeys
from homeport.server.clock import Clock
from homeport.server.idempotency import ANSWERS
from homeport.storage import Query, Storage

from ..server.apis.collected import Collections, problems, serve_collections, write_schemas
from ..server.apis.conftest import Launch, Serve, on_memory, until

TIME = "2025-06-03T12:00:00.000Z"


@pytest.fixture
async def collections(serve: Serve, tmp_path: Path) -> Collections:
    return await serve_collections(serve, tmp_path / "schemas")


def meta(id: str, version: int) -> dict[str, Any]:
    return {"id": id, "version": version, "updated_at": TIME}


# Records


async def test_create_with_an_id_in_the_body(collections: Collections) -> None:
    answer = await collections("POST", "note", {"id": "a b", "title": "Milk"})
    assert answer.status == 201
    assert answer.headers["Location"] == "/collections/note/a%20b"
    assert answer.headers["ETag"] == '"1"'
    assert answer.json == {"id": "a b", "title": "Milk", "_meta": meta("a b", 1)}
    again = await collections("POST", "note", {"id": "a b", "title": "Milk"})
    assert (again.status, again.json["detail"]) == (409, "There is a record a b")


async def test_create_makes_a_uuid_of_version_7(collections: Collections) -> None:
    answer = await collections("POST", "note", {"title": "Milk"})
    id = answer.json["_meta"]["id"]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id)
    assert "id" not in answer.json
    assert answer.headers["Location"] == f"/collections/note/{id}"
    assert (await collections("GET", f"note/{id}")).content == answer.content


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_unique_field_that_is_taken(collections: Collections, method: str) -> None:
    await collections.put("note/a", {"title": "Milk", "slug": "milk"})
    await collections.put("note/b", {"title": "Tea"})
    path = "note" if method == "POST" else "note/b"
    answer = await collections(method, path, {"title": "Milk", "slug": "milk"})
    assert (answer.status, answer.json["detail"]) == (409, "slug is taken")


async def test_put_creates_then_replaces(collections: Collections) -> None:
    created = await collections("PUT", "note/a", {"title": "Milk", "count": 1})
    assert (created.status, created.headers["Location"], created.headers["ETag"]) == (201, "/collections/note/a", '"1"')
    replaced = await collections("PUT", "note/a", {"title": "Tea"})
    assert (replaced.status, replaced.headers["ETag"]) == (200, '"2"')
    assert "Location" not in replaced.headers
    assert replaced.json == {"title": "Tea", "_meta": meta("a", 2)}


@pytest.mark.parametrize("content_type", ["application/merge-patch+json", "application/json"])
async def test_patch_merges_and_then_validates(collections: Collections, content_type: str) -> None:
    await collections.put("note/a", b'{"title": "Milk", "price": 1.50, "author": {"name": "A", "age": 1e0}}')
    patch = {"title": "Tea", "author": {"name": None, "mail": "x"}}
    answer = await collections("PATCH", "note/a", patch, Content_Type=content_type)
    assert answer.status == 200
    assert answer.content.startswith(b'{"title":"Tea","price":1.50,"author":{"age":1e0,"mail":"x"},"_meta":')
    refused = await collections("PATCH", "note/a", {"title": None}, Content_Type=content_type)
    assert problems(refused) == {"/title": "is required"}
    assert (await collections("PATCH", "note/none", {}, Content_Type=content_type)).status == 404


async def test_patch_takes_no_other_type(collections: Collections) -> None:
    assert (await collections("PATCH", "note/a", {}, Content_Type="text/plain")).status == 415
    assert (await collections("PUT", "note/a", {}, Content_Type="application/merge-patch+json")).status == 415


async def test_delete(collections: Collections) -> None:
    await collections.put("note/a", {"title": "Milk"})
    answer = await collections("DELETE", "note/a")
    assert (answer.status, answer.content) == (204, b"")
    assert (await collections("DELETE", "note/a")).status == 404
    assert (await collections("GET", "note/a")).status == 404


async def test_what_was_sent_comes_back(collections: Collections) -> None:
    sent = '{"z":1,"a":-0.0,"b":1e308,"c":1180591620717411303424,"d":1.50,"e":"ü\\u00e9","f":{"_meta":{"x":[ 1 ]}}}'
    answer = await collections("PUT", "thing/a", sent.encode())
    expected = sent[:-1] + f',"_meta":{{"id":"a","version":1,"updated_at":"{TIME}"}}}}'
    assert answer.content.decode() == expected
    assert (await collections("GET", "thing/a")).content.decode() == expected


async def test_get_edit_put_works(collections: Collections) -> None:
    await collections.put("note/a", {"title": "Milk"})
    record = (await collections("GET", "note/a")).json
    record["title"] = "Tea"
    answer = await collections("PUT", "note/a", record)
    assert answer.json == {"title": "Tea", "_meta": meta("a", 2)}


@on_memory
async def test_an_id_unlike_the_paths(collections: Collections) -> None:
    expected = {"/id": "must be a, as in the path, or absent"}
    assert problems(await collections("PUT", "note/a", {"id": "b", "title": "x"})) == expected
    await collections.put("note/a", {"id": "a", "title": "x"})
    assert problems(await collections("PATCH", "note/a", {"id": "b"})) == expected


@on_memory
@pytest.mark.parametrize("id", ["a", "ü" * 127 + "x", "a b", "%2F", "..", "A", "🖥", "null", "a.json", "?", "#", "+"])
async def test_ids(collections: Collections, id: str) -> None:
    path = f"thing/{quote(id, safe='')}"
    await collections.put(path, {})
    assert (await collections("GET", path)).json["_meta"]["id"] == id
    assert (await collections("POST", "thing", {"id": id})).status == 409


@on_memory
@pytest.mark.parametrize("id", ["", "a/b", "ü" * 128, "a\nb", "\x7f", "batch", "changes", "sync", "a\0"])
async def test_no_ids(collections: Collections, id: str) -> None:
    if id not in ("", "batch", "changes", "sync"):
        assert "/id" in problems(await collections("PUT", f"thing/{quote(id, safe='')}", {}))
    assert "/id" in problems(await collections("POST", "thing", {"id": id}))
    operation = {"op": "put", "id": id, "record": {}}
    answer = await collections("POST", "thing/batch", {"operations": [operation]})
    assert "/operations/0/id" in problems(answer)


@on_memory
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("title", "a\0", "must not contain U+0000"),
        ("count", 2**63, "must be an integer within 64 bits"),
        ("price", 10**400, "must be a number that a double can hold"),
    ],
)
async def test_what_cannot_be_indexed(collections: Collections, field: str, value: object, message: str) -> None:
    record = {"title": "Milk", field: value}
    assert problems(await collections("PUT", "note/a", record)) == {f"/{field}": message}
    assert problems(await collections("POST", "note", record)) == {f"/{field}": message}
    answer = await collections("POST", "note/batch", {"operations": [{"op": "put", "id": "a", "record": record}]})
    assert problems(answer) == {f"/operations/0/record/{field}": message}


async def test_preconditions_of_a_write(collections: Collections) -> None:
    refused = await collections("PUT", "note/a", {"title": "x"}, If_Match="*")
    assert (refused.status, refused.json["version"]) == (412, 0)
    version = await collections.put("note/a", {"title": "x"}, If_None_Match="*")
    refused = await collections("PUT", "note/a", {"title": "y"}, If_None_Match="*")
    assert (refused.status, refused.json["version"], refused.headers["ETag"]) == (412, version, f'"{version}"')
    for method, body in (("PUT", {"title": "y"}), ("PATCH", {"title": "y"}), ("DELETE", None)):
        for stale in ('"999"', f'W/"{version}"', '"998", "999"'):
            refused = await collections(method, "note/a", body, If_Match=stale)
            assert (refused.status, refused.json["version"]) == (412, version)
    version = await collections.put("note/a", {"title": "y"}, If_Match=f'"999", "{version}"')
    assert (await collections("DELETE", "note/a", If_Match=f'"{version}"')).status == 204


async def test_preconditions_of_a_read(collections: Collections) -> None:
    version = await collections.put("note/a", {"title": "x"})
    for same in (f'"{version}"', f'W/"{version}"', "*", f'"0", W/"{version}"'):
        answer = await collections("GET", "note/a", If_None_Match=same)
        assert (answer.status, answer.content, answer.headers["ETag"]) == (304, b"", f'"{version}"')
    assert (await collections("GET", "note/a", If_None_Match='"0"')).status == 200
    assert (await collections("GET", "note/a", If_Match='"0"')).json["version"] == version


@on_memory
async def test_an_invalid_record(collections: Collections) -> None:
    answer = await collections("PUT", "note/a", {"title": "x" * 21, "count": "x", "author": {"age": 1.5}})
    assert answer.status == 400
    assert answer.json["errors"] == [
        {
            "field": "title",
            "pointer": "/title",
            "message": "must be a string of at most 20 characters",
            "schema_pointer": "/properties/title/maxLength",
        },
        {
            "field": "count",
            "pointer": "/count",
            "message": "must be an integer",
            "schema_pointer": "/properties/count/type",
        },
        {
            "field": "author.age",
            "pointer": "/author/age",
            "message": "must be an integer",
            "schema_pointer": "/properties/age/type",
        },
    ]


@on_memory
async def test_every_error_up_to_a_hundred(serve: Serve, tmp_path: Path) -> None:
    write_schemas(tmp_path / "s", list={"properties": {"n": {"items": {"type": "string"}}}})
    collections = await serve_collections(serve, tmp_path / "s")
    assert len(problems(await collections("PUT", "list/a", {"n": [1] * 90}))) == 90
    assert len(problems(await collections("PUT", "list/a", {"n": [1] * 200}))) == 100


@on_memory
@pytest.mark.parametrize(
    ("body", "message"),
    [(b"[]", "must be an object"), (b"", "is required"), (b"{", "is not JSON"), (b'{"a":NaN}', "is not JSON")],
)
async def test_what_is_no_document(collections: Collections, body: bytes, message: str) -> None:
    for method, path in (("POST", "thing"), ("PUT", "thing/a")):
        answer = await collections(method, path, body, Content_Type="application/json")
        assert problems(answer)[""].startswith(message)


@on_memory
async def test_no_such_collection(collections: Collections) -> None:
    for method, path in (("GET", "nope"), ("POST", "nope"), ("GET", "nope/a"), ("DELETE", "nope/a")):
        answer = await collections(method, path, {} if method == "POST" else None)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")


# Batch


async def test_batch(collections: Collections) -> None:
    await collections.put("note/old", {"title": "x"})
    version = await collections.put("note/b", {"title": "x"})
    operations = [
        {"op": "put", "id": "a", "record": {"title": "A"}, "if_version": 0},
        {"op": "put", "id": "b", "record": {"title": "B", "_meta": {"version": 7}}, "if_version": float(version)},
        {"op": "delete", "id": "old"},
        {"op": "delete", "id": "never"},
    ]
    answer = await collections("POST", "note/batch", {"operations": operations})
    assert answer.status == 200
    assert answer.json == {
        "results": [
            {"id": "a", "version": version + 1},
            {"id": "b", "version": version + 2},
            {"id": "old", "version": version + 3},
            {"id": "never", "version": 0},
        ],
        "version": version + 3,
    }
    assert (await collections("GET", "note/b")).json == {"title": "B", "_meta": meta("b", version + 2)}
    assert await collections.ids("") == ["a", "b"]


@pytest.mark.parametrize(
    ("operation", "status", "extra"),
    [
        ({"op": "put", "id": "a", "record": {"title": "x"}, "if_version": 0}, 412, {"version": 1}),
        ({"op": "put", "id": "z", "record": {"title": "x"}, "if_version": 9}, 412, {"version": 0}),
        ({"op": "delete", "id": "a", "if_version": 9}, 412, {"version": 1}),
        ({"op": "delete", "id": "a", "if_version": 0}, 412, {"version": 1}),
        ({"op": "put", "id": "b", "record": {"title": "x", "slug": "s"}}, 409, {}),
    ],
)
async def test_a_batch_that_conflicts(
    collections: Collections, operation: dict[str, Any], status: int, extra: dict[str, int]
) -> None:
    await collections.put("note/a", {"title": "A", "slug": "s"})
    operations = [{"op": "put", "id": "new", "record": {"title": "x"}}, operation]
    answer = await collections("POST", "note/batch", {"operations": operations})
    assert answer.status == status
    assert answer.json["operation"] == 1
    assert answer.json["errors"][0]["pointer"] == "/operations/1"
    assert {"version": answer.json["version"]} == extra if extra else "version" not in answer.json
    assert await collections.ids("") == ["a"]  # nothing was done


@on_memory
async def test_errors_name_the_operation(collections: Collections) -> None:
    operations: list[Any] = [
        {"op": "put", "id": "a", "record": {"title": "x"}},
        {"op": "put", "id": "b", "record": {"title": 5}},
        {"op": "put", "id": "b", "record": {"title": "x", "id": "other"}},
        {"op": "move", "id": 5, "if_version": -1},
        {"op": "put", "id": "c"},
        {"op": "delete", "id": "a"},
        "x",
        {"op": "delete", "id": "d", "if_version": None},
    ]
    answer = await collections("POST", "note/batch", {"operations": operations})
    assert problems(answer) == {
        "/operations/1/record/title": "must be a string of at most 20 characters",
        "/operations/2/record/id": "must be b, as in the path, or absent",
        "/operations/3/op": "must be put or delete",
        "/operations/3/id": "must be a string",
        "/operations/3/if_version": "must be a version, or 0: it must not exist",
        "/operations/4/record": "must be an object",
        "/operations/5/id": "is that of operation 0",
        "/operations/6": "must be an object",
        "/operations/7/if_version": "must be a version, or 0: it must not exist",
    }
    assert await collections.ids("") == []


@on_memory
async def test_how_large_a_batch_may_be(collections: Collections) -> None:
    operations = [{"op": "put", "id": f"{n:04}", "record": {"n": n}} for n in range(1001)]
    answer = await collections("POST", "thing/batch", {"operations": operations})
    assert problems(answer) == {"/operations": "must be a list of at most 1000 items"}
    answer = await collections("POST", "thing/batch", {"operations": operations[:1000]})
    assert [result["version"] for result in answer.json["results"]] == list(range(1, 1001))
    large = {"operations": [{"op": "put", "id": f"{n}", "record": {"text": "x" * 2**20}} for n in range(15)]}
    assert (await collections("POST", "thing/batch", large)).status == 200
    assert (await collections("POST", "thing/batch", b" " * (16 * 2**20 + 1))).status == 413
    assert (await collections("POST", "thing/batch", {"operations": []})).json["results"] == []


@on_memory
@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        (b"{}", "/operations", "is required"),
        (b'{"operations":{}}', "/operations", "must be a list"),
        (b"[]", "", "must be an object"),
        (b"{", "", "is not JSON"),
        (b"", "", "is required"),
    ],
)
async def test_what_is_no_batch(collections: Collections, body: bytes, pointer: str, message: str) -> None:
    answer = await collections("POST", "note/batch", body, Content_Type="application/json")
    assert problems(answer)[pointer].startswith(message)


# Idempotency-Key


@pytest.mark.parametrize("path", ["note", "note/batch"])
async def test_the_same_key_gives_the_first_answer(collections: Collections, path: str) -> None:
    await collections.put("note/gone", {"title": "x"})
    body: dict[str, Any] = {"title": "Milk"}
    if path == "note/batch":
        operations = [{"op": "delete", "id": "gone"}, {"op": "delete", "id": "never"}]
        body = {"operations": [*operations, {"op": "put", "id": "a", "record": body}]}
    first = await collections("POST", path, body, Idempotency_Key="k")
    await collections.put("note/other", {"title": "x"})
    again = await collections("POST", path, body, Idempotency_Key="k")
    assert (again.status, again.content) == (first.status, first.content)
    assert [again.headers.get(n) for n in ("ETag", "Location")] == [first.headers.get(n) for n in ("ETag", "Location")]
    other = await collections("POST", path, body | {"x": 1}, Idempotency_Key="k")
    assert other.status == 422
    collections.server.move_to("2025-06-04T12:00:01Z")
    assert (await collections("POST", path, body, Idempotency_Key="k")).content != first.content


async def test_the_versions_of_an_answer_are_those_that_were_taken(collections: Collections) -> None:
    answer = await collections("POST", "note", {"title": "x", "id": "a"}, Idempotency_Key="k")
    assert (await collections("GET", "note/a")).content == answer.content
    operations = [{"op": "delete", "id": "never"}, {"op": "delete", "id": "a"}, {"op": "put", "id": "b", "record": {}}]
    answer = await collections("POST", "thing/batch", {"operations": operations}, Idempotency_Key="b")
    assert (await collections("GET", "thing/b")).json["_meta"]["version"] == answer.json["results"][2]["version"]
    assert (await collections("GET", "thing")).json["version"] == answer.json["version"]


async def test_what_is_remembered_is_forgotten_after_a_day(collections: Collections) -> None:
    await collections("POST", "note", {"title": "x"}, Idempotency_Key="k")
    storage = collections.server.storage

    async def forgotten() -> bool:
        return await storage.count(Query(ANSWERS)) == 0

    assert not await forgotten()
    collections.server.move_to("2025-06-04T12:30:00Z")
    await until(forgotten)


@on_memory
async def test_refusals_are_not_kept(collections: Collections) -> None:
    assert (await collections("POST", "note", {"count": 1}, Idempotency_Key="k")).status == 400
    assert (await collections("POST", "note", {"title": "x"}, Idempotency_Key="k")).status == 201
    assert (await collections("POST", "note", {"title": "x"}, Idempotency_Key="k" * 256)).status == 400


@on_memory
async def test_one_key_many_times_at_once(collections: Collections) -> None:
    answers = await asyncio.gather(
        *(collections("POST", "note", {"title": "x"}, Idempotency_Key="k") for _ in range(20))
    )
    assert {answer.status for answer in answers} <= {201, 409}
    assert len({answer.content for answer in answers if answer.status == 201}) == 1
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status == 409)
    assert len(await collections.ids("")) == 1


# Reading many


async def test_list(collections: Collections) -> None:
    empty = await collections("GET", "note")
    assert empty.json == {"records": [], "next": None, "version": 0}
    await collections.put("note/b", {"title": "B", "count": 2})
    await collections.put("note/a", {"title": "A"})
    answer = await collections("GET", "note")
    assert answer.json == {
        "records": [{"title": "A", "_meta": meta("a", 2)}, {"title": "B", "count": 2, "_meta": meta("b", 1)}],
        "next": None,
        "version": 2,
    }
    assert "Link" not in answer.headers


async def test_filters_are_read_by_the_schemas_type(collections: Collections) -> None:
    await collections.put("note/a", {"title": "1", "count": 1, "price": 0.5, "done": True})
    await collections.put("note/b", {"title": "2", "count": 10, "price": 1.5, "done": False})
    await collections.put("note/c", {"title": "x,y"})
    for query, ids in {
        "title=1": ["a"],
        "count=10": ["b"],
        "count__gt=1": ["b"],
        "count__gte=1": ["a", "b"],
        "count__lt=10": ["a"],
        "count__lte=10": ["a", "b"],
        "count__in=1,10,11": ["a", "b"],
        "price__lt=1e0": ["a"],
        "done=true": ["a"],
        "done__in=true,false": ["a", "b"],
        "id__gte=b": ["b", "c"],
        "title=x%2Cy": ["c"],
        "count__gt=0&done=false": ["b"],
        "count=1&count=10": ["b"],
    }.items():
        assert await collections.ids(query) == ids, query


async def test_sort(collections: Collections) -> None:
    for id, count in (("a", 2), ("b", None), ("c", 1), ("d", 2)):
        await collections.put(f"note/{id}", {"title": "x"} | ({} if count is None else {"count": count}))
    assert await collections.ids("") == ["a", "b", "c", "d"]
    assert await collections.ids("sort=count") == ["b", "c", "a", "d"]
    assert await collections.ids("sort=-count") == ["a", "d", "c", "b"]
    assert await collections.ids("sort=-count,-id&limit=1") == ["d", "a", "c", "b"]


async def test_pages_are_stable_under_writes(collections: Collections) -> None:
    for n in range(6):
        await collections.put(f"note/{n}", {"title": "x", "count": n})
    first = await collections("GET", "note?sort=count&limit=2")
    assert [record["count"] for record in first.json["records"]] == [0, 1]
    link = re.fullmatch(r'<(.+)>; rel="next"', first.headers["Link"])
    assert link
    await collections("DELETE", "note/1")
    await collections.put("note/early", {"title": "x", "count": -1})
    second = await collections.server.get(link[1])
    assert [record["count"] for record in second.json["records"]] == [2, 3]
    assert second.content == (await collections("GET", f"note?sort=count&limit=2&cursor={first.json['next']}")).content


async def test_pages_are_complete_whatever_their_size(collections: Collections) -> None:
    operations = [{"op": "put", "id": f"{n:03}", "record": {"n": n}} for n in range(250)]
    await collections("POST", "thing/batch", {"operations": operations})
    answer = await collections("GET", "thing?limit=230")
    assert [record["n"] for record in answer.json["records"]] == list(range(230))
    assert (await collections("GET", f"thing?limit=1000&cursor={answer.json['next']}")).json["next"] is None


@on_memory
async def test_a_page_of_large_records_ends_early(collections: Collections) -> None:
    for _ in range(2):
        ids = [f"{n:03}" for n in range(250)]
        operations = [{"op": "put", "id": id, "record": {"text": "x" * 60_000}} for id in ids]
        assert (await collections("POST", "thing/batch", {"operations": operations})).status == 200
    answer = await collections("GET", "thing?limit=1000")
    assert len(answer.json["records"]) == 200
    assert await collections.ids("limit=1000", "thing") == ids


async def test_sparse_fields(collections: Collections) -> None:
    await collections.put("note/a", b'{"title":"x","price":1.50,"more":{"b":1}}')
    answer = await collections("GET", "note?fields=more,price,none")
    shown = f'{{"more":{{"b":1}},"price":1.50,"_meta":{{"id":"a","version":1,"updated_at":"{TIME}"}}}}'
    assert answer.content.decode() == f'{{"records":[{shown}],"next":null,"version":1}}'


@on_memory
@pytest.mark.parametrize(
    ("query", "pointer", "message"),
    [
        ("nope=1", "/nope", "nope is not indexed; these are: id, slug, title, count, price, done"),
        ("nope__gt=1", "/nope__gt", "nope is not indexed; these are: id, slug, title, count, price, done"),
        ("count__near=1", "/count__near", "count__near is not indexed"),
        ("sort=-author", "/sort", "author is not indexed"),
        ("count=x", "/count", "must be an integer within 64 bits"),
        ("count=9223372036854775808", "/count", "must be an integer within 64 bits"),
        ("count__in=1,x", "/count__in", "must be an integer within 64 bits (a comma between each)"),
        ("price=1e999", "/price", "must be a number that a double can hold"),
        ("done=yes", "/done", "must be true or false"),
        ("title=%00", "/title", "must be a text without U+0000"),
        ("limit=0", "/limit", "must be an integer from 1 to 1000"),
        ("limit=1001", "/limit", "must be an integer from 1 to 1000"),
        ("limit=x", "/limit", "must be an integer from 1 to 1000"),
        ("cursor=x", "/cursor", "must be a `next` of this list, in the same order"),
    ],
)
async def test_what_cannot_be_asked(collections: Collections, query: str, pointer: str, message: str) -> None:
    assert problems(await collections("GET", f"note?{query}"))[pointer].startswith(message)


# Who may


EXPOSED = {"server.allowed_hosts": ["sync.example.com"], "server.admin_key": "correct horse battery"}


@on_memory
async def test_keys(serve: Serve, storage: Storage, tmp_path: Path) -> None:
    collections = await serve_collections(serve, tmp_path / "s", **EXPOSED)
    made = ApiKeys(storage, Clock())
    _, reader = await made.create("reader", ["collections:read"])
    _, writer = await made.create("writer", ["collections:write"])
    _, other = await made.create("other")
    made.close()
    for headers, read, write in [
        ({}, 401, 401),
        ({"X_API_Key": "x"}, 401, 401),
        ({"X_API_Key": reader}, 200, 403),
        ({"Authorization": f"Bearer {reader}"}, 200, 403),
        ({"Authorization": f"Bearer {writer}"}, 403, 201),
        ({"Authorization": f"Bearer {other}"}, 403, 403),
        ({"Authorization": "Bearer correct horse battery"}, 200, 201),
        ({"X_API_Key": "correct horse battery"}, 200, 201),
    ]:
        assert (await collections("GET", "note", **headers)).status == read
        assert (await collections("POST", "note", {"title": "x"}, **headers)).status == write
        assert (await collections("POST", "note/batch", {"operations": []}, **headers)).status in (200, write)
        assert (await collections("DELETE", "note/none", **headers)).status == (404 if write == 201 else write)


@on_memory
async def test_keys_of_idempotency_are_the_callers_own(serve: Serve, storage: Storage, tmp_path: Path) -> None:
    collections = await serve_collections(serve, tmp_path / "s", **EXPOSED)
    made = ApiKeys(storage, Clock())
    _, alice = await made.create("alice", ["collections:write"])
    made.close()
    keys = ["correct horse battery", alice]
    answers = [await collections("POST", "note", {"title": "x"}, X_API_Key=k, Idempotency_Key="k") for k in keys]
    assert len({answer.json["_meta"]["id"] for answer in answers}) == 2


# As people run it


async def test_a_key_survives_a_kill(launch: Launch, tmp_path: Path) -> None:
    write_schemas(tmp_path / "schemas", thing={})
    arguments = ("--schemas", "schemas", "--storage", "sqlite:x.db", "--port", "0")
    contents = []
    for _ in range(2):
        server = await launch(*arguments)
        await server.ready()
        headers = {"Idempotency-Key": "k"}
        answer = await server("POST", "/collections/thing", json={"n": 1}, headers=headers)
        assert answer.status == 201
        contents.append(answer.content)
        await server.kill()
    assert contents[0] == contents[1]


async def test_an_edited_schema_is_live_at_once(launch: Launch, tmp_path: Path) -> None:
    folder = write_schemas(tmp_path / "schemas", note={"type": "object"})
    (folder / "note.json").write_text('[{"title": "one"}, {"title": "two", "id": "second"}]')
    server = await launch("--schemas", "schemas", "--watch", "--storage", "memory:", "--port", "0")
    await server.ready()
    listed = await server.get("/collections/note")
    assert [record["_meta"]["id"] for record in listed.json["records"]] == ["1", "second"]

    async def statuses(status: int) -> None:
        async with asyncio.timeout(10):
            while (await server("PUT", "/collections/note/a", json={"n": 1})).status != status:
                await asyncio.sleep(0.02)

    await statuses(201)
    write_schemas(folder, note={"type": "object", "properties": {"n": {"type": "string"}}})
    await statuses(400)
    assert (await server.get("/collections/note/a")).status == 200  # what no longer fits can be read
    assert (await server.get("/collections/note?n=x")).json["records"] == []
    (folder / "note.schema.json").write_text("{")
    write_schemas(folder, fresh={})
    async with asyncio.timeout(10):
        while (await server.get("/collections/fresh")).status != 200 or "the old schema stays" not in server.log:
            await asyncio.sleep(0.02)
    await statuses(400)
    (folder / "note.schema.json").unlink()
    write_schemas(folder, note={})
    await statuses(200)
    assert await server.stop() == 0


async def test_a_broken_schema_ends_it(launch: Launch, tmp_path: Path) -> None:
    write_schemas(
        tmp_path / "schemas", note={"properties": {"a": {"type": "strin"}}}, bad={"$ref": "http://x.example/"}
    )
    server = await launch("--schemas", "schemas", "--storage", "memory:", "--port", "0")
    assert await server.process.wait() == 2
    assert server.log.splitlines() == [
        f"{tmp_path}/schemas/bad.schema.json: /$ref: http://x.example/ is no file in {tmp_path}/schemas,"
        " and references are never fetched",
        f"{tmp_path}/schemas/note.schema.json: /properties/a/type: must be one of array, boolean, integer, null,"
        " number, object and string, or a list of them",
    ]


async def test_an_exposed_server_with_a_public_collection(launch: Launch, tmp_path: Path) -> None:
    write_schemas(tmp_path, note={})
    (tmp_path / "homeport.toml").write_text(
        '[server]\nallowed_hosts = ["a.example"]\n[[collections]]\nname = "notes"\nschema = "note.schema.json"\n'
        'write = "public"\n'
    )
    server = await launch("--storage", "memory:", "--port", "0")
    assert await server.process.wait() == 2
    assert server.log == (
        'collections[0].write: notes is "public", and the server is exposed (server.allowed_hosts has a.example);'
        ' set it to "key"\n'
    )
