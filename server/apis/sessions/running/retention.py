"""What sessions printed, removed some time after they have ended."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from .....storage.times import DAY, SECOND
from ....jobs import Job
from ....keys import CLOCK, CONFIG, STORAGE
from ..api import api
from ..records.sessions import ACTIVE, SESSIONS
from ..tmux.following import remove_folder

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

RETENTION_DAYS: Final = 30
"""Since anything was written to a folder."""


async def _remove_old(app: web.Application) -> None:
    """Sessions that this store does not know may be another's, on the same machine: their folders have to be as old."""
    root = Path(app[CONFIG].apis.sessions.output_folder)
    before = (app[CLOCK].now() - RETENTION_DAYS * DAY) / SECOND
    old = await asyncio.to_thread(_older, root, before)
    records = await app[STORAGE].get(SESSIONS, old)
    active = {id for id, record in records.items() if record.decode()["status"] in ACTIVE}
    for id in sorted(set(old) - active):
        await asyncio.to_thread(remove_folder, root / id)
        log.info("removed what session %s printed more than %d days ago", id, RETENTION_DAYS)


def _older(root: Path, before: float) -> list[str]:
    """The sessions into whose folders nothing has been written since a time, in seconds."""
    if not root.is_dir():
        return []
    return [folder.name for folder in root.iterdir() if _is_session(folder) and _written(folder) < before]


def _is_session(folder: Path) -> bool:
    try:
        return str(UUID(folder.name)) == folder.name and folder.is_dir()
    except ValueError:
        return False


def _written(folder: Path) -> float:
    """When anything in a folder was written last; it may be removed meanwhile, which is no time ago."""
    try:
        with os.scandir(folder) as entries:
            return max([folder.stat().st_mtime, *(entry.stat().st_mtime for entry in entries)])
    except FileNotFoundError:
        return float("inf")


api.jobs.append(Job("output retention", "45 3 * * *", _remove_old))
