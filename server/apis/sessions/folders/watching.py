"""Tickets folders are read again when something changes in them, where that can be watched."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

from .....storage import StorageError
from ....errors import NotFound
from ....keys import STORAGE
from ....tasks import stop
from ..records.projects import all_projects
from .syncing import FOLDERS, TicketFolders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp import web

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts the changes

_MAX_FOLDERS = 1024
"""How many folders are watched; those beyond are read when their tickets are listed."""
_STEP = 50
"""Milliseconds without a further change after which a folder is read; an editor may write in several steps."""

_PAUSE = 60
"""Seconds until it is tried again, where the store is away or the system refuses."""


@asynccontextmanager
async def watching(app: web.Application) -> AsyncIterator[None]:
    """Has every tickets folder read when the server starts, and whenever it changes."""
    app[FOLDERS] = folders = TicketFolders(app)
    thread = ThreadPoolExecutor(1, "tickets-folders")
    task = asyncio.create_task(_follow(app, thread), name="tickets folders")
    try:
        yield
    finally:
        await stop(task)
        folders.changed.set()  # which the thread looks at
        await asyncio.to_thread(thread.shutdown)


async def _follow(app: web.Application, thread: ThreadPoolExecutor) -> None:
    while True:
        try:
            for found in await all_projects(app[STORAGE]):
                await _read(app, found["id"])
            while True:
                await _watch(app, thread)
        except Exception:
            log.exception("tickets folders are not watched for %d s, but read when their tickets are listed", _PAUSE)
        await asyncio.sleep(_PAUSE)


async def _watch(app: web.Application, thread: ThreadPoolExecutor) -> None:
    """Until another set of folders is to be watched."""
    folders = app[FOLDERS]
    folders.changed.clear()
    owners = {path: id for id, paths in folders.folders.items() for path in paths}
    if not owners:
        await folders.changed.wait()
        return
    changes = _changes(tuple(islice(owners, _MAX_FOLDERS)), folders.changed)
    try:
        while paths := await asyncio.get_running_loop().run_in_executor(thread, next, changes, None):
            for id in {owners.get(path) or owners.get(os.path.dirname(path)) for path in paths}:  # noqa: PTH120
                if id is not None:
                    await _read(app, id)
    except FileNotFoundError:  # one of them has just gone
        for id in set(owners.values()):
            await _read(app, id)


def _changes(folders: tuple[str, ...], stop: asyncio.Event) -> Iterator[set[str]]:
    """The paths of what changes; for a thread: `watchfiles.awatch` would import much on the loop."""
    from watchfiles import watch  # for those alone who have projects

    # Not recursive: it would follow links.
    for changes in watch(*folders, watch_filter=None, recursive=False, step=_STEP, stop_event=stop):
        yield {path for _, path in changes}


async def _read(app: web.Application, project_id: str) -> None:
    try:
        await app[FOLDERS].read(project_id)
    except NotFound:
        app[FOLDERS].forget(project_id)
    except StorageError as error:
        log.warning("the tickets of project %s were not read: %s", project_id, error)
