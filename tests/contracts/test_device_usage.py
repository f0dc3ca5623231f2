"""contracts/device-usage.md, sentence by sentence: every example whole, on every back end."""

import time
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest

from homeport import __version__
from homeport.server.apis.device_usage.ledger import Ledger, user_id
from homeport.storage import StorageFull

from ..server.apis.conftest import JSON, KEY, Answer, Serve, Served, on_memory, report, until, user_key

SYNCED = {
    "status": "success",
    "message": "Data synced successfully for M4x.local",
    "data": {"hostname": "M4x.local", "tokens": 2412018, "timestamp": "2025-06-03T10:30:00Z"},
}
MINI = report(hostname="mini.local", timestamp="2025-06-03T09:00:00Z", usage__totalTokens=2947982, costs__actual=11.69)
INTERNAL = {"status": "error", "message": "Internal server error"}
LARGEST_COUNT = 2**53 - 1


def as_kept(body: dict[str, Any]) -> dict[str, Any]:
    """A report as a history shows it."""
    return {name: value for name, value in body.items() if name != "userKey"}


def failed(message: str) -> dict[str, str]:
    return {"status": "error", "message": message}


# A user is a 64-character hex key


async def test_an_upper_case_key_is_the_same_key(server: Served) -> None:
    await server.sync(report(userKey=KEY.upper()))
    await server.sync(report(hostname="mini.local"))
    for key in (KEY, KEY.upper(), KEY.title()):
        assert (await server.stats(key)).json["totalTokens"] == 2 * 2412018
        assert len(await server.devices(key)) == 2
        assert len(await server.history(key=key)) == 2
    assert (await server("DELETE", f"/api/device/{KEY.upper()}/mini.local")).status == 200
    assert await server.devices() == ["M4x.local"]


async def test_users_do_not_see_each_other(server: Served) -> None:
    other = user_key("bob")
    await server.sync()
    await server.sync(report(userKey=other, usage__totalTokens=1))
    assert (await server.stats(other)).json["totalTokens"] == 1
    assert (await server("DELETE", f"/api/device/{other}/M4x.local")).status == 200
    assert (await server.stats()).json["totalTokens"] == 2412018
    assert (await server.stats(other)).status == 404
    assert await server.history(key=other) == []


# GET /


async def test_health(server: Served) -> None:
    server.clock.advance(0.25)
    answer = await server.get("/")
    assert answer.status == 200
    assert answer.json == {
        "status": "healthy",
        "message": "Homeport sync server is running",
        "data": {"version": __version__, "timestamp": "2025-06-03T12:00:00.250Z"},
    }


# POST /api/sync


async def test_sync(server: Served) -> None:
    answer = await server.sync()
    assert (answer.status, answer.json) == (200, SYNCED)
    assert answer.headers["Content-Type"] == "application/json"


REQUIRED = [
    *("userKey", "hostname", "timestamp", "usage", "sessions", "costs", "hourlyUsage", "version"),
    *(f"usage.{n}Tokens" for n in ("total", "input", "output", "cacheCreation", "cacheRead")),
    *("sessions.total", "sessions.active", "sessions.averageDuration"),
    *("costs.opus", "costs.sonnet", "costs.haiku"),
]


@on_memory
@pytest.mark.parametrize("field", REQUIRED)
async def test_all_is_required(server: Served, field: str) -> None:
    answer = await server.sync(report(**{field.replace(".", "__"): ...}))
    assert (answer.status, answer.json) == (
        400,
        {
            "status": "error",
            "message": "Invalid request body",
            "detail": [{"field": field, "message": "is required"}],
        },
    )


