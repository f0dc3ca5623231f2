"""Where requests come from: the client's address, and whether it is this machine."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from aiohttp import web

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
