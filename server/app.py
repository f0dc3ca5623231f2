"""The application: the one place where everything is put together.

There are no middlewares: what a request goes through, and in which order, is `Endpoint._answer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..storage import open_storage
from ..storage.base import Storage
from ..storage.remote.serving import serve_storage
from .admin import system_api
from .bcrypt_pool import LEAST_COST
from .clients import Clients
from .clock import Clock
from .connections import CONNECTIONS, IDLE_SECONDS, MAX_FIELD, MAX_FIELDS, Connections
from .endpoint import Core, Endpoint
from .hosts import Hosts
from .jobs import run_jobs
from .keys import CLOCK, CONFIG, OPENAPI, STORAGE
from .live import LIVE, Live
from .logs import http_log
from .operation import Api
from .ratelimit import Limiter
from .routes import add_routes
from .tasks import stop
from .telemetry import Telemetry
from .validation import Schemas

if TYPE_CHECKING:
    from .config import Config
    from .testing.control import Control


def create_app(
    config: Config, *, storage: Storage | None = None, clock: Clock | None = None, control: Control | None = None
) -> web.Application:
    """An application that serves what the configuration says; to be run, embedded or mounted.

    ``storage``: an open store, which stays open; without one, the configuration's is opened when the application
    starts, and closed when it stops. ``control``: for tests, which then move the clock. Raises `ConfigError` where a
    server is exposed and would be controlled, and for what only an API can tell, such as a broken schema.
    """
    apis = [import_module(f".apis.{name}", __package__).api for name in sorted(config.apis.enabled)]
    return assemble(config, apis, _our_schemas(), storage=storage, clock=clock, control=control)


@cache
def _our_schemas() -> Schemas:
    """Tests make many applications."""
    return Schemas()


def assemble(
    config: Config,
    apis: Sequence[Api],
    schemas: Schemas,
    *,
    storage: Storage | None = None,
    clock: Clock | None = None,
    control: Control | None = None,
) -> web.Application:
    """`create_app` with the APIs given, and the schemas that they name."""
    clock = control.clock if control else clock or Clock()
    app = web.Application(
        handler_args={
            "access_log": None,  # ours is `Telemetry.log`
            "logger": http_log,
            "auto_decompress": False,
            "keepalive_timeout": IDLE_SECONDS,
            "max_line_size": MAX_FIELD,
            "max_field_size": MAX_FIELD,
            "max_headers": MAX_FIELDS,
        }
    )
    app[CONFIG] = config
    app[CLOCK] = clock
    app[LIVE] = live = Live()
    app.on_shutdown.append(live.stop)  # before aiohttp waits for handlers, of which each stream has one
    if storage is not None:
        app[STORAGE] = storage
    clients = Clients(config.server.trusted_proxies)
    app[CONNECTIONS] = Connections(config.server, clients)
    core = Core(
        app=app,
        config=config,
        schemas=schemas,
        hosts=Hosts.of(config.server, exposed=config.exposed),
        clients=clients,
        limiter=Limiter(clock),
        telemetry=Telemetry(clock, config.log),
    )
    own = [system_api(core, apis, LEAST_COST if control else None)]
    if control is not None:
        own.append(control.attach(core, [*own, *apis]))
    for api in apis:
        if api.set_up is not None:
            api.set_up(app)
    apis = [*own, *apis]
    add_routes(apis, core, control.endpoint if control else Endpoint)
    app[OPENAPI] = lambda: _describe(apis, core)
    app.cleanup_ctx.append(partial(_run, apis=apis, core=core))
    return app


def _describe(apis: Sequence[Api], core: Core) -> dict[str, Any]:
    from .openapi import openapi  # nobody may ask for it

    return openapi(apis, core.schemas, core.config)


async def _run(app: web.Application, apis: Sequence[Api], core: Core) -> AsyncIterator[None]:
    """Opens what the application needs, in order, and closes it in reverse."""
    async with AsyncExitStack() as stack:
        core.telemetry.open()
        stack.push_async_callback(asyncio.to_thread, core.telemetry.close)
        collections = [collection for api in apis for collection in api.collections]
        if STORAGE in app:
            await app[STORAGE].declare(*collections)
        else:
            app[STORAGE] = await stack.enter_async_context(open_storage(app[CONFIG].storage.url, collections))
            if (path := app[STORAGE].path) is not None:
                await stack.enter_async_context(serve_storage(app[STORAGE], path))
        app[STORAGE].observer = core.telemetry.committed
        for api in apis:
            if api.lifespan is not None:
                await stack.enter_async_context(asynccontextmanager(api.lifespan)(app))
        jobs = [job for api in apis for job in api.jobs]
        for work in (
            run_jobs(jobs, app, app[CLOCK], core.telemetry.job),
            app[CONNECTIONS].watch(),
            core.telemetry.watch_loop(),
        ):
            stack.push_async_callback(stop, asyncio.create_task(work))
        yield