async def test_but_the_actual_cost(server: Served) -> None:
    assert (await server.sync(report(costs__actual=...))).status == 200


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"usage__totalTokens": LARGEST_COUNT}, id="most tokens"),
        pytest.param({"usage": dict.fromkeys(report()["usage"], 0)}, id="no tokens"),
        pytest.param({"sessions": {"total": 0, "active": 0, "averageDuration": 0}}, id="no sessions"),
        pytest.param({"sessions__averageDuration": 0.0001}, id="short sessions"),
        pytest.param({"costs__opus": 1_000_000_000, "costs__actual": 0.000001}, id="most dollars"),
        pytest.param({"hourlyUsage": [LARGEST_COUNT] * 24}, id="most in an hour"),
        pytest.param({"hostname": "x"}, id="shortest hostname"),
        pytest.param({"hostname": "🖥" * 255}, id="longest hostname"),
        pytest.param({"version": "1"}, id="shortest version"),
        pytest.param({"version": "v" * 64}, id="longest version"),
        pytest.param({"timestamp": "2025-06-04T12:00:00Z"}, id="24 hours ahead"),
    ],
)
async def test_the_bounds_are_within(server: Served, changes: dict[str, Any]) -> None:
    body = report(**changes)
    answer = await server.sync(body)
    assert answer.status == 200
    assert answer.json["message"] == f"Data synced successfully for {body['hostname']}"
    assert answer.json["data"]["tokens"] == body["usage"]["totalTokens"]
    assert await server.history() == [_exact(as_kept(body))]


def _exact(value: Any) -> Any:
    """As `Answer.json` reads numbers."""
    match value:
        case dict():
            return {name: _exact(item) for name, item in value.items()}
        case list():
            return [_exact(item) for item in value]
        case float():
            return Decimal(repr(value))
    return value


async def test_more_than_24_hours_ahead(server: Served) -> None:
    answer = await server.sync(report(timestamp="2025-06-04T12:00:00.000001Z"))
    assert answer.status == 400
    assert answer.json["message"] == "Invalid request body"
    assert answer.json["detail"] == [{"field": "timestamp", "message": "must not be more than 24 hours ahead"}]
    assert await server.devices() == []


@on_memory
@pytest.mark.parametrize(
    "text",
    [
        "2025-06-03T10:30:00Z",
        "2025-06-03T10:30:00.000Z",
        "2025-06-03T12:30:00+02:00",
        "2025-06-02T22:45:00-11:45",
        "2025-06-03T10:30:00",
        "2025-06-03 10:30:00",
        "2025-06-03 10:30:00.123456+00:00",
        "2025-06-03t10:30:00z",
    ],
)
async def test_timestamps_are_answered_as_sent(server: Served, text: str) -> None:
    answer = await server.sync(report(timestamp=text))
    assert answer.status == 200
    assert answer.json["data"]["timestamp"] == text
    assert (await server.stats()).json["devices"][0]["lastSeen"] == text
    devices = await server.get(f"/api/devices/{KEY}")
    assert devices.json["data"]["devices"] == [{"hostname": "M4x.local", "last_seen": text}]
    assert (await server.history())[0]["timestamp"] == text


async def test_the_same_user_device_and_instant_replaces(server: Served) -> None:
    await server.sync()
    await server.sync(report(timestamp="2025-06-03T12:30:00+02:00", usage__totalTokens=5, costs__actual=0.5))
    answer = await server.stats()
    assert answer.json == {
        "devices": [{"hostname": "M4x.local", "lastSeen": "2025-06-03T12:30:00+02:00", "totalTokens": 5}],
        "totalTokens": 5,
        "totalCost": Decimal("0.5"),
    }
    assert [kept["usage"]["totalTokens"] for kept in await server.history()] == [5]


async def test_an_instant_is_one_to_the_microsecond(server: Served) -> None:
    for fraction in ("", ".000001", ".00000199", ".0000009"):
        await server.sync(report(timestamp=f"2025-06-03T10:30:00{fraction}Z"))
    kept = [kept["timestamp"] for kept in await server.history()]
    assert kept == ["2025-06-03T10:30:00.00000199Z", "2025-06-03T10:30:00.0000009Z"]


async def test_late_reports_are_kept_and_never_become_the_latest(server: Served) -> None:
    await server.sync()
    for hour in (9, 7, 8):
        await server.sync(report(timestamp=f"2025-06-03T0{hour}:00:00Z", usage__totalTokens=hour))
    assert (await server.stats()).json["devices"] == [
        {"hostname": "M4x.local", "lastSeen": "2025-06-03T10:30:00Z", "totalTokens": 2412018}
    ]
    assert [kept["usage"]["totalTokens"] for kept in await server.history()] == [2412018, 9, 8, 7]


