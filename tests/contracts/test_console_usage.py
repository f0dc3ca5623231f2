"""contracts/console-usage.md, sentence by sentence: every example whole, on every back end."""

import json
import logging
from collections.abc import Awaitable, Callable
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from homeport.server.apis.console_usage.history import SNAPSHOTS
from homeport.storage import Query, StorageFull, StorageUnavailable

from ..server.apis.conftest import JSON, Answer, Serve, Served, on_memory, until
from ..server.apis.console_usage import KEY, NOW, PARTIAL, PATH, get, post, posted, snapshot

READING = snapshot() | {
    "isStale": False,
    "ageMinutes": 3,
    "source": "ec2-sync",
    "versionInfo": {
        "current": 1,
        "total": 1,
        "timestamp": "2026-01-25T03:20:41.000Z",
        "filename": "console-usage-1.json",
    },
}
NO_DATA = {"error": "No data available", "message": "No synced data found", "versionsAvailable": 0}
PROXIED = {"X-Forwarded-For": "203.0.113.7"}


@pytest.fixture
async def server(serve: Serve) -> Served:
    """An application as it is configured without a configuration: callers on this machine need no key."""
    return await serve(now=NOW)


def refused(message: str, **more: Any) -> dict[str, Any]:
    return {"success": False, "message": message, "timestamp": "2026-01-25T03:20:41.000Z"} | more


def invalid(*problems: tuple[str, str]) -> dict[str, Any]:
    errors = [{"field": field, "message": message} for field, message in problems]
    return refused(f"Invalid data: {problems[0][0]} {problems[0][1]}", errors=errors)


# POST


async def test_a_snapshot_is_synced(server: Served) -> None:
    server.clock.advance(0.123)
    answer = await post(server)
    assert (answer.status, answer.json) == (
        200,
        {"success": True, "message": "Usage data synced", "timestamp": "2026-01-25T03:20:41.123Z"},
    )


@on_memory
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"isPartial": ..., "extractionErrors": ...}, id="what real clients leave out"),
        pytest.param({"currentSession__percentageUsed": 0}, id="nothing used"),
        pytest.param({"currentSession__percentageUsed": 100}, id="all used"),
        pytest.param({"weeklyLimits__allModels__percentageUsed": 99.99}, id="a fraction"),
        pytest.param({"weeklyLimits__sonnetOnly__percentageUsed": 1e-9}, id="a small fraction"),
        pytest.param({"lastUpdated": "2026-01-25T05:17:41.123456789+02:00"}, id="an offset"),
        pytest.param({"lastUpdated": "2026-01-25T03:17:41"}, id="no offset"),
        pytest.param({"extractionErrors": {"a": "", "b": "c"}}, id="errors"),
        pytest.param(PARTIAL, id="partial, and nothing missing"),
        pytest.param(PARTIAL | {"currentSession": ...}, id="no session"),
        pytest.param(PARTIAL | {"currentSession": None}, id="session null"),
        pytest.param(PARTIAL | {"weeklyLimits": ...}, id="no weekly limits"),
        pytest.param(PARTIAL | {"weeklyLimits": None}, id="weekly limits null"),
        pytest.param(PARTIAL | {"currentSession__resetsIn": ""}, id="no reset of the session"),
        pytest.param(
            PARTIAL | {"currentSession": None, "weeklyLimits__allModels__resetsIn": ""}, id="neither is everything"
        ),
    ],
)
async def test_what_is_accepted(server: Served, changes: dict[str, Any]) -> None:
    body = snapshot(**changes)
    assert (await post(server, body)).status == 200
    answer = await get(server)
    assert answer.status == 200
    assert {name: answer.json[name] for name in body} == json.loads(json.dumps(body), parse_float=Decimal)
    assert answer.json.keys() - body.keys() == {"isStale", "ageMinutes", "source", "versionInfo"}


LIMITS = ("currentSession", "weeklyLimits.allModels", "weeklyLimits.sonnetOnly")
REQUIRED = ["currentSession", "weeklyLimits", *LIMITS[1:], "lastUpdated"]
REQUIRED += [f"{limit}.{member}" for limit in LIMITS for member in ("resetsIn", "percentageUsed")]


