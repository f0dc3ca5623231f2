"""Routes: every path with its methods, HEAD and OPTIONS, and an answer to every other method and path."""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from .endpoint import Core, Endpoint
from .errors import ApiError, Envelope, MethodNotAllowed, NotFound, problem_details
from .operation import Operation
from .owners import owner
from .request import Answer, ApiRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import Config
    from .hosts import Hosts
    from .operation import Api

_PARAMETER = re.compile(r"\{(\w+)\}")
_API = "http"
"""What the operations here are counted under."""


class _Rest(web.DynamicResource):
    """Every path, also the ``*`` of ``OPTIONS *``, which begins with no slash."""

    def _match(self, path: str) -> dict[str, str]:
        return super()._match(path) or {"p0": path}


Serve = Callable[["web.Request"], Awaitable["web.StreamResponse"]]
MakeEndpoint = Callable[[Operation, tuple[str, ...], Envelope, Core], Endpoint]


def add_routes(apis: Sequence[Api], core: Core, make_endpoint: MakeEndpoint) -> None:
    """Adds the operations of the APIs to the application."""
    envelopes = {api.name: api.envelope for api in apis}
    base = core.config.server.base_path
    router = core.app.router

    def envelope_of(method: str, path: str) -> Envelope:
        return envelopes.get(owner(method, path) or "", problem_details)

    def by_method(path: str) -> Envelope:
        return lambda error, request: envelope_of(request.raw.method, path)(error, request)

    def by_path(error: ApiError, request: ApiRequest) -> Answer:
        path = "/" + request.raw.match_info["p0"]
        ours = path.startswith(f"{base}/")
        return envelope_of(request.raw.method, path.removeprefix(base) if ours else "")(error, request)

    def add(
        resource: web.Resource,
        method: str,
        operation: Operation,
        envelope: Envelope,
        websocket: Operation | None = None,
    ) -> None:
        names = parameter_names(operation.path)
        endpoint = make_endpoint(operation, names, envelope, core)
        serve: Serve = endpoint.serve
        if websocket is not None:
            serve = _by_upgrade(make_endpoint(websocket, names, envelope, core), endpoint)
        resource.add_route(method, serve, expect_handler=endpoint.expect)

    paths = operations_by_path(apis, core.config)
    for path in sorted(paths, key=_fixed_first):
        websocket = next((operation for operation in paths[path] if operation.websocket), None)
        operations = [operation for operation in paths[path] if not operation.websocket]
        if websocket is not None and all(operation.method != "GET" for operation in operations):
            operations.append(_upgrade_required(path))
        resource = router.add_resource(base + _by_place(path))
        for operation in operations:
            envelope = envelope_of(operation.method, path)
            if operation.method == "GET":
                add(resource, "GET", operation, envelope, websocket)
                add(resource, "HEAD", operation, envelope_of("HEAD", path))
            else:
                add(resource, operation.method, operation, envelope)
        own = {operation.method for operation in operations}
        methods = ", ".join(sorted(own | {"OPTIONS"} | ({"HEAD"} if "GET" in own else set())))
        add(resource, "OPTIONS", _options(path, methods, core.hosts), by_method(path))
        add(resource, "*", _method_not_allowed(path, methods), by_method(path))
    rest = _Rest("/{p0:.*}")
    router.register_resource(rest)
    add(rest, "*", _not_found(), by_path)


def operations_by_path(apis: Sequence[Api], config: Config) -> dict[str, list[Operation]]:
    """The operations that there are, of each path. Two APIs may share one and name its parameters differently: the
    first's names."""
    shapes: dict[str, str] = {}
    paths: dict[str, list[Operation]] = {}
    for operation in itertools.chain.from_iterable(api.operations for api in apis):
        if operation.when is not None and not operation.when(config):
            continue
        path = shapes.setdefault(_PARAMETER.sub("{}", operation.path), operation.path)
        paths.setdefault(path, []).append(operation)
    return paths


def parameter_names(path: str) -> tuple[str, ...]:
    """The names of a path's parameters, in order."""
    return tuple(_PARAMETER.findall(path))


def _fixed_first(path: str) -> str:
    """The key that sorts ``/a/b`` before ``/a/{c}``: the first route that fits is taken."""
    return _PARAMETER.sub("\uffff", path)


def _by_place(path: str) -> str:
    """A path as aiohttp's router knows it, its parameters named by their places: ``/a/{p0:[^/]+}/b/{p1:[^/]+}``."""
    places = itertools.count()
    return _PARAMETER.sub(lambda _: f"{{p{next(places)}:[^/]+}}", path)


def _by_upgrade(websocket: Endpoint, other: Endpoint) -> Serve:
    """A GET is the one's where it asks for a WebSocket, else the other's."""

    async def serve(raw: web.Request) -> web.StreamResponse:
        upgrades = raw.headers.get("Upgrade", "").strip().lower() == "websocket"
        return await (websocket if upgrades else other).serve(raw)

    return serve


def _upgrade_required(path: str) -> Operation:
    async def upgrade_required(_: ApiRequest) -> Answer:
        raise ApiError("This is for WebSockets alone", status=426, headers={"Upgrade": "websocket"})

    return Operation(_API, "GET", path, upgrade_required)


def _options(path: str, methods: str, hosts: Hosts) -> Operation:
    """204 with the methods of a path; for a CORS pre-flight (Fetch 4.9) also what pages may send."""
    allow = {"Allow": methods}
    allow_pages = allow | hosts.preflight(methods)

    async def options(request: ApiRequest) -> Answer:
        headers = request.raw.headers
        preflight = "Origin" in headers and "Access-Control-Request-Method" in headers
        return Answer(status=204, headers=allow_pages if preflight else allow)

    return Operation(_API, "OPTIONS", path, options)


def _method_not_allowed(path: str, methods: str) -> Operation:
    async def method_not_allowed(request: ApiRequest) -> Answer:
        raise MethodNotAllowed(request.raw.method, methods)

    return Operation(_API, "*", path, method_not_allowed)


def _not_found() -> Operation:
    async def not_found(_: ApiRequest) -> Answer:
        raise NotFound

    return Operation(_API, "*", "{unmatched}", not_found)