async def test_what_is_wrong_is_said_field_by_field(server: Served) -> None:
    answer = await server.sync(report(usage__totalTokens=-1, hostname="", version=...))
    assert answer.status == 400
    body = answer.json
    assert {name: body[name] for name in ("status", "message")} == failed("Invalid request body")
    assert sorted(body["detail"], key=lambda problem: str(problem["field"])) == [
        {"field": "hostname", "message": "must be a string of 1 to 255 characters without control characters"},
        {"field": "usage.totalTokens", "message": "must be an integer from 0 to 9007199254740991"},
        {"field": "version", "message": "is required"},
    ]


async def test_a_server_that_fails_says_no_more(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(*_: object) -> None:
        raise RuntimeError("on /var/lib/homeport")

    async def full(*_: object) -> None:
        raise StorageFull("on /var/lib/homeport")

    for failure, status in ((crash, 500), (full, 507)):
        with monkeypatch.context() as patch:
            patch.setattr(server.storage, "commit", failure)
            answer = await server.sync()
        assert (answer.status, answer.json) == (status, INTERNAL)
    await server.storage.close()
    for answer in (await server.sync(), await server.stats()):
        assert (answer.status, answer.json) == (503, INTERNAL)
        assert int(answer.headers["Retry-After"]) > 0


# GET /api/stats/{user_key}


async def test_stats(server: Served) -> None:
    await server.sync()
    await server.sync(MINI)
    answer = await server.stats()
    assert answer.status == 200
    assert answer.json == {
        "devices": [
            {"hostname": "mini.local", "lastSeen": "2025-06-03T09:00:00Z", "totalTokens": 2947982},
            {"hostname": "M4x.local", "lastSeen": "2025-06-03T10:30:00Z", "totalTokens": 2412018},
        ],
        "totalTokens": 5360000,
        "totalCost": Decimal("26.80"),
    }


async def test_most_tokens_first_then_by_hostname(server: Served) -> None:
    for hostname, tokens in (("b", 5), ("é", 5), ("a/", 5), ("a+", 5), ("B", 5), ("most", 9), ("least", 0)):
        await server.sync(report(hostname=hostname, usage__totalTokens=tokens))
    rows = (await server.stats()).json["devices"]
    assert [row["hostname"] for row in rows] == ["most", "B", "a+", "a/", "b", "é", "least"]


@on_memory
@pytest.mark.parametrize(
    ("costs", "cost"),
    [
        pytest.param({"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 15.11}, "15.11", id="actual"),
        pytest.param({"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 0}, "12.06", id="actual is 0"),
        pytest.param({"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 0.0}, "12.06", id="actual is 0.0"),
        pytest.param({"opus": 12.06, "sonnet": 2.41, "haiku": 0.64}, "12.06", id="no actual"),
        pytest.param({"opus": 0, "sonnet": 2.41, "haiku": 0.64}, "0", id="no opus either"),
        pytest.param({"opus": 12.06, "sonnet": 2.41, "haiku": 0.64, "actual": 1e-7}, "1E-7", id="little"),
        pytest.param({"opus": 12, "sonnet": 2, "haiku": 1, "actual": 1_000_000_000}, "1E9", id="much"),
    ],
)
async def test_what_a_device_costs(server: Served, costs: dict[str, float], cost: str) -> None:
    await server.sync(report(costs=costs))
    assert (await server.stats()).json["totalCost"] == Decimal(cost)


async def test_totals_are_exact(server: Served) -> None:
    for number in range(3):
        await server.sync(report(hostname=f"m{number}", usage__totalTokens=LARGEST_COUNT, costs__actual=0.1))
    assert (await server.stats()).json["totalTokens"] == 3 * LARGEST_COUNT
    assert b'"totalCost":0.3}' in (await server.stats()).content


async def test_stats_of_nobody(server: Served) -> None:
    answer = await server.stats(user_key("nobody"))
    assert (answer.status, answer.json) == (404, failed("No data found for this user"))


@on_memory
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(KEY[:63], id="too short"),
        pytest.param(KEY + "0", id="too long"),
        pytest.param("g" * 64, id="not hex"),
        pytest.param("0x" + KEY[2:], id="0x"),
        pytest.param("%C3%A9" * 64, id="not ASCII"),
        pytest.param("%20" + KEY[1:], id="a blank"),
        pytest.param("%D9%A3" * 64, id="other digits"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "stats/{}"), ("GET", "devices/{}"), ("GET", "history/{}"), ("DELETE", "device/{}/M4x.local")],
    ids=["stats", "devices", "history", "device"],
)
async def test_a_malformed_key(server: Served, method: str, path: str, key: str) -> None:
    answer = await server(method, "/api/" + path.format(key))
    rule = "must be a string of exactly 64 hexadecimal digits"
    assert answer.status == 400
    assert answer.json == failed(f"user_key {rule}") | {"detail": [{"field": "user_key", "message": rule}]}


# GET /api/devices/{user_key}


async def test_devices(server: Served) -> None:
    await server.sync()
    answer = await server.get(f"/api/devices/{KEY}")
    assert answer.status == 200
    assert answer.json == {
        "status": "success",
        "data": {"devices": [{"hostname": "M4x.local", "last_seen": "2025-06-03T10:30:00Z"}]},
    }


async def test_devices_newest_first(server: Served) -> None:
    times = {
        "oldest": "2025-06-03T09:00:00+02:00",
        "newest": "2025-06-03T08:00:00-04:00",
        "middle": "2025-06-03T11:00:00Z",
    }
    for hostname, timestamp in times.items():
        await server.sync(report(hostname=hostname, timestamp=timestamp))
    assert await server.devices() == ["newest", "middle", "oldest"]


async def test_devices_of_nobody(server: Served) -> None:
    answer = await server.get(f"/api/devices/{user_key('nobody')}")
    assert (answer.status, answer.json) == (200, {"status": "success", "data": {"devices": []}})


@on_memory
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}], ids=repr)
async def test_devices_need_no_api_key(server: Served, headers: dict[str, str]) -> None:
    assert (await server.get(f"/api/devices/{KEY}", headers=headers)).status == 200


# DELETE /api/device/{user_key}/{hostname}


async def test_remove_a_device(server: Served) -> None:
    await server.sync()
    await server.sync(report(timestamp="2025-06-03T09:30:00Z"))
    await server.sync(MINI)
    answer = await server("DELETE", f"/api/device/{KEY}/M4x.local")
    assert (answer.status, answer.json) == (200, {"status": "success", "message": "Device M4x.local removed"})
    assert await server.devices() == ["mini.local"]
    assert (await server.stats()).json["totalTokens"] == 2947982
    assert [kept["hostname"] for kept in await server.history()] == ["mini.local"]


async def test_remove_a_device_that_is_not_there(server: Served) -> None:
    await server.sync()
    for path in (f"{KEY}/mini.local", f"{KEY}/m4x.local", f"{user_key('nobody')}/M4x.local"):
        answer = await server("DELETE", f"/api/device/{path}")
        assert answer.status == 404
        assert answer.json["status"] == "error"
        assert answer.json["message"]
    assert await server.devices() == ["M4x.local"]


async def test_a_removed_device_may_come_back(server: Served) -> None:
    await server.sync()
    await server("DELETE", f"/api/device/{KEY}/M4x.local")
    assert (await server("DELETE", f"/api/device/{KEY}/M4x.local")).status == 404
    await server.sync(report(timestamp="2025-06-03T08:00:00Z", usage__totalTokens=7))
    assert (await server.stats()).json["totalTokens"] == 7
    assert len(await server.history()) == 1


# Each is the beginning of another, or of how something may be stored.
HOSTNAMES = ["a", "a/b", "a/b/c", "a/", "/", "/a", "a/2025-06-03T10:30:00.000000Z", "..", ".", "A", "a b", "a+b"]
HOSTNAMES += ["a%2Fb", "%", "ä", "a\u0308", "日本", "🖥", "a\U0010ffff", "a?b", "a#b", "a;b", "a:b", "'", '"', "\\"]


async def test_hostnames_are_percent_encoded(server: Served) -> None:
    for tokens, hostname in enumerate(HOSTNAMES):
        answer = await server.sync(report(hostname=hostname, usage__totalTokens=tokens))
        assert answer.json["data"]["hostname"] == hostname
    assert sorted(await server.devices()) == sorted(HOSTNAMES)
    for tokens, hostname in enumerate(HOSTNAMES):
        encoded = quote(hostname, safe="").replace(".", "%2E")
        (kept,) = await server.history(f"hostname={encoded}")
        assert (kept["hostname"], kept["usage"]["totalTokens"]) == (hostname, tokens)
        answer = await server("DELETE", f"/api/device/{KEY}/{encoded}")
        assert (answer.status, answer.json["message"]) == (200, f"Device {hostname} removed")
        assert sorted(await server.devices()) == sorted(HOSTNAMES[tokens + 1 :])
    assert await server.history() == []


# GET /api/history/{user_key}


async def test_history(server: Served) -> None:
    bodies = [report(), MINI, report(timestamp="2025-06-02T10:30:00Z", costs__actual=...)]
    for body in bodies:
        await server.sync(body)
    answer = await server.get(f"/api/history/{KEY}")
    assert answer.status == 200
    assert answer.json == {
        "status": "success",
        "data": {"reports": [_exact(as_kept(body)) for body in bodies], "next": None},
    }


async def test_history_has_every_number_as_posted(server: Served) -> None:
    body = report(sessions__averageDuration=-0.0, costs__opus=1e-9, costs__haiku=123456789.123456789)
    await server.sync(body)
    answer = await server.get(f"/api/history/{KEY}")
    assert answer.json["data"]["reports"] == [_exact(as_kept(body))]
    assert b'"averageDuration":-0.0' in answer.content


async def test_history_of_nobody(server: Served) -> None:
    answer = await server.get(f"/api/history/{user_key('nobody')}")
    assert (answer.status, answer.json) == (200, {"status": "success", "data": {"reports": [], "next": None}})


async def _fill(server: Served) -> None:
    """Ten reports: two devices at five full hours, tokens 0 to 4 and 10 to 14."""
    for hour in range(5):
        for first, hostname in ((0, "a"), (10, "b")):
            body = report(hostname=hostname, timestamp=f"2025-06-03T0{hour}:00:00Z", usage__totalTokens=first + hour)
            await server.sync(body)


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        pytest.param("", {0, 1, 2, 3, 4, 10, 11, 12, 13, 14}, id="all"),
        pytest.param("hostname=a", {0, 1, 2, 3, 4}, id="hostname"),
        pytest.param("hostname=c", set(), id="no such hostname"),
        pytest.param("from=2025-06-03T03:00:00Z", {3, 4, 13, 14}, id="from is inclusive"),
        pytest.param("from=2025-06-03T03:00:00.000001Z", {4, 14}, id="from, a microsecond later"),
        pytest.param("to=2025-06-03T01:00:00Z", {0, 10}, id="to is exclusive"),
        pytest.param("to=2025-06-03T01:00:00.000001Z", {0, 1, 10, 11}, id="to, a microsecond later"),
        pytest.param("from=2025-06-03T01:00:00Z&to=2025-06-03T03:00:00Z", {1, 2, 11, 12}, id="between"),
        pytest.param("from=2025-06-03T05:00:00%2B02:00&to=2025-06-03T04:00:00", {3, 13}, id="offsets"),
        pytest.param("from=2025-06-03T03:00:00Z&to=2025-06-03T03:00:00Z", set(), id="an empty range"),
        pytest.param("from=2025-06-03T03:00:00Z&to=2025-06-03T01:00:00Z", set(), id="a range backwards"),
        pytest.param("hostname=b&from=2025-06-03T03:00:00Z", {13, 14}, id="hostname and from"),
        pytest.param("hostname=&from=&to=&limit=&cursor=", {0, 1, 2, 3, 4, 10, 11, 12, 13, 14}, id="empty ones"),
        pytest.param("from=0001-01-01T00:00:00Z&to=0001-01-02T00:00:00Z", set(), id="the first day"),
        pytest.param("from=9999-12-31T23:59:59.999999Z", set(), id="the last microsecond"),
    ],
)
async def test_history_of_a_device_and_a_time(server: Served, query: str, tokens: set[int]) -> None:
    await _fill(server)
    for limit in ("", "&limit=1", "&limit=3"):
        reports = await server.history(query + limit)
        found = [kept["usage"]["totalTokens"] for kept in reports]
        assert len(found) == len(tokens)
        assert set(found) == tokens
        hours = [kept["timestamp"] for kept in reports]
        assert hours == sorted(hours, reverse=True)