@on_memory
@pytest.mark.parametrize("field", REQUIRED)
async def test_what_is_required(server: Served, field: str) -> None:
    answer = await post(server, snapshot(**{field.replace(".", "__"): ...}))
    assert (answer.status, answer.json) == (400, invalid((field, "is required")))
    assert (await get(server)).status == 404


@on_memory
@pytest.mark.parametrize("field", [f"{limit}.percentageUsed" for limit in LIMITS])
@pytest.mark.parametrize("value", [-0.001, 100.001, -1, 101, 1e300, True, False, None, "47", [], {}], ids=repr)
async def test_a_percentage(server: Served, field: str, value: Any) -> None:
    for partial in ({}, PARTIAL):
        answer = await post(server, snapshot(**partial, **{field.replace(".", "__"): value}))
        assert (answer.status, answer.json) == (400, invalid((field, "must be 0-100")))


INSTANT = "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"


@on_memory
@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        pytest.param({"currentSession": None}, "currentSession", "must be an object", id="null, but not partial"),
        pytest.param({"weeklyLimits": []}, "weeklyLimits", "must be an object", id="a list"),
        pytest.param({"weeklyLimits__allModels": 3}, "weeklyLimits.allModels", "must be an object", id="a number"),
        pytest.param(PARTIAL | {"currentSession": 3}, "currentSession", "must be an object", id="a number, partial"),
        pytest.param(
            PARTIAL | {"weeklyLimits__allModels": None},
            "weeklyLimits.allModels",
            "must be an object",
            id="half a section",
        ),
        pytest.param(
            PARTIAL | {"weeklyLimits__sonnetOnly": ...}, "weeklyLimits.sonnetOnly", "is required", id="no half"
        ),
        pytest.param(
            PARTIAL | {"currentSession": ..., "weeklyLimits": None},
            "body",
            "must have currentSession or weeklyLimits",
            id="neither",
        ),
        pytest.param(
            {"currentSession__resetsIn": ""}, "currentSession.resetsIn", "must be a non-empty string", id="empty"
        ),
        pytest.param(
            {"currentSession__resetsIn": 3}, "currentSession.resetsIn", "must be a non-empty string", id="no string"
        ),
        pytest.param(
            PARTIAL | {"currentSession__resetsIn": None},
            "currentSession.resetsIn",
            "must be a string",
            id="null reset, partial",
        ),
        pytest.param({"lastUpdated": "yesterday"}, "lastUpdated", INSTANT, id="no date"),
        pytest.param({"lastUpdated": "2026-02-30T00:00:00Z"}, "lastUpdated", INSTANT, id="no such day"),
        pytest.param({"lastUpdated": 1769311061}, "lastUpdated", INSTANT, id="seconds"),
        pytest.param({"isPartial": "true"}, "isPartial", "must be true or false", id="a word"),
        pytest.param({"isPartial": None}, "isPartial", "must be true or false", id="null"),
        pytest.param({"extractionErrors": []}, "extractionErrors", "must be an object", id="a list of errors"),
        pytest.param({"extractionErrors": {"a": 1}}, "extractionErrors.a", "must be a string", id="a number of errors"),
    ],
)
async def test_what_is_refused(server: Served, changes: dict[str, Any], field: str, rule: str) -> None:
    answer = await post(server, snapshot(**changes))
    assert (answer.status, answer.json) == (400, invalid((field, rule)))
    assert (await get(server)).status == 404


@on_memory
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        pytest.param(b"", "is required", id="empty"),
        pytest.param(b"[]", "must be an object", id="a list"),
        pytest.param(b"null", "must be an object", id="null"),
        pytest.param(b'{"a"', "is not JSON: Input data was truncated", id="cut off"),
    ],
)
async def test_a_body_that_is_none(server: Served, content: bytes, rule: str) -> None:
    answer = await server("POST", PATH, data=content, headers=JSON)
    assert (answer.status, answer.json) == (400, invalid(("body", rule)))


@on_memory
async def test_all_problems_are_named_the_first_in_the_message(server: Served) -> None:
    changes = {"currentSession__percentageUsed": 147, "weeklyLimits__sonnetOnly__resetsIn": "", "lastUpdated": ...}
    answer = await post(server, snapshot(**changes))
    assert (answer.status, answer.json) == (
        400,
        invalid(
            ("currentSession.percentageUsed", "must be 0-100"),
            ("weeklyLimits.sonnetOnly.resetsIn", "must be a non-empty string"),
            ("lastUpdated", "is required"),
        ),
    )


