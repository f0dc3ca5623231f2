"""Garbage for a whole server: nothing of it is an error of the server, none leaves a traceback, or memory that is
never given back."""

import asyncio
import json
import re
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from yarl import URL

from ..framings import AMBIGUOUS
from .conftest import Launch, Process

PATIENCE = 0.7
"""Seconds after which no answer comes: what was sent is no whole request."""
TOGETHER = 60
"""Requests at a time."""
GROWTH = 6 << 20
"""Bytes of memory that may come and go, once caches are full."""
APIS = ["console_usage", "device_usage", "leaderboard", "metering", "collections"]
"""Not sessions: what is almost garbage would start programs."""

Garbage = Callable[[Random, tuple[str, str]], bytes]
"""Makes a request, more or less, to an operation (its method and path)."""


def _request(operation: tuple[str, str], *fields: bytes, body: bytes = b"") -> bytes:
    method, path = operation
    first = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
    return first + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def _json(operation: tuple[str, str], body: bytes) -> bytes:
    return _request(operation, b"Content-Type: application/json", b"Content-Length: %d" % len(body), body=body)


def noise(random: Random, _: tuple[str, str]) -> bytes:
    return random.randbytes(random.randrange(1, 3000))


def damaged(random: Random, operation: tuple[str, str]) -> bytes:
    """A request with some bytes changed, left out or repeated."""
    sent = bytearray(_json(operation, b'{"userKey":"%b","entries":[1,2,{"a":null}]}' % (b"5f" * 32)))
    for _ in range(random.randrange(1, 6)):
        place = random.randrange(len(sent))
        match random.randrange(3):
            case 0:
                sent[place] = random.randrange(256)
            case 1:
                del sent[place : place + random.randrange(1, 9)]
            case 2:
                sent[place:place] = sent[place : place + random.randrange(1, 40)] * random.randrange(1, 4)
    return bytes(sent)


CHUNKS = [
    b"0\r\n\r\n",
    b"-1\r\nab\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"2 \r\n{}\r\n0\r\n\r\n",
    b" 2\r\n{}\r\n0\r\n\r\n",
    b"+2\r\n{}\r\n0\r\n\r\n",
    b"2\n{}\n0\n\n",
    b"2\r\n{}0\r\n\r\n",
    b"2\r\n{}XX0\r\n\r\n",
    b"2;a=b\nc\r\n{}\r\n0\r\n\r\n",
    b'2;a="\r\n{}\r\n0\r\n\r\n',
    b"2" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n",
    b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    b"2\r\n{}\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    b"2\r\n{}\r\n0\r\n\0\r\n\r\n",
    b"\r\n2\r\n{}\r\n0\r\n\r\n",
    b"g\r\n{}\r\n0\r\n\r\n",
    b"1\r\n{\r\n" * 500,
    b"\xd9\xa2\r\n{}\r\n0\r\n\r\n",  # an Arabic digit
]


