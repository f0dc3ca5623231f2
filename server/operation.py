"""HTTP operations, each declared once.

From one declaration come the route, the checks, the limits, the metrics labels and the entry in the OpenAPI document.
`endpoint` is what a declaration becomes when an application is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from .errors import Envelope, problem_details

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client.metrics_core import Metric

    from ..storage.records import Collection
    from .auth import Guard
    from .config import Config
    from .jobs import Job
    from .ratelimit import Limit
    from .request import ApiRequest

Handler = Callable[["ApiRequest"], Awaitable[Any]]
"""Answers a request: an `Answer`, a response that it streamed itself, or anything else as a JSON document with 200."""
Lifespan = Callable[["web.Application"], AsyncIterator[None]]
Metrics = Callable[["web.Application"], Awaitable["list[Metric]"]]
Reset = Callable[["web.Application"], Awaitable[None]]

JSON = ("application/json",)
PROBLEM = "problem#/$defs/Problem"
"""The schema of `problem_details`."""
Part = Literal["params", "query", "headers", "body"]
Links = Mapping[str, Mapping[str, str]]


class Declaration(TypedDict, total=False):
    """What may be said of an operation besides its method and path.

    Schemas are named like ``device_usage#/$defs/SyncRequest``. ``body``: the document's; ``optional_body``: whether
    none at all is as good as ``{}``. ``query`` and ``params`` (the path's): those of objects whose members are the
    parameters, read by their types. ``reads``: those of what the handler reads and checks by itself, for the
    description alone. ``returns``: the answers', by status; ``produces``: their media types, of which those of JSON
    have the schema; where there is none, there is no such body. ``gives``: those of objects whose members are an
    answer's headers, by status. ``links``: where answers lead: paths, and what is below them, with where each of their
    parameters is told (OpenAPI 4.8.20.4, "Runtime Expressions"); the others have the names and values of this path's.
    ``errors``: the statuses of the refusals that are the handler's own; ``error``: their schema, where it is not the
    API's. ``limits``: none is the configuration's default per client address. ``max_body``: bytes; none is the
    configuration's. ``content_types``: what a body may be; JSON where there is a ``body``. Without a ``body`` but with
    these the handler gets the bytes. ``streamed``: it reads them itself, with `stream_body`, and sees to how many they
    are and whether they fit the ``body``. ``when``: under which configurations there is the operation; none is all.
    ``well_known``: whether it is also found where RFC 8414 (3.1) puts it, below the host, with the path of the server's
    URL behind its own; such a path has no parameters.
    """

    body: str
    optional_body: bool
    query: str
    params: str
    reads: Mapping[Part, str]
    returns: Mapping[int, str | None]
    gives: Mapping[int, str]
    links: Links
    produces: tuple[str, ...]
    errors: tuple[int, ...]
    error: str
    auth: Guard
    limits: tuple[Limit, ...]
    max_body: int
    content_types: tuple[str, ...]
    streamed: bool
    when: Callable[[Config], bool]
    well_known: bool


@dataclass(frozen=True)
class Operation:
    """One method on one path, with ``{name}`` for a segment; the rest as `Declaration` says.

    ``websocket``: whether it is for requests that would become a WebSocket; all others are not its own.
    """

    api: str
    method: str
    path: str
    handler: Handler
    body: str | None = None
    optional_body: bool = False
    query: str | None = None
    params: str | None = None
    reads: Mapping[Part, str] = field(default_factory=dict)
    returns: Mapping[int, str | None] = field(default_factory=dict)
    gives: Mapping[int, str] = field(default_factory=dict)
    links: Links = field(default_factory=dict)
    produces: tuple[str, ...] = JSON
    errors: tuple[int, ...] = ()
    error: str | None = None
    auth: Guard | None = None
    limits: tuple[Limit, ...] = ()
    max_body: int | None = None
    content_types: tuple[str, ...] = ()
    streamed: bool = False
    when: Callable[[Config], bool] | None = None
    well_known: bool = False
    websocket: bool = False

    @property
    def name(self) -> str:
        """Unique in the server: ``device_usage.sync``."""
        return f"{self.api}.{self.handler.__name__}"


class Api:
    """A set of operations with one envelope, and what they need to run.

    ``title`` and ``error``, the schema of what the envelope makes, are for the server's description of itself.
    ``collections`` are declared to the store before the first request. ``jobs`` run while the server does.
    ``set_up``, if set, is called when an application is made, and may raise `ConfigError`.
    ``lifespan``, if set, is entered when the store is open and left before it closes. ``metrics``, if set, tells what
    `GET /metrics` shows besides what it shows of every operation. ``reset``, if set, forgets what is known besides
    the store, which tests have just emptied.
    """

    def __init__(
        self,
        name: str,
        envelope: Envelope = problem_details,
        *,
        title: str = "",
        error: str = PROBLEM,
        collections: tuple[Collection, ...] = (),
    ) -> None:
        self.name = name
        self.title = title
        self.envelope = envelope
        self.error = error
        self.collections = collections
        self.operations: list[Operation] = []
        self.jobs: list[Job] = []
        self.set_up: Callable[[web.Application], None] | None = None
        self.lifespan: Lifespan | None = None
        self.metrics: Metrics | None = None
        self.reset: Reset | None = None

    def get(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        """Also answers HEAD."""
        return self._declare("GET", path, declaration)

    def post(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        return self._declare("POST", path, declaration)

    def put(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        return self._declare("PUT", path, declaration)

    def patch(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        return self._declare("PATCH", path, declaration)

    def delete(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        return self._declare("DELETE", path, declaration)

    def websocket(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[Handler], Handler]:
        """A GET that is to become a WebSocket (RFC 6455 4.1); any other may be another operation's."""
        return self._declare("GET", path, {"returns": {101: None}, **declaration}, websocket=True)

    def _declare(
        self, method: str, path: str, declaration: Declaration, *, websocket: bool = False
    ) -> Callable[[Handler], Handler]:
        if "body" in declaration:
            declaration.setdefault("content_types", JSON)

        def add(handler: Handler) -> Handler:
            self.operations.append(Operation(self.name, method, path, handler, websocket=websocket, **declaration))
            return handler

        return add
