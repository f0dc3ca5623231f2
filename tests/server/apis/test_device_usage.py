"""What bad input gets: a 4xx in the API's envelope that names the field and the rule, and nothing is stored."""

import gzip
import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.storage import Query, Storage

from .conftest import JSON, KEY, Answer, Served, on_memory, report, user_key

pytestmark = on_memory

COUNT = "must be an integer from 0 to 9007199254740991"
COST = "must be a number from 0 to 1000000000"
INSTANT = "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"
HOSTNAME = "must be a string of 1 to 255 characters without control characters"
VERSION = "must be a string of 1 to 64 characters without control characters"
HEX = "must be a string of exactly 64 hexadecimal digits"
HOURS = "must be a list of exactly 24 items"


def case(field: str, value: Any, rule: str, name: str | None = None) -> Any:
    return pytest.param(field, value, rule, id=f"{field}-{name or value!r}")


def cases(field: str, rule: str, *values: Any) -> list[Any]:
    return [case(field, value, rule) for value in values]


BAD_FIELDS = [
    *cases("userKey", HEX, None, 5, "", KEY[1:], KEY + "a", [KEY]),
    case("userKey", "g" + KEY[1:], HEX, "g"),
    case("userKey", KEY[:-1] + "\n", HEX, "newline"),
    case("userKey", KEY + "\n", HEX, "newline behind"),
    case("userKey", " " + KEY[1:], HEX, "blank"),
    case("userKey", "\u0661" * 64, HEX, "other digits"),
    case("userKey", "\uff11" * 64, HEX, "full-width digits"),
    *cases("hostname", HOSTNAME, None, 5, "", [], {}, "a\nb", "\0", "\x7f", "\x9f"),
    case("hostname", "x" * 256, HOSTNAME, "256 characters"),
    case("hostname", "🖥" * 256, HOSTNAME, "256 emoji"),
    *(
        case("timestamp", value, INSTANT)
        for value in (
            *(None, 1748946600, 1748946600.5, "", "now", "2025-06-03", "10:30:00Z", "1748946600", "20250603T103000Z"),
            *("2025-06-03T10:30Z", "2025-06-31T10:30:00Z", "2025-02-29T00:00:00Z", "2025-06-03T24:00:00Z"),
            *("2025-06-03T10:60:00Z", "2025-06-03T10:30:60Z", "2025-06-03T10:30:00+24:00", "2025-06-03T10:30:00 Z"),
            *("2025-06-03T10:30:00Z\n", " 2025-06-03T10:30:00Z", "2025-06-03T10:30:00.Z", "2025-06-03T10:30:00,5Z"),
            *(
                "0000-01-01T00:00:00Z",
                "0001-01-01T00:00:00+00:01",
                "10000-01-01T00:00:00Z",
                "9999-12-31T23:59:59-00:01",
            ),
            *(
                "\uff12025-06-03T10:30:00Z",
                "2025-W23-2T10:30:00Z",
                "2025-06-03T10:30:00+0200",
                "Tue, 03 Jun 2025 10:30:00 GMT",
            ),
        )
    ),
    case("timestamp", "2025-06-03T10:30:00." + "0" * 64 + "Z", INSTANT, "85 characters"),
    case("timestamp", "2025-06-05T12:00:00Z", "must not be more than 24 hours ahead", "in two days"),
    case("timestamp", "9999-12-31T23:59:59Z", "must not be more than 24 hours ahead", "at the end of time"),
    *(case(group, None, "must be an object") for group in ("usage", "sessions", "costs")),
    *(case(group, [1], "must be an object") for group in ("usage", "sessions", "costs")),
    *(
        bad
        for field in ("usage.totalTokens", "usage.cacheReadTokens", "sessions.total", "sessions.active")
        for bad in cases(field, COUNT, None, -1, 1.5, "5", True, 2**53, [])
    ),
    *(case(f"usage.{name}Tokens", -1, COUNT) for name in ("input", "output", "cacheCreation")),
    case("usage.totalTokens", 10**3999, COUNT, "4,000 digits"),
    case("usage.totalTokens", 1e300, COUNT, "1e300"),
    *cases("sessions.averageDuration", "must be a number of at least 0", None, -0.001, -1, "5", False, {}),
    *(
        bad
        for name in ("opus", "sonnet", "haiku", "actual")
        for bad in cases(f"costs.{name}", COST, None, -0.01, 1_000_000_000.01, "5", True)
    ),
    case("costs.opus", 10**3999, COST, "4,000 digits"),
    *cases("hourlyUsage", HOURS, [], [0] * 23, [0] * 25),
    *cases("hourlyUsage", "must be a list", None, {}, "0" * 24),
    *cases("hourlyUsage[7]", COUNT, -1, 0.5, "0", None),
    *cases("version", VERSION, None, 3.0, "", "\t"),
    case("version", "v" * 65, VERSION, "65 characters"),
]


