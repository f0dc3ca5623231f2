"""Test mode: `/__test__/…`, as tests in other languages call it (contracts/collections.md)."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from homeport.server.app import create_app
from homeport.server.config import ConfigError, load_config
from homeport.server.errors import ServiceUnavailable
from homeport.server.testing.control import Control
from homeport.server.testing.faults import MAX_FAULTS, Fault, Faults
from homeport.server.testing.journal import MAX_BODY, MAX_REQUESTS
from homeport.server.testing.running import Homeport, running
from homeport.server.validation import Schemas

KEY = "ab" * 32
ORIGIN = "https://app.example"
NOTE = {
    "type": "object",
    "required": ["title"],
    "properties": {"id": {"type": "string"}, "title": {"type": "string"}},
}
SEED = [{"id": "n1", "title": "Milk"}, {"id": "n2", "title": "Bread"}]
REPORT = {
    "userKey": KEY,
    "hostname": "M4x.local",
    "timestamp": "2025-06-03T10:30:00Z",
    "usage": {
        "totalTokens": 1,
        "inputTokens": 1,
        "outputTokens": 0,
        "cacheCreationTokens": 0,
        "cacheReadTokens": 0,
    },
    "sessions": {"total": 1, "active": 1, "averageDuration": 1},
    "costs": {"opus": 1, "sonnet": 0, "haiku": 0, "actual": 1},
    "hourlyUsage": [0] * 24,
    "version": "3.0.2",
}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Calls a server, each time on a new connection."""

    def __init__(self, server: Homeport) -> None:
        self.server = server

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        url = urlsplit(self.server.url)
        connection = http.client.HTTPConnection(url.netloc, timeout=10)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, url.path + path, data, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self("GET", path, **headers)

    def fault(self, path: str, **fault: object) -> None:
        assert self("POST", "/__test__/faults", {"path": path, **fault}).status == 200

    @property
    def journal(self) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = self.get("/__test__/requests").json["requests"]
        return requests


Start = Callable[..., Client]


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "note.schema.json").write_text(json.dumps(NOTE))
    (folder / "note.json").write_text(json.dumps(SEED))
    return folder


@pytest.fixture
def start(schemas: Path) -> Iterator[Start]:
    """Starts servers with settings."""
    with ExitStack() as stack:

        def begin(**settings: object) -> Client:
            overrides = {
                "storage.url": "memory:",
                "log.level": "warning",
                "apis.collections.schemas": str(schemas),
                **{name.replace("__", "."): value for name, value in settings.items()},
            }
            return Client(stack.enter_context(running(load_config(os.devnull, {}, overrides))))

        yield begin


@pytest.fixture
def client(start: Start) -> Client:
    return start()


# On and off


async def test_nothing_of_it_is_there_unless_asked_for(aiohttp_client: Any) -> None:
    config = load_config(os.devnull, {}, {"storage.url": "memory:", "log.level": "warning"})
    client = await aiohttp_client(create_app(config))
    for method, path in [("POST", "reset"), ("GET", "requests"), ("POST", "faults"), ("POST", "clock")]:
        answer = await client.request(method, f"/__test__/{path}", json={})
        assert (answer.status, answer.content_type) == (404, "application/problem+json")
    assert (await client.get("/", headers={"Origin": ORIGIN})).status == 403


def test_none_of_it_is_loaded_unless_asked_for() -> None:
    script = "import sys, homeport.server.app; print([m for m in sys.modules if 'server.testing' in m])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


EXPOSED = [
    ({"server.host": "0.0.0.0"}, "it listens on 0.0.0.0:8000"),
    ({"server.public_url": "https://sync.example"}, "server.public_url is https://sync.example"),
    ({"server.allowed_hosts": ["sync.example"]}, "server.allowed_hosts has sync.example"),
    ({"server.trusted_proxies": ["127.0.0.1"]}, "server.trusted_proxies is set"),
]


@pytest.mark.parametrize(("settings", "why"), EXPOSED)
def test_an_exposed_server_refuses_it(settings: dict[str, object], why: str) -> None:
    config = load_config(os.devnull, {}, {"storage.url": "memory:", **settings})
    with pytest.raises(ConfigError) as refused:
        create_app(config, control=Control())
    assert refused.value.problems == [
        f"test mode (--test): anybody could empty the server, which is exposed: {why}",
    ]


