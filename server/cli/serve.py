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
from typing import TYPE_CHECKING, NoReturn

import click

from ... import __version__
from ...storage import StorageError
from ..formats import Address, format_address
from ..settings import from_text
from .findings import credentials, exposure
from .options import (
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
_POLL_SECONDS = 0.01
_ARRIVE = 0.4
"""The part of the shutdown timeout in which bodies that are on their way may arrive."""
_ANSWER = 0.2
"""The part in which handlers may answer; aiohttp takes it twice, to wait and then to cut off."""


@click.command(
    epilog="\b\nExamples:\n"
    "  homeport serve\n"
    "  homeport serve --port 9000 --storage file:data\n"
    "  homeport serve --port 0 --storage memory: --ready-file url.txt"
)
@config_option
@setting_option("--host", "server.host", "HOST", "The address to listen on.")
@setting_option("--port", "server.port", "PORT", "The port; 0 takes a free one.")
@storage_option
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
    ready_file: Path | None,
    log_format: str | None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    config = configuration(
        config_file,
        server__host=host,
        server__port=port and from_text("server.port", port),
        storage__url=storage,
        log__format=log_format,
    )
    store(config)  # bad configuration is told before anything is started

    import uvloop  # heavy, like the application: not for `homeport --help`

    from ..logs import configure_logging

    configure_logging(config.log)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, ready_file))
    except StorageError as error:
        raise Failure(str(error)) from None


async def _serve(config: Config, ready_file: Path | None) -> None:
    from aiohttp import web

    from ..app import create_app

    timeout = config.server.shutdown_timeout
    stopping = _stopped_by_signals(timeout)
    runner = web.AppRunner(create_app(config), shutdown_timeout=timeout * _ANSWER)
    if ready_file is not None:
        _write(ready_file, None)  # an earlier server's: whoever waits for it must not read that
    try:
        await runner.setup()
        async with _listening(runner, config.server.addresses) as urls:
            _summarize(config, urls)
            url = urls[0] + config.server.base_path
            _collect_seldom()
            if ready_file is not None:
                _write(ready_file, url)
            click.echo(f"homeport {__version__} ready on {url}")
            await stopping.wait()
            await _drain(runner, timeout * _ARRIVE)
    finally:
        await runner.cleanup()
    log.info("stopped")


def _collect_seldom() -> None:
    """What is there at start stays, and a request leaves no cycles: looking for them took a twelfth of the time."""
    gc.collect()
    gc.freeze()
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


async def _drain(runner: web.AppRunner, seconds: float) -> None:
    """Takes no more connections, and waits for the bodies that are on their way.

    Once its own stop has begun, aiohttp drops whatever a client sends, the rest of a body too.
    """
    for site in runner.sites:
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # Nothing tells when a body is whole.
            while runner.server is not None and any(map(_receives, runner.server.connections)):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)


def _receives(connection: RequestHandler) -> bool:
    request = connection._current_request  # aiohttp tells nobody else what a connection is at
    return request is not None and not request.content.is_eof()


def _give_up(why: str) -> NoReturn:
    click.echo(f"homeport: {why}", err=True)
    os._exit(1)


@asynccontextmanager
async def _listening(runner: web.AppRunner, addresses: Iterable[Address]) -> AsyncIterator[list[str]]:
    """Listens on all addresses, and gives their URLs."""
    from aiohttp import web

    sockets = []
    try:
        for address in addresses:
            with _explained(address):
                if address.port is None:
                    _refuse_if_taken(address.host)
                    sockets.append(Path(address.host))
                    await web.UnixSite(runner, address.host).start()
                else:
                    await web.TCPSite(runner, address.host, address.port).start()
        yield [_url(name) for name in runner.addresses]
    finally:
        for socket_file in sockets:
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


def _url(name: str | tuple[str, int]) -> str:
    """The URL of a socket by its name; of one that listens everywhere, that on this machine."""
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{format_address(Address(host, port))}"


def _summarize(config: Config, urls: list[str]) -> None:
    log.info("homeport %s, configuration: %s", __version__, config.file or "defaults, environment and arguments")
    log.info("data: %s", config.storage.url)
    for finding in (*exposure(config), *credentials(config)):
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