def with_field(field: str, value: Any) -> dict[str, Any]:
    if field.endswith("[7]"):
        return report(hourlyUsage=[0] * 7 + [value] + [0] * 16)
    return report(**{field.replace(".", "__"): value})


@pytest.mark.parametrize(("field", "value", "rule"), BAD_FIELDS)
async def test_bad_fields(server: Served, field: str, value: Any, rule: str) -> None:
    answer = await server.sync(with_field(field, value))
    assert_refused(answer, 400)
    assert answer.json["message"] == "Invalid request body"
    assert [problem["field"] for problem in answer.json["detail"]] == [field]
    assert answer.json["detail"][0]["message"].startswith(rule)
    await assert_empty(server.storage)


BAD_BODIES = [
    pytest.param(b"", "is required", id="nothing"),
    pytest.param(b" ", "is not JSON", id="a blank"),
    pytest.param(b"null", "must be an object", id="null"),
    pytest.param(b"[]", "must be an object", id="a list"),
    pytest.param(b'"x"', "must be an object", id="a string"),
    pytest.param(b"5", "must be an object", id="a number"),
    pytest.param(b"{", "is not JSON", id="truncated"),
    pytest.param(b"{'a': 1}", "is not JSON", id="single quotes"),
    pytest.param(b'{"a": 1,}', "is not JSON", id="a trailing comma"),
    pytest.param(b'{"a": 1} {"a": 1}', "is not JSON", id="two documents"),
    pytest.param(b'{"a": 1} // comment', "is not JSON", id="a comment"),
    pytest.param(b'\xef\xbb\xbf{"a": 1}', "is not JSON", id="a byte order mark"),
    pytest.param(json.dumps(report()).encode("utf-16"), "is not JSON", id="UTF-16"),
    pytest.param(b'{"hostname": "\xff"}', "is not UTF-8", id="not UTF-8"),
    pytest.param(b'{"hostname": "\xed\xa0\x80"}', "is not UTF-8", id="a surrogate in UTF-8"),
    pytest.param(b'{"hostname": "\\ud800"}', "is not JSON, or holds half of a surrogate pair", id="a lone surrogate"),
    pytest.param(b'{"hostname": "a\nb"}', "is not JSON", id="a raw line break"),
    pytest.param(b'{"a": NaN}', "is not JSON", id="NaN"),
    pytest.param(b'{"a": -Infinity}', "is not JSON", id="Infinity"),
    pytest.param(b'{"a": 1e400}', "holds a number out of range", id="1e400"),
    pytest.param(b'{"a": 01}', "is not JSON", id="01"),
    pytest.param(b'{"a": %s}' % (b"9" * 4001), "holds an integer of more than 4000 digits", id="4,001 digits"),
    pytest.param(b'{"a": %s}' % (b"[" * 128 + b"]" * 128), "is nested deeper than 128 levels", id="129 levels"),
    pytest.param(b"[" * 500_000, "is", id="half a million levels"),
    pytest.param(b"userKey=x", "is not JSON", id="a form"),
]


@pytest.mark.parametrize(("body", "rule"), BAD_BODIES)
async def test_bad_bodies(server: Served, body: bytes, rule: str) -> None:
    answer = await server("POST", "/api/sync", data=body, headers=JSON)
    assert_refused(answer, 400)
    assert answer.json["message"] == "Invalid request body"
    (problem,) = answer.json["detail"]
    assert problem["field"] == "body"
    assert problem["message"].startswith(rule)
    await assert_empty(server.storage)


