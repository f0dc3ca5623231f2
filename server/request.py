"""What a handler gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .keys import CLOCK, CONFIG, STORAGE

if TYPE_CHECKING:
    from aiohttp import web

    from ..storage.base import Storage
    from .auth import Client
    from .config import Config


class Answer(NamedTuple):
    """An answer that is not simply 200 with a JSON document.

    ``body``: bytes as they are; anything else is encoded as JSON; None is no body.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] | None = None
    content_type: str = "application/json"


class ApiRequest:
    """A request on its way through an operation, filled in step by step.

    ``document``: the valid body, ``body`` its bytes as they came. ``path`` and ``query``: the parameters, as the types
    that their schemas say. ``caller``: what the operation's auth answered; ``caller_id`` names its key for limits.
    ``username`` and ``entries_count`` go into the access log. ``answer_headers`` go with the answer, whatever it is.
    """

    __slots__ = (
        "answer_headers",
        "app",
        "body",
        "caller",
        "caller_id",
        "client",
        "document",
        "entries_count",
        "id",
        "path",
        "query",
        "raw",
        "username",
    )

    client: Client
    path: dict[str, Any]
    query: dict[str, Any]

    def __init__(self, raw: web.Request, app: web.Application, id: str) -> None:
        self.raw = raw
        self.app = app
        self.id = id
        """Unique to the request; answered as X-Request-Id."""
        self.document: Any = None
        self.body = b""
        self.caller: Any = None
        self.caller_id = ""
        self.username: str | None = None
        self.entries_count: int | None = None
        self.answer_headers: dict[str, str] = {}

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