async def test_history_pages(server: Served) -> None:
    await _fill(server)
    whole = await server.history()
    assert await server.history("limit=10") == whole
    first = (await server.get(f"/api/history/{KEY}?limit=4")).json["data"]
    assert first["reports"] == whole[:4]
    assert isinstance(first["next"], str)
    # What comes newer than a page's place does not shift the pages that follow.
    await server.sync(report(timestamp="2025-06-03T11:00:00Z"))
    second = (await server.get(f"/api/history/{KEY}?limit=6&cursor={first['next']}")).json["data"]
    assert second == {"reports": whole[4:], "next": None}


async def test_history_limits(serve: Serve) -> None:
    server = await serve({"rate_limit": "10000/hour"})
    for minute in range(101):
        await server.sync(report(timestamp=f"2025-06-03T{minute // 60:02}:{minute % 60:02}:00Z"))
    page = (await server.get(f"/api/history/{KEY}")).json["data"]
    assert len(page["reports"]) == 100
    assert page["next"]
    page = (await server.get(f"/api/history/{KEY}?limit=1000")).json["data"]
    assert len(page["reports"]) == 101
    assert page["next"] is None


# Kept


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server's own time is there, where 03:00 in summer is 07:00 UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("new_york")
async def test_reports_are_kept_for_90_days_and_then_until_03_00(server: Served) -> None:
    await server.sync(report(hostname="silent", timestamp="2025-03-06T06:59:59.999999Z"))
    await server.sync(report(timestamp="2025-03-06T06:59:59Z"))
    await server.sync(report(timestamp="2025-03-06T07:00:00Z"))
    server.move_to("2025-06-04T06:59:59.999999Z")
    assert len(await server.history()) == 3
    assert await server.devices() == ["M4x.local", "silent"]
    server.move_to("2025-06-04T07:00:00Z")
    await until(lambda: _is_gone(server, "silent"))
    assert [kept["timestamp"] for kept in await server.history()] == ["2025-03-06T07:00:00Z"]
    assert await server.devices() == ["M4x.local"]
    # Older ones that arrive are accepted, and go with the next run.
    assert (await server.sync(report(hostname="late", timestamp="2025-01-01T00:00:00Z"))).status == 200
    assert (await server.sync(report(timestamp="2025-01-01T00:00:00Z"))).status == 200
    assert await server.devices() == ["M4x.local", "late"]
    assert len(await server.history()) == 3
    server.move_to("2025-06-05T06:59:59Z")
    assert len(await server.history()) == 3
    server.move_to("2025-06-05T07:00:00Z")
    await until(lambda: _is_gone(server, "M4x.local"))
    await until(lambda: _is_gone(server, "late"))
    assert await server.history() == []