BAD_REQUESTS = [
    pytest.param({"Content-Type": "text/plain"}, b"{}", 415, "Content-Type must be application/json", id="text"),
    pytest.param({"Content-Type": ""}, b"{}", 415, "Content-Type must be application/json", id="no type"),
    pytest.param(
        {"Content-Type": "application/jsonx"}, b"{}", 415, "Content-Type must be application/json", id="jsonx"
    ),
    pytest.param(
        JSON | {"Content-Encoding": "gzip"},
        gzip.compress(json.dumps(report()).encode()),
        415,
        "Compressed request bodies are not accepted",
        id="compressed",
    ),
    pytest.param(JSON, b" " * (2**20 + 1), 413, "Request body is larger than 1,048,576 bytes", id="too large"),
    pytest.param(JSON | {"Origin": "https://evil.example"}, b"{}", 403, "Requests from this origin", id="origin"),
    pytest.param(JSON | {"Host": "evil.example"}, b"{}", 421, "This server does not serve the host", id="host"),
]


@pytest.mark.parametrize(("headers", "body", "status", "message"), BAD_REQUESTS)
async def test_bad_requests(server: Served, headers: dict[str, str], body: bytes, status: int, message: str) -> None:
    answer = await server("POST", "/api/sync", data=BytesIO(body), headers=headers)
    assert_refused(answer, status)
    assert answer.json["message"].startswith(message)
    await assert_empty(server.storage)


async def test_the_largest_body(server: Served) -> None:
    body = json.dumps(report(padding="")).encode()
    padded = json.dumps(report(padding="x" * (2**20 - len(body)))).encode()
    assert len(padded) == 2**20
    assert (await server("POST", "/api/sync", data=BytesIO(padded), headers=JSON)).status == 200


BAD_PARAMETERS = [
    *(
        pytest.param("GET", f"/api/history/{KEY}?limit={limit}", "limit", "must be an integer from 1 to 1000", id=limit)
        for limit in ("0", "1001", "-1", "1.5", "1e2", "ten", "9" * 30, "%D9%A3", "0x10", "true")
    ),
    *(
        pytest.param("GET", f"/api/history/{KEY}?{name}={text}", name, INSTANT, id=f"{name}={text}")
        for name in ("from", "to")
        for text in ("yesterday", "2025-06-03", "2025-13-03T00:00:00Z", "2025-06-03T10:30:00+02:00", "1748946600")
    ),
    *(
        pytest.param(method, path.format(text), "hostname", HOSTNAME, id=f"{method} {text[:6]}")
        for method, path in (("GET", f"/api/history/{KEY}?hostname={{}}"), ("DELETE", f"/api/device/{KEY}/{{}}"))
        for text in ("%00", "a%0Ab", "x" * 256, "%C2%85")
    ),
    *(
        pytest.param("GET", f"/api/history/{KEY}?cursor={text}", "cursor", "must be a `next` of this history", id=name)
        for name, text in {
            "a": "a",
            "blanks": "%20%20",
            "no base64": "!!!!",
            "not ASCII": "%C3%A9",
            "zeros": "AAAA",
            "null": "bnVsbA",
            "another's": "W1tbImlkIiwgdHJ1ZV1dLCBbbnVsbF1d",
            "a slash": "Lw==",
            "no instant": "eC95",
        }.items()
    ),
    pytest.param("GET", f"/api/history/{KEY}?cursor={'A' * 4097}", "cursor", "must be a string of at most", id="long"),
]


@pytest.mark.parametrize(("method", "path", "field", "rule"), BAD_PARAMETERS)
async def test_bad_parameters(server: Served, method: str, path: str, field: str, rule: str) -> None:
    answer = await server(method, path)
    assert_refused(answer, 400)
    (problem,) = answer.json["detail"]
    assert problem["field"] == field
    assert problem["message"].startswith(rule)
    # Clients show the message alone.
    assert answer.json["message"] == f"{field} {problem['message']}"
    await assert_empty(server.storage)


ROUTES = {
    "/": "GET, HEAD, OPTIONS",
    "/api/sync": "OPTIONS, POST",
    f"/api/stats/{KEY}": "GET, HEAD, OPTIONS",
    f"/api/device/{KEY}/M4x.local": "DELETE, OPTIONS",
    f"/api/history/{KEY}": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", [*ROUTES, f"/api/devices/{KEY}"], ids=lambda path: path.replace(KEY, "key"))
async def test_other_methods(server: Served, path: str) -> None:
    await server.sync()
    allowed = ROUTES.get(path, "DELETE, GET, HEAD, OPTIONS, POST").split(", ")
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"}.difference(allowed):
        answer = await server(method, path)
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(", ")) >= set(allowed)
        if path in ROUTES and path != "/" and method != "HEAD":  # the others belong to nobody, and to the sessions
            assert_refused(answer, 405)
            assert method in answer.json["message"]
    answer = await server("OPTIONS", path)
    assert (answer.status, answer.content) == (204, b"")
    assert set(answer.headers["Allow"].split(", ")) >= set(allowed)
    assert await server.devices() == ["M4x.local"]


