"""contracts/leaderboard.md, sentence by sentence: every example whole, on every back end. Keys, the Slack command,
HTML pages and HTTPS have tests of their own."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from io import BytesIO
from itertools import product
from typing import Any

import pytest

from homeport.storage import StorageFull

from ..server.apis.conftest import Answer, Log, Serve, on_memory, until
from ..server.apis.leaderboards import LARGEST_COUNT, NOW, Board, entry, open_board, upload

FORBIDDEN = {"success": False, "message": "API key does not have permission to sync data", "code": "FORBIDDEN"}
UNAUTHORIZED = {"success": False, "message": "Invalid or missing API key", "code": "UNAUTHORIZED"}
NO_DATE = "Invalid date format. Expected YYYY-MM-DD"
NO_NUMBER = "must be an integer from 0 to 9007199254740991"
NO_COST = "must be a number from 0 to 1000000000"
NO_TEXT = "must be a string of 1 to 64 characters"
TOKENS = ["totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"]
LENGTHS = ("daily", "weekly", "monthly", "all-time")
METRICS = ("tokens", "cost")
EXPOSED = {"server.public_url": "https://sync.example.com"}


@pytest.fixture
async def board(serve: Serve) -> Board:
    return await open_board(serve)


def invalid(*errors: tuple[str, str], **more: Any) -> dict[str, Any]:
    """The 400's body."""
    return {
        "success": False,
        "message": "Invalid request body",
        "code": "INVALID_REQUEST",
        "errors": [{"field": field, "message": message} for field, message in errors],
        **more,
    }


def is_refusal(answer: Answer, status: int, code: str) -> bool:
    """Whether an answer has the shape that all errors have."""
    body = answer.json
    return (
        (answer.status, body["success"], body["code"]) == (status, False, code)
        and bool(body["message"])
        and answer.headers["Content-Type"] == "application/json"
    )


# POST /v1/sync


async def test_sync(board: Board) -> None:
    answer = await board.post(upload())
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "message": "Successfully synced 1 entry",
            "entriesProcessed": 1,
            "leaderboardUrl": f"{board.server.url}/user/alice",
        },
    )
    assert await board.rows() == [entry(totalCost=Decimal("9.30"))]


async def test_sync_of_several_with_a_public_url(serve: Serve) -> None:
    board = await open_board(serve, {"server.public_url": "https://sync.example.com/"})
    answer = await board.post(upload(*(entry(date=f"2025-12-{day}") for day in range(10, 20))))
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "message": "Successfully synced 10 entries",
            "entriesProcessed": 10,
            "leaderboardUrl": "https://sync.example.com/user/alice",
        },
    )


@on_memory
@pytest.mark.parametrize("name", ["username", "date", "totalTokens", "totalCost", "timestamp"])
async def test_required_in_an_entry(board: Board, name: str) -> None:
    answer = await board.post(upload(entry(), entry(**{name: ...})))
    assert (answer.status, answer.json) == (400, invalid((f"entries[1].{name}", "is required")))


@on_memory
@pytest.mark.parametrize("name", ["source", "version"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(..., "is required"), ("", NO_TEXT), ("x" * 65, NO_TEXT), (None, NO_TEXT), (1, NO_TEXT)],
    ids=["absent", "empty", "too long", "null", "a number"],
)
async def test_source_and_version_are_required(board: Board, name: str, value: Any, message: str) -> None:
    answer = await board.post(upload(**{name: value}))
    assert (answer.status, answer.json) == (400, invalid((name, message)))


async def test_the_rest_is_optional(board: Board) -> None:
    """Token fields are 0, no model was used, and there is no device."""
    optional = ("inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens")
    await board.sync(entry(modelsUsed=..., **dict.fromkeys(optional, ...)))
    assert await board.rows() == [entry(modelsUsed=[], totalCost=Decimal("9.30"), **dict.fromkeys(optional, 0))]


BOUNDS: dict[str, dict[str, Any]] = {
    "nothing": {"totalTokens": 0, "totalCost": 0},
    "most tokens": {"totalTokens": LARGEST_COUNT},
    "most of each kind": dict.fromkeys(TOKENS, LARGEST_COUNT),
    "most dollars": {"totalCost": 1_000_000_000},
    "fewest dollars": {"totalCost": 0.000001},
    "most models with the longest names": {"modelsUsed": [f"{n:0100}" for n in range(50)]},
    "shortest name of a model": {"modelsUsed": ["m"]},
    "any name of a model": {"modelsUsed": ["Ä & <b>"]},
    "shortest device": {"device": "d"},
    "longest device": {"device": "🖥" * 255},
    "any device": {"device": "a b/c%2F"},
    "any timestamp": {"timestamp": "2025-12-21 12:30:00.123456+02:00"},
    "a timestamp in the future": {"timestamp": "2026-12-21T12:30:00Z"},
    "first day": {"date": "0001-01-01"},
    "leap day": {"date": "2024-02-29"},
}


async def test_the_bounds_are_within(board: Board) -> None:
    sent = [entry(**({"date": f"2025-11-{day:02}"} | changes)) for day, changes in enumerate(BOUNDS.values(), 1)]
    await board.sync(*sent)
    kept = {row["date"]: row for row in await board.rows()}
    assert kept == {row["date"]: row | {"totalCost": Decimal(repr(row["totalCost"]))} for row in sent}


@pytest.mark.parametrize("username", ["abc", "A-b_9", "_" * 50, "---", "data"])
@on_memory
async def test_the_bounds_of_a_username(board: Board, username: str) -> None:
    await board.sync(entry(username=username))
    assert [row["username"] for row in (await board.ranking())["entries"]] == [username]


NAMES = "must be a list of at most 50 items"
NAME = "must be a string of 1 to 100 characters without control characters"
DEVICE = "must be a string of 1 to 255 characters without control characters"
USERNAME = "must be 3 to 50 of A-Z, a-z, 0-9, _ and -"
INSTANT = "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"


WRONG: dict[str, tuple[str, list[Any]]] = {
    **{name: (NO_NUMBER, ["1", "", True, None, -1, 1.5, LARGEST_COUNT + 1, [], {}]) for name in TOKENS},
    "totalCost": (NO_COST, ["9.30", "$9", True, False, None, -0.01, -1, 1_000_000_000.01, 1_000_000_001, 1e300, []]),
    "username": (USERNAME, ["al", "a" * 51, "al ice", "älice", "alice\n", "alice\0", "a.b", "", 123, None]),
    "date": (
        NO_DATE,
        [
            *("2025-02-30", "2025-02-29", "1900-02-29", "2025-13-01", "2025-00-10", "2025-12-00", "0000-01-01"),
            *("2025-12-1", "20251221", "21.12.2025", "2025-W51-7", "2025-355", "+2025-12-21", "-001-01-01", ""),
            *("2025-12-21T00:00:00Z", " 2025-12-21", "2025-12-21\n", "٢٠٢٥-12-21", 20251221, None, ["2025-12-21"]),
        ],
    ),
    "timestamp": (
        INSTANT,
        [
            *("2025-12-21", "10:30", "now", "", "2025-12-21T25:00:00Z", "2025-12-21T10:60:00Z", "2025-02-30T10:30:00Z"),
            *("2025-12-21T10:30Z", "2025-12-21T10:30:00+2", "1766313000", 1766313000, None, True),
        ],
    ),
    "modelsUsed": (NAMES, ["opus", None, {}, 5, [str(n) for n in range(51)]]),
    "device": (DEVICE, ["", "x" * 256, None, 5, [], "a\x7fb", "a\nb"]),
}


