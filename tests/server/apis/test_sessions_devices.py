"""Devices as they are kept, and the path that they share with device usage."""

import asyncio
from typing import Any

import pytest

from homeport.server.apis.sessions.notifications import devices
from homeport.server.apis.sessions.notifications.devices import DEVICES
from homeport.storage import Query

from .conftest import Serve, Served, on_memory, report, user_key

TOKEN = user_key("phone")
REGISTER = "/api/devices/register"
EARLIER, LATER = "2025-06-03T12:00:00.000Z", "2025-06-03T12:34:56.789Z"


async def register(server: Served, token: str = TOKEN, **more: Any) -> int:
    return (await server("POST", REGISTER, json={"token": token, **more})).status


async def kept(server: Served) -> dict[str, Any]:
    return {record.id: record.decode() for record in (await server.storage.find(Query(DEVICES))).records}


async def test_what_is_kept(server: Served) -> None:
    assert await register(server, TOKEN.upper(), note="dropped") == 200
    assert await kept(server) == {TOKEN: {"platform": "ios", "updatedAt": EARLIER}}


@pytest.mark.parametrize(
    ("first", "second", "platform"),
    [("ipados", None, "ipados"), ("ipados", "macos", "macos"), (None, "macos", "macos"), (None, None, "ios")],
)
@on_memory
async def test_registering_again(server: Served, first: str | None, second: str | None, platform: str) -> None:
    for sent in (first, second):
        server.move_to(LATER if await kept(server) else EARLIER)
        assert await register(server, **({"platform": sent} if sent else {})) == 200
    assert await kept(server) == {TOKEN: {"platform": platform, "updatedAt": LATER}}


async def test_of_too_many_the_longest_silent_goes(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_DEVICES", 3)
    tokens = [f"{number:064x}" for number in range(4)]
    for minute, token in enumerate([*tokens[:3], tokens[0], tokens[3]]):
        server.move_to(f"2025-06-03T13:{minute:02}:00Z")
        assert await register(server, token) == 200
    assert set(await kept(server)) == {tokens[0], tokens[2], tokens[3]}


async def test_many_register_at_once(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_DEVICES", 10)
    tokens = [f"{number:064x}" for number in range(30)]
    assert set(await asyncio.gather(*(register(server, token) for token in tokens))) == {200}
    assert len(await kept(server)) == 10


async def test_a_device_outlives_the_server(serve: Serve) -> None:
    assert await register(await serve()) == 200
    again = await serve()
    assert (await again("DELETE", f"/api/devices/{TOKEN}")).status == 200


# The path that two APIs share

KEY = user_key()
PATHS = [f"/api/devices/{KEY}", REGISTER, "/api/devices/x"]
ONLY = {"device usage": ["device_usage"], "sessions": ["sessions"]}


async def test_both_answer_on_one_path(server: Served) -> None:
    await server.sync(report(userKey=KEY))
    assert await register(server, KEY) == 200
    assert await server.devices(KEY) == ["M4x.local"]
    assert (await server("DELETE", f"/api/devices/{KEY}")).json == {"success": True}
    assert await server.devices(KEY) == ["M4x.local"]


@on_memory
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE"])
async def test_another_method_names_all(server: Served, path: str, method: str) -> None:
    answer = await server(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, OPTIONS, POST")
    assert answer.json["error"] == "Method not allowed"


@on_memory
@pytest.mark.parametrize(
    ("enabled", "method", "status", "allow", "media_type"),
    [
        pytest.param("sessions", "GET", 405, "DELETE, OPTIONS, POST", "application/problem+json", id="no usage: GET"),
        pytest.param("sessions", "PUT", 405, "DELETE, OPTIONS, POST", "application/json", id="no usage: PUT"),
        pytest.param("device usage", "POST", 405, "GET, HEAD, OPTIONS", "application/problem+json", id="POST"),
        pytest.param("device usage", "DELETE", 405, "GET, HEAD, OPTIONS", "application/problem+json", id="DELETE"),
        pytest.param("device usage", "PUT", 405, "GET, HEAD, OPTIONS", "application/problem+json", id="PUT"),
    ],
)
async def test_one_of_the_two_is_off(
    serve: Serve, enabled: str, method: str, status: int, allow: str, media_type: str
) -> None:
    server = await serve({"apis.enabled": ONLY[enabled]})
    answer = await server(method, f"/api/devices/{KEY}")
    assert (answer.status, answer.headers["Allow"]) == (status, allow)
    assert answer.headers["Content-Type"] == media_type


@on_memory
async def test_alone_each_works(serve: Serve) -> None:
    usage = await serve({"apis.enabled": ONLY["device usage"]})
    assert (await usage.sync(report(userKey=KEY))).status == 200
    assert await usage.devices(KEY) == ["M4x.local"]
    sessions = await serve({"apis.enabled": ONLY["sessions"]})
    assert await register(sessions) == 200


@on_memory
async def test_what_pages_are_told_of_it(server: Served) -> None:
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "DELETE"}
    answer = await server("OPTIONS", f"/api/devices/{KEY}", headers=headers)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Methods"] == "DELETE, GET, HEAD, OPTIONS, POST"