@pytest.mark.parametrize("path", ["/", f"/api/stats/{KEY}", f"/api/devices/{KEY}", f"/api/history/{KEY}"])
async def test_head_is_get_without_its_body(server: Served, path: str) -> None:
    await server.sync()
    get, head = await server.get(path), await server("HEAD", path)
    assert (head.status, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/api/sync/", "POST"),
        ("/api/sync/x", "POST"),
        ("/api/stats", "GET"),
        ("/api/stats/", "GET"),
        (f"/api/stats/{KEY}/", "GET"),
        (f"/api/stats/{KEY}/x", "GET"),
        ("/api/device", "DELETE"),
        (f"/api/device/{KEY}", "DELETE"),
        (f"/api/device/{KEY}/", "DELETE"),
        (f"/api/device/{KEY}/a/b", "DELETE"),
        (f"/api/device/{KEY}/..", "DELETE"),
        ("/api/history", "GET"),
    ],
    ids=lambda text: text.replace(KEY, "key"),
)
async def test_unknown_paths_of_the_api(server: Served, path: str, method: str) -> None:
    assert_refused(await server(method, path), 404)


async def test_unknown_members_are_dropped(server: Served) -> None:
    body = report(color="red", usage__webTokens=5, sessions__x=None, costs__fable=1)
    assert (await server.sync(body)).status == 200
    (kept,) = await server.history()
    assert set(kept) == set(report()) - {"userKey"}
    for group in ("usage", "sessions", "costs"):
        assert set(kept[group]) == set(report()[group])


async def test_of_duplicate_names_the_last_counts(server: Served) -> None:
    first, second = json.dumps(report()), json.dumps({"hostname": "last", "userKey": user_key("bob")})
    body = f"{first[:-1]}, {second[1:]}"
    await server("POST", "/api/sync", data=body.encode(), headers=JSON)
    assert await server.devices(user_key("bob")) == ["last"]


# Nothing that a client can send gives a 5xx

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**3999)
    | st.floats()
    | st.text()
    | st.sampled_from([KEY, "2025-06-03T10:30:00Z", "\ud800", "\0", "0001-01-01T00:00:00-23:59", [0] * 24]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({str(field.values[0]) for field in BAD_FIELDS})
PER_SERVER = [HealthCheck.function_scoped_fixture]


@settings(suppress_health_check=PER_SERVER)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1, max_size=3))
async def test_no_body_is_too_much(server: Served, changes: dict[str, Any]) -> None:
    body = report()
    for field, value in sorted(changes.items(), reverse=True):  # members before what holds them
        name, _, member = field.removesuffix("[7]").partition(".")
        if member:
            body[name][member] = value
        else:
            body[name] = value
    text = json.dumps(body).encode()
    answer = await server("POST", "/api/sync", data=text, headers=JSON)
    if answer.status == 200:
        assert answer.json["data"]["hostname"] == body["hostname"]
    else:
        assert_refused(answer, answer.status)
        assert answer.status in (400, 429)  # the key is but one


@settings(max_examples=3 * settings().max_examples, suppress_health_check=PER_SERVER)
@given(
    place=st.sampled_from(["stats/{}", "devices/{}", "history/{}", f"device/{KEY}/{{}}", f"history/{KEY}?cursor={{}}"]),
    text=st.binary(min_size=1, max_size=80),
)
async def test_no_parameter_is_too_much(server: Served, place: str, text: bytes) -> None:
    method = "DELETE" if place.startswith("device/") else "GET"
    answer = await server(method, "/api/" + place.format("".join(f"%{byte:02x}" for byte in text)))
    assert_refused(answer, answer.status)
    assert answer.status in (400, 404, 429)


def assert_refused(answer: Answer, status: int) -> None:
    """An error in device usage's envelope."""
    assert answer.status == status
    assert 400 <= status < 500
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json["status"] == "error"
    assert answer.json["message"]
    assert set(answer.json) <= {"status", "message", "detail"}


async def assert_empty(storage: Storage) -> None:
    """Nothing was stored."""
    for collection in storage.collections.values():
        assert await storage.count(Query(collection)) == 0, collection.name
