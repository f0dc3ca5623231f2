"""`homeport serve`: from a configuration to a server that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ... import __version__
from ...storage import StorageError
from ..config import ConfigError
from ..config.settings import from_text
from ..tls import Tls, TlsError
from .credentials import credentials
from .findings import exposure, https
from .listening import listening
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
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler

    from ..config import Config

log = logging.getLogger("homeport")

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
    collect_seldom()
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
    from ..connections import CONNECTIONS, room_for
    from ..health import HEALTH
    from ..runner import Runner

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
        async with listening(runner.server, config.server.addresses, tls) as urls:
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


def collect_seldom() -> None:
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
