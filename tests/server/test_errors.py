"""Whatever goes wrong, the API that owns the path says so in its own shape."""

import logging
from typing import Any

import pytest

from homeport.server.errors import ApiError, Problem
from homeport.server.operation import Api
from homeport.server.owners import owner
from homeport.server.request import Answer, ApiRequest
from homeport.storage import InvalidDocument
from homeport.storage.memory import MemoryStorage


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/api/sync", "device_usage"),
        ("GET", "/api/stats/x", "device_usage"),
        ("DELETE", "/api/device/x/y", "device_usage"),
        ("GET", "/api/history/x", "device_usage"),
        ("GET", "/api/sync/", "device_usage"),
        ("GET", "/api/devices/x", "device_usage"),
        ("HEAD", "/api/devices/x", "device_usage"),
        ("POST", "/api/devices/register", "sessions"),
        ("DELETE", "/api/devices/x", "sessions"),
        ("PUT", "/api/devices/x", "sessions"),
        ("GET", "/api/devices", "sessions"),
        ("GET", "/api/devices/x/y", "sessions"),
        ("GET", "/api/synchronise", "sessions"),
        ("GET", "/api/projects", "sessions"),
        ("GET", "/api", "sessions"),
        ("GET", "/api/claude/console-usage", "console_usage"),
        ("GET", "/api/claude", "console_usage"),
        ("POST", "/v1/sync", "leaderboard"),
        ("POST", "/slack/commands", "leaderboard"),
        ("POST", "/api/tokens/consume", "metering"),
        ("POST", "/api/desktop/transcribe", "metering"),
        ("POST", "/api/stripe/create-checkout", "metering"),
        ("POST", "/api/webhooks/stripe", "metering"),
        ("POST", "/api/cron/refresh-tokens", "metering"),
        ("POST", "/api/license/validate", "metering"),
        ("POST", "/oauth2/token", "metering"),
        ("GET", "/collections/notes", "collections"),
        ("GET", "/changes", "collections"),
        ("GET", "/changes/x", None),
        ("GET", "/", None),
        ("GET", "/v2/sync", None),
        ("GET", "/metrics", None),
        ("GET", "/apis", None),
        ("GET", "/x/api/sync", None),
        ("GET", "", None),
    ],
    ids=lambda value: str(value),
)
def test_whose_path(method: str, path: str, name: str | None) -> None:
    assert owner(method, path) == name


def shouting(error: ApiError, request: ApiRequest) -> Answer:
    return error.answer({"LOUD": error.message.upper(), "fields": [problem.field for problem in error.problems]})


def devices() -> Api:
    api = Api("device_usage", shouting)

    @api.post("/api/sync", body="toy#/$defs/Thing")
    async def sync(request: ApiRequest) -> object:
        return request.document

    @api.get("/api/devices/{user_key}")
    async def list_devices(request: ApiRequest) -> object:
        return {"key": request.path["user_key"]}

    @api.get("/api/stats/{user_key}")
    async def crash(_: ApiRequest) -> object:
        raise RuntimeError("boom")

    return api


def sessions() -> Api:
    def envelope(error: ApiError, request: ApiRequest) -> Answer:
        return error.answer({"error": error.status.phrase})

    api = Api("sessions", envelope)

    @api.delete("/api/devices/{token}")
    async def unregister(request: ApiRequest) -> object:
        return {"token": request.path["token"]}

    @api.post("/api/devices/{token}")
    async def register(request: ApiRequest) -> object:
        return {"token": request.path["token"]}

    return api


SHOUTED = {
    "bad JSON": ("POST", "/api/sync", b"{", 400),
    "wrong type": ("POST", "/api/sync", b'{"name": 1}', 400),
    "wrong method": ("GET", "/api/sync", None, 405),
    "unknown path": ("GET", "/api/history/x/y/z", None, 404),
    "crash": ("GET", "/api/stats/x", None, 500),
    "too large": ("POST", "/api/sync", b" " * 2000, 413),
}


@pytest.mark.parametrize("case", SHOUTED)
async def test_the_owners_envelope(start: Any, case: str) -> None:
    method, path, body, status = SHOUTED[case]
    server = await start([devices()], {"server.max_body_bytes": 1024})
    answer = await server(method, path, data=body, headers={"Content-Type": "application/json"})
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json) == {"LOUD", "fields"}


@pytest.mark.parametrize("base", ["/", "/base"])
async def test_an_api_that_is_off_answers_problem_documents(start: Any, base: str) -> None:
    server = await start([sessions()], {"server.base_path": base})
    for method, path in [("POST", "/api/sync"), ("GET", "/api/devices/x"), ("GET", "/v1/sync"), ("GET", "/")]:
        answer = await server(method, base.rstrip("/") + path)
        assert answer.status in (404, 405)
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert (await server.get(base.rstrip("/") + "/api/projects")).json == {"error": "Not Found"}


async def test_outside_the_base_path_nobody_owns_a_path(start: Any) -> None:
    server = await start([devices()], {"server.base_path": "/base"})
    assert (await server.get("/api/history/x")).headers["Content-Type"] == "application/problem+json"
    assert (await server.get("/base/api/history/x")).headers["Content-Type"] == "application/json"
    assert (await server.get("/based/api/history/x")).headers["Content-Type"] == "application/problem+json"


