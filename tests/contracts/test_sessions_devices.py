"""contracts/sessions.md, "Devices", "Health" and the shape of errors: every example whole, on every back end."""

import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from homeport import __version__
from homeport.storage import StorageFull, StorageUnavailable
from homeport.storage.memory import MemoryStorage

from ..server.apis.conftest import Answer, Serve, Served, on_memory, user_key

TOKEN = user_key("phone")
REGISTER = "/api/devices/register"
INVALID = {
    "error": "Validation error",
    "message": "Invalid APNs token format",
    "details": [
        {
            "validation": "regex",
            "code": "invalid_string",
            "message": "Invalid APNs token format",
            "path": ["token"],
        }
    ],
}
UNAUTHORIZED = {"error": "Unauthorized", "message": "Missing or invalid API key"}
SUCCESS = {"success": True}


def told(answer: Answer) -> tuple[int, Any]:
    return answer.status, answer.json


# Devices


@pytest.mark.parametrize("platform", ["ios", "ipados", "macos", None])
async def test_register(server: Served, platform: str | None) -> None:
    body = {"token": TOKEN} | ({"platform": platform} if platform else {})
    assert told(await server("POST", REGISTER, json=body)) == (200, SUCCESS)
    assert told(await server("POST", REGISTER, json=body)) == (200, SUCCESS)


@on_memory
@pytest.mark.parametrize(
    "token",
    [
        pytest.param(TOKEN[:63], id="short"),
        pytest.param(TOKEN + "0", id="long"),
        pytest.param(TOKEN[:63] + "g", id="no hexadecimal digit"),
        pytest.param(TOKEN + "\n", id="line break"),
        pytest.param("\u0660" * 64, id="digits of another script"),
        pytest.param("", id="empty"),
    ],
)
async def test_register_with_a_bad_token(server: Served, token: str) -> None:
    assert told(await server("POST", REGISTER, json={"token": token})) == (400, INVALID)


@on_memory
@pytest.mark.parametrize(
    ("body", "message", "path"),
    [
        pytest.param({}, "token is required", ["token"], id="no token"),
        pytest.param({"token": 5}, "Invalid APNs token format", ["token"], id="a number"),
        pytest.param({"token": None}, "Invalid APNs token format", ["token"], id="null"),
        pytest.param([TOKEN], "body must be an object", [], id="a list"),
        pytest.param(
            {"token": TOKEN, "platform": "android"},
            'platform must be one of "ios", "ipados", "macos"',
            ["platform"],
            id="platform",
        ),
    ],
)
async def test_register_with_a_bad_body(server: Served, body: object, message: str, path: list[str]) -> None:
    answer = await server("POST", REGISTER, json=body)
    assert (answer.status, answer.json["error"], answer.json["message"]) == (400, "Validation error", message)
    assert [problem["path"] for problem in answer.json["details"]] == [path]


@pytest.mark.parametrize("sent", [TOKEN, TOKEN.upper()], ids=["lower case", "upper case"])
async def test_unregister(server: Served, sent: str) -> None:
    await server("POST", REGISTER, json={"token": TOKEN.upper()})
    assert told(await server("DELETE", f"/api/devices/{sent}")) == (200, SUCCESS)
    missing = {"error": "Not found", "message": "Device token not found"}
    assert told(await server("DELETE", f"/api/devices/{sent}")) == (404, missing)


@on_memory
@pytest.mark.parametrize("token", [TOKEN[:63], TOKEN + "0", "register", "%00", "%F0%9F%92%A9"])
async def test_unregister_a_bad_token(server: Served, token: str) -> None:
    without_details = {"error": "Validation error", "message": "Invalid APNs token format"}
    assert told(await server("DELETE", f"/api/devices/{token}")) == (400, without_details)


# Health


async def test_health(server: Served) -> None:
    server.clock.advance(3600)
    answer = await server.get("/api/health")
    report = answer.json
    assert report.pop("tmux") in ("available", "unavailable")
    assert report.pop("status") in ("healthy", "degraded")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", report.pop("timestamp"))
    assert (answer.status, report) == (200, {"uptime": 3600, "version": __version__, "database": "connected"})


