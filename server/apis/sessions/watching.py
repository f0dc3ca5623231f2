"""Tickets folders are read again when something changes in them, where that can be watched."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING

from ....storage import StorageError
from ...errors import NotFound
from .projects import all_projects, project
from .syncing import FOLDERS, TicketFolders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts the changes

_MAX_FOLDERS = 1024
"""How many folders are watched; those beyond are read when their tickets are listed."""
_STEP = 200
"""Milliseconds without a further change after which a folder is read; an editor may write in several steps."""


@asynccontextmanager
async def watching(app: web.Application) -> AsyncIterator[None]:
    """Has every tickets folder read when the server starts, and whenever it changes."""
    app[FOLDERS] = TicketFolders(app)
    task = asyncio.create_task(_follow(app), name="tickets folders")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _follow(app: web.Application) -> None:
    try:
        for found in await all_projects(app):
            await _read(app, found["id"])
        while True:
            await _watch(app)
    except Exception:
        log.exception("tickets folders are not watched any longer; they are read when their tickets are listed")


async def _watch(app: web.Application) -> None:
    """Until another set of folders is to be watched."""
    folders = app[FOLDERS]
    folders.changed.clear()
    owners = {path: id for id, paths in folders.folders.items() for path in paths}
    if not owners:
        await folders.changed.wait()
        return
    from watchfiles import awatch  # for those alone who have projects

    try:
        # Not recursive: it would follow links.
        async for changes in awatch(
            *islice(owners, _MAX_FOLDERS), watch_filter=None, recursive=False, step=_STEP, stop_event=folders.changed
        ):
            for id in {owners.get(path) or owners.get(os.path.dirname(path)) for _, path in changes}:  # noqa: PTH120
                if id is not None:
                    await _read(app, id)
    except FileNotFoundError:  # one of them has just gone
        for id in set(owners.values()):
            await _read(app, id)


async def _read(app: web.Application, project_id: str) -> None:
    try:
        await app[FOLDERS].read(await project(app, project_id))
    except NotFound:
        app[FOLDERS].forget(project_id)
    except StorageError as error:
        log.warning("the tickets of project %s were not read: %s", project_id, error)
