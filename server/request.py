"""What a handler gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .keys import CLOCK, CONFIG, STORAGE

if TYPE_CHECKING:
    from aiohttp import web

    from ..storage.base import Storage
    from .clients import Client
    from .config import Config

_NONE: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """An answer that is not simply 200 with a JSON document.

    ``body``: bytes as they are; None, no body; anything else is encoded as JSON. ``status``: with a body, none of 1xx,
    204 and 304.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] | None = None
    content_type: str = "application/json"


class ApiRequest:
    """A request on its way through an operation, filled in step by step."""

    __slots__ = (
        "answer_headers",
        "app",
        "began",
        "body",
        "caller",
        "caller_id",
        "client",
        "cors",
        "document",
        "entries_count",
        "guess",
        "id",
        "path",
        "query",
        "raw",
        "username",
    )

    def __init__(self, raw: web.Request, app: web.Application, id: str) -> None:
        self.raw = raw
        self.app = app
        self.id = id
        """Unique to the request; answered as X-Request-Id."""
        self.began: float | None = None
        """When a handler began an answer that it sends itself, by `perf_counter`."""
        self.guess = False
        """Whether a key was presented that nobody has: it counts as a failed authentication, whatever the answer."""
        self.client: Client
        """Who asks, as far as the connection tells."""
        self.caller: Any = None
        """What the operation's auth answered."""
        self.caller_id = ""
        """Names the caller's key, for limits; set by the operation's auth."""
        self.path: Mapping[str, Any] = _NONE
        """The parameters in the path; of the types that the schema says, if the operation has one for them."""
        self.query: Mapping[str, Any] = _NONE
        """The parameters in the query, where the operation has a schema for them."""
        self.body = b""
        """The body as it came."""
        self.document: Any = None
        """The body as the schema wants it."""
        self.username: str | None = None
        """For the access log, as is ``entries_count``."""
        self.entries_count: int | None = None
        self.cors: Mapping[str, str] = _NONE
        self.answer_headers: dict[str, str] = {}
        """What goes with the answer, also with a refusal."""

    @property
    def config(self) -> Config:
        return self.app[CONFIG]

    @property
    def storage(self) -> Storage:
        return self.app[STORAGE]

    @property
    def now(self) -> int:
        """Microseconds since the epoch, by the server's clock."""
        return self.app[CLOCK].now()

    @property
    def base_url(self) -> str:
        """Where the server is, as clients reach it, without a slash at the end: ``public_url`` or, where none is set,
        what this one asked."""
        server = self.config.server
        return (server.public_url or f"{self.raw.scheme}://{self.raw.host}{server.base_path}").rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        """What every answer to this request carries; for handlers that send a stream of their own."""
        return {
            "Server": "homeport",
            "Vary": "Origin",
            "X-Request-Id": self.id,
            **self.cors,
            **self.answer_headers,
        }