async def _is_gone(server: Served, hostname: str) -> bool:
    return hostname not in await server.devices()


async def test_old_reports_are_removed_at_start(serve: Serve) -> None:
    server = await serve(now="2025-03-06T00:00:00Z")
    await server.sync(report(hostname="silent", timestamp="2025-03-05T11:59:59.999999Z"))
    await server.sync(report(timestamp="2025-03-01T00:00:00Z"))
    await server.sync(report(timestamp="2025-03-05T12:00:00Z"))
    server = await serve(now="2025-06-03T12:00:00Z")
    await until(lambda: _is_gone(server, "silent"))
    assert [kept["timestamp"] for kept in await server.history()] == ["2025-03-05T12:00:00Z"]


async def test_how_long_is_configured(serve: Serve) -> None:
    server = await serve()
    await server.sync(report(hostname="silent", timestamp="2025-06-01T11:59:59Z"))
    await server.sync(report(timestamp="2025-06-02T12:00:00Z"))
    server = await serve({"retention_days": 2})
    await until(lambda: _is_gone(server, "silent"))
    assert await server.devices() == ["M4x.local"]


# Limits


@on_memory
async def test_600_an_hour_for_each_user_key(server: Served) -> None:
    """Whatever the operation, the spelling of the key, and the caller."""
    calls: list[Callable[[], Awaitable[Answer]]] = [
        server.sync,
        lambda: server.sync(report(userKey=KEY.upper())),
        server.stats,
        lambda: server.stats(KEY.upper()),
        lambda: server.get(f"/api/devices/{KEY}"),
        lambda: server.get(f"/api/history/{KEY}?limit=1"),
        lambda: server("HEAD", f"/api/stats/{KEY}"),
        lambda: server("DELETE", f"/api/device/{KEY}/none"),
    ]
    for number in range(600):
        assert (await calls[number % len(calls)]()).status in (200, 404)
    server.clock.advance(1800)
    for call in calls:
        answer = await call()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1800")
        assert not answer.content or answer.json == failed("Rate limit exceeded. Try again in 1800 seconds")
    assert (await server.sync(report(userKey=user_key("bob")))).status == 200
    server.clock.advance(1799.999999)
    answer = await server.stats()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    server.clock.advance(0.000001)
    for _ in range(600):
        assert (await server.stats()).status == 200
    assert (await server.stats()).status == 429