@on_memory
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type(server: Served, content_type: str) -> None:
    answer = await server("POST", PATH, data=b"{}", headers={"Content-Type": content_type})
    assert (answer.status, answer.json) == (415, refused("Content-Type must be application/json"))


@on_memory
async def test_the_body_limit(server: Served) -> None:
    answer = await server("POST", PATH, data=BytesIO(b" " * ((1 << 20) + 1)), headers=JSON)
    assert (answer.status, answer.json) == (413, refused("Request body is larger than 1,048,576 bytes"))


async def test_the_body_is_kept_as_sent(server: Served) -> None:
    """Unknown fields, numbers to the digit, and the deepest nesting that is taken."""
    deep = b"[" * 127 + b"]" * 127
    content = json.dumps(snapshot()).encode()[:-1] + b',"x":{"n":[1.50,-0.0,1e2,%d], "\xc3\xa9" :null},\n"deep":%b}' % (
        10**40,
        deep,
    )
    assert (await server("POST", PATH, data=content, headers=JSON)).status == 200
    answer = await get(server)
    assert answer.json.items() >= READING.items()
    assert b'"x":{"n":[1.50,-0.0,1e2,%d], "\xc3\xa9" :null}' % 10**40 in answer.content
    assert b'"deep":' + deep in answer.content


async def test_the_servers_fields_win(server: Served) -> None:
    own = dict.fromkeys(("isStale", "ageMinutes", "source", "versionInfo"), "mine")
    await posted(server, **own)
    assert (await get(server)).json == READING


@pytest.mark.parametrize(
    "error", [StorageFull("x"), StorageUnavailable("x"), OSError("x"), RuntimeError("x")], ids=repr
)
@on_memory
async def test_storing_fails(
    server: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(server.storage, "commit", fail)
        answer = await post(server)
    assert (answer.status, answer.json) == (500, refused("Storage write failed"))
    assert [record.levelname for record in caplog.records if record.name == "homeport.server.errors"] == ["ERROR"]
    assert (await get(server)).status == 404
    assert (await post(server)).status == 200


async def test_a_store_that_is_gone(server: Served) -> None:
    await server.storage.close()
    answer = await post(server)
    assert (answer.status, answer.json) == (500, refused("Storage write failed"))
    answer = await get(server)
    assert (answer.status, answer.json) == (503, {"error": "Service Unavailable", "message": "Service unavailable"})


@on_memory
@pytest.mark.parametrize(
    ("updated", "age"),
    [("2026-01-25T03:20:37.5Z", 3), ("2026-01-25T03:17:41Z", 180), ("2026-01-25T04:00:00Z", 0)],
)
async def test_a_sync_is_logged_with_its_time_and_freshness(
    server: Served, caplog: pytest.LogCaptureFixture, updated: str, age: int
) -> None:
    with caplog.at_level(logging.INFO):
        await posted(server, lastUpdated=updated)
        await post(server, {})
    told = [record.getMessage() for record in caplog.records if "console_usage" in record.name]
    assert told == [f"console usage 1 synced at 2026-01-25T03:20:41.000Z: the data is {age} seconds old"]


# The key


@on_memory
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        pytest.param({}, "Missing API key", id="none"),
        pytest.param({"X-API-Key": ""}, "Missing API key", id="empty"),
        pytest.param({"X-API-Key": KEY[:-1]}, "Invalid API key", id="cut off"),
        pytest.param({"X-API-Key": KEY + "x"}, "Invalid API key", id="longer"),
        pytest.param({"X-API-Key": KEY.upper()}, "Invalid API key", id="capitals"),
        pytest.param({"X-API-Key": "é"}, "Invalid API key", id="not ASCII"),
        pytest.param({"Authorization": f"Bearer {KEY}"}, "Missing API key", id="elsewhere"),
    ],
)
async def test_without_the_key(serve: Serve, headers: dict[str, str], message: str) -> None:
    server = await serve({"apis.console_usage.api_key": KEY}, now=NOW)
    answer = await post(server, {}, headers=headers)
    assert (answer.status, answer.json) == (401, refused(message))
    assert (await post(server, headers={"X-API-Key": KEY})).status == 200
    assert (await get(server)).json == READING


EXPOSED = {"server.trusted_proxies": ["127.0.0.1"]}


