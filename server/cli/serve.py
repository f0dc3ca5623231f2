"""`homeport serve`: from a configuration to a server that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ... import __version__
from ...storage import StorageError
from ..config import ConfigError
from ..config.settings import from_text
from ..formats import Address, format_address
from ..tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS, Tls, TlsError
from .findings import credentials, exposure, https
from .options import (
    BadConfig,
    Failure,
    config_option,
    configuration,
    help_option,
    setting_option,
    storage_option,
    store,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler

    from ..config import Config

log = logging.getLogger("homeport")

_CURES = {
    errno.EADDRINUSE: "; stop the server that does, or give another port (--port 0 takes a free one)",
    errno.EACCES: "; ports below 1024 are root's, and a socket needs a folder that this user may write",
    errno.EADDRNOTAVAIL: "; this machine does not have that address",
}
_BACKLOG = 128
"""Connections that wait to be accepted."""
_POLL_SECONDS = 0.01
_ARRIVE = 0.4
"""The part of the shutdown timeout in which bodies that are on their way may arrive."""
_ANSWER = 0.2
"""The part in which handlers may answer; aiohttp takes it twice, to wait and then to cut off."""


@click.command(
    epilog="\b\nExamples:\n"
    "  homeport serve\n"
    "  homeport serve --port 9000 --storage file:data\n"
    "  homeport serve --schemas schemas --watch\n"
    "  homeport serve --port 0 --storage memory: --ready-file url.txt\n"
    "  homeport serve --port 0 --storage memory: --test"
)
@config_option
@setting_option("--host", "server.host", "HOST", "The address to listen on.")
@setting_option("--port", "server.port", "PORT", "The port; 0 takes a free one.")
@storage_option
@click.option("--test", is_flag=True, help="Let tests reset it and see what it was asked, at /__test__/.")
@click.option("--schemas", metavar="DIR", help="A folder whose *.schema.json files become collections.")
@click.option("--watch", is_flag=True, default=None, help="Make an edited schema live at once.")
@click.option(
    "--ready-file", metavar="FILE", type=click.Path(path_type=Path), help="Where to write the URL when ready."
)
@setting_option("--log-format", "log.format", "FORMAT", "The log: console, json, or auto (json in no terminal).")
@help_option
def serve(
    config_file: str | None,
    host: str | None,
    port: str | None,
    storage: str | None,
    schemas: str | None,
    watch: bool | None,
    test: bool,
    ready_file: Path | None,
    log_format: str | None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    _collect_seldom()
    config = configuration(
        config_file,
        server__host=host,
        server__port=port and from_text("server.port", port),
        storage__url=storage,
        apis__collections__schemas=schemas,
        apis__collections__watch=watch,
        log__format=log_format,
    )
    store(config)  # bad configuration is told before anything is started
    try:
        tls = Tls.of(config.server.tls)
    except TlsError as error:
        raise BadConfig(error.problems) from None

    import uvloop  # heavy, like the application: not for `homeport --help`

    from ..logs import configure_logging

    configure_logging(config.log)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, tls, test, ready_file))
    except ConfigError as error:
        raise BadConfig(error.problems) from None
    except StorageError as error:
        raise Failure(str(error)) from None


async def _serve(config: Config, tls: Tls | None, test: bool, ready_file: Path | None) -> None:
    from ..app import create_app
    from ..connections import CONNECTIONS, Runner, room_for
    from ..health import HEALTH

    control = None
    if test:
        from ..testing.control import Control

        control = Control()
    timeout = config.server.shutdown_timeout
    stopping = _stopped_by_signals(timeout)
    app = create_app(config, control=control)
    connections = app[CONNECTIONS]
    connections.most = room_for(config.server.max_connections)
    if connections.most < config.server.max_connections:
        log.warning("connections: at most %d, since the system allows no more open files", connections.most)
    runner = Runner(app, shutdown_timeout=timeout * _ANSWER)
    if ready_file is not None:
        _write(ready_file, None)  # an earlier server's: whoever waits for it must not read that
    reloading = asyncio.create_task(_reload_on_hangup(tls))
    try:
        await runner.setup()
        assert runner.server is not None
        async with _listening(runner.server, config.server.addresses, tls) as urls:
            _summarize(config, urls)
            url = urls[0] + config.server.base_path
            if test:
                log.warning("test mode: whoever reaches the server may empty it, at %s/__test__/reset", url)
            gc.collect()
            gc.freeze()  # what is there at start stays
            if ready_file is not None:
                _write(ready_file, url)
            click.echo(f"homeport {__version__} ready on {url}")
            await stopping.wait()
            app[HEALTH].stopping = True
        await _drain(runner.server, timeout * _ARRIVE)
    finally:
        await runner.cleanup()
        reloading.cancel()
    log.info("stopped")


def _collect_seldom() -> None:
    """What is imported stays, and a request leaves no cycles: looking for them took a twelfth of the time."""
    gc.set_threshold(20_000, 20, 20)


def _stopped_by_signals(timeout: float) -> asyncio.Event:
    """Set by SIGTERM or SIGINT.

    A second signal ends the process at once, and so do ``timeout`` seconds after the first:
    nothing that hangs can keep it.
    """
    stopping = asyncio.Event()

    def stop(name: str) -> None:
        if stopping.is_set():
            _give_up(f"ended by a second {name}, before it had stopped")
        log.info("%s: stopping", name)
        stopping.set()
        watchdog = threading.Timer(timeout, _give_up, [f"ended, as it did not stop within {timeout:g} seconds"])
        watchdog.daemon = True
        watchdog.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number.name)
    return stopping


async def _reload_on_hangup(tls: Tls | None) -> None:
    """Reads certificate and key again at each SIGHUP."""
    hangup = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    while True:
        await hangup.wait()
        hangup.clear()
        if tls is None:
            log.info("SIGHUP: there is no certificate to read again")
            continue
        try:
            await asyncio.to_thread(tls.reload)
        except TlsError as error:
            log.error("SIGHUP: the old certificate stays: %s", error)
        else:
            log.info(
                "SIGHUP: new connections get the certificate that is good until %s",
                tls.certificate.not_valid_after_utc.date(),
            )


async def _drain(server: web.Server, seconds: float) -> None:
    """Waits for the bodies that are on their way.

    Once its own stop has begun, aiohttp drops whatever a client sends, the rest of a body too.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # Nothing tells when a body is whole.
            while any(map(_receives, server.connections)):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)