@on_memory
async def test_600_an_hour_for_each_address(serve: Serve) -> None:
    """Before the body is read, whatever is in it. Callers on this machine are not counted."""
    server = await serve({"server.trusted_proxies": ["127.0.0.1"]})
    here = {"X-Forwarded-For": "203.0.113.7"}
    for number in range(600):
        answer = await server("POST", "/api/sync", data=b"{", headers=here | JSON)
        assert answer.status == 400, number
    for answer in (
        await server("POST", "/api/sync", data=b"{", headers=here | JSON),
        await server.sync(headers=here),
        await server.stats(headers=here),
    ):
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3600")
    assert (await server.sync(headers={"X-Forwarded-For": "203.0.113.8"})).status == 200
    assert (await server.sync()).status == 200
    server.clock.advance(3600)
    assert (await server.sync(headers=here)).status == 200


async def test_closed_registration_takes_added_keys_alone(serve: Serve) -> None:
    server = await serve({"registration": "closed"})
    answer = await server.sync()
    assert (answer.status, answer.json) == (403, failed("This user key is not registered here"))
    assert await server.devices() == []
    assert await Ledger(server.storage).register(user_id(KEY.upper()), True)
    assert (await server.sync()).status == 200
    assert (await server.sync(report(userKey=user_key("bob")))).status == 403


