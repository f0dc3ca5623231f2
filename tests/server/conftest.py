"""A toy API that uses every feature of the server core, served on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from homeport.server.app import assemble
from homeport.server.auth import guard, presented_key, same_secret
from homeport.server.bodies import stream_body
from homeport.server.clock import MovableClock
from homeport.server.config import Secret, load_config
from homeport.server.errors import ApiError, Forbidden, NotFound, Unauthorized
from homeport.server.operation import Api
from homeport.server.ratelimit import per_address, per_caller, per_document
from homeport.server.request import Answer as ApiAnswer
from homeport.server.request import ApiRequest
from homeport.server.validation import Schemas
from homeport.storage import Storage, StorageFull, StorageUnavailable
from homeport.storage.memory import MemoryStorage
from homeport.storage.times import parse_time

from ..declared import as_declared as as_declared

NOON = parse_time("2025-06-03T12:00:00Z")
JSON = {"Content-Type": "application/json"}

TOY_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "Count": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        "Name": {"type": "string", "minLength": 1, "maxLength": 8},
        "Thing": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"$ref": "#/$defs/Name"},
                "count": {"$ref": "#/$defs/Count"},
                "at": {"type": "string", "format": "instant"},
                "parts": {"type": "array", "maxItems": 2000, "items": {"$ref": "#/$defs/Name"}},
            },
        },
        "Search": {
            "type": "object",
            "required": ["text"],
            "properties": {
                "text": {"$ref": "#/$defs/Name"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "above": {"type": "number"},
                "exact": {"type": "boolean"},
            },
        },
        "Numbered": {
            "type": "object",
            "required": ["number"],
            "properties": {"number": {"type": "integer", "minimum": 1}},
        },
        "Anything": {},
    },
}
SECRET = "correct horse"


@guard("bearer", "api_key")
async def _with_secret(request: ApiRequest) -> str:
    key = presented_key(request)
    if not same_secret(key, Secret(SECRET)):
        raise Unauthorized(headers={"WWW-Authenticate": "Bearer"})
    request.username, request.caller_id = "alice", "key-1"
    return "alice"


def toy_api(name: str = "toy", prefix: str = "/toy") -> Api:
    """Echoes, fails, limits and asks for keys below a prefix."""
    api = Api(name)

    @api.post(f"{prefix}/things", body="toy#/$defs/Thing")
    async def add(request: ApiRequest) -> object:
        request.entries_count = len(request.document.get("parts", ()))
        return request.document

    @api.post(f"{prefix}/anything", body="toy#/$defs/Anything", max_body=4096)
    async def anything(request: ApiRequest) -> object:
        return {"document": request.document}

    @api.post(f"{prefix}/measured", content_types=("text/plain",), streamed=True)
    async def measure(request: ApiRequest) -> object:
        return {"bytes": sum([len(part) async for part in stream_body(request.raw, 100_000)])}

    @api.get(prefix + "/things/{name}")
    async def show(request: ApiRequest) -> object:
        return {"path": dict(request.path)}

    @api.get(f"{prefix}/search", query="toy#/$defs/Search")
    async def search(request: ApiRequest) -> object:
        return {"query": dict(request.query)}

    @api.put(prefix + "/numbered/{number}", params="toy#/$defs/Numbered")
    async def number(request: ApiRequest) -> object:
        return {"path": dict(request.path)}

    @api.post(f"{prefix}/bytes", content_types=("text/plain", "application/octet-stream"), max_body=100)
    async def count_bytes(request: ApiRequest) -> object:
        return {"bytes": len(request.body)}

    @api.post(f"{prefix}/nothing")
    async def nothing(_: ApiRequest) -> ApiAnswer:
        return ApiAnswer(status=204)

    @api.get(f"{prefix}/secret", auth=_with_secret)
    async def secret(request: ApiRequest) -> object:
        return {"caller": request.caller}

    @api.get(prefix + "/guess/{secret}")
    async def guess(request: ApiRequest) -> object:
        request.guess = True
        raise NotFound

    @api.get(f"{prefix}/limited", limits=(per_address("few", lambda _: "2/minute"),))
    async def limited(_: ApiRequest) -> object:
        return {}

    @api.get(f"{prefix}/keyed", auth=_with_secret, limits=(per_caller("keyed", lambda _: "2/minute", headers=True),))
    async def keyed(_: ApiRequest) -> object:
        return {}

    @api.post(
        f"{prefix}/named",
        body="toy#/$defs/Thing",
        limits=(per_document("named", lambda _: "2/minute", lambda request: str(request.document["name"])),),
    )
    async def named(_: ApiRequest) -> object:
        return {}

    @api.post(
        f"{prefix}/strict",
        body="toy#/$defs/Thing",
        auth=_with_secret,
        limits=(
            per_address("strict", lambda _: "6/minute"),
            per_document("strict", lambda _: "2/minute", lambda request: str(request.document["name"])),
        ),
    )
    async def strict(_: ApiRequest) -> object:
        return {}

    @api.get(prefix + "/fail/{how}")
    async def fail(request: ApiRequest) -> object:
        raise _FAILURES[request.path["how"]]

    @api.get(f"{prefix}/unencodable")
    async def unencodable(_: ApiRequest) -> object:
        return {"it": object()}

    @api.get(prefix + "/answers/{what}")
    async def answers(request: ApiRequest) -> object:
        return _ANSWERS[request.path["what"]]

    @api.get(f"{prefix}/stream")
    async def stream(request: ApiRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers=request.headers)
        await response.prepare(request.raw)
        await response.write(b"one\n")
        await response.write_eof(b"two\n")
        return response

    return api


_FAILURES: Mapping[str, Exception] = {
    "crash": RuntimeError("no such file: /etc/homeport/secret"),
    "full": StorageFull("no space left on /var/lib/homeport.db"),
    "away": StorageUnavailable("cannot read /var/lib/homeport.db"),
    "forbidden": Forbidden("Not yours"),
    "teapot": ApiError("A teapot", status=418, headers={"X-Tea": "green"}, extra={"cups": 2}),
    "aiohttp": web.HTTPMethodNotAllowed("POST", ["GET"]),
    "redirect": web.HTTPFound("/elsewhere"),
    "timeout": TimeoutError(),
}
_ANSWERS: Mapping[str, object] = {
    "list": [1, 2],
    "null": ApiAnswer(b"null"),
    "headers": ApiAnswer({"a": 1}, 201, {"Location": "/x", "ETag": '"1"'}),
    "text": ApiAnswer(b"hello", content_type="text/plain; charset=utf-8"),
    "large": {"text": "x" * 5000},
    "1024": ApiAnswer(b"x" * 1024, content_type="text/plain"),
    "1025": ApiAnswer(b"x" * 1025, content_type="text/plain"),
    "huge": {"text": "x" * 200_000},
    "image": ApiAnswer(b"x" * 5000, content_type="image/png"),
    "empty": ApiAnswer(status=204),
}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Served:
    """An application on a socket, and what stands behind it."""

    url: str
    session: aiohttp.ClientSession
    app: web.Application
    clock: MovableClock
    stderr: StringIO

    async def __call__(self, method: str, path: str, **request: Any) -> Answer:
        """A request; the path goes out as it is. Redirects are answers, and nothing is decompressed."""
        async with self.session.request(
            method, URL(self.url + path, encoded=True), allow_redirects=False, **request
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **request: Any) -> Answer:
        return await self("GET", path, **request)

    async def post(self, path: str, body: object = None, **request: Any) -> Answer:
        """Posts JSON, or bytes that are said to be JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self("POST", path, data=data, headers=JSON | request.pop("headers", {}), **request)

    async def raw(self, sent: bytes, *, until: bytes | None = None) -> bytes:
        """What a connection answers to some bytes until it closes, or until some bytes come."""
        target = URL(self.url)
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            writer.write(sent)
            async with asyncio.timeout(10):
                return await (reader.read() if until is None else reader.readuntil(until))
        finally:
            writer.close()


