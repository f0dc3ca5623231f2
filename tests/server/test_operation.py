"""The way of a request through an operation, from its first byte to its answer."""

import asyncio
import gzip
import json
import re
import zlib
from io import BytesIO
from typing import Any

import pytest
from aiohttp import web

JSON = {"Content-Type": "application/json"}


# Bodies


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("body", "document"),
    [
        pytest.param(b'{"a": 1}', {"a": 1}, id="object"),
        pytest.param(b" null ", None, id="null"),
        pytest.param(b'{"a": 1, "a": 2}', {"a": 2}, id="of duplicate names the last counts"),
        pytest.param(b"9007199254740993", 9007199254740993, id="integer beyond doubles"),
        pytest.param(b"9" * 4000, int("9" * 4000), id="4000 digits"),
        pytest.param(b"1.7976931348623157e308", 1.7976931348623157e308, id="largest double"),
        pytest.param('"ü\U0001f600"'.encode(), "ü\U0001f600", id="unicode"),
        pytest.param(rb'"\ud83d\ude00\u0000"', "\U0001f600\0", id="escapes"),
        pytest.param(nested(128), json.loads(nested(128)), id="128 levels"),
    ],
)
async def test_json(toy: Any, body: bytes, document: object) -> None:
    answer = await toy.post("/toy/anything", body)
    assert answer.status == 200
    assert json.loads(answer.content) == {"document": document}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "is required", id="empty"),
        pytest.param(b" \n", "JSON", id="white space"),
        pytest.param(b"{", "JSON", id="half"),
        pytest.param(b'{"a": 1}}', "JSON", id="more than one"),
        pytest.param(b"{'a': 1}", "JSON", id="single quotes"),
        pytest.param(b"\xef\xbb\xbf{}", "JSON", id="byte order mark"),
        pytest.param(b'"\xff"', "UTF-8", id="not UTF-8"),
        pytest.param('{"a": 1}'.encode("utf-16"), "JSON", id="UTF-16"),
        pytest.param(rb'"\ud800"', "surrogate", id="lone surrogate"),
        pytest.param(b'"\xed\xa0\x80"', "UTF-8", id="lone surrogate in UTF-8"),
        pytest.param(b"NaN", "JSON", id="NaN"),
        pytest.param(b"[Infinity]", "JSON", id="Infinity"),
        pytest.param(b"[-Infinity]", "JSON", id="-Infinity"),
        pytest.param(b"1e400", "range", id="beyond a double"),
        pytest.param(b"9" * 4001, "4000 digits", id="4001 digits"),
        pytest.param(b"012", "JSON", id="leading zero"),
        pytest.param(b'"\n"', "JSON", id="control character"),
        pytest.param(nested(129), "128 levels", id="129 levels"),
        pytest.param(b"[" * 4000, "", id="4000 levels, never closed"),
    ],
)
async def test_what_is_no_json(toy: Any, body: bytes, message: str) -> None:
    answer = await toy.post("/toy/anything", body)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert (problem["title"], problem["status"], problem["detail"]) == ("Bad Request", 400, "Invalid request body")
    assert [(error["field"], error["pointer"]) for error in problem["errors"]] == [("body", "")]
    assert message in problem["errors"][0]["message"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("application/json", 200, id="plain"),
        pytest.param("application/json; charset=utf-8", 200, id="charset"),
        pytest.param("application/json;charset=latin-1;x=y", 200, id="any parameters"),
        pytest.param("Application/JSON", 200, id="any case"),
        pytest.param(" application/json ", 200, id="blanks"),
        pytest.param("text/plain", 415, id="other"),
        pytest.param("application/jsonx", 415, id="longer"),
        pytest.param("application/x-www-form-urlencoded", 415, id="form"),
        pytest.param(";", 415, id="parameters alone"),
        pytest.param(None, 415, id="none"),
    ],
)
async def test_content_type(toy: Any, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await toy("POST", "/toy/anything", data=b"{}", headers=headers, skip_auto_headers=["Content-Type"])
    assert answer.status == status
    if status == 415:
        assert answer.json["detail"] == "Content-Type must be application/json"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x"])
async def test_compressed_bodies_are_refused(toy: Any, coding: str) -> None:
    head = "POST /toy/anything HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    answer = await toy.raw(f"{head}Content-Encoding: {coding}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert answer.startswith(b"HTTP/1.1 415 ")


async def test_what_else_a_body_may_be(toy: Any) -> None:
    answer = await toy("POST", "/toy/bytes", data=b"\x00\xff", headers={"Content-Type": "application/octet-stream"})
    assert answer.json == {"bytes": 2}
    refused = await toy("POST", "/toy/bytes", data=b"{}", headers=JSON)
    assert (refused.status, refused.json["detail"]) == (
        415,
        "Content-Type must be text/plain or application/octet-stream",
    )


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "image/png", None])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_operation_without_a_body_accepts_an_empty_one(
    toy: Any, content_type: str | None, chunked: bool
) -> None:
    lines = ["POST /toy/nothing HTTP/1.1", "Host: localhost", "Connection: close"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    lines.append("Transfer-Encoding: chunked\r\n\r\n0" if chunked else "Content-Length: 0")
    answer = await toy.raw("\r\n".join([*lines, "", ""]).encode())
    assert answer.startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_empty_body_where_one_is_required(toy: Any, chunked: bool) -> None:
    lines = ["POST /toy/things HTTP/1.1", "Host: localhost", "Connection: close"]
    lines.append("Transfer-Encoding: chunked\r\n\r\n0" if chunked else "Content-Length: 0")
    answer = await toy.raw("\r\n".join([*lines, "", ""]).encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"is required" in answer


async def chunks(*parts: bytes) -> Any:
    for part in parts:
        yield part
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((b'{"name":', b' "a"}'), id="two"),
        pytest.param(tuple(bytes([byte]) for byte in b'{"name": "a"}'), id="byte by byte"),
        pytest.param((b" " * 200_000, b'{"name": "a"}'), id="long"),
    ],
)
async def test_chunked_bodies(toy: Any, parts: tuple[bytes, ...]) -> None:
    answer = await toy("POST", "/toy/things", data=chunks(*parts), headers=JSON)
    assert (answer.status, answer.json) == (200, {"name": "a"})


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("size", "status"), [pytest.param(4096, 200, id="at the limit"), pytest.param(4097, 413, id="over it")]
)
async def test_body_limit(toy: Any, size: int, status: int, chunked: bool) -> None:
    body = b"1" + b" " * (size - 1)
    answer = await toy("POST", "/toy/anything", data=chunks(body) if chunked else body, headers=JSON)
    assert answer.status == status
    if status == 413:
        assert answer.json["detail"] == "Request body is larger than 4,096 bytes"


