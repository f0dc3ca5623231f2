"""What is told of every request: the access log and the metrics."""

import asyncio
import io
import json
import logging
import re
import threading
from typing import Any

import pytest

from homeport.server.config import LogConfig
from homeport.server.logs import LineWriter, configure_logging

FIELDS = (
    "timestamp",
    "level",
    "event",
    "method",
    "path",
    "username",
    "entriesCount",
    "responseStatus",
    "responseTime",
    "userAgent",
    "ipAddress",
    "requestId",
)


async def logged(toy: Any, count: int) -> list[dict[str, Any]]:
    """The first lines of the access log, once they are written."""
    async with asyncio.timeout(5):
        while toy.stderr.getvalue().count("\n") < count:
            await asyncio.sleep(0.01)
    return [json.loads(line) for line in toy.stderr.getvalue().splitlines()]


async def test_access_log(toy: Any) -> None:
    answer = await toy.post(
        "/toy/things?key=secret", {"name": "a", "parts": ["x", "y"]}, headers={"User-Agent": "me/1"}
    )
    [line] = await logged(toy, 1)
    assert tuple(line) == FIELDS
    assert 0 < line.pop("responseTime") < 1000
    assert line == {
        "timestamp": "2025-06-03T12:00:00.000Z",
        "level": "info",
        "event": "request",
        "method": "POST",
        "path": "/toy/things",
        "username": None,
        "entriesCount": 2,
        "responseStatus": 200,
        "userAgent": "me/1",
        "ipAddress": "127.0.0.1",
        "requestId": answer.headers["X-Request-Id"],
    }


async def test_paths_are_logged_as_templates(toy: Any) -> None:
    for method, path in [
        ("GET", "/toy/things/SECRET?key=SECRET"),
        ("HEAD", "/toy/things/SECRET"),
        ("DELETE", "/toy/things/SECRET"),
        ("OPTIONS", "/toy/things/SECRET"),
        ("GET", "/SECRET/things"),
        ("GET", "/toy/guess/SECRET"),
    ]:
        await toy(method, path, headers={"Origin": "http://localhost", "Authorization": "Bearer SECRET"})
    lines = await logged(toy, 6)
    assert [(line["method"], line["path"], line["responseStatus"]) for line in lines] == [
        ("GET", "/toy/things/{name}", 200),
        ("HEAD", "/toy/things/{name}", 200),
        ("DELETE", "/toy/things/{name}", 405),
        ("OPTIONS", "/toy/things/{name}", 204),
        ("GET", "{unmatched}", 404),
        ("GET", "/toy/guess/{secret}", 404),
    ]
    assert "SECRET" not in toy.stderr.getvalue()


async def test_the_username_and_the_forwarded_address(start: Any) -> None:
    toy = await start(settings={"server.trusted_proxies": ["127.0.0.1"]})
    await toy.get("/toy/secret", headers={"X-API-Key": "correct horse", "X-Forwarded-For": "2001:db8::1"})
    [line] = await logged(toy, 1)
    assert (line["username"], line["ipAddress"]) == ("alice", "2001:db8::1")


