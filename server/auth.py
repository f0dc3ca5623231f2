"""Who calls: the client's address, whether it is this machine, and the keys that callers present."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import Unauthorized

if TYPE_CHECKING:
    from aiohttp import web

    from .config import Config, Secret
    from .request import ApiRequest

_IPV6_NETWORK = 64
"""Bits of an IPv6 address that one client has at least (RFC 6177): a limit counts the network."""
_UNIX = "unix"
"""For the address of who connects to a Unix socket: somebody on this machine, as on loopback."""


class Client(NamedTuple):
    """Where a request comes from. ``network``: what an address limit counts, the address or its IPv6 /64.

    ``loopback``: a loopback caller, who connects from this machine and not through a proxy.
    """

    address: str
    network: str
    loopback: bool


class Clients:
    """Tells the client's address (contracts/README.md, "Exposed or not")."""

    def __init__(self, trusted_proxies: tuple[str, ...]) -> None:
        self._proxies = tuple([ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies])
        self._describe = lru_cache(maxsize=4096)(_describe)
        self._trusted = lru_cache(maxsize=4096)(self._is_trusted)

    def identify(self, request: web.Request) -> Client:
        """The client of a request: the right-most untrusted entry of X-Forwarded-For from trusted proxies, else the
        peer."""
        peer = request.remote or _UNIX
        if "forwarded" not in ",".join(request.headers).lower():  # Forwarded, X-Forwarded-Anything
            return self._describe(peer, False)
        if self._proxies and self._trusted(peer):
            hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
            for hop in reversed(hops):
                address = _address(hop.strip())
                if address is None:
                    break
                peer = address
                if not self._trusted(peer):
                    break
        return self._describe(peer, True)

    def _is_trusted(self, address: str) -> bool:
        ip = _unmapped("127.0.0.1" if address == _UNIX else address)
        return any(ip in proxy for proxy in self._proxies)

    def counted(self, peer: str | None) -> str | None:
        """What a connection counts for, by the address that made it (None: a Unix socket's); None where it may be
        anybody's, as is what comes from this machine or a trusted proxy."""
        if peer is None or (self._proxies and self._trusted(peer)):
            return None
        client = self._describe(peer, False)
        return None if client.loopback else client.network

    def secure(self, request: web.Request) -> bool:
        """Whether the client speaks HTTPS: to this server, or to a trusted proxy that says so.

        Where there are several values, in one header or many, each stands for a hop, and the foremost may be forged:
        all have to be https.
        """
        if request.secure:
            return True
        if not self._proxies or not self._trusted(request.remote or _UNIX):
            return False
        hops = ",".join(request.headers.getall("X-Forwarded-Proto", ())).lower().split(",")
        return all(hop.strip() == "https" for hop in hops)


def _unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address)
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _address(hop: str) -> str | None:
    """An entry of X-Forwarded-For, without the port that some proxies add; None for what is no address."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(_unmapped(hop))
    except ValueError:
        return None


def _describe(address: str, forwarded: bool) -> Client:
    if address == _UNIX:
        return Client(address, address, not forwarded)
    ip = _unmapped(address)
    network = str(ip)
    if isinstance(ip, ipaddress.IPv6Address):
        network = str(ipaddress.ip_network((int(ip) >> 64 << 64, _IPV6_NETWORK)))
    return Client(str(ip), network, ip.is_loopback and not forwarded)


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