@pytest.mark.parametrize(
    ("settings", "limit"),
    [pytest.param({}, 2**20, id="default"), pytest.param({"server.max_body_bytes": 2000}, 2000, id="configured")],
)
async def test_body_limit_of_the_server(start: Any, settings: dict[str, Any], limit: int) -> None:
    toy = await start(settings=settings)
    body = b'{"name": "a"}'
    for data, status in [
        (BytesIO(body.ljust(limit)), 200),
        (chunks(body.ljust(limit)), 200),
        (BytesIO(body.ljust(limit + 1)), 413),
        (chunks(body.ljust(limit + 1)), 413),
    ]:
        assert (await toy("POST", "/toy/things", data=data, headers=JSON)).status == status


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [pytest.param(100_000, id="at its limit"), pytest.param(100_001, id="over it")])
async def test_a_handler_that_reads_the_body_itself(toy: Any, size: int, chunked: bool) -> None:
    body = b" " * size
    data = chunks(body[:70_000], body[70_000:]) if chunked else body
    answer = await toy("POST", "/toy/measured", data=data, headers={"Content-Type": "text/plain"})
    if size > 100_000:
        assert (answer.status, answer.json["detail"]) == (413, "Request body is larger than 100,000 bytes")
    else:
        assert (answer.status, answer.json) == (200, {"bytes": size})
    assert (await toy("POST", "/toy/measured", data=b"1", headers=JSON)).status == 415