Start = Callable[..., Awaitable[Served]]


@pytest.fixture(scope="session")
def toy_schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "toy.json").write_text(json.dumps(TOY_SCHEMA))
    return folder


@pytest.fixture
async def start(toy_schemas: Path) -> AsyncIterator[Start]:
    """Starts an application with APIs (the toy) and settings; it logs to a text of its own."""
    async with AsyncExitStack() as stack:

        async def begin(
            apis: Sequence[Api] | None = None, settings: Mapping[str, object] | None = None, **more: Any
        ) -> Served:
            overrides = {"storage.url": "memory:", "log.format": "json", **(settings or {})}
            config = load_config(environ={}, overrides=overrides)
            clock = MovableClock(NOON)
            given: Storage | None = more.get("storage")
            storage = given or await stack.enter_async_context(MemoryStorage())
            apis = [toy_api()] if apis is None else apis
            app = assemble(config, apis, Schemas(toy_schemas), storage=storage, clock=clock)
            outer = more.get("inside", lambda app: app)(app)
            stderr = StringIO()
            server = TestServer(outer)
            with redirect_stderr(stderr):
                await stack.enter_async_context(server)
            session = await stack.enter_async_context(
                aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("Accept-Encoding",))
            )
            return Served(str(server.make_url("")).rstrip("/"), session, app, clock, stderr)

        yield begin


@pytest.fixture
async def toy(start: Start) -> Served:
    """The toy API as it is configured without a configuration."""
    return await start()
