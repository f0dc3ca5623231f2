"""The application: the one place where everything is put together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from aiohttp import web

from ..storage import open_storage
from ..storage.base import Storage
from .auth import Clients, loopback_or
from .clock import Clock
from .endpoint import Core, Endpoint
from .errors import ApiError, Envelope, MethodNotAllowed, NotFound, problem_details
from .hosts import Hosts
from .jobs import run_jobs
from .keys import CLOCK, CONFIG, STORAGE
from .operation import Api, Operation
from .owners import owner
from .ratelimit import Limiter
from .request import Answer, ApiRequest
from .telemetry import METRICS_TYPE, Telemetry
from .validation import Schemas

if TYPE_CHECKING:
    from .config import Config

_IDLE_SECONDS = 75
"""How long a connection may stay without a request, or take to send the head of one."""
_PARAMETER = re.compile(r"\{(\w+)\}")


def create_app(config: Config, *, storage: Storage | None = None, clock: Clock | None = None) -> web.Application:
    """An application that serves what the configuration says; to be run, embedded or mounted.

    ``storage``: an open store, which stays open; without one, the configuration's is opened when the application
    starts, and closed when it stops.
    """
    apis = [import_module(f".apis.{name}", __package__).api for name in sorted(config.apis.enabled)]
    return assemble(config, apis, Schemas(), storage=storage, clock=clock)


def assemble(
    config: Config,
    apis: Sequence[Api],
    schemas: Schemas,
    *,
    storage: Storage | None = None,
    clock: Clock | None = None,
) -> web.Application:
    """`create_app` with the APIs given, and the schemas that they name."""
    clock = clock or Clock()
    app = web.Application(
        # One access log, ours; bodies are not decompressed unasked; nobody keeps a connection for nothing.
        handler_args={"access_log": None, "auto_decompress": False, "keepalive_timeout": _IDLE_SECONDS}
    )
    app[CONFIG] = config
    app[CLOCK] = clock
    if storage is not None:
        app[STORAGE] = storage
    core = Core(
        app=app,
        config=config,
        schemas=schemas,
        hosts=Hosts.of(config.server, exposed=config.exposed),
        clients=Clients(config.server.trusted_proxies),
        limiter=Limiter(clock),
        telemetry=Telemetry(clock, config.log),
    )
    apis = [*apis, _system(core.telemetry)]
    _add_routes(apis, core)
    app.cleanup_ctx.append(partial(_run, apis=apis, core=core))
    return app


def _system(telemetry: Telemetry) -> Api:
    """What belongs to the server itself."""
    api = Api("system")

    @api.get("/metrics", auth=loopback_or(lambda config: config.server.admin_key))
    async def metrics(_: ApiRequest) -> Answer:
        return Answer(telemetry.metrics(), content_type=METRICS_TYPE)

    return api


def _add_routes(apis: Sequence[Api], core: Core) -> None:
    """Every path with its methods, OPTIONS, and an answer to every other method and path."""
    envelopes = {api.name: api.envelope for api in apis}
    base = core.config.server.base_path

    def envelope_of(method: str, path: str) -> Envelope:
        return envelopes.get(owner(method, path) or "", problem_details)

    def owners_envelope(error: ApiError, request: ApiRequest) -> Answer:
        return envelope_of(request.raw.method, request.raw.path.removeprefix(base))(error, request)

    def add(resource: web.Resource, method: str, operation: Operation, envelope: Envelope) -> None:
        names = tuple(_PARAMETER.findall(operation.path))
        resource.add_route(method, Endpoint(operation, names, envelope, core).serve, expect_handler=_expect)

    paths: dict[str, list[Operation]] = {}
    for operation in (operation for api in apis for operation in api.operations):
        paths.setdefault(_PARAMETER.sub("{}", operation.path), []).append(operation)
    for operations in paths.values():
        # Two APIs may name a parameter of the same path differently: the route knows it by its place.
        places = iter(range(9))
        path = operations[0].path
        resource = core.app.router.add_resource(base + _PARAMETER.sub(lambda _: f"{{p{next(places)}:[^/]+}}", path))  # noqa: B023
        methods = sorted({"OPTIONS", *(o.method for o in operations), *("HEAD" for o in operations if o.method == "GET")})
        for operation in operations:
            envelope = envelope_of(operation.method, path)
            add(resource, operation.method, operation, envelope)
            if operation.method == "GET":
                add(resource, "HEAD", operation, envelope)
        add(resource, "OPTIONS", _options(path, ", ".join(methods), core.hosts), owners_envelope)
        add(resource, "*", _method_not_allowed(path, ", ".join(methods)), owners_envelope)
    add(core.app.router.add_resource("/{p0:.*}"), "*", _not_found(), owners_envelope)


def _options(path: str, methods: str, hosts: Hosts) -> Operation:
    """204 with the methods of a path; for a CORS pre-flight (Fetch 3.3.3) also what pages may send."""
    preflight = hosts.preflight(methods)

    async def options(request: ApiRequest) -> Answer:
        asked = "Origin" in request.raw.headers and "Access-Control-Request-Method" in request.raw.headers
        return Answer(status=204, headers={"Allow": methods, **(preflight if asked else {})})

    return Operation("http", "OPTIONS", path, options)


def _method_not_allowed(path: str, methods: str) -> Operation:
    async def method_not_allowed(request: ApiRequest) -> Answer:
        raise MethodNotAllowed(request.raw.method, methods)

    return Operation("http", "*", path, method_not_allowed)


def _not_found() -> Operation:
    async def not_found(_: ApiRequest) -> Answer:
        raise NotFound

    return Operation("http", "*", "{unmatched}", not_found)


async def _expect(request: web.Request) -> None:
    """RFC 9110 10.1.1: who waits for it is told to go on; other expectations are not known to mean anything."""
    if request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _run(app: web.Application, apis: Sequence[Api], core: Core) -> AsyncIterator[None]:
    """Opens what the application needs, in order, and closes it in reverse."""
    if not app.middlewares and not app.on_response_prepare:
        core.alone = (app,)
    async with AsyncExitStack() as stack:
        core.telemetry.open()
        stack.push_async_callback(asyncio.to_thread, core.telemetry.close)
        collections = [collection for api in apis for collection in api.collections]
        if STORAGE in app:
            await app[STORAGE].declare(*collections)
        else:
            app[STORAGE] = await stack.enter_async_context(open_storage(app[CONFIG].storage.url, collections))
        for api in apis:
            if api.lifespan is not None:
                await stack.enter_async_context(asynccontextmanager(api.lifespan)(app))
        jobs = asyncio.create_task(run_jobs([job for api in apis for job in api.jobs], app, app[CLOCK]))
        stack.push_async_callback(_stop, jobs)
        yield


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