async def test_a_body_too_large_is_not_asked_for(toy: Any) -> None:
    head = "POST /toy/things HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    expecting = f"{head}Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    accepted = await toy.raw(f'{expecting % 13}{{"name": "a"}}'.encode())
    assert accepted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    other = await toy.raw(f'{head}Expect: tea\r\nContent-Length: 13\r\n\r\n{{"name": "a"}}'.encode())
    assert other.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("head", ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_a_body_may_not_take_for_ever(toy: Any, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.server.bodies._READ_SECONDS", 0.01)
    monkeypatch.setattr("homeport.server.bodies._READ_RATE", 2**30)
    first = "POST /toy/things HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = await toy.raw(f"{first}{head}".encode(), until=b"took too long")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_breaks_off_is_nobodys_crash(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    head = b"POST /toy/things HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for rest in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
        _, writer = await asyncio.open_connection("127.0.0.1", int(toy.url.rpartition(":")[2]))
        writer.write(head + rest)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await toy.raw(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nZZ\r\n")).split()[1] == b"400"
    assert (await toy.get("/toy/search?text=a")).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Parameters


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("a%2Fb", "a/b", id="slash"),
        pytest.param("%252F", "%2F", id="escaped percent"),
        pytest.param("100%25", "100%", id="percent"),
        pytest.param("a%20b+c", "a b+c", id="blank and plus"),
        pytest.param("%C3%BC%F0%9F%98%80", "ü\U0001f600", id="unicode"),
        pytest.param("%7Bx%7D", "{x}", id="braces"),
        pytest.param("%2E%2E", "..", id="dots"),
        pytest.param("a%00b", "a\0b", id="nul"),
        pytest.param("%FF", "%FF", id="not UTF-8"),
        pytest.param("%zz", "%zz", id="no escape"),
    ],
)
async def test_path_parameters(toy: Any, path: str, name: str) -> None:
    answer = await toy.raw(f"GET /toy/things/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"path": {"name": name}}


@pytest.mark.parametrize(
    ("query", "read"),
    [
        pytest.param("text=a", {"text": "a", "limit": 100}, id="default filled in"),
        pytest.param("text=a&limit=7", {"text": "a", "limit": 7}, id="integer"),
        pytest.param("text=a&above=-1.50", {"text": "a", "limit": 100, "above": -1.5}, id="number"),
        pytest.param("text=a&exact=true", {"text": "a", "limit": 100, "exact": True}, id="boolean"),
        pytest.param("text=12", {"text": "12", "limit": 100}, id="a text stays one"),
        pytest.param("text=a&text=b", {"text": "b", "limit": 100}, id="of repeated names the last counts"),
        pytest.param("text=a&limit=&above=", {"text": "a", "limit": 100}, id="empty is not given"),
        pytest.param("text=a&other=1&__proto__=2", {"text": "a", "limit": 100}, id="unknown is dropped"),
        pytest.param("text=%C3%BC%26+", {"text": "ü& ", "limit": 100}, id="escapes"),
        pytest.param("text=%FF%00%", {"text": "\ufffd\0%", "limit": 100}, id="odd escapes"),
    ],
)
async def test_query(toy: Any, query: str, read: dict[str, Any]) -> None:
    answer = await toy.get(f"/toy/search?{query}")
    assert (answer.status, answer.json) == (200, {"query": read})


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        pytest.param("", "text", "is required", id="missing"),
        pytest.param("text=", "text", "is required", id="empty"),
        pytest.param("text=123456789", "text", "must be a string of 1 to 8 characters", id="too long"),
        pytest.param("text=a&limit=0", "limit", "must be an integer from 1 to 1000", id="too small"),
        pytest.param("text=a&limit=ten", "limit", "must be an integer from 1 to 1000", id="no integer"),
        pytest.param("text=a&limit=1.0", "limit", "must be an integer from 1 to 1000", id="fraction"),
        pytest.param("text=a&limit=1e2", "limit", "must be an integer from 1 to 1000", id="exponent"),
        pytest.param("text=a&limit=%2B1", "limit", "must be an integer from 1 to 1000", id="sign"),
        pytest.param("text=a&limit=%D9%A1", "limit", "must be an integer from 1 to 1000", id="other digits"),
        pytest.param("text=a&limit=" + "9" * 5000, "limit", "must be an integer from 1 to 1000", id="5000 digits"),
        pytest.param("text=a&above=NaN", "above", "must be a number", id="NaN"),
        pytest.param("text=a&above=1e999", "above", "must be a number", id="infinite"),
        pytest.param("text=a&exact=yes", "exact", "must be true or false", id="no boolean"),
    ],
)
async def test_bad_query(toy: Any, query: str, field: str, message: str) -> None:
    answer = await toy.get(f"/toy/search?{query}")
    assert answer.status == 400
    assert answer.json["detail"] == "Invalid request parameters"
    assert [(error["field"], error["message"]) for error in answer.json["errors"]] == [(field, message)]