@on_memory
@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param({}, {}, 200, id="this machine"),
        pytest.param({}, {"X-API-Key": "x"}, 200, id="this machine, with a key"),
        pytest.param({}, PROXIED, 401, id="through a proxy"),
        pytest.param(EXPOSED, {}, 401, id="exposed"),
        pytest.param(EXPOSED, PROXIED, 401, id="exposed, from elsewhere"),
        pytest.param(EXPOSED, PROXIED | {"X-API-Key": "x"}, 401, id="exposed, with a key"),
        pytest.param({"server.public_url": "https://sync.example.com"}, {}, 401, id="with a public URL"),
    ],
)
async def test_no_key_is_set(serve: Serve, settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    server = await serve(settings, now=NOW)
    answer = await post(server, headers=headers)
    assert answer.status == status
    if status == 401:
        assert answer.json == refused("Invalid API key" if "X-API-Key" in headers else "Missing API key")
    assert (await get(server, headers=headers)).status == (404 if status == 401 else 200)


@on_memory
async def test_guesses_are_counted(serve: Serve) -> None:
    server = await serve({"apis.console_usage.api_key": KEY, **EXPOSED}, now=NOW)
    for _ in range(10):
        assert (await post(server, headers=PROXIED | {"X-API-Key": "x"})).status == 401
    answer = await post(server, headers=PROXIED | {"X-API-Key": KEY})
    assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
    assert answer.json == refused("Rate limit exceeded. Try again in 60 seconds")
    assert (await get(server, headers=PROXIED)).status == 404
    server.clock.advance(60)
    assert (await post(server, headers=PROXIED | {"X-API-Key": KEY})).status == 200


# GET


async def test_the_newest_snapshot(server: Served) -> None:
    await posted(server, currentSession__percentageUsed=1)
    await posted(server)
    answer = await get(server)
    info = READING["versionInfo"] | {"current": 2, "total": 2, "filename": "console-usage-2.json"}
    assert (answer.status, answer.json) == (200, READING | {"versionInfo": info})
    assert answer.headers["Content-Type"] == "application/json"


async def test_the_contracts_example(server: Served) -> None:
    for _ in range(42):
        await posted(server)
    info = READING["versionInfo"] | {"current": 42, "total": 42, "filename": "console-usage-42.json"}
    assert (await get(server)).json == READING | {"versionInfo": info}


@pytest.mark.parametrize("query", ["", "?version=1", "?version=x", "?timestamp=2026-01-25T03:20:41Z"])
async def test_no_data(server: Served, query: str) -> None:
    answer = await get(server, query)
    assert (answer.status, answer.json) == (404, NO_DATA)


A = "2 hr 42 min"  # the contract's, of the session, of all models, of Sonnet
B = "Thu 7:00 AM"
C = "Sat 12:00 PM"
WHOLE_SESSION = {"resetsIn": A, "percentageUsed": 47}


@pytest.mark.parametrize(
    ("bodies", "session", "weekly"),
    [
        pytest.param([{}, PARTIAL | {"currentSession": None}], (A, 47), (B, 31, C, 10), id="null"),
        pytest.param([{}, PARTIAL | {"currentSession": ...}], (A, 47), (B, 31, C, 10), id="absent"),
        pytest.param([{}, PARTIAL | {"weeklyLimits": None}], (A, 47), (B, 31, C, 10), id="weekly"),
        pytest.param(
            [{}, PARTIAL | {"currentSession": {"resetsIn": "", "percentageUsed": 5}}],
            (A, 5),
            (B, 31, C, 10),
            id="reset of the session",
        ),
        pytest.param(
            [
                {},
                PARTIAL
                | {
                    "weeklyLimits__allModels": {"resetsIn": "", "percentageUsed": 5},
                    "weeklyLimits__sonnetOnly": {"resetsIn": "now", "percentageUsed": 6},
                },
            ],
            (A, 47),
            (B, 5, "now", 6),
            id="reset of a week",
        ),
        pytest.param(
            [{}, {"currentSession__percentageUsed": 48}, PARTIAL | {"currentSession": None}],
            (A, 48),
            (B, 31, C, 10),
            id="from the newest",
        ),
        pytest.param(
            [
                {},
                PARTIAL | {"currentSession": {"resetsIn": "", "percentageUsed": 50}, "weeklyLimits": None},
                PARTIAL | {"currentSession": None, "weeklyLimits__sonnetOnly__resetsIn": ""},
            ],
            (A, 50),
            (B, 31, C, 10),
            id="a section from one, its reset from another",
        ),
        pytest.param(
            [{}, *[PARTIAL | {"weeklyLimits": None}] * 5], (A, 47), (B, 31, C, 10), id="across many that lack it"
        ),
    ],
)
async def test_gaps_are_filled(
    server: Served, bodies: list[dict[str, Any]], session: tuple[Any, ...], weekly: tuple[Any, ...]
) -> None:
    for changes in bodies:
        await posted(server, **changes)
    reading = (await get(server)).json
    assert reading["currentSession"] == dict(zip(("resetsIn", "percentageUsed"), session, strict=True))
    assert reading["weeklyLimits"] == {
        "allModels": {"resetsIn": weekly[0], "percentageUsed": weekly[1]},
        "sonnetOnly": {"resetsIn": weekly[2], "percentageUsed": weekly[3]},
    }
    assert reading["isPartial"] is True
    assert reading["extractionErrors"] == PARTIAL["extractionErrors"]
    assert reading["versionInfo"]["current"] == len(bodies)


async def test_what_no_snapshot_has_stays_as_it_was_sent(server: Served) -> None:
    await posted(server, **PARTIAL, currentSession=None, weeklyLimits__allModels__resetsIn="")
    reading = (await get(server)).json
    assert reading["currentSession"] is None
    assert reading["weeklyLimits"]["allModels"]["resetsIn"] == ""
    await posted(server, **PARTIAL, currentSession=..., weeklyLimits__allModels__resetsIn="")
    assert "currentSession" not in (await get(server)).json


async def test_a_snapshot_that_is_gone_fills_nothing(serve: Serve) -> None:
    server = await serve({"apis.console_usage.keep_versions": 2}, now=NOW)
    await posted(server)
    await posted(server, **PARTIAL, currentSession=None)
    assert (await get(server)).json["currentSession"] == WHOLE_SESSION
    await posted(server, **PARTIAL, currentSession=None)
    assert (await get(server)).json["currentSession"] is None


async def test_one_that_is_too_old_fills_nothing_either(server: Served) -> None:
    await posted(server)
    server.move_to("2026-01-31T03:20:41Z")
    await posted(server, **PARTIAL, currentSession=None)
    server.move_to("2026-02-01T03:20:41Z")
    assert (await get(server)).json["currentSession"] == WHOLE_SESSION
    server.clock.advance(0.000001)
    assert (await get(server)).json["currentSession"] is None


async def test_an_older_version_is_filled_from_those_before_it(server: Served) -> None:
    await posted(server, **PARTIAL, weeklyLimits=None)
    for used in (1, 2):
        await posted(server, **PARTIAL, currentSession=None, weeklyLimits__allModels__percentageUsed=used)
    await posted(server, currentSession__percentageUsed=99)
    for version, session, week in ((1, 47, 31), (2, 47, 1), (3, 47, 2), (4, 99, 31)):
        reading = (await get(server, f"?version={version}")).json
        assert reading["currentSession"]["percentageUsed"] == session
        # Nothing before the first has it: widgets fall over without.
        assert reading["weeklyLimits"]["allModels"]["percentageUsed"] == week


# Age


@on_memory
@pytest.mark.parametrize(
    ("at", "minutes", "stale", "cache"),
    [
        ("2026-01-25T03:17:41Z", 0, False, "public, max-age=60"),
        ("2026-01-25T03:18:10.999Z", 0, False, "public, max-age=60"),
        ("2026-01-25T03:18:11Z", 1, False, "public, max-age=60"),
        ("2026-01-25T03:20:11Z", 3, False, "public, max-age=60"),
        ("2026-01-25T03:22:40.999999Z", 5, False, "public, max-age=60"),
        ("2026-01-25T03:22:41Z", 5, False, "public, max-age=30"),
        ("2026-01-25T03:27:40.999999Z", 10, False, "public, max-age=30"),
        ("2026-01-25T03:27:41Z", 10, False, "no-cache"),
        ("2026-01-25T03:28:10.999999Z", 10, False, "no-cache"),
        ("2026-01-25T03:28:11Z", 11, True, "no-cache"),
        ("2026-01-26T03:17:41Z", 1440, True, "no-cache"),
        ("2026-01-25T03:17:40Z", 0, False, "public, max-age=60"),
        ("2020-01-01T00:00:00Z", 0, False, "public, max-age=60"),
    ],
)
async def test_how_old_it_is(server: Served, at: str, minutes: int, stale: bool, cache: str) -> None:
    await posted(server)
    server.move_to(at)
    answer = await get(server)
    assert (answer.json["ageMinutes"], answer.json["isStale"]) == (minutes, stale)
    assert answer.headers["Cache-Control"] == cache


@on_memory
async def test_when_it_is_stale_is_configured(serve: Serve) -> None:
    server = await serve({"apis.console_usage.stale_minutes": 2}, now=NOW)
    await posted(server)
    assert (await get(server)).json["isStale"] is True
    server.move_to("2026-01-25T03:19:41Z")
    assert (await get(server)).json["isStale"] is False


# Versions


@pytest.fixture
async def three(server: Served) -> Served:
    """Of three snapshots, with 1, 2 and 3 percent used, accepted a minute after each other."""
    for used in (1, 2, 3):
        await posted(server, currentSession__percentageUsed=used)
        server.clock.advance(60)
    return server


@pytest.mark.parametrize(
    ("query", "version"),
    [
        ("?version=1", 1),
        ("?version=2", 2),
        ("?version=3", 3),
        ("?version=-1", 3),
        ("?version=-2", 2),
        ("?version=-3", 1),
        ("?version=", 3),
        ("?version=1&version=2", 2),
        ("?timestamp=2026-01-25T03:20:41Z", 1),
        ("?timestamp=2026-01-25T03:21:40.999999Z", 1),
        ("?timestamp=2026-01-25T03:21:41Z", 2),
        ("?timestamp=2026-01-25T05:22:00%2B02:00", 2),
        ("?timestamp=2026-01-25T03:22:41", 3),
        ("?timestamp=9999-12-31T23:59:59Z", 3),
        ("?timestamp=", 3),
        ("?unknown=1", 3),
    ],
)
async def test_a_version(three: Served, query: str, version: int) -> None:
    answer = await get(three, query)
    assert (answer.status, answer.json) == (
        200,
        snapshot(currentSession__percentageUsed=version)
        | {
            "isStale": False,
            "ageMinutes": 6,
            "source": "ec2-sync",
            "versionInfo": {
                "current": version,
                "total": 3,
                "timestamp": f"2026-01-25T03:2{version - 1}:41.000Z",
                "filename": f"console-usage-{version}.json",
            },
        },
    )


RANGE = "1 to 3, or -3 to -1"
BAD_VERSIONS = ["0", "-0", "4", "-4", "abc", "1.5", "1e0", "01", "%2B1", "1%20", "--1", "9" * 5000, "%D9%A3", "true"]


@pytest.mark.parametrize("version", BAD_VERSIONS, ids=lambda text: text[:8])
async def test_a_bad_version(three: Served, version: str) -> None:
    answer = await get(three, f"?version={version}")
    assert (answer.status, answer.json) == (
        400,
        {"error": "Invalid version", "message": f"version must be {RANGE}", "validRange": RANGE},
    )


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("timestamp=yesterday", "Invalid timestamp", f"timestamp {INSTANT}"),
        ("timestamp=1769311061", "Invalid timestamp", f"timestamp {INSTANT}"),
        ("timestamp=2026-02-30T00:00:00Z", "Invalid timestamp", "timestamp must be a date and time that exist"),
        (
            "timestamp=2026-01-25T03:20:40.999999Z",
            "Invalid timestamp",
            "timestamp is before every snapshot that is kept",
        ),
        (
            "timestamp=2026-01-25T03:20:41Z&version=1",
            "Invalid query",
            "version and timestamp cannot be given together",
        ),
    ],
)
async def test_a_bad_timestamp(three: Served, query: str, error: str, message: str) -> None:
    answer = await get(three, f"?{query}")
    assert (answer.status, answer.json) == (400, {"error": error, "message": message, "validRange": RANGE})


