"""`/admin/keys`: API keys, for who holds ADMIN_KEY (contracts/README.md, "Admin")."""

import re
from typing import Any

import pytest

from homeport.server import bcrypt_pool
from homeport.server.api_keys import API_KEYS
from homeport.server.validation import Schemas

from .conftest import Answer, Served, Start

SECRET = "open sesame"
ADMIN = {"Authorization": f"Bearer {SECRET}"}
NAME = "must be 3 to 50 of A-Z, a-z, 0-9, _ and -"
TEXT = r"ccusage_live_[A-Za-z0-9_-]{60}"
NOON = "2025-06-03T12:00:00.000Z"


@pytest.fixture(autouse=True)
def cheap_bcrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt_pool, "COST", 4)


@pytest.fixture
async def server(start: Start) -> Served:
    return await start([], {"server.admin_key": SECRET})


async def create(server: Served, **body: Any) -> Any:
    """The new key, as it is shown."""
    answer = await server.post("/admin/keys", body, headers=ADMIN)
    assert answer.status == 201, answer.content
    return answer.json


async def listed(server: Served) -> Any:
    answer = await server.get("/admin/keys", headers=ADMIN)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    return answer.json["keys"]


def is_new(answer: Answer, name: str) -> None:
    """It shows a key as the schema says, and no cache keeps it."""
    assert Schemas().checker(f"admin#/$defs/{name}").is_valid(answer.json)
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_keys_life(server: Served) -> None:
    keys = server.app[API_KEYS]
    assert await listed(server) == []

    answer = await server.post("/admin/keys", {"username": "alice"}, headers=ADMIN)
    made = answer.json
    assert answer.status == 201
    is_new(answer, "ShownKey")
    assert re.fullmatch(TEXT, text := made.pop("key"))
    assert made == {"id": made["id"], "username": "alice", "scopes": ["sync", "read"], "created_at": NOON}
    assert answer.headers["Location"] == f"/admin/keys/{made['id']}"
    assert await keys.verify(text)
    assert await listed(server) == [made]

    server.clock.advance(1)
    answer = await server.post(f"/admin/keys/{made['id']}/rotate", b"", headers=ADMIN)
    assert answer.status == 200
    is_new(answer, "ShownKey")
    rotated = answer.json
    assert re.fullmatch(TEXT, new := rotated.pop("key"))
    assert rotated == made | {"created_at": "2025-06-03T12:00:01.000Z"}
    assert [await keys.verify(text) is None, await keys.verify(new) is None] == [True, False]
    assert await listed(server) == [rotated]

    answer = await server("DELETE", f"/admin/keys/{made['id']}", headers=ADMIN)
    assert (answer.status, answer.content) == (204, b"")
    assert await keys.verify(new) is None
    assert await listed(server) == []


async def test_scopes(server: Served) -> None:
    made = await create(server, username="alice", scopes=["collections:write", "read"], unknown=1)
    assert made["scopes"] == ["read", "collections:write"]


async def test_location_below_a_base_path(start: Start) -> None:
    server = await start([], {"server.admin_key": SECRET, "server.base_path": "/sync/"})
    answer = await server.post("/sync/admin/keys", {"username": "alice"}, headers=ADMIN)
    assert answer.headers["Location"] == f"/sync/admin/keys/{answer.json['id']}"
    assert (await server("DELETE", answer.headers["Location"], headers=ADMIN)).status == 204


async def test_users_have_several_keys_in_order(server: Served) -> None:
    for name in ("bob", "alice", "bob"):
        await create(server, username=name)
        server.clock.advance(1)
    rows = await listed(server)
    assert [(row["username"], row["created_at"][17:19]) for row in rows] == [
        ("alice", "01"),
        ("bob", "00"),
        ("bob", "02"),
    ]


async def test_many_keys(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.storage.walking._PAGE", 2)
    made = [(await create(server, username=f"user-{number}"))["id"] for number in range(5)]
    assert [row["id"] for row in await listed(server)] == made


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        pytest.param({}, "/username", "is required", id="no username"),
        pytest.param({"username": "al"}, "/username", NAME, id="short"),
        pytest.param({"username": "a" * 51}, "/username", NAME, id="long"),
        pytest.param({"username": "al ice"}, "/username", NAME, id="a blank"),
        pytest.param({"username": "alice\n"}, "/username", NAME, id="a line break"),
        pytest.param({"username": "álice"}, "/username", NAME, id="not ASCII"),
        pytest.param({"username": 12345}, "/username", NAME, id="a number"),
        pytest.param({"username": "alice", "scopes": []}, "/scopes", None, id="no scopes"),
        pytest.param({"username": "alice", "scopes": ["sync", "synk"]}, "/scopes/1", None, id="unknown scope"),
        pytest.param({"username": "alice", "scopes": ["sync", "sync"]}, "/scopes", None, id="a scope twice"),
        pytest.param({"username": "alice", "scopes": "sync"}, "/scopes", None, id="no list"),
        pytest.param([], "", "must be an object", id="no object"),
    ],
)
async def test_what_is_no_key(server: Served, body: Any, pointer: str, message: str | None) -> None:
    answer = await server.post("/admin/keys", body, headers=ADMIN)
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    (error,) = answer.json["errors"]
    assert error["pointer"] == pointer
    assert error["message"] == (message or error["message"])
    assert await listed(server) == []