async def test_typed_path_parameters(toy: Any) -> None:
    assert (await toy("PUT", "/toy/numbered/12")).json == {"path": {"number": 12}}
    bad = await toy("PUT", "/toy/numbered/0")
    assert (bad.status, bad.json["errors"][0]["field"]) == (400, "number")


# Methods and paths


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        pytest.param("PUT", "/toy/things", "OPTIONS, POST", id="one method"),
        pytest.param("POST", "/toy/search", "GET, HEAD, OPTIONS", id="GET brings HEAD"),
        pytest.param("HEAD", "/toy/things", "OPTIONS, POST", id="no HEAD without GET"),
        pytest.param("TRACE", "/toy/things/x", "GET, HEAD, OPTIONS", id="TRACE"),
        pytest.param("PROPFIND", "/toy/things/x", "GET, HEAD, OPTIONS", id="odd method"),
        pytest.param("DELETE", "/metrics", "GET, HEAD, OPTIONS", id="the server's own"),
    ],
)
async def test_method_not_allowed(toy: Any, method: str, path: str, allow: str) -> None:
    answer = await toy(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    if method != "HEAD":
        assert answer.json["detail"] == f"Method {method} is not allowed; use one of {allow}"


async def test_options(toy: Any) -> None:
    for path, allow in [("/toy/things", "OPTIONS, POST"), ("/toy/things/x", "GET, HEAD, OPTIONS")]:
        answer = await toy("OPTIONS", path)
        assert (answer.status, answer.headers["Allow"], answer.content) == (204, allow, b"")
    assert (await toy("OPTIONS", "/toy")).status == 404


@pytest.mark.parametrize("what", ["list", "large", "headers", "text"])
async def test_head_is_get_without_the_body(toy: Any, what: str) -> None:
    got = await toy.get(f"/toy/answers/{what}")
    head = await toy("HEAD", f"/toy/answers/{what}")
    assert head.content == b""

    def lasting(answer: Any) -> set[tuple[str, str]]:
        return {(k.lower(), v) for k, v in answer.headers.items()} - {
            ("x-request-id", answer.headers["X-Request-Id"]),
            ("date", answer.headers["Date"]),
        }

    assert (head.status, lasting(head)) == (got.status, lasting(got))


@pytest.mark.parametrize(
    "path", ["/toy", "/toy/things/", "/toy/things/a/b", "/toy//things", "/TOY/things", "//", "/%2e"]
)
async def test_not_found(toy: Any, path: str) -> None:
    answer = await toy.get(path)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json == {"title": "Not Found", "status": 404, "detail": "Not found"}


@pytest.mark.parametrize("base", ["/base", "/a/b"])
async def test_base_path(start: Any, base: str) -> None:
    toy = await start(settings={"server.base_path": base})
    assert (await toy.get(f"{base}/toy/things/x")).json == {"path": {"name": "x"}}
    assert (await toy.get(f"{base}/metrics")).status == 200
    assert (await toy.get("/toy/things/x")).status == 404
    assert (await toy("PUT", f"{base}/toy/things")).status == 405


async def test_mounted_in_another_application(start: Any) -> None:
    @web.middleware
    async def mark(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        response.headers["X-Outer"] = "yes"
        return response

    def inside(app: web.Application) -> web.Application:
        outer = web.Application(middlewares=[mark])
        outer.add_subapp("/mounted", app)
        return outer

    toy = await start(inside=inside)
    answer = await toy.get("/mounted/toy/things/x")
    assert (answer.json, answer.headers["X-Outer"]) == ({"path": {"name": "x"}}, "yes")
    missing = await toy.get("/mounted/none")
    assert (missing.status, missing.headers["Content-Type"]) == (404, "application/problem+json")
    assert (await toy("PUT", "/mounted/toy/things")).headers["Allow"] == "OPTIONS, POST"


async def test_middlewares_and_signals_of_an_embedder_see_every_answer(start: Any) -> None:
    async def mark(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Outer"] = "yes"

    def inside(app: web.Application) -> web.Application:
        app.on_response_prepare.append(mark)
        return app

    toy = await start(inside=inside)
    for path in ("/toy/things/x", "/none", "/toy/answers/large"):
        assert (await toy.get(path)).headers["X-Outer"] == "yes"


# Answers


@pytest.mark.parametrize(
    ("what", "status", "content_type", "content"),
    [
        pytest.param("list", 200, "application/json", b"[1,2]", id="document"),
        pytest.param("null", 200, "application/json", b"null", id="bytes"),
        pytest.param("headers", 201, "application/json", b'{"a":1}', id="status and headers"),
        pytest.param("text", 200, "text/plain; charset=utf-8", b"hello", id="other type"),
        pytest.param("empty", 204, None, b"", id="empty"),
    ],
)
async def test_answers(toy: Any, what: str, status: int, content_type: str | None, content: bytes) -> None:
    answer = await toy.get(f"/toy/answers/{what}")
    assert (answer.status, answer.headers.get("Content-Type"), answer.content) == (status, content_type, content)
    assert (answer.headers["Server"], answer.headers["Vary"]) == ("homeport", "Origin")
    if what == "headers":
        assert (answer.headers["Location"], answer.headers["ETag"]) == ("/x", '"1"')


async def test_an_answer_is_the_same_whichever_way_it_is_written(toy: Any) -> None:
    """HTTP/1.1 with keep-alive has a way of its own."""
    request = "GET /toy/things/x HTTP/{}\r\nHost: localhost\r\nConnection: {}\r\n\r\n"

    def parse(answer: bytes) -> tuple[str, dict[str, str], bytes]:
        head, _, body = answer.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = dict(one.split(": ", 1) for one in lines)
        assert len(headers.pop("X-Request-Id")) == 16
        assert headers.pop("Date").endswith(" GMT")
        headers.pop("Connection", None)
        return line.partition(" ")[2], headers, body

    kept = await toy.raw((request.format("1.1", "keep-alive") + request.format("1.1", "close")).encode())
    first, second = (b"HTTP/1.1" + part for part in kept.split(b"HTTP/1.1")[1:])
    old = await toy.raw(request.format("1.0", "close").encode())
    assert parse(first) == parse(second) == parse(old)
    assert b"Connection: close" in second
    assert b"Connection" not in first


async def test_pipelined_requests_are_answered_in_order(toy: Any) -> None:
    request = "GET /toy/things/{} HTTP/1.1\r\nHost: localhost\r\nConnection: {}\r\n\r\n"
    names = [f"n{number}" for number in range(20)]
    sent = [request.format(name, "close" if name == names[-1] else "keep-alive") for name in names]
    answer = await toy.raw("".join(sent).encode())
    assert re.findall(rb'"name":"(\w+)"', answer) == [name.encode() for name in names]


@pytest.mark.parametrize(
    ("what", "accepted", "coding"),
    [
        pytest.param("large", "gzip", "gzip", id="gzip"),
        pytest.param("large", "deflate", "deflate", id="deflate"),
        pytest.param("large", "deflate, gzip", "gzip", id="gzip is preferred"),
        pytest.param("large", "GZIP;Q=0.5", "gzip", id="any case"),
        pytest.param("large", "*", "gzip", id="anything"),
        pytest.param("large", "br, zstd", None, id="others"),
        pytest.param("large", "gzip;q=0, deflate", "deflate", id="refused"),
        pytest.param("large", "gzip; q=0.000, *;q=0", None, id="all refused"),
        pytest.param("large", "", None, id="empty"),
        pytest.param("large", None, None, id="none"),
        pytest.param("1025", "gzip", "gzip", id="over 1 KB"),
        pytest.param("1024", "gzip", None, id="1 KB"),
        pytest.param("huge", "gzip", "gzip", id="on a thread"),
        pytest.param("image", "gzip", None, id="an image is compressed already"),
    ],
)
async def test_compression(toy: Any, what: str, accepted: str | None, coding: str | None) -> None:
    plain = await toy.get(f"/toy/answers/{what}")
    answer = await toy.get(f"/toy/answers/{what}", headers={} if accepted is None else {"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == coding
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    unpack: dict[str | None, Any] = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}
    assert unpack[coding](answer.content) == plain.content
    compressible = what in ("large", "1025", "huge")
    assert answer.headers["Vary"] == plain.headers["Vary"] == ("Origin, Accept-Encoding" if compressible else "Origin")


async def test_a_handler_may_stream(toy: Any) -> None:
    answer = await toy.get("/toy/stream", headers={"Origin": "http://localhost:3000"})
    assert answer.content == b"one\ntwo\n"
    assert len(answer.headers["X-Request-Id"]) == 16
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


async def test_every_answer_has_an_id_of_its_own(toy: Any) -> None:
    paths = ["/toy/things/x", "/none", "/toy/fail/crash", "/toy/answers/empty", "/toy/answers/large", "/toy/things/x"]
    ids = [(await toy.get(path)).headers["X-Request-Id"] for path in paths]
    assert len(set(ids)) == len(paths)


# Order


async def test_the_first_thing_that_is_wrong_is_what_is_answered(start: Any) -> None:
    toy = await start(settings={"server.trusted_proxies": ["127.0.0.1"], "server.default_rate_limit": "9/minute"})
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Content-Type": "text/plain"}
    headers |= {"X-Forwarded-For": "192.0.2.1", "Authorization": "Bearer wrong"}
    body = b"{" * 2**20
    for status, correction in [
        (421, {"Host": "localhost"}),
        (403, {"Origin": "http://localhost"}),
        (413, {}),
        (415, {"Content-Type": "application/json"}),
        (401, {"Authorization": "Bearer correct horse"}),
        (400, {}),
        (400, {}),
        (200, {}),
        (200, {}),
        (429, {}),
    ]:
        answer = await toy("POST", "/toy/strict", data=BytesIO(body + b" "), headers=headers)
        assert answer.status == status
        headers |= correction
        if status == 413:
            body = b"{"
        elif status == 400:
            body = b"{}" if body == b"{" else b'{"name": "a"}'