# Caches


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_client_that_has_it(server: Served, method: str) -> None:
    await posted(server)
    first = await get(server)
    headers = {name: first.headers[name] for name in ("ETag", "Last-Modified", "Cache-Control", "Vary")}
    assert headers["Last-Modified"] == "Sun, 25 Jan 2026 03:17:41 GMT"
    tag = headers["ETag"]
    for condition in (
        {"If-None-Match": tag},
        {"If-None-Match": tag.removeprefix("W/")},
        {"If-None-Match": f'"x", {tag},"y"'},
        {"If-None-Match": "*"},
        {"If-None-Match": tag, "If-Modified-Since": "Sun, 25 Jan 2026 03:17:40 GMT"},
        {"If-Modified-Since": "Sun, 25 Jan 2026 03:17:41 GMT"},
        {"If-Modified-Since": "Mon, 26 Jan 2026 03:17:41 GMT"},
    ):
        answer = await server(method, PATH, headers=condition)
        assert (answer.status, answer.content) == (304, b""), condition
        assert {name: answer.headers[name] for name in headers} == headers
        assert "Content-Type" not in answer.headers
    for condition in (
        {"If-None-Match": '"x"'},
        {"If-None-Match": tag.strip('W/"')},
        {"If-None-Match": '"x"', "If-Modified-Since": "Sun, 25 Jan 2026 03:17:41 GMT"},
        {"If-Modified-Since": "Sun, 25 Jan 2026 03:17:40 GMT"},
        {"If-Modified-Since": "yesterday"},
    ):
        answer = await server(method, PATH, headers=condition)
        assert answer.status == 200, condition
        assert answer.content == (first.content if method == "GET" else b"")


