"""What was published of aiohttp's holes from 2024 to 2026, where it concerns a server of this kind, and the pairs of
Content-Length and Transfer-Encoding by which requests are smuggled (RFC 9112 6.3, 11.2).

Not of concern, since nothing here uses it: aiohttp's client and cookie jar, its static files, its own reader of
multipart/form-data, reasons or content types that a caller chooses.
"""

import asyncio
import time

import pytest

from .besieged import GET, HANDSHAKE, Besiege, masked, status
from .besieged import besiege as besiege
from .framings import AMBIGUOUS, CHUNKED

SMUGGLED = b"GET /big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/body") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n" % path
    return head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def _name(fields: list[bytes]) -> str:
    return " | ".join(repr(field)[2:-1] for field in fields)


@pytest.mark.parametrize("fields", AMBIGUOUS, ids=_name)
async def test_a_request_that_may_end_in_two_places_is_refused(besiege: Besiege, fields: list[bytes]) -> None:
    server = await besiege()
    answer = await server.ask(post(*fields, body=b"0\r\n\r\n" + SMUGGLED))
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.") == 1  # and nothing after it is read


def chunks(*lines: bytes) -> bytes:
    return post(CHUNKED, body=b"".join(lines)) + SMUGGLED


MALFORMED = [
    pytest.param(post(b"Content-Length: 4\x0b", body=b"abcd"), id="CVE-2024-23829 GHSA-8qpw-xqxj-h4r2 in a length"),
    pytest.param(b"G(T / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="CVE-2024-23829 GHSA-8qpw-xqxj-h4r2 in a method"),
    pytest.param(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX(: y\r\n\r\n", id="CVE-2024-23829 GHSA-8qpw-xqxj-h4r2 in a name"
    ),
    pytest.param(chunks(b"2;a=b\nc\r\nab\r\n0\r\n\r\n"), id="CVE-2024-52304 GHSA-8495-4g3g-x7pr"),
    pytest.param(chunks(b"\xd9\xa2\r\nab\r\n0\r\n\r\n"), id="CVE-2025-69224 GHSA-69f9-5gxw-wvc2 in a chunk"),
    pytest.param(
        b"GET / HTTP/1.\xd9\xa1\r\nHost: localhost\r\n\r\n", id="CVE-2025-69224 GHSA-69f9-5gxw-wvc2 in a version"
    ),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", id="CVE-2026-34520 GHSA-63hf-3vf5-4wqf NUL"),
    pytest.param(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x01b\r\n\r\n", id="CVE-2026-34520 GHSA-63hf-3vf5-4wqf control"
    ),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: a\r\n\r\n", id="CVE-2026-34525 GHSA-c427-h43c-vf67"),
    pytest.param(chunks(b"2 \r\nab\r\n0\r\n\r\n"), id="CVE-2026-111750 GHSA-pqxq-w44r-73xw a space"),
    pytest.param(chunks(b"2\nab\n0\n\n"), id="CVE-2026-111750 GHSA-pqxq-w44r-73xw bare LF"),
    pytest.param(chunks(b"2\r\nabXX0\r\n\r\n"), id="CVE-2026-111750 GHSA-pqxq-w44r-73xw no CRLF"),
]


@pytest.mark.parametrize("sent", MALFORMED)
async def test_what_was_once_taken_is_refused(besiege: Besiege, sent: bytes) -> None:
    server = await besiege()
    answer = await server.ask(sent)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.") == 1


@pytest.mark.parametrize(
    "path", [b"/../../etc/passwd", b"/..%2f..%2fetc/passwd", b"/docs/../../etc/passwd", b"//etc/passwd"]
)
async def test_cve_2024_23334_ghsa_5h86_8mv2_jq9f(besiege: Besiege, path: bytes) -> None:
    server = await besiege()
    client = await server.connect()
    await client.send(GET % path)
    assert status(await client.until(b"}")) == 404


async def test_cve_2025_53643_ghsa_9548_qrrj_x5pj(besiege: Besiege) -> None:
    """A trailer belongs to its request."""
    server = await besiege()
    client = await server.connect()
    trailer = b"GET /big HTTP/1.1\r\n"  # no field, therefore an error
    await client.send(post(CHUNKED, body=b"2\r\nab\r\n0\r\nX: y\r\n\r\n"))
    assert b'{"bytes":2}' in await client.until(b"}")
    await client.send(post(CHUNKED, body=b"2\r\nab\r\n0\r\n" + trailer + b"\r\n"))
    assert status(await client.until(b"}")) == 400


async def test_cve_2026_22815_ghsa_w2fm_2cpv_w7v5(besiege: Besiege) -> None:
    """A trailer has the bounds of a head."""
    server = await besiege()
    answer = await server.ask(post(CHUNKED, body=b"2\r\nab\r\n0\r\n" + b"X: y\r\n" * 5000))
    assert status(answer) in (400, 0)  # who still sends when the server closes may lose the answer
    await server.lets_go()


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip"])
async def test_cve_2025_69223_cve_2026_54278_cve_2026_128131(besiege: Besiege, coding: bytes) -> None:
    """Nothing is decompressed: neither read, nor at the end of a request that was refused."""
    server = await besiege()
    client = await server.connect()
    empty = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # gzip of nothing
    await client.send(post(b"Content-Encoding: " + coding, b"Content-Length: 60000", body=empty * 3000))
    assert status(await client.until(b"}")) == 415
    await client.send(GET % b"/")
    assert b"200 OK" in await client.until(b"}")


async def test_cve_2025_69229_ghsa_g84x_mcqj_x9qq(besiege: Besiege) -> None:
    """Many small chunks do not keep the server from others."""
    server = await besiege()
    sender, other = await server.connect(), await server.connect()
    await sender.send(post(CHUNKED))
    longest = 0.0
    for _ in range(20):
        await sender.send(b"1\r\nx\r\n" * 4000)
        begin = time.perf_counter()
        await other.send(GET % b"/")
        await other.until(b"}")
        longest = max(longest, time.perf_counter() - begin)
    await sender.send(b"0\r\n\r\n")
    assert b'{"bytes":80000}' in await sender.until(b"}")
    assert longest < 1


async def test_cve_2025_69230_ghsa_fh55_r93g_j68g(besiege: Besiege, caplog: pytest.LogCaptureFixture) -> None:
    """Cookies that are none are not told of in the log."""
    server = await besiege()
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: %b\r\n\r\n" % (b"a b=(c);" * 1000))
    assert b"200 OK" in await client.until(b"}")
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_cve_2026_54277_ghsa_63hw_fmq6_xxg2(besiege: Besiege) -> None:
    """A line has its bound also where it comes in pieces."""
    server = await besiege()
    for begin in (b"GET /", b"GET / HTTP/1.1\r\nX", b"GET / HTTP/1.1\r\nX: "):
        answer = await server.ask(begin, *[b"a" * 100] * 100)
        assert status(answer) in (431, 0)
    assert server.connections.ended["malformed"] == 3


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % len(SMUGGLED), CHUNKED], ids=["length", "chunked"])
async def test_cve_2026_69243_ghsa_mfx4_hv73_q22v(besiege: Besiege, framing: bytes) -> None:
    """The body of a request that asks for a WebSocket, and gets none, is no other request."""
    server = await besiege()
    body = SMUGGLED if framing is not CHUNKED else b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    client = await server.connect()
    await client.send(post(framing, b"Upgrade: websocket", b"Connection: Upgrade", body=body) + GET % b"/")
    assert b'{"bytes":%d}' % len(SMUGGLED) in await client.until(b"}")
    assert b'{"fine":true}' in await client.until(b"}")