def test_the_command_refuses_it_too(tmp_path: Path) -> None:
    arguments = ["serve", "--test", "--host", "0.0.0.0", "--port", "0", "--storage", "memory:"]
    run = subprocess.run(
        [sys.executable, "-m", "homeport", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "test mode (--test): anybody could empty the server, which is exposed: it listens on 0.0.0.0:0\n"
    )


@pytest.mark.parametrize("origin", [ORIGIN, "null", "http://localhost:5173"])
def test_pages_of_every_origin_may_call(client: Client, origin: str) -> None:
    answer = client.get("/", Origin=origin)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
    preflight = client("OPTIONS", "/__test__/reset", Origin=origin, **{"Access-Control-Request-Method": "POST"})
    assert preflight.status == 204
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


# What cannot be asked


WRONG = [
    ("faults", {}, "path", "is required"),
    ("faults", {"path": "/x"}, "body", "must have one of status, delay_ms and disconnect"),
    (
        "faults",
        {"path": "/x", "status": 500, "delay_ms": 1},
        "body",
        "must have one of status, delay_ms and disconnect",
    ),
    (
        "faults",
        {"path": "x", "status": 500},
        "path",
        "must be a path, /like/this or /like/*, of at most 8192 characters",
    ),
    ("faults", {"path": "/x", "status": 200}, "status", "must be an integer from 400 to 599"),
    ("faults", {"path": "/x", "status": 599}, "status", "must be an error's status that HTTP has, such as 503"),
    ("faults", {"path": "/x", "status": 500, "times": 0}, "times", "must be an integer from 1 to 1000000"),
    ("faults", {"path": "/x", "disconnect": False}, "disconnect", "must be true"),
    ("faults", {"path": "/x", "delay_ms": -1}, "delay_ms", "must be an integer from 0 to 600000"),
    ("clock", {"now": "noon"}, "now", "must be an RFC 3339 date-time such as 2025-06-03T10:30:00Z"),
    ("clock", {"now": "1969-12-31T23:59:59Z"}, "now", "must lead to a time in the years 1970 to 2999"),
    ("clock", {"advance_seconds": -1}, "advance_seconds", "must be a number from 0 to 100000000000"),
    ("clock", {"advance_seconds": 1e11}, "advance_seconds", "must lead to a time in the years 1970 to 2999"),
    (
        "clock",
        {"now": "2026-01-01T00:00:00Z", "advance_seconds": 1},
        "body",
        "must not have both now and advance_seconds",
    ),
]


@pytest.mark.parametrize(("path", "body", "field", "message"), WRONG)
def test_what_is_wrong_is_told(client: Client, path: str, body: dict[str, Any], field: str, message: str) -> None:
    answer = client("POST", f"/__test__/{path}", body)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert (field, message) in [(error["field"], error["message"]) for error in answer.json["errors"]]


def test_other_methods_and_paths(client: Client) -> None:
    assert client.get("/__test__/reset").status == 405
    assert client.get("/__test__/other").status == 404
    assert client("POST", "/__test__/faults", b"{", **{"Content-Type": "text/plain"}).status == 415


# Faults


SHAPES = [
    ("POST", "/api/sync", {"status": "error", "message": "Internal server error"}),
    ("POST", "/v1/sync", {"success": False, "message": "Service unavailable", "code": "SERVICE_UNAVAILABLE"}),
    ("GET", "/api/claude/console-usage", {"error": "Service Unavailable", "message": "Service unavailable"}),
    (
        "PUT",
        "/collections/note/n1",
        {"title": "Service Unavailable", "status": 503, "detail": "Service unavailable"},
    ),
    ("GET", "/elsewhere", {"title": "Service Unavailable", "status": 503, "detail": "Service unavailable"}),
    ("DELETE", "/api/sync", {"status": "error", "message": "Internal server error"}),
]


@pytest.mark.parametrize(("method", "path", "shown"), SHAPES)
def test_a_status_has_the_shape_of_its_api(client: Client, method: str, path: str, shown: dict[str, Any]) -> None:
    client.fault(path, status=503)
    answer = client(method, path, None if method == "GET" else {}, Origin=ORIGIN)
    assert (answer.status, answer.json) == (503, shown)
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_a_fault_meets_so_many_requests_and_nothing_is_stored(client: Client) -> None:
    client.fault("/api/sync", status=503, times=2)
    statuses = [client("POST", "/api/sync", REPORT).status for _ in range(2)]
    assert client.get(f"/api/stats/{KEY}").status == 404
    assert [*statuses, client("POST", "/api/sync", REPORT).status] == [503, 503, 200]
    assert client.get(f"/api/stats/{KEY}").json["totalTokens"] == 1
    assert [json.loads(asked["body"]) for asked in client.journal if asked["method"] == "POST"] == [REPORT] * 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 413, 418, 429, 500, 502, 503, 504, 507])
def test_every_status(client: Client, status: int) -> None:
    client.fault("/v1/*", status=status)
    answer = client("POST", "/v1/sync", {})
    assert answer.status == status
    assert answer.json["success"] is False
    assert (answer.headers["Retry-After"] == "1") == (status in (429, 503))