async def test_the_etag_is_of_snapshot_and_staleness(server: Served) -> None:
    async def tag(query: str = "") -> str:
        return str((await get(server, query)).headers["ETag"])

    await posted(server)
    first = await tag()
    server.move_to("2026-01-25T03:28:10Z")
    assert await tag() == first
    server.move_to("2026-01-25T03:28:11Z")
    stale = await tag()
    assert stale != first
    await posted(server)
    assert await tag("?version=1") == stale
    assert len({first, stale, await tag()}) == 3


@pytest.mark.parametrize(
    ("updated", "modified"),
    [
        ("2026-01-25T03:17:41.999999Z", "Sun, 25 Jan 2026 03:17:41 GMT"),
        ("2026-01-25T05:17:41+02:00", "Sun, 25 Jan 2026 03:17:41 GMT"),
        ("0001-01-01T00:00:00Z", "Mon, 01 Jan 0001 00:00:00 GMT"),
        ("9999-12-31T23:59:59.9Z", "Fri, 31 Dec 9999 23:59:59 GMT"),
    ],
)
@on_memory
async def test_last_modified(server: Served, updated: str, modified: str) -> None:
    await posted(server, lastUpdated=updated)
    answer = await get(server)
    assert answer.headers["Last-Modified"] == modified
    assert answer.json["lastUpdated"] == updated
    if not modified.endswith("0001 00:00:00 GMT"):
        assert (await get(server, headers={"If-Modified-Since": modified})).status == 304


