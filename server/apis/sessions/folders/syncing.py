"""The tickets in the store follow the files on disk.

A ticket is the same as long as its external id is: a file that was renamed or moved keeps its ticket. The file alone
decides on title and path, the store alone on state and history.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from aiohttp import web

from .....storage import ABSENT, Put, Record, Write, retry
from .....storage.times import format_time
from ....errors import NotFound
from ....ids import new_id
from ....keys import CLOCK, STORAGE
from ..records.documents import identified, lock
from ..records.projects import PROJECTS
from ..records.sessions import running_on
from ..records.tickets import ADHOC, TICKETS, removal, tickets_of
from .files import Folder, Missing
from .scanning import Found, Scan, read_titles, scan

log = logging.getLogger(__name__)

_CHUNK = 100
"""Tickets a commit."""


class Synced(NamedTuple):
    """What reading a folder did to its tickets. ``errors``: files and folders that could not be read, links, and files
    with another's external id."""

    created: int = 0
    updated: int = 0
    deleted: int = 0
    errors: int = 0


class TicketFolders:
    """Reads the tickets folders of projects, of each one at a time."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._known: dict[str, tuple[object, int]] = {}
        self.folders: dict[str, tuple[str, ...]] = {}
        """The real paths of the folders that were read last, by project."""
        self.changed = asyncio.Event()
        """Set when `folders` has changed."""

    def hold(self, project_id: str) -> AbstractAsyncContextManager[None]:
        """Within it the folder is not read; for who writes there."""
        return self._app[STORAGE].locks.hold([f"sessions_folders/{project_id}"])

    def forget(self, project_id: str) -> None:
        """For a project that is there no longer."""
        self._known.pop(project_id, None)
        if self.folders.pop(project_id, None):
            self.changed.set()

    def reset(self) -> None:
        """Forgets all projects."""
        for project_id in [*self._known, *self.folders]:
            self.forget(project_id)

    async def read(self, project_id: str) -> Synced:
        """Reads a project's folder, and makes its tickets what the files say. A folder that is not there has none;
        where the repository is away, nothing changes. Raises `NotFound` where there is no such project."""
        async with self.hold(project_id):
            return await self.read_held(project_id)

    async def read_held(self, project_id: str) -> Synced:
        """`read` for who holds the folder."""
        record = (await self._app[STORAGE].get(PROJECTS, [project_id])).get(project_id)
        if record is None:  # it may have gone while somebody else held the folder
            raise NotFound("Project not found")
        project = record.decode()
        try:
            return await self._read(project_id, Folder(project["repo_path"], project["tickets_path"]))
        except (Missing, OSError) as error:
            self.forget(project_id)
            log.warning("the tickets of project %s cannot be read: %s", project_id, error or "the folder is away")
            return Synced(errors=1)

    async def _read(self, project_id: str, folder: Folder) -> Synced:
        found = await asyncio.to_thread(scan, folder)
        if self.folders.get(project_id) != found.folders:
            self.folders[project_id] = found.folders
            self.changed.set()
        fingerprint = found.fingerprint
        known, errors = self._known.pop(project_id, (None, 0))
        if fingerprint is not None and known == (folder, fingerprint):
            self._known[project_id] = known, errors
            return Synced(errors=errors)
        kept = (await self._app[STORAGE].find(tickets_of(project_id))).records
        tickets, chosen, changed = await asyncio.to_thread(_compared, found, kept, folder)
        titles = await asyncio.to_thread(read_titles, folder, [file.path for file in changed]) if changed else {}
        created, updated = await self._write(project_id, folder, changed, titles, tickets)
        gone = [ticket for external_id, ticket in tickets.items() if external_id not in chosen]
        deleted = await self._delete(folder, gone) if gone else 0
        errors = found.errors + len(found.files) - len(chosen) + len(changed) - len(titles)
        if fingerprint is not None and deleted == len(gone):
            self._known[project_id] = (folder, fingerprint), errors
        return Synced(created, updated, deleted, errors)

    async def _write(
        self,
        project_id: str,
        folder: Folder,
        files: Sequence[Found],
        titles: Mapping[str, str],
        tickets: Mapping[str, Mapping[str, Any]],
    ) -> tuple[int, int]:
        """How many tickets were created and updated."""
        created = updated = 0
        readable = [file for file in files if file.path in titles]
        for start in range(0, len(readable), _CHUNK):
            chunk = readable[start : start + _CHUNK]
            ids = {file.external_id: _id(tickets.get(file.external_id)) for file in chunk}

            async def attempt(chunk: Sequence[Found] = chunk, ids: Mapping[str, str] = ids) -> tuple[int, int]:
                storage, now = self._app[STORAGE], format_time(self._app[CLOCK].now())
                present = await storage.get(TICKETS, list(ids.values()))
                puts, told = [], 0
                for file in chunk:
                    record = present.get(ids[file.external_id])
                    before = record.decode() if record else _new(project_id, file, now)
                    after = before | {
                        "title": titles[file.path],
                        "file_path": folder.shown(file.path),
                        "stamp": file.stamp,
                    }
                    if record and _seen(after) != _seen(before):
                        after["updated_at"] = now
                        told += 1
                    puts.append(Put(TICKETS, ids[file.external_id], after, record.version if record else ABSENT))
                await storage.commit(puts)
                return len(chunk) - len(present), told

            new, told = await retry(self._app[STORAGE], [lock(TICKETS, id) for id in ids.values()], attempt)
            created += new
            updated += told
        return created, updated

    async def _delete(self, folder: Folder, gone: Sequence[Mapping[str, Any]]) -> int:
        """Removes tickets whose files are not there when one looks again, and on which no session runs: who works on a
        ticket may well take another branch for a moment. Returns how many."""
        again = await asyncio.to_thread(scan, folder)
        there = {file.external_id for file in again.files}
        hidden = [folder.shown(path) for path in again.unread]
        deleted = 0
        for start in range(0, len(gone), _CHUNK):
            writes: list[Write] = []
            for ticket in gone[start : start + _CHUNK]:
                path = PurePosixPath(ticket["file_path"])
                if ticket["external_id"] in there or any(path.is_relative_to(unread) for unread in hidden):
                    continue
                if ticket["state"] != "backlog" and await running_on(self._app[STORAGE], ticket["id"]):
                    continue
                writes += removal(ticket["id"])
                deleted += 1
            await self._app[STORAGE].commit(writes)
        return deleted


def _compared(
    found: Scan, kept: Sequence[Record], folder: Folder
) -> tuple[dict[str, dict[str, Any]], dict[str, Found], list[Found]]:
    """The tickets that are kept; one file for each external id, of several the one that the ticket has, else the first
    in order of path; and which of these are not as their tickets say, oldest first. There may be many: for a thread."""
    tickets = {ticket["external_id"]: ticket for ticket in map(identified, kept)}
    chosen: dict[str, Found] = {}
    changed: dict[str, Found] = {}
    for file in found.files:
        id = file.external_id
        ticket = tickets.get(id)
        same_path = ticket is not None and ticket["file_path"] == folder.shown(file.path)
        if id not in chosen or same_path:
            chosen[id] = changed[id] = file
            if same_path and ticket is not None and ticket["stamp"] == file.stamp and not file.stamp.endswith("?"):
                del changed[id]
    return tickets, chosen, sorted(changed.values(), key=_age)


def _seen(ticket: Mapping[str, Any]) -> tuple[str, str, str]:
    """What of the file has changed, where this has."""
    return ticket["title"], ticket["file_path"], ticket["stamp"].rstrip("?")


def _age(file: Found) -> tuple[str, int]:
    """Sorts files as their tickets were written: newer numbers are shown first."""
    return file.prefix, int(file.external_id.rpartition("-")[2])


def _id(ticket: Mapping[str, Any] | None) -> str:
    return str(ticket["id"]) if ticket else new_id()


def _new(project_id: str, file: Found, now: str) -> dict[str, Any]:
    return {
        "project_id": project_id,
        "external_id": file.external_id,
        "prefix": file.prefix,
        "title": "",
        "state": "backlog",
        "file_path": "",
        "is_adhoc": file.prefix == ADHOC,
        "started_at": None,
        "completed_at": None,
        "created_at": now,
        "updated_at": now,
        "stamp": "",
        "feedback": [],
    }


FOLDERS = web.AppKey("sessions_folders", TicketFolders)