@on_memory
@pytest.mark.parametrize("name", WRONG)
async def test_what_an_entry_may_not_hold(board: Board, name: str) -> None:
    """Each is told by where it stands."""
    message, values = WRONG[name]
    for entries in [entry(**{name: value}) for value in values], [entry(), entry(**{name: values[0]})]:
        wrong = [number for number, posted in enumerate(entries) if posted != entry()]
        answer = await board.post(upload(*entries))
        assert answer.status == 400
        assert answer.json == invalid(*((f"entries[{number}].{name}", message) for number in wrong))


@on_memory
async def test_which_names_of_models_there_may_not_be(board: Board) -> None:
    wrong = ["", "x" * 101, None, 4, ["m"], "\x00", "a\nb"]
    answer = await board.post(upload(entry(modelsUsed=["m", *wrong])))
    assert answer.json == invalid(*((f"entries[0].modelsUsed[{n}]", NAME) for n in range(1, len(wrong) + 1)))


@on_memory
@pytest.mark.parametrize(
    "body",
    [
        pytest.param([], id="list"),
        pytest.param(None, id="null"),
        pytest.param("entries", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken"),
        pytest.param(b'{"entries": [NaN]}', id="NaN"),
        pytest.param(b'{"entries": [1e999]}', id="Infinity"),
        pytest.param(b'{"source": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"source": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(b"[" * 200 + b"]" * 200, id="too deep"),
        pytest.param(b'{"n": ' + b"1" * 4001 + b"}", id="too many digits"),
    ],
)
async def test_no_object(board: Board, body: Any) -> None:
    answer = await board.post(body)
    assert is_refusal(answer, 400, "INVALID_REQUEST")
    assert answer.json["message"] == "Invalid request body"
    assert [error["field"] for error in answer.json["errors"]] == ["body"]


async def test_unknown_fields_are_dropped(board: Board) -> None:
    answer = await board.post(upload(entry(unknown=1, id="x"), machine="M4", leaderboardUrl="x"))
    assert answer.status == 200
    assert await board.rows() == [entry(totalCost=Decimal("9.30"))]


@on_memory
async def test_of_duplicate_names_the_last_counts(board: Board) -> None:
    body = json.dumps(upload()).replace('"totalTokens": 11681277', '"totalTokens": "x", "totalTokens": 7')
    assert (await board.post(body.encode())).status == 200
    assert (await board.user())["totalTokens"] == 7


@on_memory
async def test_a_whole_number_may_have_a_fraction_of_zero(board: Board) -> None:
    await board.sync(entry(totalTokens=5.0, totalCost=3.0))
    assert b'"totalCost":3,"totalTokens":5,' in (await board.server.get("/v1/leaderboard")).content


# A day is not in the future: not later than today anywhere on Earth, UTC+14


@on_memory
@pytest.mark.parametrize(
    ("now", "date", "status"),
    [
        pytest.param("2025-12-21T09:59:59.999999Z", "2025-12-21", 200, id="today"),
        pytest.param("2025-12-21T09:59:59.999999Z", "2025-12-22", 400, id="before it begins at UTC+14"),
        pytest.param("2025-12-21T10:00:00Z", "2025-12-22", 200, id="as it begins at UTC+14"),
        pytest.param("2025-12-21T23:59:59.999999Z", "2025-12-23", 400, id="the day after"),
        pytest.param("2024-02-28T09:59:59Z", "2024-02-29", 400, id="before a leap day"),
        pytest.param("2024-02-28T10:00:00Z", "2024-02-29", 200, id="leap day"),
        pytest.param("2024-12-31T09:59:59Z", "2025-01-01", 400, id="before a year"),
        pytest.param("2024-12-31T10:00:00Z", "2025-01-01", 200, id="a year"),
        pytest.param("2024-12-31T10:00:00Z", "9999-12-31", 400, id="last day"),
    ],
)
async def test_future_days(board: Board, now: str, date: str, status: int) -> None:
    board.server.move_to(now)
    answer = await board.post(upload(entry(date="2023-01-01"), entry(date=date)))
    assert answer.status == status
    if status == 400:
        assert answer.json == invalid(("entries[1].date", "must not be in the future"))
        assert await board.rows() == []


# Costs are kept as whole micro-dollars


COSTS = {
    "9.30": "9.3",
    "0.0000005": "0",
    "0.0000015": "0.000002",
    "0.0000025": "0.000002",
    "0.00000050000001": "0.000001",
    "0.00000149999999": "0.000001",
    "5e-7": "0",
    "1e-400": "0",
    "-0.0": "0",
    "1.0000005": "1",
    "1.0000015": "1.000002",
    "123456.7654325": "123456.765432",
    "123456.7654335": "123456.765434",
    "2.675": "2.675",
    "1e9": "1000000000",
    "999999999.9999999": "1000000000",
    "0.1234567890123456789": "0.123457",
}


@on_memory
async def test_costs_are_micro_dollars_half_to_even(board: Board) -> None:
    body = json.dumps(upload(*(entry(totalCost=0, date=f"2025-11-{day + 1:02}") for day in range(len(COSTS)))))
    for cost in COSTS:
        body = body.replace('"totalCost": 0,', f'"totalCost": {cost},', 1)
    assert (await board.post(body.encode())).status == 200
    assert dict(zip(COSTS, [row["totalCost"] for row in await board.rows()], strict=True)) == {
        cost: Decimal(kept) for cost, kept in COSTS.items()
    }


SUMS = {
    "0.3": [0.1, 0.1, 0.1],
    "0.30": [0.1, 0.2],
    "11": [1.1, 2.2, 3.3, 4.4],
    "8999999999.999991": [999_999_999.999999] * 9,  # more digits than a double has
    "0.000002": [0.0000015, 0.0000005, 0, 0],
}


async def test_totals_are_exact(board: Board) -> None:
    """Each cost is rounded before it is added."""
    for number, costs in enumerate(SUMS.values()):
        days = enumerate(costs, 1)
        await board.sync(
            *(entry(username=f"user-{number}", date=f"2025-12-{day:02}", totalCost=cost) for day, cost in days)
        )
    pages = [(await board.user(f"user-{number}"))["totalCost"] for number in range(len(SUMS))]
    assert pages == [Decimal(total) for total in SUMS]
    for period in ("monthly", "all-time"):
        ranked = {row["username"]: row["totalCost"] for row in (await board.ranking(f"period={period}"))["entries"]}
        assert ranked == {f"user-{number}": total for number, total in enumerate(pages)}
    assert b'"totalCost":0.3,' in (await board.server.get("/v1/user/user-0")).content


async def test_tokens_add_up_beyond_what_a_double_holds(board: Board) -> None:
    await board.sync(*(entry(date=f"2025-12-{day:02}", totalTokens=LARGEST_COUNT - day) for day in range(1, 16)))
    total = 15 * LARGEST_COUNT - 120
    assert (await board.user())["totalTokens"] == total
    assert [row["totalTokens"] for row in (await board.ranking("metric=tokens"))["entries"]] == [total]


# How many entries


@pytest.mark.parametrize("count", [1, 1000])
async def test_as_many_entries_as_may_be(board: Board, count: int) -> None:
    await board.sync(*many(count))
    assert (await board.user())["totalDays"] == count
    assert (await board.user())["totalTokens"] == sum(range(count))


def many(count: int) -> list[dict[str, Any]]:
    """Entries of as many days."""
    return [
        entry(date=f"{2010 + n // 336}-{n // 28 % 12 + 1:02}-{n % 28 + 1:02}", totalTokens=n, totalCost=n)
        for n in range(count)
    ]


@on_memory
async def test_too_many_entries(board: Board) -> None:
    answer = await board.post(upload(*many(1001)))
    assert (answer.status, answer.json) == (400, invalid(("entries", "must be a list of 1 to 1000 items")))


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        pytest.param({"entries": []}, [("entries", "must be a list of 1 to 1000 items")], id="empty"),
        pytest.param({"entries": ...}, [("entries", "is required")], id="absent"),
        pytest.param({"entries": None}, [("entries", "must be a list of 1 to 1000 items")], id="null"),
        pytest.param(
            {"entries": ..., "source": ..., "version": ...},
            [("entries", "is required"), ("source", "is required"), ("version", "is required")],
            id="nothing at all",
        ),
    ],
)
@on_memory
async def test_whose_key_it_is(board: Board, changes: dict[str, Any], errors: list[tuple[str, str]]) -> None:
    for username in ("alice", "A-b_9"):
        answer = await board.post(upload(**changes), username=username)
        assert (answer.status, answer.json) == (400, invalid(*errors, username=username))