def chunked(random: Random, operation: tuple[str, str]) -> bytes:
    fields = (b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    return _request(operation, *fields, body=random.choice(CHUNKS))


FRAMINGS = [
    *AMBIGUOUS,
    [b"Content-Length: 4", b"Content-Length: 4"],
    [b"Content-Length: 4, 5"],
    [b"Content-Length: 1_0"],
    [b"Content-Length: 18446744073709551615"],
    [b" Content-Length: 4"],
    [b"Content_Length: 4", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked, chunked"],
    [b"Transfer-Encoding: identity, chunked"],
    [b"Transfer-Encoding: gzip, chunked"],
    [b"X: y\nTransfer-Encoding: chunked", b"Content-Length: 4"],
    [b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 4"],
    [b"Upgrade: websocket", b"Connection: Upgrade", b"Transfer-Encoding: chunked"],
    [b"Expect: 100-continue", b"Content-Length: 4", b"Transfer-Encoding: chunked"],
]
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def framed(random: Random, operation: tuple[str, str]) -> bytes:
    """A request whose end two readers may see in two places."""
    body = random.choice([b"2\r\n{}\r\n0\r\n\r\n", b"0\r\n\r\n", b"{}  ", b"4\r\nx", b""])
    fields = random.choice(FRAMINGS)
    return _request(operation, b"Content-Type: application/json", *fields, body=body + SMUGGLED)


NUMBERS = [
    "1" * 5000,
    "-" + "9" * 400,
    "1e400",
    "-1e400",
    "1e-400",
    "0." + "1" * 5000,
    "-0",
    "-0.0",
    "1E+2",
    "00",
    "+1",
]
NUMBERS += ["9007199254740993", "18446744073709551616", "NaN", "Infinity", "0x10", "1_000", ".5", "5.", "\u0665"]
TEXTS = [chr(plane << 16 | 0x41) * 3 for plane in range(17)] + [
    "\0",
    "\ufffe",
    "\u202e",
    "a\u0301" * 50,
    "\ufeff",
    "\r\n",
]
ESCAPES = [
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"\\x41"',
    '"\\',
    '"\\u12"',
    '"\n"',
    '"a',
    '"' + "\\\\" * 9000 + '"',
]
BYTES = [
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b'{"\x80":1}',
    b"{\0}",
    b"\xf0\x9f",
]
DEPTH = 100_000


def document(random: Random, operation: tuple[str, str]) -> bytes:
    """A body that is no JSON, or strange JSON."""
    name = random.choice(["userKey", "entries", "timestamp", "usage", "id", "a"])
    bodies: list[Callable[[], bytes]] = [
        lambda: b"[" * DEPTH,
        lambda: b"[" * DEPTH + b"]" * DEPTH,
        lambda: b'{"a":' * DEPTH + b"1" + b"}" * DEPTH,
        lambda: f'{{"{name}":{random.choice(NUMBERS)}}}'.encode(),
        lambda: random.choice(NUMBERS).encode(),
        lambda: f'{{"{name}":{random.choice(ESCAPES)}}}'.encode(),
        lambda: random.choice(BYTES),
        lambda: json.dumps({name: random.choice(TEXTS), random.choice(TEXTS): 1}, ensure_ascii=False).encode(),
        lambda: f'{{"{name}":1,"{name}":[],"{name}":{{}}}}'.encode(),
        lambda: b"{" + b",".join(b'"a":%d' % number for number in range(2000)) + b"}",
        lambda: json.dumps(random.choice([[], {}, None, True, "", 0, [[]], [None] * 9999])).encode(),
        lambda: json.dumps({name: {name: [{name: "x" * 70_000}]}}).encode(),
        lambda: b" " * 50_000 + b"{}",
        lambda: b"",
    ]
    return _json(operation, random.choice(bodies)())


def headed(random: Random, operation: tuple[str, str]) -> bytes:
    """A request with strange fields, and a strange query."""
    text = random.choice(TEXTS).encode() if random.random() < 0.5 else random.randbytes(random.randrange(60))
    name = random.choice(
        [
            "Authorization",
            "X-API-Key",
            "Cookie",
            "Origin",
            "If-Match",
            "If-None-Match",
            "Idempotency-Key",
            "Range",
            "Accept",
            "Accept-Encoding",
            "Last-Event-ID",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "Forwarded",
            "Content-Type",
            "User-Agent",
            "Expect",
            "Host",
            "TE",
        ]
    )
    value = random.choice([text, b"Bearer " + text, b'"' + text, b"," * 500, b"bytes=0-,0-,0-", b"=;" * 900, b""])
    path = operation[1] + "?" + "&".join(["limit=" + random.choice(NUMBERS), "a%00=%ff", "%", "since=%F0%9F", "=&="])
    return _request((operation[0], path), name.encode() + b": " + value.replace(b"\r", b"").replace(b"\n", b""))


def placed(random: Random, operation: tuple[str, str]) -> bytes:
    """A request for a strange path."""
    part = random.choice(
        ["%00", "%2e%2e%2f", "..", "%ff%fe", "%ED%A0%80", "a" * 5000, "%", "%zz", ";", "%0d%0a", "\\", "//"]
    )
    path = random.choice([operation[1] + "/" + part, "/" + part + operation[1], operation[1].replace("x1", part)])
    return _request((random.choice([operation[0], "GET", "PURGE", "get", "PATCH", "PROPFIND"]), path))


KINDS: list[Garbage] = [noise, damaged, chunked, framed, document, headed, placed]


async def _operations(server: Process) -> list[tuple[str, str]]:
    """Method and path of each; what is a parameter of a path is filled in."""
    async with server.session.get(f"{server.url}/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    return [
        (method.upper(), re.sub(r"\{\w+\}", "x1", path))
        for path, item in paths.items()
        for method in item
        if method in ("get", "put", "post", "delete", "patch")
    ]


async def _answered(url: URL, sent: bytes) -> list[int]:
    """The statuses of the answers to some bytes."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    received = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            while part := await reader.read(1 << 16):
                received += part
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


async def _throw(server: Process, count: int, seed: int) -> Counter[int]:
    """How often each status was answered to so much garbage."""
    random, url, statuses = Random(seed), URL(server.url), Counter[int]()
    operations = await _operations(server)
    all_of_it = (KINDS[number % len(KINDS)](random, random.choice(operations)) for number in range(count))

    async def throw() -> None:
        for sent in all_of_it:
            for status in await _answered(url, sent):
                assert status < 500, (status, sent[:2000])
                statuses[status] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(TOGETHER):
            group.create_task(throw())
    return statuses


def _resident(server: Process) -> int:
    """Bytes of memory."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def _launch(launch: Launch, folder: Path) -> Process:
    (folder / "schemas").mkdir()
    (folder / "schemas" / "note.schema.json").write_text('{"properties": {"title": {"type": "string"}}}')
    arguments = ("--port", "0", "--storage", "memory:", "--schemas", "schemas")
    server = await launch(*arguments, HOMEPORT_APIS__ENABLED=json.dumps(APIS))
    await server.ready()
    return server


def _check(server: Process, statuses: Counter[int]) -> None:
    assert {400, 404, 415} <= statuses.keys(), statuses
    assert "Traceback" not in server.log
    assert '"level":"error"' not in server.log


async def test_some_garbage(launch: Launch, tmp_path: Path) -> None:
    server = await _launch(launch, tmp_path)
    _check(server, await _throw(server, 420, seed=1))
    async with server.session.get(f"{server.url}/metrics") as answer:
        assert 'homeport_connections_ended_total{reason="malformed"}' in await answer.text()
    assert await server.stop() == 0


@pytest.mark.slow
async def test_much_garbage_leaves_no_memory_behind(launch: Launch, tmp_path: Path) -> None:
    server = await _launch(launch, tmp_path)
    _check(server, await _throw(server, 20_000, seed=2))
    before = _resident(server)
    statuses = await _throw(server, 10_000, seed=3)
    _check(server, statuses)
    grown = _resident(server) - before
    print(f"{statuses}, {before:,} bytes of memory before, {grown:,} more after")
    assert grown < GROWTH
    assert await server.stop() == 0