def _receives(connection: RequestHandler) -> bool:
    request = connection._current_request  # aiohttp tells nobody else what a connection is at
    return request is not None and not request.content.is_eof()


def _give_up(why: str) -> NoReturn:
    click.echo(f"homeport: {why}", err=True)
    os._exit(1)


@asynccontextmanager
async def _listening(handler: web.Server, addresses: Iterable[Address], tls: Tls | None) -> AsyncIterator[list[str]]:
    """Listens on all addresses, with TLS on those of TCP, and gives their URLs."""
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


def _summarize(config: Config, urls: list[str]) -> None:
    log.info("homeport %s, configuration: %s", __version__, config.file or "defaults, environment and arguments")
    log.info("data: %s", config.storage.url)
    for finding in (*exposure(config), *https(config), *credentials(config)):
        level = logging.WARNING if finding.level == "warning" else logging.INFO
        log.log(level, "%s: %s%s", finding.subject, finding.message, f"; {finding.cure}" if finding.cure else "")
    log.info("listening on %s", ", ".join(urls))


def _write(file: Path, text: str | None) -> None:
    """All at once, so that who sees the file finds the whole text in it; None removes it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if text is None:
            file.unlink(missing_ok=True)
        else:
            draft.write_text(f"{text}\n")
            draft.replace(file)
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from None
