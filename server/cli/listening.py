"""The sockets of a server."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import Address, format_address
from ..tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS
from .options import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from aiohttp import web

    from ..tls import Tls

_CURES = {
    errno.EADDRINUSE: "; stop the server that does, or give another port (--port 0 takes a free one)",
    errno.EACCES: "; ports below 1024 are root's, and a socket needs a folder that this user may write",
    errno.EADDRNOTAVAIL: "; this machine does not have that address",
}
_BACKLOG = 128
"""Connections that wait to be accepted."""


@asynccontextmanager
async def listening(handler: web.Server, addresses: Iterable[Address], tls: Tls | None) -> AsyncIterator[list[str]]:
    """Listens on all addresses, with TLS on those of TCP, and gives their URLs. Raises `Failure`."""
    loop = asyncio.get_running_loop()
    secure: dict[str, Any] = {}  # aiohttp's sites do not take the timeouts
    if tls is not None:
        secure = {
            "ssl": tls.context,
            "ssl_handshake_timeout": HANDSHAKE_SECONDS,
            "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
        }
    servers = []
    socket_files = []
    try:
        for address in addresses:
            with _explained(address):
                if address.port is None:
                    _refuse_if_taken(address.host)
                    socket_files.append(Path(address.host))
                    servers.append(await loop.create_unix_server(handler, address.host, backlog=_BACKLOG))
                else:
                    server = await loop.create_server(handler, address.host, address.port, backlog=_BACKLOG, **secure)
                    servers.append(server)
        scheme = "http" if tls is None else "https"
        yield [_url(scheme, socket.getsockname()) for server in servers for socket in server.sockets]
    finally:
        for server in servers:
            server.close()
        for socket_file in socket_files:
            socket_file.unlink(missing_ok=True)


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise Failure(f"cannot listen on {format_address(address)}: {reason}{_CURES.get(number, '')}") from None


def _refuse_if_taken(path: str) -> None:
    """asyncio would take a socket's file away from the server that listens on it."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise OSError(errno.EADDRINUSE, "Address already in use")


def _url(scheme: str, name: str | tuple[str, int]) -> str:
    """The URL of a socket by its name; of one that listens everywhere, that on this machine."""
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{format_address(Address(host, port))}"
