"""Host and Origin: for whom the server answers, and whose pages may call it (contracts/README.md)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import Forbidden, Misdirected
from .formats import is_loopback_host

if TYPE_CHECKING:
    from aiohttp import web

    from .config import ServerConfig

_REMEMBERED = 1024
_ALLOW_HEADERS = "Content-Type, X-API-Key, Authorization, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID"
_EXPOSE_HEADERS = "ETag, Location, Link, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
_PREFLIGHT_SECONDS = 600
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Hosts:
    """Decides on the Host and the Origin of requests; the decisions for what is allowed are remembered."""

    def __init__(self, hosts: Iterable[str], origins: Iterable[str] | None) -> None:
        """``hosts``: names besides loopback's and the literals of own addresses. ``origins``: those that may call
        besides the server's own; None for any loopback origin and Tauri's."""
        self._hosts = frozenset(_plain(host) for host in hosts)
        self._origins = None if origins is None else frozenset(origin.lower() for origin in origins)
        self._known_hosts: set[str] = set()
        self._known_origins: dict[tuple[str, str | None], Mapping[str, str]] = {}

    @classmethod
    def of(cls, server: ServerConfig, *, exposed: bool) -> Hosts:
        """As the configuration has them."""
        hosts = list(server.allowed_hosts)
        origins = list(server.cors_origins)
        if server.public_url:
            url = urlsplit(server.public_url)
            hosts.append(url.hostname or "")
            origins.append(f"{url.scheme}://{url.netloc}")
        return cls(hosts, origins if exposed or server.cors_origins else None)

    def check(self, request: web.Request) -> Mapping[str, str]:
        """The CORS headers of the answer; raises `Misdirected` or `Forbidden`."""
        headers = request.headers
        host = headers.get("Host")  # HTTP/1.0 has none, and no browser that could be misled
        if host is not None and host not in self._known_hosts:
            self._admit_host(host)
        origin = headers.get("Origin")
        if origin is None:
            return _NO_HEADERS
        return self._known_origins.get((origin, host)) or self._admit_origin(origin, host)

    def preflight(self, methods: str) -> dict[str, str]:
        """What a CORS pre-flight of an allowed origin is answered, besides the headers of `check`."""
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": _ALLOW_HEADERS,
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }

    def _admit_host(self, host: str) -> None:
        name = _plain(_host_name(host))
        if name not in self._hosts and not is_loopback_host(name) and not _is_own_address(name):
            raise Misdirected
        if len(self._known_hosts) < _REMEMBERED:
            self._known_hosts.add(host)

    def _admit_origin(self, origin: str, host: str | None) -> Mapping[str, str]:
        if not self._allows(origin.lower(), host):
            raise Forbidden("Requests from this origin are not allowed; cors_origins lists the ones that are")
        headers = MappingProxyType(
            {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSE_HEADERS}
        )
        if len(self._known_origins) < _REMEMBERED:
            self._known_origins[origin, host] = headers
        return headers

    def _allows(self, origin: str, host: str | None) -> bool:
        scheme, separator, authority = origin.partition("://")
        if not separator:
            return False  # "null", of a sandboxed page or a file
        web_page = scheme in ("http", "https")
        if web_page and host is not None and authority == host.lower():
            return True  # the server's own pages
        if self._origins is not None:
            return origin in self._origins
        return origin == "tauri://localhost" or (web_page and is_loopback_host(_host_name(authority)))


def _host_name(authority: str) -> str:
    """The host of HOST or HOST:PORT, without brackets; "" for what is neither."""
    if authority.startswith("["):
        literal, bracket, rest = authority[1:].partition("]")
        port = rest.removeprefix(":")
        return literal if bracket and (not rest or (rest != port and port.isdecimal())) else ""
    name, colon, port = authority.partition(":")
    return name if not colon or port.isdecimal() else ""


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_own_address(name: str) -> bool:
    """Whether a name is the literal of an address of this machine: only then can a socket be bound to it."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_unspecified or address.is_multicast:
        return False
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((name, 0))
    except OSError:
        return False
    return True