async def test_two_apis_share_a_path_by_method(start: Any) -> None:
    server = await start([devices(), sessions()])
    assert (await server.get("/api/devices/a")).json == {"key": "a"}
    assert (await server("DELETE", "/api/devices/a")).json == {"token": "a"}
    wrong = await server("PUT", "/api/devices/a")
    assert (wrong.status, wrong.json) == (405, {"error": "Method Not Allowed"})
    assert wrong.headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, POST"
    assert (await server("OPTIONS", "/api/devices/a")).headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, POST"
    misdirected = {"Host": "evil.example"}
    assert set((await server.get("/api/devices/a", headers=misdirected)).json) == {"LOUD", "fields"}
    assert (await server("DELETE", "/api/devices/a", headers=misdirected)).json == {"error": "Misdirected Request"}


@pytest.mark.parametrize(
    ("how", "status", "body", "headers"),
    [
        pytest.param("crash", 500, {"detail": "Internal server error"}, {}, id="crash"),
        pytest.param("timeout", 500, {"detail": "Internal server error"}, {}, id="timeout"),
        pytest.param("full", 507, {"detail": "Storage is full"}, {}, id="full"),
        pytest.param("away", 503, {"detail": "Service unavailable"}, {"Retry-After": "5"}, id="unavailable"),
        pytest.param("forbidden", 403, {"detail": "Not yours"}, {}, id="raised"),
        pytest.param("teapot", 418, {"detail": "A teapot", "cups": 2}, {"X-Tea": "green"}, id="any status"),
        pytest.param("aiohttp", 405, {"detail": "Method Not Allowed"}, {"Allow": "GET"}, id="aiohttp's own"),
        pytest.param("redirect", 302, {"detail": "Found"}, {"Location": "/elsewhere"}, id="redirect"),
    ],
)
async def test_failures(toy: Any, how: str, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    answer = await toy.get(f"/toy/fail/{how}")
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert {key: answer.json.get(key) for key in ("status", *body)} == {"status": status, **body}
    assert {name: answer.headers[name] for name in headers} == headers
    for secret in (b"/etc", b"/var", b"Traceback", b"Error"):
        assert secret not in answer.content.replace(b"Internal Server Error", b"")


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        pytest.param("fail/crash", "RuntimeError: no such file", id="crash"),
        pytest.param("unencodable", "TypeError", id="an answer that is no JSON"),
        pytest.param("fail/full", "the store is full: no space left on /var/lib/homeport.db", id="full"),
        pytest.param("fail/away", "the store is unavailable: cannot read", id="unavailable"),
    ],
)
async def test_what_is_our_fault_is_logged_once(
    toy: Any, path: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await toy.get(f"/toy/{path}")).status >= 500
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert logged in caplog.text


async def test_what_is_the_clients_fault_is_not_logged(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    await toy.post("/toy/things", b"{")
    await toy.get("/none")
    for sent in (
        b"\x00garbage\r\n\r\n",
        b"GET /api/stats/SECRET\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ):
        assert (await toy.raw(sent)).split()[1] == b"400"
    assert caplog.text == ""


async def test_a_store_that_is_away_in_the_owners_envelope(start: Any) -> None:
    api = Api("device_usage", shouting)

    @api.get("/api/stats/{user_key}")
    async def stats(request: ApiRequest) -> object:
        await request.storage.ping()
        return {}

    async with MemoryStorage() as storage:
        server = await start([api], storage=storage)
        assert (await server.get("/api/stats/x")).status == 200
        await storage.close()
        answer = await server.get("/api/stats/x")
    assert (answer.status, answer.json) == (503, {"LOUD": "SERVICE UNAVAILABLE", "fields": []})
    assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("error", "field"),
    [
        pytest.param(InvalidDocument("must be an integer within 64 bits", "count"), "count", id="field"),
        pytest.param(InvalidDocument("is nested deeper than 128 levels"), "body", id="whole"),
    ],
)
async def test_a_document_that_the_store_refuses_is_the_clients(start: Any, error: Exception, field: str) -> None:
    api = Api("toy")

    @api.post("/toy", body="toy#/$defs/Anything")
    async def put(_: ApiRequest) -> object:
        raise error

    answer = await (await start([api])).post("/toy", {})
    assert (answer.status, answer.json["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "field", "pointer"),
    [
        ((), "body", ""),
        (("a",), "a", "/a"),
        (("usage", "totalTokens"), "usage.totalTokens", "/usage/totalTokens"),
        (("entries", 0, "date"), "entries[0].date", "/entries/0/date"),
        ((1, 2), "[1][2]", "/1/2"),
        (("a/b~c",), "a/b~c", "/a~1b~0c"),
    ],
)
def test_problem_places(path: tuple[str | int, ...], field: str, pointer: str) -> None:
    problem = Problem(path, "is wrong")
    assert (problem.field, problem.pointer) == (field, pointer)
