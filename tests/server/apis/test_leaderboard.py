"""What the leaderboard's contract implies: whatever is sent, at once, in whatever words; and the bounds of our own."""

import asyncio
import json
import re
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.leaderboard import documents, ledger
from homeport.server.apis.leaderboard.documents import MAX_DEVICES, MONTHS
from homeport.server.validation import Schemas
from homeport.storage import Page, Query

from .conftest import Answer, Serve, on_memory
from .leaderboards import ENDLESS, LARGEST_COUNT, Board, entry, open_board, upload

PROXIED = {"server.trusted_proxies": ["127.0.0.1", "::1"]}
COUNTS = ["totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"]


@pytest.fixture
async def board(serve: Serve) -> Board:
    return await open_board(serve, ENDLESS)


# Whatever is sent


instants = {
    "2025-12-21T10:30:00.000Z": True,
    "2025-12-21T10:30:00": True,
    "2025-12-21t10:30:00z": True,
    "2025-12-21 10:30:00.1234567+14:00": True,
    "2016-12-31T23:59:60Z": True,
    "2025-12-21": False,
    "2025-12-21T24:00:00Z": False,
    "2025-12-21T10:30:00+24:00": False,
    "2025-12-21T10:30:00 Z": False,
    "0001-01-01T00:00:00+01:00": False,
    "": False,
}
junk: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | st.just([]) | st.just({}) | st.floats(-1, 1)
)
counts = st.sampled_from([0, 1, 5.0, LARGEST_COUNT, LARGEST_COUNT + 1, -1, 0.5, 1e3, "1", True]) | junk
costs = st.floats(0, 1e9) | st.sampled_from([0, 10**9, 10**9 + 1, -0.0, -1e-9, "9.30", True]) | junk
names = st.text(min_size=1, max_size=5) | st.sampled_from(["m" * 100, "m" * 101, "🖥" * 100, "a\x85b"]) | junk
strange = {
    "username": st.sampled_from(["bob", "Alice", "al", "a" * 50, "a" * 51, "alice\n", "alice ", "älice"]) | junk,
    "date": st.dates().map(str) | st.sampled_from(["2025-12-22", "2025-12-23", "2025-02-29", "2025-12-21\n"]) | junk,
    "timestamp": st.sampled_from(list(instants)) | junk.filter(lambda value: not isinstance(value, str)),
    "totalCost": costs,
    "modelsUsed": st.lists(names, max_size=3) | st.sampled_from([["m"] * 50, ["m"] * 51]) | junk,
    "device": names | st.sampled_from(["d" * 255, "d" * 256, "🖥" * 255]),
    "unknown": junk,
    **dict.fromkeys(COUNTS, counts),
}
texts = st.sampled_from(["", "x", "x" * 64, "x" * 65, "🖥" * 64]) | junk


@st.composite
def entries(draw: st.DrawFn) -> Any:
    """The contract's, with at most two members that are other than it, or absent."""
    changes = {name: draw(strange[name]) for name in draw(st.lists(st.sampled_from(list(strange)), max_size=2))}
    if draw(st.integers(0, 9)) == 0:
        changes[draw(st.sampled_from(list(entry())))] = ...
    return entry(**changes)


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    posted = draw(st.lists(entries() | entries() | st.just(entry()), min_size=1, max_size=3))
    body = upload(*posted)
    match draw(st.integers(0, 9)):
        case 0:
            body[draw(st.sampled_from(["source", "version"]))] = draw(texts)
        case 1:
            body["entries"] = draw(junk | st.lists(junk, min_size=1, max_size=2))
        case 2:
            del body[draw(st.sampled_from(list(body)))]
    return body


def is_count(value: Any) -> bool:
    return is_number(value) and 0 <= value <= LARGEST_COUNT and value == int(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: Any, longest: int, *, plain: bool = True) -> bool:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        return False
    return not (plain and any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in value))


