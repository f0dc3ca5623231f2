"""What a server was asked."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

MAX_REQUESTS = 1_000
"""The newest that are remembered."""
MAX_BODY = 1 << 16
"""Bytes of a body that are remembered."""
_SECRET = frozenset(("authorization", "proxy-authorization", "x-api-key", "cookie"))
_KEY_PARAMETER = "apiKey"  # of WebSockets, for which a page can send no header
_HIDDEN = "…"


@dataclass(slots=True)
class Asked:
    """A request. ``status``: of its answer; None while it is under way, and where it got none."""

    method: str
    path: str
    """Decoded, without the server's ``base_path``."""
    query: dict[str, str]
    """Of a repeated name the last; of a key only that it came."""
    headers: dict[str, str]
    """By their names in lower case. Of credentials only that they came: ``Bearer …``."""
    at: int
    """When, by the server's clock: microseconds since the epoch."""
    body: bytes = b""
    """As far as the server read it, and at most `MAX_BODY` of it."""
    body_bytes: int = 0
    """How many there were."""
    status: int | None = None

    def read(self, body: bytes) -> None:
        """Remembers a body."""
        self.body, self.body_bytes = body[:MAX_BODY], len(body)

    @property
    def json(self) -> Any:
        """The body. Raises ValueError for one that is not JSON, or was cut."""
        return json.loads(self.body)


class Journal:
    """The newest `MAX_REQUESTS` requests."""

    def __init__(self) -> None:
        self._requests: deque[Asked] = deque(maxlen=MAX_REQUESTS)

    def __iter__(self) -> Iterator[Asked]:
        """The oldest first."""
        return iter(self._requests)

    def add(self, raw: web.Request, path: str, now: int) -> Asked:
        """Remembers a request as its head came."""
        headers = {name.lower(): ", ".join(raw.headers.getall(name)) for name in raw.headers}
        for name in _SECRET & headers.keys():
            headers[name] = _hidden(headers[name])
        query = dict(raw.query.items())
        if _KEY_PARAMETER in query:
            query[_KEY_PARAMETER] = _HIDDEN
        asked = Asked(raw.method, path, query, headers, now)
        self._requests.append(asked)
        return asked

    def clear(self) -> None:
        """Forgets all."""
        self._requests.clear()


def _hidden(credentials: str) -> str:
    """With no more of them than the scheme."""
    scheme, space, _ = credentials.partition(" ")
    return f"{scheme} {_HIDDEN}" if space and scheme.isalpha() else _HIDDEN
