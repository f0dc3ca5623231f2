"""Host and Origin: for whom the server answers, and whose pages may call it."""

import socket
from typing import Any

import pytest

EXPOSED = {"server.public_url": "https://sync.example.com", "server.cors_origins": ["https://app.example.org"]}


def own_address() -> str:
    """An address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("localhost.", 200),
        ("homeport.localhost:8000", 200),
        ("127.0.0.1", 200),
        ("127.1.2.3:8000", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        (own_address(), 200),
        (f"{own_address()}:8000", 200),
        ("nas.local", 200),
        ("NAS.local:8000", 200),
        ("sync.example.com", 200),
        ("sync.example.com:443", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:80", 421),
        ("xlocalhost", 421),
        ("nas.local.evil.example", 421),
        ("sync.example.com.evil.example", 421),
        ("192.0.2.7", 421),
        ("[2001:db8::7]", 421),
        ("0.0.0.0", 421),
        ("[::]", 421),
        ("224.0.0.1", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:evil", 421),
        ("[::1", 421),
        ("[::1]evil", 421),
        ("[::1]:", 421),
        ("::1", 421),
        ("localhost@evil.example", 421),
        ("localhost/evil", 421),
        ("", 421),
    ],
)
async def test_hosts(start: Any, host: str, status: int) -> None:
    toy = await start(
        settings={"server.allowed_hosts": ["nas.local"], "server.public_url": "https://sync.example.com/x"}
    )
    for _ in range(2):  # what was decided is remembered
        answer = await toy.get("/toy/things/x", headers={"Host": host})
        assert answer.status == status
    if status == 421:
        assert answer.json["title"] == "Misdirected Request"
        assert "allowed_hosts" in answer.json["detail"]


async def test_http_1_0_needs_no_host(toy: Any) -> None:
    assert (await toy.raw(b"GET /toy/things/x HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")
    assert (await toy.raw(b"GET /toy/things/x HTTP/1.1\r\nConnection: close\r\n\r\n")).split()[1] == b"400"


LOOPBACK = [
    "http://localhost:3000",
    "https://localhost",
    "http://127.0.0.1:5173",
    "http://[::1]:8080",
    "http://a.localhost",
]
TAURI = ["tauri://localhost", "http://tauri.localhost", "https://tauri.localhost"]
EVIL = [
    "http://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://evil.example:8000",
    "null",
    "file://",
    "tauri://evil",
    "chrome-extension://localhost",
    "http://",
    "localhost",
    "http://localhost:3000/path",
    "http://[::1",
    "http://localhost@evil.example",
    "",
]


@pytest.mark.parametrize(
    ("settings", "origin", "status"),
    [
        *[pytest.param({}, origin, 200, id=f"not exposed: {origin}") for origin in LOOPBACK + TAURI],
        *[pytest.param({}, origin, 403, id=f"not exposed: {origin or 'empty'}") for origin in EVIL],
        pytest.param({"server.cors_origins": ["http://a.test"]}, "http://a.test", 200, id="not exposed, configured"),
        pytest.param(
            {"server.cors_origins": ["http://a.test"]}, "http://localhost:3000", 403, id="configured: no others"
        ),
        pytest.param(EXPOSED, "https://app.example.org", 200, id="exposed: configured"),
        pytest.param(EXPOSED, "HTTPS://APP.example.org", 200, id="exposed: any case"),
        pytest.param(EXPOSED, "https://sync.example.com", 200, id="exposed: public_url"),
        pytest.param(EXPOSED, "http://app.example.org", 403, id="exposed: other scheme"),
        pytest.param(EXPOSED, "https://app.example.org:8443", 403, id="exposed: other port"),
        *[pytest.param(EXPOSED, origin, 403, id=f"exposed: {origin}") for origin in (*LOOPBACK[:1], *TAURI, "null")],
    ],
)
async def test_origins(start: Any, settings: dict[str, Any], origin: str, status: int) -> None:
    toy = await start(settings=settings)
    for _ in range(2):
        answer = await toy.get("/toy/things/x", headers={"Origin": origin})
        assert answer.status == status
    if status == 200:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Expose-Headers"] == (
            "ETag, Location, Link, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
        )
    else:
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin"


async def test_the_servers_own_pages_may_call_it(start: Any) -> None:
    toy = await start(settings=EXPOSED)
    for host in ("localhost", "localhost:8000", "sync.example.com"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert (await toy.get("/toy/things/x", headers=own)).status == 200
        assert (await toy.get("/toy/things/x", headers=own | {"Origin": f"http://{host}:9"})).status == 403


@pytest.mark.parametrize(
    ("path", "status"), [("/none", 404), ("/toy/fail/crash", 500), ("/toy/secret", 401), ("/toy/answers/large", 200)]
)
async def test_a_page_can_read_refusals(toy: Any, path: str, status: int) -> None:
    answer = await toy.get(path, headers={"Origin": "http://localhost:3000"})
    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


async def test_preflight(toy: Any) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answer = await toy("OPTIONS", "/toy/things", headers=asked)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert answer.headers["Access-Control-Allow-Methods"] == "OPTIONS, POST"
    assert answer.headers["Access-Control-Allow-Headers"] == (
        "Content-Type, X-API-Key, Authorization, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID"
    )
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    refused = await toy("OPTIONS", "/toy/things", headers=asked | {"Origin": "http://evil.example"})
    assert refused.status == 403
    plain = await toy("OPTIONS", "/toy/things", headers={"Origin": "http://localhost:3000"})
    assert "Access-Control-Allow-Methods" not in plain.headers


async def test_a_websocket_of_a_foreign_page_is_refused_before_the_upgrade(toy: Any) -> None:
    upgrade = "GET /toy/things/x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
    answer = await toy.raw(f"{upgrade}Origin: http://evil.example\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")


async def test_many_hosts_are_not_all_remembered(toy: Any) -> None:
    """The memory is bounded, and full it still decides rightly."""
    for port in range(1500):
        answer = await toy.get("/none", headers={"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"})
        assert answer.status == 404
    assert (await toy.get("/none", headers={"Host": "localhost:1600"})).status == 404
    assert (await toy.get("/none", headers={"Host": "evil.example"})).status == 421