def is_day(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
        return False
    try:
        return bool(date.fromisoformat(value))
    except ValueError:
        return False


def is_entry(value: Any) -> bool:
    """As the contract has it, but for whose it is and whether it is in the future."""
    if not isinstance(value, dict) or not {"username", "date", "totalTokens", "totalCost", "timestamp"} <= value.keys():
        return False
    cost, models = value["totalCost"], value.get("modelsUsed", [])
    return (
        isinstance(value["username"], str)
        and bool(re.fullmatch(r"[A-Za-z0-9_-]{3,50}", value["username"]))
        and is_day(value["date"])
        and all(is_count(value[name]) for name in COUNTS if name in value)
        and is_number(cost)
        and 0 <= cost <= 10**9
        and isinstance(value["timestamp"], str)
        and instants[value["timestamp"]]
        and isinstance(models, list)
        and len(models) <= 50
        and all(is_text(model, 100) for model in models)
        and ("device" not in value or is_text(value["device"], 255))
    )


def expected_status(body: dict[str, Any]) -> int:
    """What the contract says of a sync with alice's key, where it is noon of 2025-12-21 in UTC."""
    posted = body.get("entries")
    if not isinstance(posted, list) or not 1 <= len(posted) <= 1000 or not all(map(is_entry, posted)):
        return 400
    if not all(is_text(body.get(name), 64, plain=False) for name in ("source", "version")):
        return 400
    if any(each["username"] != "alice" for each in posted):
        return 403
    return 400 if any(each["date"] > "2025-12-22" for each in posted) else 200


fixture_scope = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@on_memory
@settings(suppress_health_check=fixture_scope)
@given(body=bodies())
async def test_statuses_are_those_of_the_contract(board: Board, body: Any) -> None:
    answer = await board.post(body)
    assert answer.status == expected_status(body), answer.content
    has_shape(answer, "SyncResponse")
    if answer.status == 200:
        assert answer.json["entriesProcessed"] == len(body["entries"])
    if answer.status == 400:
        assert 1 <= len(answer.json["errors"]) <= 100
        assert ("username" in answer.json) == (not body.get("entries"))


_schemas = Schemas()


def has_shape(answer: Answer, success: str) -> None:
    """Whether an answer is what its schema, or that of all errors, describes."""
    schema = success if answer.status == 200 else "Error"
    assert _schemas.checker(f"leaderboard#/$defs/{schema}").is_valid(json.loads(answer.content)), answer.content


@on_memory
@settings(suppress_health_check=fixture_scope)
@given(
    place=st.integers(0, 420), length=st.integers(0, 30), other=st.binary(max_size=8) | st.sampled_from([b"\\ud800"])
)
async def test_broken_bodies_are_refused(board: Board, place: int, length: int, other: bytes) -> None:
    body = json.dumps(upload()).encode()
    answer = await board.post(body[:place] + other + body[place + length :])
    assert answer.status in (200, 400, 403)
    has_shape(answer, "SyncResponse")


parameters = st.sampled_from(["period", "metric", "limit", "offset", "date", "other"])
values = st.sampled_from(
    ["daily", "weekly", "cost", "0", "1", "-1", "1000", "9" * 19, "2025-12-21", "9999-12-31", "0001-01-01"]
)


@on_memory
@settings(suppress_health_check=fixture_scope)
@given(query=st.lists(st.tuples(parameters, values | st.text(max_size=4)), max_size=3))
async def test_whatever_is_asked_is_answered(board: Board, query: list[tuple[str, str]]) -> None:
    answer = await board.server.get("/v1/leaderboard?" + "&".join(f"{name}={_escaped(text)}" for name, text in query))
    assert answer.status in (200, 400)
    has_shape(answer, "LeaderboardResponse")


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


# At once


async def test_syncs_at_once_add_up(board: Board) -> None:
    for username in ("alice", "bob"):
        await board.key(username)
    users = ["alice", "alice", "bob"] * 7
    days = ["2025-12-19", "2025-12-20", "2025-12-21"]
    await asyncio.gather(
        *[
            board.sync(
                *(entry(username=name, date=day, device=f"m{n}", totalTokens=2**n, totalCost=0.1) for day in days)
            )
            for n, name in enumerate(users)
        ]
    )
    for row in (await board.ranking("metric=tokens"))["entries"]:
        mine = [n for n, name in enumerate(users) if name == row["username"]]
        assert row["totalTokens"] == 3 * sum(2**n for n in mine)
        assert row["totalCost"] * 10 == 3 * len(mine)
        assert row["daysCounted"] == 3
        assert len(await board.rows(row["username"])) == 3 * len(mine)


async def test_the_same_sync_many_times_at_once(board: Board) -> None:
    await board.key()
    await asyncio.gather(*[board.sync(entry(), entry(date="2025-12-20")) for _ in range(10)])
    user = await board.user()
    assert (user["totalDays"], user["totalTokens"]) == (2, 2 * 11681277)


async def test_a_page_read_while_others_sync_is_of_one_moment(board: Board) -> None:
    """All users sync the same amount, which grows, in the same commit order: who is ahead is ranked first."""
    users = [f"user-{n}" for n in range(5)]

    async def sync(username: str) -> None:
        for amount in range(8):
            await board.sync(*(entry(username=username, date=f"2025-12-1{n}", totalTokens=amount) for n in range(3)))

    async def read() -> None:
        for _ in range(20):
            page = await board.ranking("metric=tokens&period=monthly")
            tokens = [row["totalTokens"] for row in page["entries"]]
            assert tokens == sorted(tokens, reverse=True)
            assert all(amount % 3 == 0 for amount in tokens)  # no sync is seen in part
            assert page["total"] == len(tokens)

    for username in users:
        await board.sync(entry(username=username, date="2025-12-10", totalTokens=0))
    await asyncio.gather(*map(sync, users), read())


async def test_a_page_reads_as_many_records_as_it_shows(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that tells when the newest sync arrived; however many days there are."""
    days = [(date(2025, 1, 1) + timedelta(days=number)).isoformat() for number in range(300)]
    for username in ("alice", "bob", "carol", "dave"):
        await board.sync(*(entry(username=username, date=day) for day in (*days, "2025-12-21")))
    pages: list[Page] = []
    find = board.server.storage.find

    async def counted(query: Query) -> Page:
        pages.append(await find(query))
        return pages[-1]

    monkeypatch.setattr(board.server.storage, "find", counted)
    for period in ("daily", "weekly", "monthly", "all-time"):
        pages.clear()
        assert len((await board.ranking(f"period={period}&limit=3"))["entries"]) == 3
        assert sum(len(page.records) for page in pages) == 4


# Bounds of our own


async def test_a_day_has_a_bounded_number_of_devices(board: Board) -> None:
    await board.sync(*(entry(device=f"m{n}", totalTokens=1) for n in range(MAX_DEVICES)))
    before = await board.user()
    answer = await board.post(upload(entry(device="one more"), entry(date="2025-12-20")))
    assert answer.status == 400
    assert answer.json["errors"] == [
        {"field": "entries", "message": f"must not give 2025-12-21 more than {MAX_DEVICES} devices"}
    ]
    assert await board.user() == before
    await board.sync(entry(device="m0", totalTokens=3))
    assert (await board.user())["totalTokens"] == MAX_DEVICES + 2


async def test_a_month_has_a_bounded_size(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    size = await _size_of_month(board, entry(device="a"), entry(device="b"))
    monkeypatch.setattr(ledger, "MAX_MONTH", size)
    before = await board.data()
    answer = await board.post(upload(entry(device="c"), entry(date="2025-11-30")))
    assert answer.status == 400
    assert answer.json["errors"] == [
        {"field": "entries", "message": f"must not give 2025-12 more than {size} bytes of rows"}
    ]
    assert await board.data() | {"lastSyncAt": None} == before | {"lastSyncAt": None}
    await board.sync(entry(device="a", totalTokens=3), entry(date="2025-11-30"))


async def test_a_month_that_is_too_large_may_change_and_shrink(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    size = await _size_of_month(board, entry(device="a"), entry(device="b"))
    monkeypatch.setattr(ledger, "MAX_MONTH", 1)
    assert await _size_of_month(board, entry(device="b", modelsUsed=[])) < size
    assert (await board.post(upload(entry(device="b")))).status == 400


async def test_a_user_has_a_bounded_number_of_models(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_MODELS", 4)
    await board.sync(entry(modelsUsed=["a", "b"]), entry(date="2025-11-30", modelsUsed=["c", "d"]))
    before = await board.user()
    answer = await board.post(upload(entry(date="2025-12-20", modelsUsed=["a", "e"])))
    assert answer.status == 400
    assert answer.json["errors"] == [{"field": "entries", "message": "must not name more than 4 models in all"}]
    assert await board.user() == before
    await board.sync(entry(date="2025-12-20", modelsUsed=["a", "d"]))


async def _size_of_month(board: Board, *entries: dict[str, Any]) -> int:
    await board.sync(*entries)
    (record,) = (await board.server.storage.get(MONTHS, ["alice 2025-12"])).values()
    return len(record.document)


# Addresses


@on_memory
async def test_where_a_users_page_is(serve: Serve) -> None:
    board = await open_board(serve, {"server.base_path": "/usage"})
    answer = await board.call("POST", "/usage/v1/sync", json=upload())
    assert answer.json["leaderboardUrl"] == f"{board.server.url}/usage/user/alice"


@on_memory
async def test_a_user_called_data(board: Board) -> None:
    """May sync and is ranked; the address of the user's JSON is that of the download."""
    await board.sync(entry(username="data"))
    assert (await board.ranking())["entries"][0]["username"] == "data"
    assert (await board.server.get("/v1/user/data")).status == 401
    assert (await board.data("data"))["username"] == "data"


@on_memory
async def test_head(board: Board) -> None:
    await board.sync()
    for path in ("/v1/leaderboard", "/v1/user/alice"):
        answer = await board.server("HEAD", path)
        assert (answer.status, answer.content) == (200, b"")
        assert answer.headers["Content-Length"] == str(len((await board.server.get(path)).content))


# Scopes


@on_memory
async def test_a_key_without_sync_downloads_and_does_not_delete(board: Board) -> None:
    await board.sync()
    key = await board.key("alice", "collections:read")
    assert len((await board.call("GET", "/v1/user/data", key=key)).json["entries"]) == 1
    answer = await board.call("DELETE", "/v1/user/data", key=key)
    assert (answer.status, answer.json["message"]) == (403, "API key does not have permission to sync data")
    assert len(await board.rows()) == 1


# Limits


@on_memory
async def test_the_rate_limit_of_the_contracts_example(serve: Serve) -> None:
    board = await open_board(serve, {"apis.leaderboard.rate_limit": "1/minute"})
    await board.sync()
    answer = await board.post(upload())
    assert (answer.status, answer.json, answer.headers["Retry-After"]) == (
        429,
        {
            "success": False,
            "message": "Rate limit exceeded. Try again in 60 seconds",
            "code": "RATE_LIMIT_EXCEEDED",
            "retryAfter": 60,
        },
        "60",
    )


@on_memory
async def test_guesses_at_keys(serve: Serve) -> None:
    """Ten a minute, from one address; it is then told nothing of right ones either."""
    board = await open_board(serve, PROXIED)
    there = {"headers": {"X-Forwarded-For": "203.0.113.7"}}
    for _ in range(10):
        assert (await board.post(upload(), key="ccusage_live_" + "A" * 60, **there)).status == 401
    answer = await board.post(upload(), **there)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
    assert (answer.json["code"], answer.json["retryAfter"]) == ("RATE_LIMIT_EXCEEDED", 60)
    assert (await board.post(upload(), headers={"X-Forwarded-For": "203.0.113.8"})).status == 200


@on_memory
async def test_who_reads_with_a_key_spends_it(serve: Serve) -> None:
    """Where reading takes none, a key that is sent all the same does not count."""
    closed = await open_board(serve, {"apis.leaderboard.public": False, "apis.leaderboard.rate_limit": "2/hour"})
    statuses = [(await closed.call("GET", "/v1/leaderboard")).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    public = await open_board(serve, {"apis.leaderboard.rate_limit": "2/hour"})
    answers = [await public.call("GET", "/v1/leaderboard", key=await closed.key()) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert "X-RateLimit-Limit" not in answers[0].headers


@on_memory
async def test_what_the_server_itself_refuses_has_the_same_shape(board: Board) -> None:
    for headers, status, code in (
        ({"Host": "evil.example"}, 421, "MISDIRECTED_REQUEST"),
        ({"Origin": "https://evil.example"}, 403, "FORBIDDEN"),
    ):
        answer = await board.post(upload(), headers=headers)
        assert (answer.status, answer.json["code"]) == (status, code)
        has_shape(answer, "SyncResponse")
