"""What is told of every request: the access log and the metrics."""

import asyncio
import errno
import io
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpClient

from homeport import create_app, load_config
from homeport.server.config import LogConfig
from homeport.server.jobs import Job
from homeport.server.live import LIVE
from homeport.server.logs import LineWriter, configure_logging
from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.storage import Collection, Conflict, Put, Storage, make_storage
from homeport.storage.times import SECOND

from ..storage.disks import Disk, use
from .conftest import NOON

ROOT = Path(__file__).parents[2]

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


LogLines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logs(root_logger: Any, monkeypatch: pytest.MonkeyPatch) -> LogLines:
    """What this process's loggers have said."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(LogConfig(level="info", format="json"))
    monkeypatch.undo()

    def lines() -> list[dict[str, Any]]:
        for handler in root_logger.handlers:
            handler.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return lines


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


async def exposed(server: Any) -> dict[str, float]:
    """The metrics, by name and labels."""
    text = (await server.get("/metrics")).content.decode()
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.fixture(params=["file", "sqlite"])
async def durable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    async with make_storage(f"{request.param}:{tmp_path}/store") as storage:
        yield storage


NOTES = Collection("notes")


def notes_api() -> Api:
    api = Api("notes", collections=(NOTES,))

    @api.post("/notes/{id}")
    async def write(request: ApiRequest) -> object:
        version = request.path["id"] == "conflict"
        try:
            commit = await request.storage.commit([Put(NOTES, request.path["id"], {}, if_version=int(version))])
        except Conflict:
            return {}
        return {"version": commit.version}

    return api


async def test_commits(start: Any, durable: Storage) -> None:
    server = await start([notes_api()], storage=durable)
    async with asyncio.timeout(10):  # what the server does by itself when it starts
        while not (before := await exposed(server))['homeport_job_seconds_count{name="idempotency keys"}']:
            await asyncio.sleep(0.01)
    for id in ("a", "b", "conflict"):
        await server.post(f"/notes/{id}")
    after = await exposed(server)
    grown = {name.removeprefix("homeport_storage_"): after[name] - before[name] for name in after if name in before}
    assert grown['commits_total{outcome="done"}'] == 2
    assert grown['commits_total{outcome="conflict"}'] == 1
    assert grown['commits_total{outcome="failed"}'] == 0
    assert grown["queue_seconds_count"] == grown["commit_seconds_count"] == 3
    assert 0 < grown["commit_seconds_sum"] < 10


async def test_refusals_for_a_limit(toy: Any) -> None:
    statuses = [(await toy.post("/toy/named", {"name": "x"})).status for _ in range(5)]
    assert statuses == [200, 200, 429, 429, 429]
    assert (await exposed(toy))['homeport_rate_limit_refusals_total{limit="named"}'] == 3


async def test_jobs(start: Any) -> None:
    ran = asyncio.Semaphore(0)
    works = True

    async def run(_: web.Application) -> None:
        ran.release()
        if not works:
            raise RuntimeError("not today")

    api = Api("toy")
    api.jobs.append(Job("tidy", "0 * * * *", run, utc=True))
    server = await start([api])
    await ran.acquire()
    works = False
    await asyncio.sleep(0)
    server.clock.advance(3600)
    await ran.acquire()
    metrics = await exposed(server)
    assert metrics['homeport_job_seconds_count{name="tidy"}'] == 2
    assert metrics['homeport_job_failures_total{name="tidy"}'] == 1
    assert metrics['homeport_job_last_success_timestamp_seconds{name="tidy"}'] == NOON // SECOND


async def test_a_stream_counts_until_it_begins(start: Any) -> None:
    api = Api("toy")

    @api.get("/events")
    async def events(request: ApiRequest) -> web.StreamResponse:
        async with request.app[LIVE].events(request) as stream:
            await asyncio.sleep(0.3)
        return stream.response

    server = await start([api])
    async with server.session.get(f"{server.url}/events"):
        assert (await exposed(server))['homeport_live_subscribers{kind="sse"}'] == 1
        [line] = [line for line in await logged(server, 2) if line["path"] == "/events"]
    metrics = await exposed(server)
    assert metrics['homeport_http_request_seconds_sum{operation="toy.events"}'] < 0.3
    assert line["responseTime"] >= 300
    assert metrics['homeport_live_subscribers{kind="sse"}'] == 0


async def test_a_loop_that_is_late(toy: Any) -> None:
    """The only one that it can be late for is asked every quarter of a second."""
    time.sleep(0.6)
    async with asyncio.timeout(10):
        while (await exposed(toy))["homeport_loop_lag_seconds_count"] < 1:
            await asyncio.sleep(0.05)
    assert (await exposed(toy))["homeport_loop_lag_seconds_sum"] > 0.3


async def test_every_metric_is_documented(aiohttp_client: AiohttpClient) -> None:
    app = create_app(load_config(environ={}, overrides={"storage.url": "memory:"}))
    client = await aiohttp_client(app)
    text = await (await client.get("/metrics")).text()
    families = set(re.findall(r"^# TYPE (homeport_\w+) ", text, re.MULTILINE))
    documented = re.findall(r"^\| `(homeport_\w+)", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(families) > 15
    assert families <= set(documented)


# From an answer to the log


async def test_a_request_can_be_followed_from_its_answer_to_the_store(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: LogLines
) -> None:
    disk = Disk()
    use(monkeypatch, disk)
    async with make_storage(f"file:{tmp_path}/store") as storage:
        server = await start([notes_api()], storage=storage)
        assert (await server.post("/notes/a")).status == 200
        disk.fails = lambda call: errno.ENOSPC if disk.calls[-1] == "write" else None
        refused = await asyncio.gather(*[server.post(f"/notes/{number}") for number in range(5)])
        assert {answer.status for answer in refused} == {507}
        disk.fails = lambda call: None
        assert (await server.post("/notes/b")).status == 200
    lines = [line for line in logs() if "store is full" in line["event"]]
    assert sorted(line["requestId"] for line in lines) == sorted(answer.headers["X-Request-Id"] for answer in refused)


async def test_what_a_handler_starts_elsewhere_is_the_requests_too(start: Any, logs: LogLines) -> None:
    api = Api("toy")

    @api.get("/elsewhere")
    async def elsewhere(_: ApiRequest) -> object:
        await asyncio.to_thread(logging.getLogger("far.away").warning, "I am here")
        return {}

    server = await start([api])
    answers = [await server.get("/elsewhere") for _ in range(2)]
    logging.getLogger("far.away").warning("I am here")
    assert [line.get("requestId") for line in logs() if line.get("logger") == "far.away"] == [
        *[answer.headers["X-Request-Id"] for answer in answers],
        None,
    ]


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