# Kept


async def info(server: Served) -> tuple[int, int, str]:
    reading = (await get(server)).json["versionInfo"]
    return reading["current"], reading["total"], reading["filename"]


async def test_the_newest_100_are_kept(server: Served) -> None:
    for used in range(103):
        await posted(server, currentSession__percentageUsed=used % 101)
    assert await info(server) == (100, 100, "console-usage-103.json")
    oldest = (await get(server, "?version=1")).json
    assert (oldest["currentSession"]["percentageUsed"], oldest["versionInfo"]["filename"]) == (
        3,
        "console-usage-4.json",
    )
    assert (await get(server, "?version=-101")).status == 400
    assert len(await stored(server)) == 100


async def stored(server: Served) -> list[str]:
    """The ids of what is in the store."""
    return [record.id for record in (await server.storage.find(Query(SNAPSHOTS))).records]


async def test_none_is_kept_for_more_than_7_days_but_the_newest(server: Served) -> None:
    await posted(server)
    server.clock.advance(1)
    await posted(server)
    server.move_to("2026-02-01T03:20:41Z")
    assert await info(server) == (2, 2, "console-usage-2.json")
    server.clock.advance(0.000001)
    assert await info(server) == (1, 1, "console-usage-2.json")
    assert (await get(server, "?version=-2")).status == 400
    assert (await get(server, "?timestamp=2026-01-25T03:20:41Z")).status == 400
    server.move_to("2030-01-01T00:00:00Z")
    assert await info(server) == (1, 1, "console-usage-2.json")
    assert (await get(server, "?version=1")).json["versionInfo"]["filename"] == "console-usage-2.json"