async def test_cve_2026_111748_ghsa_f9xw_jh8m_3mwq(besiege: Besiege) -> None:
    """A request does not come over HTTPS because it says so."""
    server = await besiege(require_https=True)
    client = await server.connect()
    await client.send(GET % b"https://localhost/")
    assert status(await client.until(b"}")) == 403


async def test_ghsa_5wr8_gcqf_gqf3(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing, or half of a head, is not waited for."""
    monkeypatch.setattr("homeport.server.app.IDLE_SECONDS", 0.6)
    monkeypatch.setattr("homeport.server.connections.HEAD_SECONDS", 0.2)
    server = await besiege()
    assert await server.ask() == b""
    assert status(await server.ask(b"GET / HTTP/1.1\r\nHost: loc")) == 408


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([b"\x81\xff" + (1 << 40).to_bytes(8) + bytes(4)], 1009, id="CVE-2026-54274"),
        pytest.param(
            [b"\x01\x81" + bytes(4) + b"a", b"\x80\xff" + ((1 << 63) - 1).to_bytes(8) + bytes(4)],
            1009,
            id="PYSEC-2026-4395",
        ),
        pytest.param([b"\x81\xff" + ((1 << 64) - 1).to_bytes(8) + bytes(4)], 1009, id="the longest"),
        pytest.param([b"\xc1\x81" + bytes(4) + b"a"], 1002, id="CVE-2026-128131 GHSA-h4cc-hm5h-fmm9"),
    ],
)
async def test_frames_have_bounds(besiege: Besiege, frames: list[bytes], code: int) -> None:
    server = await besiege()
    client = await server.connect()
    await client.send(HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"))
    assert b"Extensions" not in await client.until(b"\r\n\r\n")
    await client.send(*frames)
    assert (await client.rest()).endswith(code.to_bytes(2))


async def test_cve_2026_123817(besiege: Besiege) -> None:
    """A frame that comes in many small pieces is one message all the same, and others need not wait for it."""
    server = await besiege()
    client, other = await server.connect(), await server.connect()
    await client.send(HANDSHAKE)
    await client.until(b"\r\n\r\n")
    frame = masked(b"x" * 60_000)
    for place in range(0, len(frame), 20):
        await client.send(frame[place : place + 20])
    await other.send(GET % b"/")
    assert b"200 OK" in await other.until(b"}")
    await client.until(b"x" * 60_000)


async def test_cve_2026_54273_ghsa_4fvr_rgm6_gqmc(besiege: Besiege) -> None:
    """Requests that wait behind another are few."""
    server = await besiege()
    client = await server.connect()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"a" * 8000)
    sending = asyncio.create_task(client.send(GET % b"/hold", *[request] * 3000))
    await asyncio.wait([sending], timeout=1)
    assert not sending.done()  # 24 MB, of which the server takes but a few
    server.held.set()
    for _ in range(3001):
        await client.until(b"}")
    await sending
