"""contracts/collections.md, "Sync", sentence by sentence, on every back end."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homeport.storage import Tombstones

from ..server.apis.conftest import Serve, on_memory, until
from ..server.apis.synced import Notes, note, open_notes

UPDATED = "2025-06-03T12:00:00.000Z"


@pytest.fixture
async def notes(serve: Serve, tmp_path: Path) -> Notes:
    return await open_notes(serve, tmp_path)


def change(id: str, version: int, record: dict[str, Any] | None = None) -> dict[str, Any]:
    """A change as clients are told of it."""
    if record is None:
        return {"id": id, "version": version, "deleted": True}
    meta = {"id": id, "version": version, "updated_at": UPDATED}
    return {"id": id, "version": version, "deleted": False, "record": record | {"_meta": meta}}


async def purge(notes: Notes, up_to: int) -> None:
    storage = notes.server.storage
    assert await storage.purge(Tombstones(storage.collections["collections_notes"], up_to))


# GET /collections/{c}/changes


async def test_what_changed(notes: Notes) -> None:
    first = await notes.put("a", note("Milk"))
    second = await notes.put("b", note("Bread"))
    third = await notes.put("a", note("Milk and honey"))
    await notes.delete("b")
    answer = await notes.changes("since=0")
    assert answer == {
        "changes": [change("a", third, note("Milk and honey")), change("b", third + 1)],
        "version": third + 1,
        "more": False,
        "store": notes.server.storage.id,
    }
    assert first < second < third
    assert (await notes.changes(f"since={third}"))["changes"] == [change("b", third + 1)]
    assert (await notes.changes(f"since={third + 1}"))["changes"] == []


async def test_pages(notes: Notes) -> None:
    for number in range(7):
        await notes.put(f"n{number}", note())
    seen: list[str] = []
    since = 0
    for more in (True, True, False):
        answer = await notes.changes(f"since={since}&limit=3")
        seen += [change["id"] for change in answer["changes"]]
        since = answer["version"]
        assert answer["more"] is more
    assert seen == [f"n{number}" for number in range(7)]


async def test_a_hundred_unless_asked(notes: Notes) -> None:
    await notes.sync(0, *({"id": f"n{number}", "record": note()} for number in range(101)))
    assert len((await notes.changes())["changes"]) == 100
    assert len((await notes.changes("limit=1000"))["changes"]) == 101


@on_memory
@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "since=x", "since=1.5"])
async def test_a_query_that_says_nothing(notes: Notes, query: str) -> None:
    answer = await notes.ask(query)
    assert answer.status == 400
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


async def test_what_came_is_what_is_told(notes: Notes) -> None:
    document = b'{"z":1,"title":"\\u00e4\xc3\xa4","a":1.50,"big":123456789012345678901234567890,"tiny":1e-7,"n":-0.0}'
    await notes.server("PUT", "/collections/notes/a", data=document, headers={"Content-Type": "application/json"})
    assert document[:-1] in (await notes.ask()).content


async def test_collections_do_not_tell_of_each_other(notes: Notes) -> None:
    version = await notes.put("a", note())
    await notes.put("b", {}, "tasks")
    assert (await notes.changes())["changes"] == [change("a", version, note())]
    assert (await notes.ask(collection="nothing")).status == 404


async def test_gone_where_tombstones_were_purged(notes: Notes) -> None:
    first = await notes.put("a", note())
    await notes.put("b", note())
    await notes.delete("b")
    last = await notes.put("c", note())
    await purge(notes, last)
    answer = await notes.ask(f"since={first}")
    assert (answer.status, answer.headers["Content-Type"]) == (410, "application/problem+json")
    assert (await notes.ask(f"since={last}")).status == 200
    assert [change["id"] for change in (await notes.changes())["changes"]] == ["a", "c"]


async def test_a_first_reading_goes_on_below_what_was_purged(notes: Notes) -> None:
    for number in range(6):
        await notes.put(f"n{number}", note())
    await notes.put("x", note())
    await notes.delete("x")
    await purge(notes, (await notes.changes())["version"])
    seen: list[str] = []
    since, more = 0, True
    while more:
        answer = await notes.changes(f"since={since}&limit=2")
        since, more = answer["version"], answer["more"]
        seen += [change["id"] for change in answer["changes"]]
        if len(seen) == 2:
            assert since < 0
            assert (await notes.ask(f"since={since}", "tasks")).status == 410
    assert seen == [f"n{number}" for number in range(6)]
    assert (await notes.changes(f"since={since}"))["changes"] == []
    assert (await notes.ask("since=-1")).status == 410


async def test_gone_above_the_stores_version(notes: Notes) -> None:
    version = await notes.put("a", note())
    assert (await notes.ask(f"since={version + 1}")).status == 410


async def test_gone_for_another_store(notes: Notes) -> None:
    store = (await notes.changes())["store"]
    assert (await notes.ask(f"store={store}")).status == 200
    assert (await notes.ask("store=another")).status == 410
    assert (await notes.post(0, query="store=another")).status == 410


async def test_deletions_are_kept_for_ninety_days(notes: Notes) -> None:
    clock = notes.server.clock
    first = await notes.put("a", note())
    await notes.put("b", note())
    await notes.delete("b")
    clock.advance(2 * 24 * 3600)  # the store's version is remembered each day
    await until(_marked(notes))
    last = await notes.put("c", note())
    clock.advance(87 * 24 * 3600)
    await asyncio.sleep(0.05)
    assert (await notes.ask(f"since={first}")).status == 200
    clock.advance(3 * 24 * 3600)

    async def gone() -> bool:
        return (await notes.ask(f"since={first}")).status == 410

    await until(gone)
    assert (await notes.ask(f"since={last}")).status == 200


def _marked(notes: Notes) -> Any:
    async def marked() -> bool:
        storage = notes.server.storage
        return bool((await storage.changes(storage.collections["collection_marks"], 0, 1)).changes)

    return marked


# The same live: server-sent events


async def test_events(notes: Notes) -> None:
    first = await notes.put("a", note())
    async with notes.events("since=0") as events:
        assert events.answer.headers["Content-Type"].startswith("text/event-stream")
        assert await events.next() == change("a", first, note())
        assert events.last_id == str(first)
        second = await notes.put("b", note("Bread"))
        assert await events.next() == change("b", second, note("Bread"))
        await notes.delete("a")
        assert await events.next() == change("a", second + 1)


async def test_last_event_id_resumes(notes: Notes) -> None:
    versions = [await notes.put(f"n{number}", note()) for number in range(4)]
    headers = {"Last-Event-ID": str(versions[1])}
    async with notes.events("since=0", **headers) as events:
        assert await events.versions(2) == versions[2:]


@on_memory
async def test_an_event_is_one_line(notes: Notes) -> None:
    body = b'{\n  "title": "a\\nb"\r\n}'
    await notes.server("PUT", "/collections/notes/a", data=body, headers={"Content-Type": "application/json"})
    async with notes.events() as events:
        assert (await events.next())["record"]["title"] == "a\nb"


@on_memory
async def test_head_of_events(notes: Notes) -> None:
    answer = await notes.server("HEAD", "/collections/notes/changes", headers={"Accept": "text/event-stream"})
    assert (answer.status, answer.headers["Content-Type"], answer.content) == (200, "text/event-stream", b"")


@pytest.mark.parametrize("query", ["since=100", "since=-5", "store=another"])
@on_memory
async def test_events_that_are_gone(notes: Notes, query: str) -> None:
    async with notes.events(query) as events:
        assert events.answer.status == 410


async def test_resuming_after_a_purge(notes: Notes) -> None:
    first = await notes.put("a", note())
    await notes.delete("a")
    last = await notes.put("b", note())
    await purge(notes, last)
    async with notes.events(**{"Last-Event-ID": str(first)}) as events:
        assert events.answer.status == 410
    async with notes.socket() as socket:
        await socket.subscribe("notes", since=first)
        refusal = await socket.next()
        assert (refusal["type"], refusal["status"]) == ("error", 410)
        await socket.subscribe("notes", since=0)
        assert await socket.versions(1) == [last]


# The same live: WebSocket


async def test_a_socket(notes: Notes) -> None:
    first = await notes.put("a", note())
    async with notes.socket() as socket:
        await socket.subscribe("notes", since=0)
        assert await socket.next() == {"type": "change", "collection": "notes", **change("a", first, note())}
        await notes.delete("a")
        assert await socket.next() == {"type": "change", "collection": "notes", **change("a", first + 1)}


async def test_collections_on_one_socket_come_in_order(notes: Notes) -> None:
    versions = [await notes.put(f"n{n}", note(), ("notes", "tasks")[n % 2]) for n in range(6)]
    async with notes.socket() as socket:
        await socket.subscribe("tasks", "notes", since=0)
        assert await socket.versions(6) == versions
        versions = [await notes.put(f"n{n}", note("new"), ("notes", "tasks")[n % 2]) for n in range(6)]
        assert await socket.versions(6) == versions


async def test_without_since_from_now_on(notes: Notes) -> None:
    await notes.put("a", note())
    async with notes.socket() as socket:
        await socket.subscribed("notes")
        second = await notes.put("b", note())
        assert (await socket.next())["version"] == second


async def test_a_subscription_takes_the_place_of_the_one_before(notes: Notes) -> None:
    async with notes.socket() as socket:
        await socket.subscribed("notes")
        await socket.subscribed("tasks")
        await notes.put("a", note())
        version = await notes.put("b", {}, "tasks")
        assert (await socket.next())["version"] == version


BAD = {
    '{"type":"subscribe","collections":["nothing"]}': 404,
    '{"type":"subscribe","collections":[]}': 400,
    '{"type":"subscribe"}': 400,
    '{"type":"subscribe","collections":["notes"],"since":-1}': 400,
    '{"type":"subscribe","collections":["notes"],"since":99}': 410,
    '{"type":"shout"}': 400,
    "[]": 400,
    "{": 400,
}


@on_memory
async def test_what_is_no_subscription_changes_nothing(notes: Notes) -> None:
    async with notes.socket() as socket:
        await socket.subscribed("notes")
        for message, status in BAD.items():
            await socket.client.send_str(message)
            refusal = await socket.next()
            assert (refusal["type"], refusal["status"]) == ("error", status), message
            assert refusal["message"]
        await socket.client.send_bytes(b"{}")
        assert (await socket.next())["status"] == 400
        version = await notes.put("a", note())
        assert (await socket.next())["version"] == version


@on_memory
async def test_the_socket_is_for_sockets(notes: Notes) -> None:
    answer = await notes.server.get("/changes")
    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")


# Who may


@pytest.fixture
async def guarded(serve: Serve, tmp_path: Path) -> Notes:
    """``notes`` are public, ``tasks`` are for who has a key; ADMIN_KEY is "admin's"."""
    tables = [
        {"name": "notes", "schema": str(tmp_path / "any.json")},
        {"name": "tasks", "schema": str(tmp_path / "any.json"), "read": "key", "write": "public"},
    ]
    (tmp_path / "any.json").write_text("{}")
    settings = {"apis.enabled": ["collections"], "collections": tables, "server.admin_key": "admin's"}
    return Notes(await serve(settings))


@on_memory
async def test_reading_needs_the_right_however_it_is_done(guarded: Notes) -> None:
    key = {"X-API-Key": "admin's"}
    assert (await guarded.ask(collection="tasks")).status == 401
    assert (await guarded.ask(collection="tasks", headers=key)).status == 200
    body = {"since": 0, "changes": [{"id": "a", "record": {}}]}
    assert (await guarded.server("POST", "/collections/tasks/sync", json=body)).status == 401
    assert (await guarded.server("POST", "/collections/tasks/sync", json=body, headers=key)).status == 200
    async with guarded.events(collection="tasks") as events:
        assert events.answer.status == 401
    async with guarded.events(collection="tasks", **key) as events:
        assert (await events.next())["id"] == "a"


@on_memory
async def test_a_socket_takes_a_key_as_header_or_in_its_query(guarded: Notes) -> None:
    await guarded.server("PUT", "/collections/tasks/a", json={})
    async with guarded.socket() as socket:
        await socket.subscribe("notes", "tasks", since=0)
        assert (await socket.next())["status"] == 401
    async with guarded.socket(headers={"Authorization": "Bearer admin's"}) as socket:
        await socket.subscribe("tasks", since=0)
        assert (await socket.next())["id"] == "a"
    async with guarded.socket(params={"apiKey": "admin's"}) as socket:
        await socket.subscribe("tasks", since=0)
        assert (await socket.next())["id"] == "a"
    async with guarded.socket(params={"apiKey": "nobody's"}) as socket:
        message = await socket.client.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4001)


@on_memory
async def test_no_page_from_elsewhere(notes: Notes) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with notes.socket(headers={"Origin": "https://elsewhere.example"}):
            pass
    assert refused.value.status == 403


@on_memory
async def test_a_page_from_another_port_hears_events(notes: Notes) -> None:
    async with notes.events(Origin="http://localhost:5173") as events:
        assert events.answer.headers["Access-Control-Allow-Origin"] == "http://localhost:5173"


@on_memory
async def test_subscribers_are_counted(notes: Notes) -> None:
    async with notes.socket(), notes.events() as events:
        await events.answer.content.readline()
        metrics = (await notes.server.get("/metrics")).content.decode()
    assert 'homeport_live_subscribers{kind="sse"} 1.0' in metrics
    assert 'homeport_live_subscribers{kind="websocket"} 1.0' in metrics


# POST /collections/{c}/sync


async def test_sync(notes: Notes) -> None:
    theirs = await notes.put("theirs", note("Theirs"))
    mine = await notes.put("mine", note("Mine"))
    answer = await notes.sync(
        theirs,
        {"id": "new", "if_version": 0, "record": note("New")},
        {"id": "mine", "if_version": mine, "deleted": True},
        {"id": "theirs", "if_version": theirs + 100, "record": note("Ours")},
        {"id": "absent", "if_version": 7, "record": note("Edited, but deleted")},
    )
    assert answer == {
        "applied": [{"id": "new", "version": mine + 1}, {"id": "mine", "version": mine + 2}],
        "conflicts": [
            {"id": "theirs", "version": theirs, "record": change("theirs", theirs, note("Theirs"))["record"]},
            {"id": "absent", "version": 0, "deleted": True},
        ],
        "changes": [],
        "version": mine + 2,
        "more": False,
        "store": notes.server.storage.id,
    }


async def test_the_answer_brings_what_others_did(notes: Notes) -> None:
    other = await notes.put("other", note())
    answer = await notes.sync(0, {"id": "mine", "record": note()})
    assert answer["changes"] == [change("other", other, note())]
    assert answer["version"] == other + 1
    assert (await notes.sync(answer["version"]))["changes"] == []


async def test_a_repeat_does_nothing(notes: Notes) -> None:
    mine = await notes.put("mine", note())
    edits: list[dict[str, Any]] = [
        {"id": "new", "if_version": 0, "record": note("New", count=1.0)},
        {"id": "mine", "if_version": mine, "deleted": True},
        {"id": "free", "record": note("Whatever there is")},
    ]
    first = await notes.sync(0, *edits)
    again = await notes.sync(0, *edits)
    assert again["version"] == first["version"]
    assert again["applied"] == [first["applied"][0], {"id": "mine", "version": 0}, first["applied"][2]]
    assert again["conflicts"] == []


async def test_a_key_makes_a_repeat_harmless_whatever_others_did(notes: Notes) -> None:
    edit = {"id": "new", "if_version": 0, "record": note()}
    headers = {"Idempotency-Key": "a key"}
    first = await notes.post(0, edit, headers=headers)
    await notes.delete("new")
    again = await notes.post(0, edit, headers=headers)
    assert again.json["applied"] == first.json["applied"]
    assert again.json["changes"] == [change("new", first.json["version"] + 1)]
    assert await notes.state() == {}


@on_memory
async def test_white_space_makes_no_version_but_another_number_does(notes: Notes) -> None:
    version = await notes.put("a", note(n=1))
    headers = {"Content-Type": "application/json"}
    for number, expected in (("1", version), ("1.0", version + 1)):
        body = '{"since":0,"changes":[{"id":"a","record":{ "title" : "Milk",\n"n":?, "_meta": 1}}]}'.replace(
            "?", number
        )
        answer = await notes.server("POST", "/collections/notes/sync", data=body, headers=headers)
        assert answer.json["applied"] == [{"id": "a", "version": expected}]


async def test_a_unique_field_that_is_taken_is_a_conflict(notes: Notes) -> None:
    await notes.put("a", note(tag="x"))
    answer = await notes.sync(0, {"id": "b", "record": note(tag="x")}, {"id": "c", "record": note(tag="y")})
    assert answer["conflicts"] == [{"id": "b", "version": 0, "deleted": True, "taken": "tag"}]
    assert [applied["id"] for applied in answer["applied"]] == ["c"]


async def test_of_two_that_want_a_unique_value_one_gets_it(notes: Notes) -> None:
    await notes.put("a", note(tag="x"))
    answer = await notes.sync(
        0,
        {"id": "b", "record": note(tag="z")},
        {"id": "c", "record": note(tag="z")},
        {"id": "a", "if_version": 99, "record": note(tag="y")},
        {"id": "d", "record": note(tag="x")},
    )
    assert [applied["id"] for applied in answer["applied"]] == ["b"]
    assert [conflict["id"] for conflict in answer["conflicts"]] == ["c", "a", "d"]
    answer = await notes.sync(0, {"id": "a", "record": note(tag="z")}, {"id": "b", "record": note(tag="x")})
    assert [applied["id"] for applied in answer["applied"]] == ["a", "b"]


async def test_an_invalid_record_is_named_and_nothing_is_applied(notes: Notes) -> None:
    answer = await notes.post(
        0,
        {"id": "fine", "record": note()},
        {"id": "bad", "record": {"title": 1}},
        {"id": "worse", "record": {"title": "x", "tag": "\0", "id": "other"}},
        {"id": "a/b", "deleted": True},
        {"id": "fine", "deleted": True},
    )
    assert answer.status == 400
    pointers = [error["pointer"] for error in answer.json["errors"]]
    assert pointers == ["/changes/1/record/title", "/changes/2/record/id", "/changes/3/id", "/changes/4/id"]
    assert await notes.state() == {}
    assert (await notes.post(0, {"id": "a", "record": {"title": "x", "tag": "\0"}})).json["errors"][0]["pointer"] == (
        "/changes/0/record/tag"
    )


@on_memory
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"since": 0},
        {"since": 0, "changes": [{"id": "a"}]},
        {"since": 0, "changes": [{"id": "a", "deleted": False}]},
        {"since": 0, "changes": [{"id": "a", "deleted": True, "record": {}}]},
        {"since": 0, "changes": [{"id": "a", "record": []}]},
        {"since": 0, "changes": [{"id": "a", "record": {}, "if_version": -1}]},
        {"since": 0, "changes": [{"id": str(number), "deleted": True} for number in range(1001)]},
    ],
)
async def test_what_is_no_sync(notes: Notes, body: dict[str, Any]) -> None:
    answer = await notes.server("POST", "/collections/notes/sync", json=body)
    assert answer.status == 400
    assert answer.json["errors"]


async def test_nothing_is_applied_where_since_is_gone(notes: Notes) -> None:
    assert (await notes.post(99, {"id": "a", "record": note()})).status == 410
    assert await notes.state() == {}


@on_memory
async def test_a_sync_of_more_than_sixteen_megabytes(notes: Notes) -> None:
    record = note(text="x" * (1 << 20))
    assert (await notes.post(0, *({"id": str(n), "record": record} for n in range(15)))).status == 200
    assert (await notes.post(0, *({"id": str(n), "record": record} for n in range(17)))).status == 413


@on_memory
async def test_an_answer_has_a_bound(notes: Notes) -> None:
    record = note(text="x" * (1 << 20))
    await notes.sync(0, *({"id": str(n), "record": record} for n in range(15)))
    answer = await notes.changes("limit=1000")
    assert (len(answer["changes"]), answer["more"]) == (7, True)
    assert len(await notes.state()) == 15