@on_memory
@pytest.mark.parametrize("installed", [True, False])
async def test_health_asks_tmux(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    tmux = shutil.which("tmux")
    if tmux is None:
        pytest.skip("needs tmux")
    if installed:
        (tmp_path / "tmux").symlink_to(tmux)
    monkeypatch.setenv("PATH", str(tmp_path))
    server = await serve({"apis.sessions.tmux_socket": str(tmp_path / "socket")})
    alone = await serve({"apis.enabled": []})
    for query, status in (("", 200), ("?strict=1", 200 if installed else 503)):
        answer = await server.get(f"/api/health{query}")
        assert (answer.status, answer.json["status"]) == (status, "healthy" if installed else "degraded")
        assert answer.json["tmux"] == ("available" if installed else "unavailable")
        answer = await alone.get(f"/api/health{query}")
        assert (answer.status, answer.json["status"]) == (200, "healthy")
        assert answer.json["tmux"] == ("available" if installed else "unavailable")


# Errors

KEY = "correct horse battery staple"
KEYED = {"apis.sessions.api_key": KEY}
JSON = {"Content-Type": "application/json"}
ELSEWHERE = {"X-Forwarded-For": "192.0.2.1"}


@on_memory
@pytest.mark.parametrize(
    ("status", "error", "method", "path", "request_"),
    [
        pytest.param(400, "Validation error", "POST", REGISTER, {"data": b"{", "headers": JSON}, id="no JSON"),
        pytest.param(400, "Validation error", "POST", REGISTER, {"data": b"", "headers": JSON}, id="no body"),
        pytest.param(401, "Unauthorized", "DELETE", f"/api/devices/{TOKEN}", {"headers": ELSEWHERE}, id="no key"),
        pytest.param(
            403, "Forbidden", "POST", REGISTER, {"headers": {"Origin": "https://evil.example"}}, id="foreign origin"
        ),
        pytest.param(404, "Not found", "GET", "/api/nothing", {}, id="unknown path"),
        pytest.param(
            400, "Validation error", "POST", f"/api/devices/{TOKEN}", {"json": {"token": TOKEN}}, id="not register"
        ),
        pytest.param(405, "Method not allowed", "PUT", REGISTER, {}, id="method"),
        pytest.param(
            413,
            "Payload too large",
            "POST",
            REGISTER,
            {"data": BytesIO(b" " * (1 << 20 | 1)), "headers": JSON},
            id="too large",
        ),
        pytest.param(415, "Unsupported media type", "POST", REGISTER, {"data": b"{}"}, id="media type"),
        pytest.param(
            421, "Misdirected request", "POST", REGISTER, {"headers": {"Host": "evil.example"}}, id="foreign host"
        ),
    ],
)
async def test_errors(
    server: Served, status: int, error: str, method: str, path: str, request_: dict[str, Any]
) -> None:
    answer = await server(method, path, **request_)
    assert (answer.status, answer.json["error"]) == (status, error)
    assert answer.json["message"]
    assert set(answer.json) <= {"error", "message", "details"}
    assert answer.headers["Content-Type"] == "application/json"


@on_memory
async def test_too_many_requests(serve: Serve) -> None:
    server = await serve({"server.default_rate_limit": "2/minute", "server.trusted_proxies": ["127.0.0.1"], **KEYED})
    headers = {"X-Forwarded-For": "192.0.2.1", "X-API-Key": KEY}
    for _ in range(2):
        assert (await server("DELETE", f"/api/devices/{TOKEN}", headers=headers)).status == 404
    answer = await server("DELETE", f"/api/devices/{TOKEN}", headers=headers)
    assert (answer.status, answer.json["error"]) == (429, "Too many requests")
    assert 0 < int(answer.headers["Retry-After"]) <= 60


@on_memory
@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [
        pytest.param(StorageUnavailable("disk /dev/sda"), 503, "Service unavailable", id="store away"),
        pytest.param(StorageFull("disk /dev/sda"), 507, "Insufficient storage", id="store full"),
        pytest.param(RuntimeError("disk /dev/sda"), 500, "Internal server error", id="a fault of ours"),
    ],
)
async def test_errors_of_the_server(
    server: Served, monkeypatch: pytest.MonkeyPatch, raised: Exception, status: int, error: str
) -> None:
    async def fail(*_: object) -> None:
        raise raised

    assert isinstance(server.storage, MemoryStorage)
    monkeypatch.setattr(server.storage, "commit", fail)
    answer = await server("POST", REGISTER, json={"token": TOKEN})
    assert (answer.status, answer.json["error"]) == (status, error)
    assert "/dev/sda" not in str(answer.content)
    assert ("Retry-After" in answer.headers) == (status == 503)
