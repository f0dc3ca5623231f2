"""Traces, as a collector for OpenTelemetry gets them (OTLP over HTTP)."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from homeport.server.operation import Api
from homeport.server.request import ApiRequest
from homeport.storage import Collection, Conflict, Put, make_storage

from ..storage.disks import Disk, use

NOTES = Collection("notes")


class Collector:
    """Takes what is sent to ``/v1/traces``."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        self.bodies.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    @property
    def resource(self) -> dict[str, str]:
        request = ExportTraceServiceRequest.FromString(self.bodies[0])
        return {a.key: a.value.string_value for a in request.resource_spans[0].resource.attributes}

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """One that the environment names."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        collector.url = str(server.make_url(""))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


def notes_api() -> Api:
    api = Api("notes", collections=(NOTES,))

    @api.post("/notes/{id}")
    async def write(request: ApiRequest) -> object:
        await request.storage.commit([Put(NOTES, request.path["id"], {})])
        try:
            await request.storage.commit([Put(NOTES, request.path["id"], {}, if_version=0)])
        except Conflict:
            return {}
        raise AssertionError

    return api


async def test_a_span_for_a_request(start: Any, collector: Collector) -> None:
    toy = await start()
    answer = await toy.post("/toy/things?key=SECRET", {"name": "a"}, headers={"X-Forwarded-Proto": "https"})
    await toy.app.cleanup()
    [span] = collector.spans
    assert (span.name, span.kind, span.parent_span_id) == ("POST /toy/things", Span.SPAN_KIND_SERVER, b"")
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/toy/things",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "homeport.operation": "toy.add",
        "homeport.request.id": answer.headers["X-Request-Id"],
    }
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10e9
    assert collector.resource["service.name"] == "homeport"


async def test_what_a_key_could_stand_in_is_in_no_span(start: Any, collector: Collector) -> None:
    toy = await start()
    for path in ("/toy/things/SECRET?key=SECRET", "/toy/guess/SECRET", "/SECRET", "/toy/fail/crash"):
        await toy.get(path, headers={"Authorization": "Bearer SECRET", "User-Agent": "SECRET", "Cookie": "SECRET"})
    await toy("PROPFIND", "/toy/things/SECRET")
    await toy.app.cleanup()
    names = ["GET /toy/things/{name}", "GET /toy/guess/{secret}", "GET {unmatched}", "GET /toy/fail/{how}"]
    assert [span.name for span in collector.spans] == [*names, "_OTHER /toy/things/{name}"]
    assert b"SECRET" not in b"".join(collector.bodies)
    assert b"/etc/homeport/secret" not in b"".join(collector.bodies)  # what the crash says


@pytest.mark.parametrize(
    ("path", "status", "failed"),
    [
        ("/toy/things/x", 200, False),
        ("/none", 404, False),
        ("/toy/fail/full", 507, True),
        ("/toy/fail/crash", 500, True),
    ],
)
async def test_what_is_our_fault_is_an_error(
    start: Any, collector: Collector, path: str, status: int, failed: bool
) -> None:
    toy = await start()
    await toy.get(path)
    await toy.app.cleanup()
    [span] = collector.spans
    assert attributes(span)["http.response.status_code"] == status
    assert attributes(span).get("error.type") == (str(status) if failed else None)
    assert (span.status.code == Status.STATUS_CODE_ERROR) is failed


@pytest.mark.parametrize("back_end", ["file", "sqlite"])
async def test_commits_are_below_their_request(start: Any, collector: Collector, back_end: str, tmp_path: Path) -> None:
    async with make_storage(f"{back_end}:{tmp_path}/store") as storage:
        server = await start([notes_api()], storage=storage)
        answers = [await server.post(f"/notes/{id}") for id in "abc"]
        await server.app.cleanup()
    requests = {span.span_id: span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}
    commits = [span for span in collector.spans if span.span_id not in requests]
    assert {attributes(span)["homeport.request.id"] for span in requests.values()} == {
        answer.headers["X-Request-Id"] for answer in answers
    }
    assert Counter(span.parent_span_id for span in commits) == dict.fromkeys(requests, 2)
    for span in commits:
        parent = requests[span.parent_span_id]
        assert span.name == "commit"
        assert span.trace_id == parent.trace_id
        slack = 5_000_000  # of a clock that is set meanwhile, and of rounding
        assert parent.start_time_unix_nano - slack <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano + slack
    outcomes = [attributes(span)["homeport.storage.outcome"] for span in commits]
    assert sorted(outcomes) == ["conflict"] * 3 + ["done"] * 3


async def test_a_commit_that_failed(
    start: Any, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    use(monkeypatch, disk)
    async with make_storage(f"file:{tmp_path}/store") as storage:
        server = await start([notes_api()], storage=storage)
        disk.fails = lambda call: 28 if disk.calls[-1] == "write" else None
        assert (await server.post("/notes/a")).status == 507
        disk.fails = lambda call: None
        await server.app.cleanup()
    [commit] = [span for span in collector.spans if span.name == "commit"]
    assert commit.status.code == Status.STATUS_CODE_ERROR


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("traceparent", "trace_id", "parent"),
    [
        pytest.param(PARENT, "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", id="W3C's example"),
        pytest.param("00-SECRET-xx-01", None, "", id="no traceparent"),
        pytest.param("x" * 8000, None, "", id="a long one"),
    ],
)
async def test_traces_go_on(
    start: Any, collector: Collector, traceparent: str, trace_id: str | None, parent: str
) -> None:
    toy = await start()
    await toy.get("/toy/things/x", headers={"traceparent": traceparent})
    await toy.get("/toy/things/y")
    await toy.app.cleanup()
    first, second = collector.spans
    assert first.parent_span_id.hex() == parent
    assert trace_id is None or first.trace_id.hex() == trace_id
    assert second.parent_span_id == b""
    assert second.trace_id != first.trace_id


async def test_who_the_service_is(start: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "sync")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=attic")
    toy = await start()
    await toy.get("/toy/things/x")
    await toy.app.cleanup()
    assert collector.resource["service.name"] == "sync"
    assert collector.resource["deployment.environment.name"] == "attic"


async def test_a_collector_that_is_away_costs_no_request(
    start: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}/v1/traces")
    toy = await start()
    assert {(await toy.get("/toy/things/x")).status for _ in range(100)} == {200}
    began = time.monotonic()
    await toy.app.cleanup()
    assert time.monotonic() - began < 10


async def test_the_library_is_not_there(
    start: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "homeport.server.tracing", None)
    with caplog.at_level(logging.WARNING):
        toy = await start()
    assert "pip install 'homeport[tracing]'" in caplog.text
    assert (await toy.get("/toy/things/x")).status == 200


LOADED = """
import asyncio, json, sys
from aiohttp import web
from homeport import create_app, load_config

async def main():
    runner = web.AppRunner(create_app(load_config(environ={}, overrides={"storage.url": "memory:"})))
    await runner.setup()
    await runner.cleanup()

asyncio.run(main())
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
"""
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environ", "loaded"),
    [
        pytest.param({}, False, id="no endpoint"),
        pytest.param(ENDPOINT, True, id="an endpoint"),
        pytest.param({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, False, id="switched off"),
        pytest.param({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False, id="for other signals"),
    ],
)
def test_nothing_is_loaded_that_is_not_asked_for(environ: dict[str, str], loaded: bool) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    out = subprocess.check_output([sys.executable, "-c", LOADED], env=plain | environ, timeout=60)
    assert bool(json.loads(out)) is loaded