@on_memory
async def test_only_a_request_without_entries_is_told_whose_key_it_is(board: Board) -> None:
    assert (await board.post(upload(entry(date="x")))).json == invalid(("entries[0].date", NO_DATE))
    assert (await board.post(upload(entries=[]), key="ccusage_live_x")).json == UNAUTHORIZED


# Whose entries


async def test_anothers_username(board: Board) -> None:
    for name in ("bob", "Alice", "ALICE", "alice_", "alice-"):
        answer = await board.post(upload(entry(), entry(username=name, date="2025-12-20")))
        assert (answer.status, answer.json) == (403, FORBIDDEN)
    assert await board.rows() == []
    assert (await board.ranking())["total"] == 0


async def test_a_key_without_sync(board: Board) -> None:
    await board.sync()
    key = await board.key("alice", "read", "collections:read", "collections:write")
    for body in (upload(), upload(entries=[]), b"{"):
        answer = await board.post(body, key=key)
        assert (answer.status, answer.json) == (403, FORBIDDEN)
    assert len(await board.rows()) == 1


async def test_all_entries_are_stored_or_none(board: Board) -> None:
    await board.sync(entry(date="2009-01-01"))
    before = await board.user()
    entries = many(1000)
    entries[997]["totalTokens"] = "997"
    answer = await board.post(upload(*entries))
    assert (answer.status, answer.json) == (400, invalid(("entries[997].totalTokens", NO_NUMBER)))
    assert await board.user() == before