def test_which_requests_a_fault_meets(client: Client) -> None:
    for fault in ({"path": "/api/stats/*", "method": "GET"}, {"path": "/api/sync"}):
        client.fault(fault.pop("path"), status=418, times=9, **fault)
    requests = [
        ("GET", "/api/stats/x", 418),
        ("GET", "/api/stats/x?a=b", 418),
        ("GET", "/api/stats/%78", 418),
        ("HEAD", f"/api/stats/{KEY}", 404),
        ("GET", "/api/stats", 404),
        ("GET", "/api/sync", 418),
        ("OPTIONS", "/api/sync", 204),
        ("GET", "/api/syncs", 404),
    ]
    assert [client(method, path).status for method, path, _ in requests] == [status for *_, status in requests]


def test_faults_act_in_order_and_are_told(client: Client) -> None:
    client.fault("/", status=500)
    answer = client("POST", "/__test__/faults", {"path": "/*", "method": "GET", "delay_ms": 0, "unknown": 1})
    assert answer.json == {
        "faults": [
            {"path": "/", "status": 500, "times": 1},
            {"path": "/*", "method": "GET", "delay_ms": 0, "times": 1},
        ]
    }
    assert [client.get("/").status for _ in range(3)] == [500, 200, 200]
    assert client("POST", "/__test__/faults", {"path": "/", "status": 500}).json["faults"] == [
        {"path": "/", "status": 500, "times": 1}
    ]


def test_a_delay(client: Client) -> None:
    client.fault("/", delay_ms=80)
    began = time.monotonic()
    assert client.get("/").status == 200
    assert time.monotonic() - began >= 0.08


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", REPORT), ("POST", b"x" * 200_000)])
def test_a_disconnection(client: Client, method: str, body: object) -> None:
    client.fault("/api/*", disconnect=True)
    with pytest.raises(ConnectionError):
        client(method, "/api/sync", body)
    assert [asked["status"] for asked in client.journal] == [None]
    assert client.get(f"/api/stats/{KEY}").status == 404


def test_a_fault_comes_before_the_key_is_looked_at(client: Client) -> None:
    client.fault("/v1/sync", status=502)
    assert [client("POST", "/v1/sync", {}).status for _ in range(2)] == [502, 401]


