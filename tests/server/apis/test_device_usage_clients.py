"""What real clients send, byte by byte, and what becomes of it on every back end."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import KEY, Served, key_parts, on_memory, report, user_key

HEAD = b"POST /api/sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def post(body: dict[str, Any] | bytes, *headers: str) -> bytes:
    """A request with Content-Length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{header}\r\n" for header in headers).encode()
    return HEAD + lines + b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


def chunks(body: dict[str, Any], size: int) -> list[bytes]:
    """A body in chunks of so many bytes (RFC 9112 7.1)."""
    content = json.dumps(body).encode()
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_chunked_body(server: Served, size: int) -> None:
    (answer,) = await server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks(report(), size))
    assert answer.status == 200
    assert answer.json["data"]["tokens"] == 2412018
    assert len(await server.history()) == 1


@on_memory
async def test_a_chunked_body_that_is_too_large(server: Served) -> None:
    padded = report(padding="x" * (1 << 20))
    (answer,) = await server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks(padded, 1 << 16))
    assert (answer.status, answer.json["status"]) == (413, "error")
    assert await server.devices() == []


@on_memory
async def test_a_body_that_breaks_off(server: Served) -> None:
    whole = post(report())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.write(whole[:-10])
    writer.write_eof()
    await reader.read()
    writer.close()
    assert await server.devices() == []


@on_memory
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        'application/json; profile="x; y"',
    ],
)
async def test_content_types(server: Served, content_type: str) -> None:
    assert (await server.sync(headers={"Content-Type": content_type})).status == 200


@on_memory
async def test_who_expects_to_be_told_to_go_on(server: Served) -> None:
    go_on, answer = await server.raw(post(report(), "Expect: 100-continue"), answers=2)
    assert (go_on.status, answer.status) == (100, 200)


async def test_requests_in_one_go_are_answered_in_order(server: Served) -> None:
    reports = [report(hostname=f"m{number}", usage__totalTokens=number) for number in range(20)]
    get = f"GET /api/stats/{KEY} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    answers = await server.raw(b"".join(post(body) + get for body in reports), answers=40)
    assert {answer.status for answer in answers} == {200}
    assert [answer.json["data"]["hostname"] for answer in answers[::2]] == [body["hostname"] for body in reports]
    # Each sees what the request before it wrote.
    assert [len(answer.json["devices"]) for answer in answers[1::2]] == list(range(1, 21))


@on_memory
async def test_a_refused_body_does_not_end_the_connection(server: Served) -> None:
    bad = [post(b"{"), post(b""), post(report(hostname=5)), post(b"x" * 70_000)]
    answers = await server.raw(b"".join([*bad, post(report())]), answers=5)
    assert [answer.status for answer in answers] == [400, 400, 400, 400, 200]


@on_memory
async def test_http_1_0(server: Served) -> None:
    (answer,) = await server.raw(post(report()).replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: localhost\r\n", b""))
    assert answer.status == 200


@on_memory
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "*;q=0"])
async def test_long_answers_are_compressed_for_who_accepts_it(server: Served, encoding: str) -> None:
    for number in range(30):
        await server.sync(report(hostname=f"m{number}"))
    answer = await server.stats(headers={"Accept-Encoding": encoding})
    assert len(answer.json["devices"]) == 30  # aiohttp has decompressed it
    assert answer.headers.get("Content-Encoding") == (encoding if encoding in ("gzip", "deflate") else None)


@on_memory
@pytest.mark.parametrize(
    "name", ["a/b", "a%2Fb", "..", ".", "a b", "a+b", "ä", "日本", "🖥", "%", "%%", "a?b=c#d", "\\"]
)
@pytest.mark.parametrize("case", [str, str.lower], ids=["upper", "lower"])
async def test_a_path_is_decoded_once(server: Served, name: str, case: Any) -> None:
    """However the client spells its percent-encoding."""
    await server.sync(report(hostname=name))
    other = quote(name, safe="")
    await server.sync(report(hostname=other if other != name else "other"))
    encoded = case("".join(f"%{byte:02X}" for byte in name.encode()))
    answer = await server("DELETE", f"/api/device/{KEY}/{encoded}")
    assert (answer.status, answer.json["message"]) == (200, f"Device {name} removed")
    assert len(await server.devices()) == 1


@on_memory
async def test_what_a_path_need_not_encode(server: Served) -> None:
    name = "a-b._~!$&'()*+,;=:@"
    await server.sync(report(hostname=name))
    assert (await server("DELETE", f"/api/device/{KEY}/{name}")).json["message"] == f"Device {name} removed"


@on_memory
async def test_in_a_query_a_plus_is_a_blank(server: Served) -> None:
    await server.sync(report(hostname="a b"))
    await server.sync(report(hostname="a+b"))
    assert [kept["hostname"] for kept in await server.history("hostname=a+b")] == ["a b"]
    assert [kept["hostname"] for kept in await server.history("hostname=a%2Bb")] == ["a+b"]


KEYED = f"GET /api/stats/{KEY} HTTP/1.1\r\nHost: localhost\r\n".encode()


@on_memory
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(KEYED.replace(b"GET", b"FETCH"), id="method"),
        pytest.param(KEYED.replace(b"GET", b"G(T"), id="a method that is none"),
        pytest.param(KEYED.replace(b"HTTP/1.1", b"HTTP/9.9"), id="version"),
        pytest.param(KEYED.replace(b" HTTP/1.1", b"?hostname=\xc3\xa9 HTTP/1.1"), id="query not ASCII"),
        pytest.param(KEYED.replace(b" HTTP/1.1", b"\x00 HTTP/1.1"), id="path with U+0000"),
        pytest.param(KEYED.replace(b" HTTP/1.1", b"x" * 9000 + b" HTTP/1.1"), id="a path too long"),
        pytest.param(KEYED + b"Cookie: " + KEY.encode() + b"\x01\r\n", id="header value"),
        pytest.param(KEYED + b"X-" + KEY.encode() + b"\r\n", id="header without a colon"),
        pytest.param(KEYED + b"Content-Length: " + KEY.encode() + b"\r\n", id="length"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + KEY.encode() + b"\r\n", id="chunk size"),
    ],
)
async def test_what_is_no_http_is_refused(server: Served, request_: bytes) -> None:
    """The log, as after every test, knows of no key."""
    (answer,) = await server.raw(request_ + b"\r\n")
    assert answer.status == 400
    assert (await server.get("/")).status == 200


@on_memory
async def test_no_answer_holds_a_key(server: Served) -> None:
    await server.sync()
    answers = [
        await server.sync(),
        await server.sync(report(userKey=KEY + "0")),
        await server.stats(),
        await server.stats(KEY + "0"),
        await server.get(f"/api/devices/{KEY}"),
        await server.get(f"/api/history/{KEY}?limit=1"),
        await server.get(f"/api/history/{KEY}?cursor=x"),
        await server("PUT", f"/api/stats/{KEY}"),
        await server("DELETE", f"/api/device/{KEY}/M4x.local"),
        await server("DELETE", f"/api/device/{user_key('bob')}/M4x.local"),
        await server.get(f"/api/unknown/{KEY}"),
        await server.get("/metrics"),
    ]
    for answer in answers:
        headers = [f"{name}: {value}" for name, value in answer.headers.items() if name != "X-Request-Id"]
        assert not key_parts("\n".join([*headers, answer.content.decode()]))