async def test_all_or_none_when_the_store_is_full(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    await board.sync()
    before = await board.user(), await board.ranking()
    with monkeypatch.context() as patch:
        patch.setattr(board.server.storage, "commit", _failing(StorageFull("on /var/lib/homeport")))
        assert (await board.post(upload(*many(30)))).status == 507
    assert (await board.user(), await board.ranking()) == before


@on_memory
async def test_at_most_100_errors_are_listed(board: Board) -> None:
    for bad in ({"date": "x"}, {"date": "2025-12-30"}):
        answer = await board.post(upload(*(entry(**bad) for _ in range(150))))
        assert answer.status == 400
        assert [error["field"] for error in answer.json["errors"]] == [f"entries[{n}].date" for n in range(100)]


# Duplicates


TIMES = {
    "older": ("2025-12-21T10:29:59.999999Z", False),
    "much older": ("2024-12-21T10:30:00Z", False),
    "older, with an offset": ("2025-12-21T12:29:59+02:00", False),
    "equal": ("2025-12-21T10:30:00.000Z", True),
    "equal, with an offset": ("2025-12-21T12:30:00+02:00", True),
    "equal, with another offset": ("2025-12-20T22:45:00-11:45", True),
    "equal, without an offset": ("2025-12-21 10:30:00", True),
    "equal to the microsecond": ("2025-12-21T10:30:00.0000009Z", True),
    "newer": ("2025-12-21T10:30:00.000001Z", True),
    "newer, with an offset": ("2025-12-21T05:30:00.000001-05:00", True),
    "newer by day": ("2025-12-22T00:00:00Z", True),
}


@pytest.mark.parametrize("device", [..., "laptop"], ids=["no device", "a device"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
async def test_the_latest_timestamp_wins(board: Board, device: Any, at_once: bool) -> None:
    """Of two rows of a day, for each case a day."""
    days = {f"2025-11-{number:02}": case for number, case in enumerate(TIMES, 1)}
    first = [entry(date=day, device=device, totalTokens=1, totalCost=1, modelsUsed=["one"]) for day in days]
    second = [
        entry(date=day, device=device, totalTokens=2, totalCost=2, modelsUsed=["two"], timestamp=TIMES[case][0])
        for day, case in days.items()
    ]
    for entries in [first + second] if at_once else [first, second]:
        await board.sync(*entries)
    kept = [new if TIMES[days[new["date"]]][1] else old for old, new in zip(first, second, strict=True)]
    assert {days[row["date"]]: row for row in await board.rows()} == {days[row["date"]]: row for row in kept}
    user, tokens = await board.user(), [row["totalTokens"] for row in kept]
    assert (user["totalDays"], user["topModel"]) == (len(days), "two")
    assert (user["totalTokens"], user["totalCost"]) == (sum(tokens), sum(tokens))
    assert [day["totalTokens"] for day in reversed(user["recentActivity"])] == tokens


async def test_an_older_entry_still_counts_as_processed(board: Board) -> None:
    await board.sync()
    answer = await board.sync(entry(timestamp="2025-12-21T10:29:59Z", totalTokens=1))
    assert answer.json["message"] == "Successfully synced 1 entry"
    assert answer.json["entriesProcessed"] == 1
    assert await board.rows() == [entry(totalCost=Decimal("9.30"))]


async def test_a_duplicate_may_be_less(board: Board) -> None:
    await board.sync(entry(totalTokens=10**15, totalCost=10**6, modelsUsed=["a", "b"]))
    await board.sync(entry(totalTokens=0, totalCost=0, modelsUsed=[]))
    for period in LENGTHS:
        [row] = (await board.ranking(f"period={period}"))["entries"]
        assert row == {
            "rank": 1,
            "username": "alice",
            "totalCost": 0,
            "totalTokens": 0,
            "daysCounted": 1,
            "topModel": None,
        }


async def test_devices_add_up(board: Board) -> None:
    await board.sync(entry(device="laptop", totalTokens=1, totalCost=0.1, modelsUsed=["b", "a"]))
    await board.sync(
        entry(device="Laptop", totalTokens=2, totalCost=0.2, modelsUsed=["b", "c"], timestamp="2025-01-01T00:00:00Z"),
        entry(device="desktop", totalTokens=4, totalCost=0.4, modelsUsed=[]),
        entry(device="desktop", totalTokens=8, totalCost=0.8, modelsUsed=[]),
    )
    user = await board.user()
    assert (user["totalTokens"], user["totalCost"], user["totalDays"]) == (11, Decimal("1.1"), 1)
    assert user["recentActivity"] == [
        {"date": "2025-12-21", "totalTokens": 11, "totalCost": Decimal("1.1"), "modelsUsed": ["a", "b", "c"]}
    ]
    assert (await board.ranking())["entries"][0]["daysCounted"] == 1
    assert {row["device"] for row in await board.rows()} == {"laptop", "Laptop", "desktop"}


@pytest.mark.parametrize("time", ["2025-12-21T10:31:00Z", "2025-12-21T10:30:00Z", "2024-01-01T00:00:00Z"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
async def test_a_row_without_a_device_goes_when_the_first_with_one_comes(
    board: Board, time: str, at_once: bool
) -> None:
    """Whichever is older."""
    before = entry(totalTokens=100, totalCost=100)
    laptop = entry(device="laptop", totalTokens=1, totalCost=1, timestamp=time)
    desktop = entry(device="desktop", totalTokens=2, totalCost=2, timestamp=time)
    other_day = entry(date="2025-12-20")
    steps = [before, other_day, laptop, desktop]
    for entries in [steps] if at_once else [[step] for step in steps]:
        await board.sync(*entries)
    assert (await board.user())["recentActivity"][0]["totalTokens"] == 3
    assert [row.get("device") for row in await board.rows()] == [None, "laptop", "desktop"]  # that of the other day


async def test_days_of_different_users_are_apart(board: Board) -> None:
    for username in ("alice", "alice-", "alice_b", "bob"):
        await board.sync(entry(username=username, totalTokens=len(username)))
    for username in ("alice", "alice-", "alice_b", "bob"):
        assert (await board.user(username))["totalTokens"] == len(username)


# Errors


@on_memory
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/sync"), ("GET", "/v1/user/data"), ("DELETE", "/v1/user/data")]
)
async def test_401(board: Board, method: str, path: str) -> None:
    unknown = "Bearer ccusage_live_" + "A" * 60
    for authorization in (None, "Bearer", "Bearer ", "Bearer wrong", unknown, unknown[:-1], "Basic YWxpY2U6eA==", "ä"):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = await board.server(method, path, headers=headers)
        assert (answer.status, answer.json) == (401, UNAUTHORIZED)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "X-RateLimit-Limit" not in answer.headers


@on_memory
async def test_a_key_is_a_bearer_token_alone(board: Board) -> None:
    key = await board.key()
    for request in (
        {"headers": {"X-API-Key": key}},
        {"headers": {"Authorization": key}},
        {"headers": {"Cookie": f"Authorization={key}"}},
    ):
        assert (await board.server("GET", "/v1/user/data", **request)).status == 401
    assert (await board.server("GET", f"/v1/user/data?key={key}&authorization={key}")).status == 401
    assert (await board.server("GET", "/v1/user/data", headers={"authorization": f"bearer {key}"})).status == 200


@on_memory
async def test_404(board: Board) -> None:
    for path in ("/v1", "/v1/", "/v1/nothing", "/v1/sync/", "/v1/user", "/v1/user/alice/data", "/v1/user/"):
        assert is_refusal(await board.server.get(path), 404, "NOT_FOUND")


ALLOWED = {
    "/v1/sync": {"POST", "OPTIONS"},
    "/v1/leaderboard": {"GET", "HEAD", "OPTIONS"},
    "/v1/user/alice": {"GET", "HEAD", "OPTIONS"},
    "/v1/user/data": {"GET", "HEAD", "DELETE", "OPTIONS"},
}


@on_memory
async def test_405(board: Board) -> None:
    for path, allowed in ALLOWED.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
            answer = await board.server(method, path)
            assert is_refusal(answer, 405, "METHOD_NOT_ALLOWED")
            assert set(answer.headers["Allow"].split(", ")) == allowed
        assert (await board.server("OPTIONS", path)).status == 204


@on_memory
async def test_413(board: Board) -> None:
    """10 MB are 10 * 2^20 bytes."""
    body, limit = json.dumps(upload()).encode(), 10 << 20
    assert (await board.post(BytesIO(body.ljust(limit)))).status == 200
    assert is_refusal(await board.post(BytesIO(body.ljust(limit + 1))), 413, "PAYLOAD_TOO_LARGE")


@on_memory
async def test_415(board: Board) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        answer = await board.post(upload(), headers={"Content-Type": content_type})
        assert is_refusal(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert (await board.post(upload(), headers={"Content-Type": content_type})).status == 200


Failure = Callable[..., Awaitable[None]]


def _failing(error: Exception) -> Failure:
    async def fail(*_: object) -> None:
        raise error

    return fail


async def test_500_503_507(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    await board.key()
    for error, status, code in (
        (RuntimeError("on /var/lib/homeport"), 500, "INTERNAL_ERROR"),
        (StorageFull("on /var/lib/homeport"), 507, "STORAGE_FULL"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(board.server.storage, "commit", _failing(error))
            answer = await board.post(upload())
        assert is_refusal(answer, status, code)
        assert set(answer.json) == {"success", "message", "code"}
        assert b"/var" not in answer.content
        if status == 500:
            assert answer.json["message"] == "Internal server error"
    await board.server.storage.close()
    for answer in (await board.post(upload()), await board.server.get("/v1/leaderboard")):
        assert is_refusal(answer, 503, "SERVICE_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0


# Rate limit: 100 requests an hour per key


@on_memory
async def test_100_requests_an_hour(board: Board) -> None:
    key, other = await board.key("alice", "sync"), await board.key("alice", "sync", "read")
    end = "1766322000"  # an hour after the first
    for number in range(100):
        answer = await board.post(upload() if number % 2 else b"{", key=key)
        assert answer.status == (200 if number % 2 else 400)
        assert rate(answer) == ("100", str(99 - number), end)
        board.server.clock.advance(30)
    answer = await board.post(upload(), key=key)
    assert (answer.status, answer.json) == (
        429,
        {
            "success": False,
            "message": "Rate limit exceeded. Try again in 600 seconds",
            "code": "RATE_LIMIT_EXCEEDED",
            "retryAfter": 600,
        },
    )
    assert answer.headers["Retry-After"] == "600"
    assert rate(answer) == ("100", "0", end)
    assert rate(await board.post(upload(), key=other))[:2] == ("100", "99")
    board.server.clock.advance(599.999)
    assert (await board.post(upload(), key=key)).headers["Retry-After"] == "1"
    board.server.clock.advance(0.001)
    answer = await board.post(upload(), key=key)
    assert (answer.status, rate(answer)) == (200, ("100", "99", "1766325600"))


def rate(answer: Answer) -> tuple[str, ...]:
    return tuple(answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset"))


@on_memory
async def test_every_authenticated_answer_tells_the_rate_limit(serve: Serve) -> None:
    board = await open_board(serve, EXPOSED)
    await board.sync()  # 1
    read = await board.key("bob", "read")
    answers = [
        await board.post(upload(entry(username="bob"))),
        await board.post(b""),
        await board.call("GET", "/v1/user/data"),
        await board.call("HEAD", "/v1/user/data"),
        await board.call("GET", "/v1/leaderboard"),
        await board.call("GET", "/v1/leaderboard?limit=0"),
        await board.call("GET", "/v1/user/alice"),
        await board.call("GET", "/v1/user/nobody"),
        await board.call("DELETE", "/v1/user/data"),
    ]
    assert [answer.status for answer in answers] == [403, 400, 200, 200, 200, 400, 200, 404, 200]
    assert [rate(answer)[:2] for answer in answers] == [("100", str(98 - n)) for n in range(9)]
    refused = await board.post(upload(), key=read)
    assert (refused.status, rate(refused)[:2]) == (403, ("100", "99"))


@on_memory
async def test_who_is_not_let_in_does_not_count(board: Board) -> None:
    for _ in range(5):
        assert (await board.post(upload(), key="ccusage_live_" + "A" * 60)).status == 401
    assert rate(await board.sync()) == ("100", "99", "1766322000")


# GET /v1/leaderboard


async def test_leaderboard(board: Board) -> None:
    board.server.move_to("2025-12-21T10:30:00Z")
    days = [entry(date=f"2025-12-{day}", totalCost=0, totalTokens=0) for day in range(15, 22)]
    days[0] |= {"totalCost": 1234.56, "totalTokens": 50000000}
    await board.sync(*days, entry(date="2025-12-14"))
    answer = await board.server.get("/v1/leaderboard?period=weekly&metric=cost&limit=100&offset=0&date=2025-12-21")
    assert (answer.status, answer.json) == (
        200,
        {
            "period": "weekly",
            "metric": "cost",
            "updated_at": "2025-12-21T10:30:00.000Z",
            "total": 1,
            "entries": [
                {
                    "rank": 1,
                    "username": "alice",
                    "totalCost": Decimal("1234.56"),
                    "totalTokens": 50000000,
                    "daysCounted": 7,
                    "topModel": "claude-opus-4-5-20251101",
                }
            ],
        },
    )


async def test_an_empty_leaderboard(board: Board) -> None:
    for period, metric in product(LENGTHS, METRICS):
        empty: dict[str, Any] = {"period": period, "metric": metric, "updated_at": None, "total": 0, "entries": []}
        assert await board.ranking(f"period={period}&metric={metric}") == empty


@on_memory
async def test_defaults(board: Board) -> None:
    for number in range(101):
        tokens = 1000 + number
        await board.sync(entry(username=f"user-{number}", totalCost=number, totalTokens=tokens, date="2020-01-01"))
    page = await board.ranking()
    assert (page["period"], page["metric"], page["total"]) == ("all-time", "cost", 101)
    assert [(row["rank"], row["totalCost"]) for row in page["entries"]] == [(n, 101 - n) for n in range(1, 101)]
    assert await board.ranking("period=&metric=&limit=&offset=&date=&unknown=1") == page
    assert (await board.ranking("period=daily"))["total"] == 0
    assert (await board.ranking("limit=1000"))["entries"][:100] == page["entries"]
    assert len((await board.ranking("limit=1000"))["entries"]) == 101


@on_memory
@pytest.mark.parametrize(
    ("field", "message", "values"),
    [
        ("limit", "must be an integer from 1 to 1000", ["0", "1001", "-1", "x", "1.5", "1e2", "%00"]),
        ("offset", "must be an integer from 0 to 9007199254740991", ["-1", "x", "0x1", str(LARGEST_COUNT + 1)]),
        ("date", NO_DATE, ["2025-02-29", "today", "2025-12-21T00:00:00Z", "20251221", "%00"]),
        ("period", 'must be one of "daily", "weekly", "monthly", "all-time"', ["day", "ALL", "all", "all_time"]),
        ("metric", 'must be one of "tokens", "cost"', ["Cost", "totalCost", "token"]),
    ],
    ids=["limit", "offset", "date", "period", "metric"],
)
async def test_what_cannot_be_asked(board: Board, field: str, message: str, values: list[str]) -> None:
    for value in values:
        answer = await board.server.get(f"/v1/leaderboard?{field}={value}")
        assert is_refusal(answer, 400, "INVALID_REQUEST")
        assert answer.json["errors"] == [{"field": field, "message": message}]


async def test_the_bounds_of_a_page(board: Board) -> None:
    for username in ("alice", "bob", "carol"):
        await board.sync(entry(username=username))

    async def names(query: str) -> list[str]:
        return [row["username"] for row in (await board.ranking(query))["entries"]]

    assert await names("limit=1") == ["alice"]
    assert await names("limit=1000") == ["alice", "bob", "carol"]
    assert await names("offset=0&limit=2") == ["alice", "bob"]
    assert await names("offset=2") == ["carol"]
    for offset in (3, 1000, LARGEST_COUNT):
        page = await board.ranking(f"offset={offset}")
        assert (page["entries"], page["total"]) == ([], 3)
        assert page["updated_at"] == "2025-12-21T12:00:00.000Z"


PERIODS: dict[str, tuple[str, str, set[str]]] = {
    "day": ("daily", "2025-12-21", {"2025-12-21"}),
    "leap day": ("daily", "2024-02-29", {"2024-02-29"}),
    "week that ends on Sunday": ("weekly", "2025-12-21", {"2025-12-15", "2025-12-21"}),
    "week that begins on Monday": ("weekly", "2025-12-15", {"2025-12-15", "2025-12-21"}),
    "the week before": ("weekly", "2025-12-14", {"2025-12-14"}),
    "week 53": ("weekly", "2020-12-28", {"2020-12-28", "2020-12-31", "2021-01-01", "2021-01-03"}),
    "its end": ("weekly", "2021-01-03", {"2020-12-28", "2020-12-31", "2021-01-01", "2021-01-03"}),
    "the week after": ("weekly", "2021-01-04", {"2021-01-04"}),
    "week 1 of the next year": ("weekly", "2024-12-30", {"2024-12-30", "2025-01-01"}),
    "a week without days": ("weekly", "2025-12-30", set()),
    "month": ("monthly", "2025-12-01", {"2025-12-14", "2025-12-15", "2025-12-21"}),
    "January": ("monthly", "2021-01-31", {"2021-01-01", "2021-01-03", "2021-01-04"}),
    "December": ("monthly", "2020-12-01", {"2020-12-28", "2020-12-31"}),
    "leap month": ("monthly", "2024-02-01", {"2024-02-28", "2024-02-29"}),
    "the month after": ("monthly", "2024-03-01", {"2024-03-01"}),
    "one of another year's week": ("monthly", "2024-12-01", {"2024-12-30"}),
}
DAYS = sorted(set().union(*(days for _, _, days in PERIODS.values())))


async def test_a_date_picks_its_period(board: Board) -> None:
    await board.sync(*(entry(date=day, totalTokens=2**n, totalCost=0) for n, day in enumerate(DAYS)))
    found = {}
    for case, (period, date, days) in PERIODS.items():
        page = await board.ranking(f"period={period}&metric=tokens&date={date}")
        assert page["total"] == len(page["entries"]) == bool(days)
        tokens = sum(row["totalTokens"] for row in page["entries"])
        assert sum(row["daysCounted"] for row in page["entries"]) == tokens.bit_count()
        found[case] = (period, date, {day for n, day in enumerate(DAYS) if tokens & 2**n})
        board.server.move_to(f"{date}T23:59:59.999999Z")
        assert await board.ranking(f"period={period}&metric=tokens") == page  # today, in UTC, without a date
    assert found == PERIODS


async def test_all_of_time_has_no_date(board: Board) -> None:
    await board.sync(*(entry(date=day) for day in DAYS))
    for date in ("", "0001-01-01", "2025-12-21", "9999-12-31"):
        page = await board.ranking(f"period=all-time&date={date}")
        assert [row["daysCounted"] for row in page["entries"]] == [len(DAYS)]


RIVALS = [("zoe", 9), ("ABC", 5), ("a-b", 5), ("a_b", 5), ("abc-d", 5), ("abcd", 5), ("bob", 5), ("ann", 1), ("nil", 0)]
"""In order: of equal ones by code point. Some names begin others."""
RANKS = [1, 2, 2, 2, 2, 2, 2, 8, 9]


@pytest.mark.parametrize("metric", METRICS)
async def test_ties_share_a_rank(board: Board, metric: str) -> None:
    """In order of username, whatever part of them is asked for."""
    field, other = ("totalTokens", "totalCost") if metric == "tokens" else ("totalCost", "totalTokens")
    for number, (username, amount) in enumerate(sorted(RIVALS)):
        await board.sync(entry(username=username, **{field: amount, other: number}))
    expected = [(rank, name, amount) for rank, (name, amount) in zip(RANKS, RIVALS, strict=True)]
    for period, offset, limit in product(LENGTHS, range(0, 10, 2), (2, 100)):
        page = await board.ranking(f"period={period}&metric={metric}&offset={offset}&limit={limit}")
        rows = [(row["rank"], row["username"], row[field]) for row in page["entries"]]
        assert rows == expected[offset : offset + limit]
        assert page["total"] == len(RIVALS)


USED: dict[str, tuple[list[list[str]], str | None]] = {
    "most-days": ([["a"], ["b"], ["b"]], "b"),
    "alphabetically": ([["b"], ["a"]], "a"),
    "several-on-a-day": ([["b", "a"], ["b"]], "b"),
    "once-a-day": ([["a", "a", "a"], ["b"], ["b"]], "b"),
    "days-without": ([[], ["z"], []], "z"),
    "none-known": ([[], []], None),
    "capitals": ([["b"], ["B"]], "B"),
    "one-begins-the-other": ([["opus-4-5"], ["opus-4"]], "opus-4"),
}
"""By username: the models of days, and the top one."""


async def test_top_model(board: Board) -> None:
    for name, (used, _) in USED.items():
        days = enumerate(used, 15)
        await board.sync(*(entry(username=name, date=f"2025-12-{day}", modelsUsed=models) for day, models in days))
    expected = {name: top for name, (_, top) in USED.items()}
    for period in ("weekly", "monthly", "all-time"):
        page = await board.ranking(f"period={period}")
        assert {row["username"]: row["topModel"] for row in page["entries"]} == expected
    assert {name: (await board.user(name))["topModel"] for name in USED} == expected
    daily = await board.ranking("period=daily&date=2025-12-15")
    first = {name: min(used[0], default=None) for name, (used, _) in USED.items()}
    assert {row["username"]: row["topModel"] for row in daily["entries"]} == first


async def test_top_model_of_a_period(board: Board) -> None:
    await board.sync(
        *(entry(date=f"2025-12-0{day}", modelsUsed=["old"]) for day in range(1, 6)),
        *(entry(date=f"2025-12-{day}", modelsUsed=["new"], device="a") for day in (16, 17)),
        *(entry(date=f"2025-12-{day}", modelsUsed=["new", "x"], device="b") for day in (16, 17)),
    )
    assert (await board.ranking("period=weekly"))["entries"][0]["topModel"] == "new"
    assert (await board.ranking("period=monthly"))["entries"][0]["topModel"] == "old"
    await board.sync(*(entry(date=f"2025-12-0{day}", modelsUsed=["new"]) for day in range(1, 6)))
    assert (await board.ranking("period=monthly"))["entries"][0]["topModel"] == "new"


async def test_updated_at(board: Board) -> None:
    """When the period's newest sync arrived, to the millisecond."""

    async def updated(period: str, date: str) -> str | None:
        at: str | None = (await board.ranking(f"period={period}&date={date}"))["updated_at"]
        return at

    arrivals = {"2025-12-14": "01", "2025-12-15": "02", "2025-11-30": "03"}
    for date, second in arrivals.items():
        board.server.move_to(f"2025-12-21T12:00:{second}.0456Z")
        await board.sync(entry(date=date, username=f"user-{second}"))
    at = {second: f"2025-12-21T12:00:{second}.045Z" for second in arrivals.values()}
    assert [await updated("daily", date) for date in arrivals] == list(at.values())
    assert await updated("weekly", "2025-12-14") == at["01"]
    assert await updated("weekly", "2025-12-21") == at["02"]
    assert await updated("monthly", "2025-12-21") == at["02"]
    assert await updated("monthly", "2025-11-01") == at["03"]
    assert await updated("all-time", "2025-12-21") == at["03"]
    assert await updated("monthly", "2025-10-01") is None
    await board.call("DELETE", "/v1/user/data", username="user-03")
    assert await updated("monthly", "2025-11-01") is None
    assert await updated("all-time", "2025-12-21") == at["02"]


# Who may read


@pytest.mark.parametrize(
    ("settings", "public", "open_"),
    [
        pytest.param({}, "auto", True, id="auto"),
        pytest.param({}, True, True, id="public"),
        pytest.param({}, False, False, id="not public"),
        pytest.param(EXPOSED, "auto", False, id="exposed, auto"),
        pytest.param(EXPOSED, True, True, id="exposed, public"),
        pytest.param(EXPOSED, False, False, id="exposed, not public"),
        pytest.param({"server.public_url": "http://localhost:8000"}, "auto", True, id="known as localhost"),
    ],
)
@on_memory
async def test_who_may_read(serve: Serve, settings: dict[str, Any], public: Any, open_: bool) -> None:
    board = await open_board(serve, settings | {"apis.leaderboard.public": public})
    await board.sync()
    for path in ("/v1/leaderboard", "/v1/user/alice"):
        nobody = await board.server.get(path)
        wrong = await board.call("GET", path, key="ccusage_live_" + "A" * 60)
        syncs = await board.call("GET", path, key=await board.key("alice", "sync"))
        reads = await board.call("GET", path, key=await board.key("bob", "read"))
        assert reads.status == 200
        if open_:
            assert (nobody.status, wrong.status, syncs.status) == (200, 200, 200)
            continue
        for answer in (nobody, wrong):
            assert (answer.status, answer.json) == (401, UNAUTHORIZED)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert is_refusal(syncs, 403, "FORBIDDEN")


# GET /v1/user/{username}


async def test_user(board: Board) -> None:
    """45 days that come to what the example says."""
    first = [entry(date=f"2025-11-{day:02}", totalCost=120, totalTokens=5_000_000) for day in range(1, 31)]
    then = [entry(date=f"2025-12-{day:02}", totalCost=120, totalTokens=5_000_000) for day in range(7, 21)]
    rest = 5432.10 - 44 * 120 - 9.30
    then[0] |= {"totalCost": 120 + round(rest, 2), "totalTokens": 250_000_000 - 43 * 5_000_000 - 11681277}
    await board.sync(*then, *first, entry())
    answer = await board.server.get("/v1/user/alice")
    assert answer.status == 200
    body = answer.json
    assert body.pop("recentActivity")[0] == {
        "date": "2025-12-21",
        "totalTokens": 11681277,
        "totalCost": Decimal("9.30"),
        "modelsUsed": ["claude-opus-4-5-20251101"],
    }
    assert body == {
        "username": "alice",
        "totalDays": 45,
        "totalCost": Decimal("5432.10"),
        "totalTokens": 250000000,
        "averageDailyCost": Decimal("120.71"),
        "topModel": "claude-opus-4-5-20251101",
        "firstSync": "2025-11-01",
        "lastSync": "2025-12-21",
    }


async def test_recent_activity_is_the_newest_30_days(board: Board) -> None:
    days = [f"2025-{month:02}-{day:02}" for month in range(1, 13) for day in (1, 10, 20)]
    await board.sync(*(entry(date=day, totalTokens=n) for n, day in enumerate(days)))
    recent = (await board.user())["recentActivity"]
    assert [(day["date"], day["totalTokens"]) for day in recent] == [(days[n], n) for n in range(35, 5, -1)]


AVERAGES: dict[str, tuple[list[float], str]] = {
    "nothing": ([0], "0"),
    "half-a-cent": ([0.005], "0.01"),
    "less": ([0.004999], "0"),
    "one-and-a-half": ([0.015], "0.02"),
    "two-and-a-half": ([0.025], "0.03"),
    "between-two-cents": ([0.01, 0.02], "0.02"),
    "a-third": ([0.01, 0, 0], "0"),
    "two-thirds": ([0.01, 0.01, 0], "0.01"),
    "just-above": ([1, 1, 1.000001], "1"),
    "much": ([1_000_000_000, 999_999_999.99], "1000000000"),
}
"""By username: the costs of days, and what a day costs."""


@on_memory
async def test_average_daily_cost_is_in_cents_half_up(board: Board) -> None:
    for name, (costs, _) in AVERAGES.items():
        await board.sync(*(entry(username=name, date=f"2025-12-1{n}", totalCost=cost) for n, cost in enumerate(costs)))
    found = {name: (await board.user(name))["averageDailyCost"] for name in AVERAGES}
    assert found == {name: Decimal(average) for name, (_, average) in AVERAGES.items()}


async def test_an_average_is_per_day_not_per_row(board: Board) -> None:
    await board.sync(*(entry(device=device, totalCost=1) for device in "abcd"), entry(date="2025-12-01", totalCost=2))
    assert (await board.user())["averageDailyCost"] == 3


@on_memory
async def test_a_user_without_data(board: Board) -> None:
    await board.sync()
    await board.key("bob")
    for name in ("bob", "Alice", "alic", "alicea", "al", "%20alice", "alice%20", "..", "%2F", "%C3%A4", "a" * 3000):
        assert is_refusal(await board.server.get(f"/v1/user/{name}"), 404, "NOT_FOUND")


# GET and DELETE /v1/user/data


async def test_download(board: Board) -> None:
    laptop = entry(device="laptop", date="2025-12-20", timestamp="2025-12-21T12:30:00+02:00")
    other = entry(device="other", date="2025-12-20", totalCost=0, modelsUsed=["b", "a"])
    await board.sync(entry(), laptop, other)
    await board.sync(entry(username="bob"))
    board.server.clock.advance(1)
    await board.key("alice", "read")
    answer = await board.call("GET", "/v1/user/data")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert answer.headers["Cache-Control"] == "no-store"
    data = answer.json
    assert data["username"] == "alice"
    assert data["lastSyncAt"] == "2025-12-21T12:00:00.000Z"
    assert [key["scopes"] for key in data["keys"]] == [["read", "sync"], ["read"]]
    cost = {"totalCost": Decimal("9.30")}
    assert data["entries"] == [laptop | cost, other, entry(**cost)]
    for text in board.texts.values():
        assert text[13:20].encode() not in answer.content
        assert text[-44:].encode() not in answer.content


async def test_download_of_nothing(board: Board) -> None:
    data = await board.data()
    assert (data["username"], data["lastSyncAt"], data["entries"]) == ("alice", None, [])


async def test_delete(board: Board) -> None:
    await board.sync(*(entry(date=f"2025-12-{day}", device=device) for day in (19, 20, 21) for device in ("a", "b")))
    await board.sync(entry(date="2024-01-01"))
    for username in ("bob", "alice-", "alicea"):
        await board.sync(entry(username=username))
    others = [await board.user(name) for name in ("bob", "alice-", "alicea")]
    answer = await board.call("DELETE", "/v1/user/data")
    assert (answer.status, answer.json) == (
        200,
        {"success": True, "message": "All data deleted successfully", "entriesDeleted": 7},
    )
    for period in LENGTHS:
        for date in ("2025-12-20", "2025-12-21", "2024-01-01"):
            page = await board.ranking(f"period={period}&date={date}")
            assert "alice" not in [row["username"] for row in page["entries"]]
            assert page["total"] == len(page["entries"])
    assert await board.user() is None
    assert await board.rows() == []
    assert [await board.user(name) for name in ("bob", "alice-", "alicea")] == others
    again = await board.call("DELETE", "/v1/user/data")
    assert (again.status, again.json["entriesDeleted"]) == (200, 0)


async def test_after_deletion_the_key_goes_on_working(board: Board) -> None:
    """From nothing: an older timestamp counts, and of the totals nothing is left."""
    await board.sync(entry(totalTokens=5, totalCost=5), entry(date="2025-12-20"))
    await board.call("DELETE", "/v1/user/data")
    older = entry(totalTokens=1, totalCost=0.5, modelsUsed=["x"], timestamp="2020-01-01T00:00:00Z")
    await board.sync(older)
    assert await board.rows() == [older | {"totalCost": Decimal("0.5")}]
    for period in LENGTHS:
        [row] = (await board.ranking(f"period={period}"))["entries"]
        assert (row["totalTokens"], row["totalCost"], row["daysCounted"]) == (1, Decimal("0.5"), 1)
        assert row["topModel"] == "x"


async def test_a_user_vanishes_from_every_leaderboard_in_the_same_commit(board: Board) -> None:
    """Who reads on meanwhile finds the user in all periods, or in none."""
    await board.sync(*(entry(date=f"2025-12-{day:02}") for day in range(1, 22)))
    versions: list[int] = []
    commit = board.server.storage.commit

    async def counted(writes: Any) -> Any:
        versions.append(len(writes))
        return await commit(writes)

    board.server.storage.commit = counted  # type: ignore[method-assign]  # the test counts what goes through it
    await board.call("DELETE", "/v1/user/data")
    assert len(versions) == 1


# Log


async def test_log(board: Board, log: Log) -> None:
    agent = {"User-Agent": "ccusageshare/1.0"}
    key = await board.key()
    await board.post(upload(entry(), entry(date="2025-12-20")), headers=agent)
    await board.server.get(f"/v1/user/alice?key={key}", headers=agent)
    await board.post(b"{", headers=agent)
    await board.call("GET", "/v1/user/data", headers=agent)
    answer = await board.call("DELETE", "/v1/user/data", headers=agent)

    async def written() -> bool:
        return log.stream.getvalue().count('"requestId"') == 5

    await until(written)
    text = log.stream.getvalue()
    lines = [json.loads(line) for line in text.splitlines() if '"requestId"' in line]
    assert lines[-1].pop("responseTime") > 0
    assert {name: value for name, value in lines[-1].items() if name not in ("level", "event")} == {
        "timestamp": "2025-12-21T12:00:00.000Z",
        "method": "DELETE",
        "path": "/v1/user/data",
        "username": "alice",
        "entriesCount": None,
        "responseStatus": 200,
        "userAgent": "ccusageshare/1.0",
        "ipAddress": "127.0.0.1",
        "requestId": answer.headers["X-Request-Id"],
    }
    told = [(line["path"], line["username"], line["entriesCount"], line["responseStatus"]) for line in lines]
    assert told == [
        ("/v1/sync", "alice", 2, 200),
        ("/v1/user/{username}", None, None, 200),
        ("/v1/sync", "alice", None, 400),
        ("/v1/user/data", "alice", None, 200),
        ("/v1/user/data", "alice", None, 200),
    ]
    assert key[13:20] not in text
    assert key[-44:] not in text


# Metrics


async def test_metrics(board: Board) -> None:
    board.server.move_to("2025-11-20T12:00:00Z")
    await board.sync(entry(username="long-ago", date="2025-11-20", totalCost=0.5, modelsUsed=[]))
    board.server.move_to("2025-12-18T12:00:00Z")
    await board.sync(
        entry(username="bob", date="2025-12-17", totalCost=2.25, modelsUsed=["a", "b"]),
        entry(username="bob", date="2025-12-18", totalCost=1, modelsUsed=["a"]),
    )
    board.server.move_to(NOW)
    await board.sync(*(entry(date=f"2025-11-{day:02}", modelsUsed=["b"]) for day in range(1, 13)))
    await board.post(b"{")
    found = await metrics(board)
    prefix = "homeport_leaderboard_"
    assert found[f"{prefix}syncs_total"] == 3
    assert found[f"{prefix}entries_per_sync_count"] == 3
    assert found[f"{prefix}entries_per_sync_sum"] == 15
    for bound, count in {"1.0": 1, "2.0": 2, "10.0": 2, "25.0": 3, "1000.0": 3, "+Inf": 3}.items():
        assert found[f'{prefix}entries_per_sync_bucket{{le="{bound}"}}'] == count
    for window, count in (("day", 1), ("week", 2), ("month", 2)):
        assert found[f'{prefix}active_users{{window="{window}"}}'] == count
    assert named(found, "top_users_cost", "username") == {"alice": 111.6, "bob": 3.25, "long-ago": 0.5}
    assert named(found, "model_days", "model") == {"b": 13, "a": 2}
    assert found['homeport_http_requests_total{operation="leaderboard.sync",status="200"}'] == 3
    assert found['homeport_http_requests_total{operation="leaderboard.sync",status="400"}'] == 1
    assert found['homeport_http_request_seconds_count{operation="leaderboard.sync"}'] == 4


async def test_metrics_show_the_20_largest(board: Board) -> None:
    names = [f"user-{number:02}" for number in range(22)]
    for number, name in enumerate(names):
        models = [f"model {n:02}" for n in range(number + 1)]
        await board.sync(entry(username=name, totalCost=number, modelsUsed=models))
    found = await metrics(board)
    assert set(named(found, "top_users_cost", "username")) == set(names[2:])
    assert set(named(found, "model_days", "model")) == {f"model {n:02}" for n in range(20)}


async def metrics(board: Board) -> dict[str, float]:
    answer = await board.server.get("/metrics")
    assert answer.status == 200
    lines = [line for line in answer.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def named(found: dict[str, float], metric: str, label: str) -> dict[str, float]:
    """Values by a label's."""
    begin = f'homeport_leaderboard_{metric}{{{label}="'
    return {name[len(begin) : -2]: value for name, value in found.items() if name.startswith(begin)}


# An acknowledged write is durable


async def test_a_sync_is_committed_before_it_is_answered(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    await board.key()
    commit, release, waiting = board.server.storage.commit, asyncio.Event(), asyncio.Event()

    async def held(writes: Any) -> Any:
        waiting.set()
        await release.wait()
        return await commit(writes)

    monkeypatch.setattr(board.server.storage, "commit", held)
    sync = asyncio.create_task(board.post(upload()))
    await waiting.wait()
    assert await board.user() is None
    assert not sync.done()
    release.set()
    assert (await sync).status == 200