def test_too_many_faults() -> None:
    faults = Faults()
    for _ in range(MAX_FAULTS):
        faults.add(Fault("/", status=500))
    with pytest.raises(ValueError, match="at most 1,000 faults"):
        faults.add(Fault("/", status=500))


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"status": 500, "disconnect": True},
        {"status": 500, "times": 0},
        {"status": 299},
        {"path": "x", "status": 500},
    ],
)
def test_a_fault_that_makes_no_sense(fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Fault(**{"path": "/", **fault})


def test_a_fault_is_the_error_that_an_api_would_raise() -> None:
    assert isinstance(Fault("/", status=503).error(), ServiceUnavailable)


# The journal


def test_the_journal_tells_what_was_asked(client: Client) -> None:
    client("POST", "/__test__/clock", {"now": "2026-01-01T00:00:00Z"})
    client("PUT", "/collections/note/n%203?x=1&y=2&x=3", {"title": "ü"}, **{"X-Mine": "1"})
    (asked,) = client.journal
    assert Schemas().checker("test_mode#/$defs/Asked").is_valid(asked)
    assert {name: asked[name] for name in asked if name != "headers"} == {
        "method": "PUT",
        "path": "/collections/note/n 3",
        "query": {"x": "3", "y": "2"},
        "body": json.dumps({"title": "ü"}),
        "body_bytes": 19,
        "status": 201,
        "at": "2026-01-01T00:00:00.000Z",
    }
    assert asked["headers"]["x-mine"] == "1"
    assert asked["headers"]["content-type"] == "application/json"


HIDDEN = [
    ("Authorization", "Bearer ccusage_live_secret", "Bearer …"),
    ("Authorization", "hunter2", "…"),
    ("X-API-Key", "hunter2", "…"),
    ("Cookie", "session=hunter2; other=hunter3", "…"),
]


@pytest.mark.parametrize(("name", "value", "shown"), HIDDEN)
def test_the_journal_hides_credentials(client: Client, name: str, value: str, shown: str) -> None:
    client.get("/", **{name: value})
    assert client.journal[0]["headers"][name.lower()] == shown


def test_the_journal_hides_the_key_of_a_websocket(client: Client) -> None:
    client.get("/changes?apiKey=hunter2&since=1")
    assert client.journal[0]["query"] == {"apiKey": "…", "since": "1"}


def test_the_journal_is_bounded(client: Client) -> None:
    client("POST", "/api/sync", b"x" * (MAX_BODY + 1))
    (asked,) = client.journal
    assert (asked["status"], len(asked["body"]), asked["body_bytes"]) == (400, MAX_BODY, MAX_BODY + 1)
    connection = http.client.HTTPConnection(urlsplit(client.server.url).netloc)
    for number in range(MAX_REQUESTS + 1):
        connection.request("HEAD", f"/nowhere/{number}")
        connection.getresponse().read()
    connection.close()
    paths = [asked["path"] for asked in client.journal]
    assert (len(paths), paths[0], paths[-1]) == (MAX_REQUESTS, "/nowhere/1", f"/nowhere/{MAX_REQUESTS}")


def test_paths_are_without_the_base_path(start: Start) -> None:
    client = start(server__base_path="/homeport")
    client.fault("/api/sync", status=503)
    assert client("POST", "/api/sync", REPORT).status == 503
    assert [asked["path"] for asked in client.journal] == ["/api/sync"]


# The clock


def test_the_clock_moves_for_everything(start: Start) -> None:
    client = start(apis__device_usage__rate_limit="1/hour")

    def move(**to: object) -> str:
        now: str = client("POST", "/__test__/clock", to).json["now"]
        return now

    assert move(now="2025-06-03T12:00:00+02:00") == "2025-06-03T10:00:00.000Z"
    assert client.get("/").json["data"]["timestamp"] == "2025-06-03T10:00:00.000Z"
    assert [client("POST", "/api/sync", REPORT).status for _ in range(2)] == [200, 429]
    assert move(advance_seconds=3599.5) == "2025-06-03T10:59:59.500Z"
    assert client.get(f"/api/stats/{KEY}").status == 429
    assert move(advance_seconds=0.5) == "2025-06-03T11:00:00.000Z"
    assert client.get(f"/api/stats/{KEY}").status == 200
    assert move()[:4] > "2025"


# Reset


@pytest.mark.parametrize("backend", ["memory", "file", "sqlite"])
def test_a_reset_server_is_like_a_new_one(start: Start, backend: str, tmp_path: Path) -> None:
    place = {"memory": "memory:", "file": f"file:{tmp_path}/files", "sqlite": f"sqlite:{tmp_path}/x.db"}
    client = start(
        storage__url=place[backend], server__admin_key="open sesame", apis__device_usage__rate_limit="1/hour"
    )
    admin = {"Authorization": "Bearer open sesame"}

    def everything() -> dict[str, Any]:
        """What a client can see."""
        notes = client.get("/collections/note").json["records"]
        metrics = client.get("/metrics").content.decode()
        return {
            "notes": [{name: note[name] for name in ("id", "title")} for note in notes],
            "changes": [change["id"] for change in client.get("/collections/note/changes?since=0").json["changes"]],
            "device usage": client.get(f"/api/stats/{KEY}").status,
            "console usage": client.get("/api/claude/console-usage").status,
            "keys": client.get("/admin/keys", **admin).json["keys"],
            "users": client.get("/v1/leaderboard").json["entries"],
            "syncs": [line for line in metrics.splitlines() if line.startswith("homeport_leaderboard_syncs")],
            "year": client.get("/").json["data"]["timestamp"][:4] > "2025",
        }

    new = everything()
    store = client.get("/collections/note/changes").json["store"]
    assert new["notes"] == SEED
    client("POST", "/__test__/reset")  # reading has counted for the key's limit

    client("POST", "/__test__/clock", {"now": "2025-06-03T12:00:00Z"})
    assert client("POST", "/api/sync", REPORT).status == 200
    client("PUT", "/collections/note/n1", {"title": "Rum"})
    client("PUT", "/collections/note/n3", {"title": "Eggs"})
    client("DELETE", "/collections/note/n2")
    reset = {"resetsIn": "1 hr", "percentageUsed": 1}
    snapshot = {"currentSession": reset, "lastUpdated": "2025-06-03T10:00:00Z"}
    snapshot["weeklyLimits"] = {"allModels": reset, "sonnetOnly": reset}
    assert client("POST", "/api/claude/console-usage", snapshot).status == 200
    key = client("POST", "/admin/keys", {"username": "alice"}, **admin).json["key"]
    entry = {
        "username": "alice",
        "date": "2025-06-03",
        "totalTokens": 1,
        "totalCost": 1,
        "modelsUsed": [],
        "timestamp": "2025-06-03T10:00:00Z",
    }
    sync = {"entries": [entry], "source": "ccusage", "version": "1.0.0"}
    assert client("POST", "/v1/sync", sync, Authorization=f"Bearer {key}").status == 200
    client.fault("/*", status=500, method="PATCH")
    assert client.get(f"/api/stats/{KEY}").status == 429

    assert client("POST", "/__test__/reset").status == 204
    assert client.journal == []
    assert everything() == new
    assert client.get("/collections/note/changes").json["store"] != store
    assert client("PATCH", "/api/sync", {}).status == 405
    assert client("POST", "/v1/sync", {}, Authorization=f"Bearer {key}").status == 401
    assert not list(tmp_path.rglob("console-usage-synced.json"))
