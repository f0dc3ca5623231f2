"""Connections of clients who mean harm: many, slow, endless ones, and such as speak no HTTP."""

import asyncio
import resource
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import homeport
from homeport.server import app as app_module
from homeport.server import bodies, connections
from homeport.server.clients import Clients
from homeport.server.connections import room_for
from homeport.server.masking import Masked

from .besieged import BIG, GET, HANDSHAKE, PATIENCE, Besiege, masked, status
from .besieged import besiege as besiege

SHORT = 0.3
"""Seconds of a deadline that is to pass."""


# Who takes long


async def test_a_head_has_a_deadline(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SHORT)
    server = await besiege()
    answer = await server.ask(*(b"%c" % letter for letter in GET % (b"/" + b"a" * 1000)), pause=0.02)
    assert status(answer) == 408
    assert b"Connection: close" in answer
    assert server.connections.ended["head"] == 1
    await server.lets_go()


async def test_a_head_after_another_has_a_deadline(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SHORT)
    server = await besiege()
    answer = await server.ask(GET % b"/", b"GET", b" / HT", b"TP", pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 408") == 1


async def test_a_head_in_pieces_is_whole_in_time(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2 * SHORT)
    server = await besiege()
    client = await server.connect()
    await client.send(b"GET / HT", b"TP/1.1\r\nHost: loc", b"alhost\r\n\r\n", pause=SHORT / 6)
    assert b"200 OK" in await client.until(b"}")
    await asyncio.sleep(3 * SHORT)  # then nothing is due any more
    await client.send(GET % b"/")
    assert b"200 OK" in await client.until(b"}")


async def test_an_idle_connection_ends(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "IDLE_SECONDS", SHORT)
    server = await besiege()
    assert await server.ask() == b""
    assert status(await server.ask(GET % b"/")) == 200
    await server.lets_go()


@pytest.mark.parametrize("path", [b"/body", b"/stream"])
async def test_a_body_has_a_least_rate(besiege: Besiege, monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    monkeypatch.setattr(bodies, "_READ_SECONDS", SHORT)
    monkeypatch.setattr(bodies, "_READ_RATE", 2_000)
    server = await besiege()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 20000\r\n\r\n" % path
    slow = await server.connect()
    sending = asyncio.create_task(slow.send(head, *[b"x"] * 20_000, pause=0.02))
    assert status(await slow.until(b"}")) == 408
    sending.cancel()
    fast = await server.connect()
    await fast.send(head, *[b"x" * 400] * 50, pause=SHORT / 15)  # three times as long, and fast enough
    assert b'{"bytes":20000}' in await fast.until(b"}")


async def test_a_reader_has_a_least_rate(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TAKE_SECONDS", SHORT)
    monkeypatch.setattr(connections, "TAKE_RATE", 1 << 40)
    server = await besiege()
    client = await server.connect()
    client.stop_reading()
    await client.send(GET % b"/big")
    await server.lets_go()
    assert server.connections.ended["reader"] == 1


async def test_a_reader_may_take_as_long_as_its_answer_is(besiege: Besiege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TAKE_SECONDS", SHORT)
    monkeypatch.setattr(connections, "TAKE_RATE", 1_000_000)
    server = await besiege()
    client = await server.connect()
    client.stop_reading()
    await client.send(GET % b"/big")
    await asyncio.sleep(3 * SHORT)
    client.read_again()
    assert len(await client.until(b"}")) > BIG
    assert server.connections.ended["reader"] == 0


async def test_a_closed_connection_does_not_wait_for_its_reader(
    besiege: Besiege, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TAKE_SECONDS", SHORT)
    server = await besiege()
    client = await server.connect()
    client.stop_reading()
    await client.send(GET % b"/drop")
    await server.lets_go()
    assert server.connections.ended["reader"] == 1


# Heads without an end


FIELDS = [
    pytest.param([b"X-%d: a\r\n" % number for number in range(200)], 400, id="many fields"),
    pytest.param([b"X: ", *[b"a" * 1000] * 100], 431, id="a long field"),
    pytest.param([b"a" * 10_000, b": a\r\n"], 431, id="a long name"),
    pytest.param([b"X-%d: %b\r\n" % (number, b"a" * 4000) for number in range(90)], 431, id="much in all"),
    pytest.param([b"X: a\r\n"] * 100_000, 400, id="no end"),
]


@pytest.mark.parametrize(("fields", "refusal"), FIELDS)
async def test_a_head_has_bounds(besiege: Besiege, fields: list[bytes], refusal: int) -> None:
    server = await besiege()
    answer = await server.ask(b"GET / HTTP/1.1\r\nHost: localhost\r\n", *fields, b"\r\n")
    assert status(answer) in (refusal, 0)  # who still sends when the server closes may lose the answer
    assert len(answer) < 500
    await server.lets_go()


@pytest.mark.parametrize(("fields", "refusal"), FIELDS[:3])
async def test_a_head_has_bounds_also_in_one_piece(besiege: Besiege, fields: list[bytes], refusal: int) -> None:
    server = await besiege()
    head = b"".join([b"GET / HTTP/1.1\r\nHost: localhost\r\n", *fields])
    answer = await server.ask(head[:40_000])
    assert status(answer) in (refusal, 0)
    assert b"aaaa" not in answer


async def test_a_long_url(besiege: Besiege) -> None:
    server = await besiege()
    assert status(await server.ask(GET % (b"/" + b"a" * 9000))) == 431


# Many


async def test_too_many_in_all(besiege: Besiege) -> None:
    server = await besiege(max_connections=16)
    busy = [await server.connect() for _ in range(16)]
    for client in busy:
        await client.send(GET % b"/hold")
    await server.held.by(16)
    answer = await server.ask(GET % b"/")
    assert status(answer) in (503, 0)
    if answer:
        assert b"Retry-After: 10\r\n" in answer
    assert server.connections.refused == {"server": 1, "address": 0}
    server.held.set()
    for client in busy:
        assert b"200 OK" in await client.until(b"}")
        client.close()
    await server.lets_go()
    client = await server.connect()
    await client.send(GET % b"/")
    assert b"200 OK" in await client.until(b"}")


async def test_who_waits_makes_room_for_who_asks(besiege: Besiege) -> None:
    server = await besiege(max_connections=16)
    first = await server.connect()
    await first.send(b"GET / HTTP/1.1\r\n")
    busy = await server.connect()
    await busy.send(GET % b"/hold")
    await server.held.by(1)
    waiting = [await server.connect() for _ in range(14)]
    newcomer = await server.connect()
    await newcomer.send(GET % b"/")
    assert b"200 OK" in await newcomer.until(b"}")
    assert await first.rest() == b""  # the one that came first
    server.held.set()
    assert b"200 OK" in await busy.until(b"}")
    await waiting[-1].send(GET % b"/")
    assert b"200 OK" in await waiting[-1].until(b"}")
    assert server.connections.ended["room"] == 1
    assert server.connections.refused["server"] == 0


async def test_who_comes_again_and_again_shuts_nobody_out(besiege: Besiege) -> None:
    server = await besiege(max_connections=64)

    async def attack() -> None:
        while True:
            await server.ask(b"GET / HTTP/1.1\r\nX: ")
            await asyncio.sleep(0.1)

    attacks = [asyncio.create_task(attack()) for _ in range(100)]
    async with asyncio.timeout(PATIENCE):
        while not server.connections.ended["room"]:
            await asyncio.sleep(0.01)
    answers = [await server.ask(b"GET / HTTP/1.0\r\n\r\n") for _ in range(50)]
    for task in attacks:
        task.cancel()
    await asyncio.gather(*attacks, return_exceptions=True)
    assert [status(answer) for answer in answers].count(200) >= 45
    assert server.connections.refused["server"] == 0


async def test_too_many_of_an_address(
    besiege: Besiege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Clients, "counted", lambda _, peer: peer)  # as if this machine were another
    server = await besiege(max_connections_per_address=2)
    clients = [await server.connect() for _ in range(2)]
    for client in clients:
        await client.send(GET % b"/")
        assert b"200 OK" in await client.until(b"}")
    assert status(await server.ask(GET % b"/")) in (503, 0)
    assert status(await server.ask(GET % b"/")) in (503, 0)
    assert server.connections.refused == {"server": 0, "address": 2}
    told = "connections are refused: 127.0.0.1 has 2, the most that an address may have"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [told]  # but once
    clients[0].close()
    async with asyncio.timeout(PATIENCE):
        while len(server.connections) == 2:
            await asyncio.sleep(0.01)
    another = await server.connect()
    await another.send(GET % b"/")
    assert b"200 OK" in await another.until(b"}")


async def test_connections_are_counted_for_prometheus(besiege: Besiege) -> None:
    server = await besiege(max_connections=16)
    await server.ask(b"no request\r\n\r\n")
    await server.lets_go()
    client, _ = await server.connect(), await server.connect()
    await client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    metrics = await client.rest()
    assert b"homeport_connections 2.0\n" in metrics
    assert b'homeport_connections_refused_total{cap="server"} 0.0\n' in metrics
    assert b'homeport_connections_ended_total{reason="malformed"} 1.0\n' in metrics


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        pytest.param(None, None, id="a Unix socket"),
        pytest.param("127.0.0.1", None, id="loopback"),
        pytest.param("::1", None, id="loopback, IPv6"),
        pytest.param("::ffff:127.0.0.1", None, id="loopback, mapped"),
        pytest.param("10.1.2.3", None, id="a trusted proxy"),
        pytest.param("::ffff:10.1.2.3", None, id="a trusted proxy, mapped"),
        pytest.param("11.1.2.3", "11.1.2.3", id="a client"),
        pytest.param("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="a client's network"),
    ],
)
def test_what_a_connection_counts_for(peer: str | None, counted: str | None) -> None:
    assert Clients(("10.0.0.0/8",)).counted(peer) == counted


def test_open_files_are_kept_for_other_things() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (700, limits[1]))
        assert room_for(100) == 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (700, limits[1])
        assert room_for(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1512, limits[1])
        assert room_for(10**9) == limits[1] - 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# What is no HTTP, or none that is spoken here

S = b"s3cret"
NOT_TAKEN = [
    pytest.param(S + b"\r\n\r\n", 400, id="a word"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + S + b"\r\n\r\n", 400, id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
    pytest.param(b"GET /s3cret HTTP/2.0\r\nHost: localhost\r\n\r\n", 400, id="2.0"),
    pytest.param(b"GET /s3cret HTTP/1.2\r\nHost: localhost\r\n\r\n", 400, id="1.2"),
    pytest.param(b"GET /s3cret HTTP/9\r\nHost: localhost\r\n\r\n", 400, id="9"),
    pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
    pytest.param(b"GET / HTTP/0.9\r\n\r\n", 400, id="HTTP/0.9, told"),
    pytest.param(b"CONNECT s3cret.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n" + S, 400, id="CONNECT"),
    pytest.param(b"CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="CONNECT a path"),
    pytest.param(b"GET s3cret HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, id="no path"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: s3cret\r\n\r\n", 400, id="two hosts"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\ns3cret\r\n\r\n", 400, id="a field without a colon"),
    pytest.param(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, id="a space before the colon"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n s3cret\r\n\r\n", 400, id="a folded field"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \0s3cret\r\n\r\n", 400, id="NUL in a field"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rs3cret: b\r\n\r\n", 400, id="CR in a field"),
]


@pytest.mark.parametrize(("sent", "refusal"), NOT_TAKEN)
async def test_what_is_no_http_is_refused_and_not_repeated(besiege: Besiege, sent: bytes, refusal: int) -> None:
    server = await besiege()
    answer = await server.ask(sent)
    assert status(answer) == refusal
    head, _, document = answer.partition(b"\r\n\r\n")
    assert b"Server: homeport" in head
    assert b"Connection: close" in head
    assert b"Content-Type: application/problem+json" in head
    assert document.startswith(b'{"title":"Bad Request","status":400,"detail":"')
    assert S not in answer
    assert len(answer) < 400
    assert server.connections.ended["malformed"] == 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, id="OPTIONS *"),
        pytest.param(
            b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200, id="absolute"
        ),
        pytest.param(
            b"GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421, id="of another"
        ),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", 200, id="HTTP/1.0"),
        pytest.param(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", 200, id="HTTP/1.0 with a host"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", 200, id="empty lines before"),
        pytest.param(b"TRACE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405, id="TRACE"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: close, Upgrade\r\n\r\n", 200, id="h2c"
        ),
        pytest.param(
            b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n"
            b"Connection: close\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
            415,
            id="a compressed body",
        ),
    ],
)
async def test_what_is_unusual_is_answered(besiege: Besiege, sent: bytes, expected: int) -> None:
    server = await besiege()
    answer = await server.ask(sent)
    assert status(answer) == expected
    assert b"Server: homeport" in answer


# WebSockets


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([b"\x81\x02hi"], id="text"),
        pytest.param([b"\x81", b"\x02hi"], id="cut in its head"),
        pytest.param([masked(b"a" * 200) + b"\x82\x02hi"], id="after another"),
        pytest.param([b"\x89\x00"], id="ping"),
        pytest.param([b"\x88\x00"], id="close"),
    ],
)
async def test_frames_have_to_be_masked(besiege: Besiege, sent: list[bytes]) -> None:
    server = await besiege()
    client = await server.connect()
    await client.send(HANDSHAKE)
    await client.until(b"\r\n\r\n")
    await client.send(*sent, pause=0.05)
    assert (await client.rest()).endswith(b"\x88\x02\x03\xea")  # 1002


async def test_masked_frames_are_taken_also_in_pieces(besiege: Besiege) -> None:
    server = await besiege()
    client = await server.connect()
    await client.send(HANDSHAKE, *(b"%c" % byte for byte in masked(b"all is well")))
    await client.until(b"\x81\x0ball is well")


class Recorder:
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.got.append(data)
        return False, b""


@given(
    sizes=st.lists(st.sampled_from((0, 1, 125, 126, 127, 65_535, 65_536)), max_size=5),
    cuts=st.lists(st.integers(0, 200_000), max_size=12),
    bare=st.booleans(),
)
def test_only_frames_before_one_without_a_mask_are_read(sizes: list[int], cuts: list[int], bare: bool) -> None:
    good = b"".join(masked(bytes(size), 2) for size in sizes)
    sent = good + (b"\x81\x01a" if bare else b"")
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    recorder = Recorder()
    reader = Masked(recorder)  # type: ignore[arg-type]  # it reads all that it is given
    for begin, end in pairwise(places):
        reader.feed_data(sent[begin:end])
        if recorder.got[-1].endswith(b"\x70\x00"):
            break
    assert b"".join(recorder.got) == good + (b"\x70\x00" if bare else b"")


# All of it at once


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="needs slowhttptest")
def test_slow_connections_do_not_keep_a_client_waiting() -> None:
    root = Path(homeport.__file__).parent
    ran = subprocess.run([sys.executable, "-m", "bench", "hostile"], cwd=root, capture_output=True, text=True)
    print(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("p99") == 4