@pytest.mark.parametrize("agent", [b"a" * 8000, b'"\\ {}', b"\xff\xfe", "ü\U0001f600".encode(), b"a\tb", b""], ids=repr)
async def test_clients_cannot_forge_lines(toy: Any, agent: bytes) -> None:
    head = b"GET /toy/things/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nUser-Agent: "
    assert (await toy.raw(head + agent + b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    [line] = await logged(toy, 1)
    assert tuple(line) == FIELDS
    assert len(line["userAgent"]) <= 256
    assert line["userAgent"].isprintable()


@pytest.mark.parametrize(("level", "lines"), [("debug", 1), ("info", 1), ("warning", 0), ("error", 0)])
async def test_the_access_log_has_a_level(start: Any, level: str, lines: int) -> None:
    toy = await start(settings={"log.level": level})
    await toy.get("/toy/things/x")
    await toy.app.cleanup()
    assert toy.stderr.getvalue().count("\n") == lines


async def test_console_lines(start: Any) -> None:
    toy = await start(settings={"log.format": "console"})
    await toy.get("/toy/things/x")
    async with asyncio.timeout(5):
        while "\n" not in toy.stderr.getvalue():
            await asyncio.sleep(0.01)
    assert re.search(r"2025-06-03T12:00:00.000Z.*request.*/toy/things/\{name\}", toy.stderr.getvalue())


# Metrics


async def test_metrics(toy: Any) -> None:
    for path in ("/toy/things/x", "/toy/things/y", "/toy/fail/crash", "/none"):
        await toy.get(path)
    await toy("HEAD", "/toy/things/x")
    answer = await toy.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.content.decode()
    for line in (
        'homeport_http_requests_total{operation="toy.show",status="200"} 3.0',
        'homeport_http_requests_total{operation="toy.fail",status="500"} 1.0',
        'homeport_http_requests_total{operation="http.not_found",status="404"} 1.0',
        'homeport_http_request_seconds_bucket{le="+Inf",operation="toy.show"} 3.0',
        'homeport_http_request_seconds_count{operation="toy.show"} 3.0',
        "homeport_log_lines_dropped_total 0.0",
    ):
        assert line in text
    buckets = re.findall(r'bucket\{le="([^"]+)",operation="toy.show"\} (\S+)', text)
    assert [float(bound) for bound, _ in buckets] == sorted(float(bound) for bound, _ in buckets)
    assert [float(count) for _, count in buckets] == sorted(float(count) for _, count in buckets)
    assert float(re.search(r'seconds_sum\{operation="toy.show"\} (\S+)', text)[1]) > 0  # type: ignore[index]  # it is there


async def test_two_applications_do_not_share_metrics(start: Any) -> None:
    one, two = await start(), await start()
    await one.get("/toy/things/x")
    assert b'operation="toy.show",status="200"' in (await one.get("/metrics")).content
    assert b'operation="toy.show",status="200"' not in (await two.get("/metrics")).content


# The writer of lines


class Gate(io.StringIO):
    """A stream that takes nothing until it is opened; ``reached`` says that somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.opened = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.opened.wait(10)
        return super().write(text)


def test_lines_come_in_order_and_are_flushed_at_the_end() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, "json")
    for number in range(500):
        writer.put({"event": "x", "number": number})
    writer.close()
    assert [json.loads(line)["number"] for line in stream.getvalue().splitlines()] == list(range(500))


def test_a_reader_that_does_not_read_costs_lines_and_not_time() -> None:
    stream = Gate()
    writer = LineWriter(stream, "json", size=10)
    writer.put({"event": "first"})
    assert stream.reached.wait(10)
    for number in range(15):
        writer.put({"event": str(number)})
    assert writer.dropped == 5
    stream.opened.set()
    writer.close()
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["first", *map(str, range(10)), "5 log lines were dropped"]


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_is_gone_is_no_crash() -> None:
    writer = LineWriter(Closed(), "json")
    writer.put({"event": "x"})
    writer.close()
    assert writer.dropped >= 1


def test_bytes_that_are_no_text_can_be_logged() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, "json")
    writer.put({"event": "half a pair: \ud800", "count": 1})
    writer.close()
    assert json.loads(stream.getvalue())["event"] == r"'half a pair: \ud800'"


@pytest.fixture
def root_logger() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_loggers_of_the_standard_library(root_logger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(LogConfig(level="warning", format="json"))
    log = logging.getLogger("some.library")
    log.info("not this")
    try:
        raise ValueError("so bad")
    except ValueError:
        log.exception("it failed\nforged")
    for handler in root_logger.handlers:
        handler.close()
    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["level"], line["event"], line["logger"]) == ("error", "it failed\nforged", "some.library")
    assert line["exception"].endswith("ValueError: so bad")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