async def test_a_name_that_differs_only_in_case(server: Served) -> None:
    await create(server, username="Alice")
    answer = await server.post("/admin/keys", {"username": "alice"}, headers=ADMIN)
    assert (answer.status, answer.headers["Content-Type"]) == (409, "application/problem+json")
    assert answer.json == {
        "title": "Conflict",
        "status": 409,
        "detail": "alice differs from the user Alice only in case",
    }


@pytest.mark.parametrize("id", ["0123456789abcdef", "x", "%00", "%ff", "a" * 3000, "ccusage_live_" + "A" * 60])
@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/keys/{}/rotate"), ("DELETE", "/admin/keys/{}")])
async def test_keys_that_there_are_not(server: Served, method: str, path: str, id: str) -> None:
    answer = await server(method, path.format(id), headers=ADMIN)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json == {"title": "Not Found", "status": 404, "detail": "No such key"}


OPERATIONS = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("POST", "/admin/keys/{}/rotate"),
    ("DELETE", "/admin/keys/{}"),
]


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        pytest.param({"server.admin_key": SECRET}, {}, 401, id="none, from loopback"),
        pytest.param({"server.admin_key": SECRET}, {"X-API-Key": "wrong"}, 401, id="wrong"),
        pytest.param({"server.admin_key": SECRET}, {"X-API-Key": SECRET}, 200, id="X-API-Key"),
        pytest.param({"server.admin_key": SECRET}, ADMIN, 200, id="bearer"),
        pytest.param(
            {"server.admin_key": SECRET}, ADMIN | {"X-Forwarded-For": "198.51.100.7"}, 200, id="from anywhere"
        ),
        pytest.param({}, {}, 401, id="not set"),
        pytest.param({}, {"X-API-Key": "None"}, 401, id="not set is not None"),
        pytest.param({}, {"Authorization": "Bearer "}, 401, id="not set is not empty"),
    ],
)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_who_may(
    start: Start, method: str, path: str, settings: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    server = await start([], settings)
    key, _ = await server.app[API_KEYS].create("alice")
    body = {"json": {"username": "alice"}} if path == "/admin/keys" and method == "POST" else {}
    answer = await server(method, path.format(key.id), headers=headers, **body)
    assert answer.status == status or (status == 200 and answer.status in (201, 204))
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json["detail"] == "Missing or invalid credentials"
        assert len(await server.app[API_KEYS].list()) == 1


async def test_no_api_key_opens_it(server: Served) -> None:
    text = (await create(server, username="alice", scopes=["sync", "read", "collections:read", "collections:write"]))[
        "key"
    ]
    for method, path in OPERATIONS:
        assert (await server(method, path, headers={"Authorization": f"Bearer {text}"})).status == 401


async def test_guessing_is_limited(start: Start) -> None:
    server = await start([], {"server.admin_key": SECRET, "server.trusted_proxies": ["127.0.0.1"]})
    there = {"X-Forwarded-For": "198.51.100.7"}
    for _ in range(10):
        assert (await server.get("/admin/keys", headers=there | {"X-API-Key": "wrong"})).status == 401
    assert (await server.get("/admin/keys", headers=there | ADMIN)).status == 429


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/admin/keys", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/admin/keys/0123456789abcdef", "DELETE, OPTIONS"),
        ("GET", "/admin/keys/0123456789abcdef/rotate", "OPTIONS, POST"),
    ],
)
async def test_other_methods(server: Served, method: str, path: str, allow: str) -> None:
    answer = await server(method, path, headers=ADMIN)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_no_log_has_a_key(server: Served) -> None:
    shown = await create(server, username="alice")
    rotated = (await server.post(f"/admin/keys/{shown['id']}/rotate", b"", headers=ADMIN)).json
    await server.app.cleanup()  # writes what is left of the log
    log = server.stderr.getvalue()
    assert '"path":"/admin/keys/{id}/rotate"' in log
    for text in (shown["key"].removeprefix("ccusage_live_"), rotated["key"].removeprefix("ccusage_live_"), SECRET):
        assert not [at for at in range(len(text) - 7) if text[at : at + 8] in log]