async def test_100_devices_for_each_user(server: Served) -> None:
    for number in range(100):
        assert (await server.sync(report(hostname=f"m{number}"))).status == 200
    answer = await server.sync(report(hostname="m100"))
    assert answer.status == 403
    assert answer.json == failed("This user key has 100 devices, as many as it may have")
    assert (await server.sync(report(hostname="m0", timestamp="2025-06-03T11:00:00Z"))).status == 200
    assert (await server.sync(report(hostname="m100", userKey=user_key("bob")))).status == 200
    assert (await server("DELETE", f"/api/device/{KEY}/m7")).status == 200
    assert (await server.sync(report(hostname="m100"))).status == 200
    assert (await server.sync(report(hostname="m101"))).status == 403
    assert len(await server.devices()) == 100


async def test_so_many_users(serve: Serve) -> None:
    server = await serve({"max_users": 1})
    assert (await server.sync()).status == 200
    answer = await server.sync(report(userKey=user_key("bob")))
    assert (answer.status, answer.json) == (403, failed("This server takes no further users"))
    assert (await server.sync(report(hostname="mini.local"))).status == 200


@on_memory
async def test_networks(serve: Serve) -> None:
    proxied = {"server.trusted_proxies": ["127.0.0.1"]}
    server = await serve({"allow_networks": ["10.1.0.0/16", "2001:db8::/32"], **proxied})
    for address, status in {"10.1.2.3": 200, "2001:db8::5": 200, "10.2.0.1": 403, "2001:db9::5": 403}.items():
        headers = {"X-Forwarded-For": address}
        for answer in (
            await server.sync(headers=headers),
            await server.stats(headers=headers),
            await server.get(f"/api/devices/{KEY}", headers=headers),
            await server.get(f"/api/history/{KEY}", headers=headers),
            await server("DELETE", f"/api/device/{KEY}/M4x.local", headers=headers),
        ):
            assert answer.status == status, address
            if status == 403:
                assert answer.json == failed("This server does not take requests from your network")
