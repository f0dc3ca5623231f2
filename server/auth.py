"""Who calls: the keys that callers present, and who may call an operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Literal

from .errors import Unauthorized

if TYPE_CHECKING:
    from .config import Config, Secret
    from .request import ApiRequest


def bearer_token(request: ApiRequest) -> str | None:
    """The key in ``Authorization: Bearer``; None where there is none."""
    scheme, _, credentials = request.raw.headers.get("Authorization", "").partition(" ")
    return (credentials.strip() or None) if scheme.lower() == "bearer" else None


def presented_key(request: ApiRequest) -> str | None:
    """The key in ``Authorization: Bearer`` or else ``X-API-Key``; None where there is none."""
    return bearer_token(request) or request.raw.headers.get("X-API-Key") or None


def websocket_key(request: ApiRequest) -> str | None:
    """The key of who opens a WebSocket: a page in a browser can send no header with one, but ``?apiKey=``."""
    return presented_key(request) or request.raw.query.get("apiKey") or None


def same_secret(presented: str | None, secret: Secret | None) -> bool:
    """Whether a secret was presented, compared in constant time; one that is not set is never presented."""
    if not presented or secret is None:
        return False
    # A header that is not UTF-8 comes with half surrogates.
    return compare_digest(presented.encode("utf-8", "surrogatepass"), secret.reveal().encode())


Check = Callable[["ApiRequest"], Awaitable[object]]
"""Called once a request; answers what the handler finds as ``request.caller``, and may set ``username`` and
``caller_id`` on it. A request with a ``caller_id`` counts for the caller's limits, also where it is refused.

Raises `Unauthorized` or `Forbidden`."""
Scheme = Literal["bearer", "api_key"]
"""Where a key may stand: in ``Authorization: Bearer`` or in ``X-API-Key``."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may call an operation. ``schemes``: the ways in which callers present their key; with ``optional`` there are
    callers who need none."""

    check: Check
    schemes: tuple[Scheme, ...] = ()
    optional: bool = False


def guard(*schemes: Scheme, optional: bool = False) -> Callable[[Check], Guard]:
    """Makes a check the `Guard` of operations."""
    return lambda check: Guard(check, schemes, optional)


def holders_of(secret: Callable[[Config], Secret | None]) -> Guard:
    """Whoever presents a secret of the configuration; nobody, where it is not set."""

    @guard("bearer", "api_key")
    async def authenticate(request: ApiRequest) -> None:
        if not same_secret(presented_key(request), secret(request.config)):
            raise Unauthorized(headers={"WWW-Authenticate": "Bearer"})

    return authenticate


def loopback_or(secret: Callable[[Config], Secret | None]) -> Guard:
    """Loopback callers, and whoever presents a secret of the configuration."""

    @guard("bearer", "api_key", optional=True)
    async def authenticate(request: ApiRequest) -> None:
        presented = presented_key(request)
        if presented is None and request.client.loopback:
            return
        if not same_secret(presented, secret(request.config)):
            raise Unauthorized(headers={"WWW-Authenticate": "Bearer"})

    return authenticate
