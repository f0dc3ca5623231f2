"""Routes: every path with its methods, HEAD and OPTIONS, and an answer to every other method and path."""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable, Iterator
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
    routes = _Routes(apis, core, make_endpoint)
    paths = operations_by_path(apis, core.config)
    for path in sorted(paths, key=_fixed_first):
        routes.add_path(path, paths[path])
    routes.add_rest()


class _Routes:
    """Routes of an application; each answers in the envelope of whose path it is."""

    def __init__(self, apis: Sequence[Api], core: Core, make_endpoint: MakeEndpoint) -> None:
        self._envelopes = {api.name: api.envelope for api in apis}
        self._core = core
        self._server = core.config.server
        self._make_endpoint = make_endpoint

    def add_path(self, path: str, operations: Sequence[Operation]) -> None:
        """A path with its operations, OPTIONS, and an answer to every other method."""
        websocket = next((operation for operation in operations if operation.websocket), None)
        others = [operation for operation in operations if not operation.websocket]
        if websocket is not None and all(operation.method != "GET" for operation in others):
            others.append(_upgrade_required(path))
        own = {operation.method for operation in others}
        methods = ", ".join(sorted(own | {"OPTIONS"} | ({"HEAD"} if "GET" in own else set())))
        for resource in self._resources(path, operations):
            for operation in others:
                envelope = self._envelope_of(operation.method, path)
                if operation.method == "GET":
                    self._add(resource, "GET", operation, envelope, websocket)
                    self._add(resource, "HEAD", operation, self._envelope_of("HEAD", path))
                else:
                    self._add(resource, operation.method, operation, envelope)
            self._add(resource, "OPTIONS", _options(path, methods, self._core.hosts), self._by_method(path))
            self._add(resource, "*", _method_not_allowed(path, methods), self._by_method(path))

    def add_rest(self) -> None:
        """All other paths."""
        rest = _Rest("/{p0:.*}")
        self._core.app.router.register_resource(rest)
        self._add(rest, "*", _not_found(), self._by_path)

    def _resources(self, path: str, operations: Sequence[Operation]) -> Iterator[web.Resource]:
        """Where a path is found: below the base path, and where a client looks that knows but the server's URL."""
        yield self._core.app.router.add_resource(self._server.base_path + _by_place(path))
        if self._server.public_path and any(operation.well_known for operation in operations):
            yield self._core.app.router.add_resource(path + self._server.public_path)

    def _add(
        self,
        resource: web.Resource,
        method: str,
        operation: Operation,
        envelope: Envelope,
        websocket: Operation | None = None,
    ) -> None:
        names = parameter_names(operation.path)
        endpoint = self._make_endpoint(operation, names, envelope, self._core)
        serve: Serve = endpoint.serve
        if websocket is not None:
            serve = _by_upgrade(self._make_endpoint(websocket, names, envelope, self._core), endpoint)
        resource.add_route(method, serve, expect_handler=endpoint.expect)

    def _envelope_of(self, method: str, path: str) -> Envelope:
        return self._envelopes.get(owner(method, path) or "", problem_details)

    def _by_method(self, path: str) -> Envelope:
        return lambda error, request: self._envelope_of(request.raw.method, path)(error, request)

    def _by_path(self, error: ApiError, request: ApiRequest) -> Answer:
        path = "/" + request.raw.match_info["p0"]
        base = self._server.base_path
        ours = path.startswith(f"{base}/")
        return self._envelope_of(request.raw.method, path.removeprefix(base) if ours else "")(error, request)


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