async def test_a_post_removes_what_is_too_old(server: Served) -> None:
    for _ in range(3):
        await posted(server)
    server.move_to("2026-02-01T03:20:41.000001Z")
    await posted(server)
    assert len(await stored(server)) == 1
    assert await info(server) == (1, 1, "console-usage-4.json")


async def test_so_does_every_night(server: Served) -> None:
    for _ in range(3):
        await posted(server)
    server.move_to("2026-02-03T04:00:00Z")
    await until(lambda: _are_left(server, 1))
    assert await info(server) == (1, 1, "console-usage-3.json")


async def test_and_every_start(serve: Serve) -> None:
    server = await serve(now=NOW)
    for _ in range(5):
        await posted(server)
    server = await serve({"apis.console_usage.keep_versions": 2}, now=NOW)
    await until(lambda: _are_left(server, 2))
    assert await info(server) == (2, 2, "console-usage-5.json")
    server = await serve({"apis.console_usage.keep_days": 1}, now="2026-01-26T03:20:42Z")
    await until(lambda: _are_left(server, 1))
    assert await info(server) == (1, 1, "console-usage-5.json")


async def _are_left(server: Served, count: int) -> bool:
    return len(await stored(server)) == count


async def test_a_clock_that_went_back_takes_no_place_away(server: Served) -> None:
    """The newest is the one that came last, whatever the time was."""
    await posted(server, currentSession__percentageUsed=1)
    server.move_to("2000-01-01T00:00:00Z")
    await posted(server, currentSession__percentageUsed=2)
    assert (await get(server)).json["currentSession"]["percentageUsed"] == 2
    assert await info(server) == (2, 2, "console-usage-2.json")
    server.move_to(NOW)
    assert (await get(server)).json["currentSession"]["percentageUsed"] == 2
    assert await info(server) == (2, 2, "console-usage-2.json")
    assert (await get(server, "?version=1")).json["currentSession"]["percentageUsed"] == 1


async def test_nor_does_it_break_what_gaps_are_filled_from(server: Served) -> None:
    await posted(server)
    server.move_to("2000-01-01T00:00:00Z")
    await posted(server, **PARTIAL, currentSession__resetsIn="")
    server.move_to(NOW)
    await posted(server, **PARTIAL, currentSession=None)
    answer = await get(server)
    assert (answer.status, answer.json["currentSession"]) == (200, None)  # the one that had it counts as too old
    assert await info(server) == (2, 2, "console-usage-3.json")


@pytest.mark.parametrize("back_end", ["file"])
async def test_the_newest_is_a_file(server: Served, serve: Serve) -> None:
    folder = server.storage.path
    assert folder is not None
    file = Path(folder, "console-usage-synced.json")
    assert not file.exists()
    for used in (1, 2):
        body = snapshot(currentSession__percentageUsed=used, more={"a": [1.5]})
        await post(server, body)
        assert json.loads(file.read_text()) == body
    await post(server, {})
    assert json.loads(file.read_text()) == body
    file.unlink()
    await serve(now=NOW)
    assert json.loads(file.read_text()) == body


@pytest.mark.parametrize("back_end", ["file"])
async def test_a_file_that_cannot_be_written_loses_no_snapshot(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.storage.path is not None
    Path(server.storage.path, "console-usage-synced.json").mkdir()
    await posted(server)
    assert (await get(server)).json == READING
    assert "console-usage-synced.json is out of date: cannot write " in caplog.text


# Errors of the paths


@on_memory
@pytest.mark.parametrize(
    ("call", "status", "body"),
    [
        (lambda s: s.get("/api/claude/x"), 404, {"error": "Not Found", "message": "Not found"}),
        (lambda s: s("POST", "/api/claude"), 404, refused("Not found")),
        (
            lambda s: s("PUT", PATH),
            405,
            refused("Method PUT is not allowed; use one of GET, HEAD, OPTIONS, POST"),
        ),
    ],
    ids=["unknown to widgets", "unknown to scrapers", "another method"],
)
async def test_every_error_has_the_apis_shape(
    server: Served, call: Callable[[Served], Awaitable[Answer]], status: int, body: dict[str, Any]
) -> None:
    answer = await call(server)
    assert (answer.status, answer.json) == (status, body)
