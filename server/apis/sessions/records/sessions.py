"""Sessions as they are kept and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from .....storage import Collection, Field, Filter, Query, Storage, Write, walk
from .....storage.times import format_time
from ....keys import CLOCK, STORAGE
from ..api import api
from .documents import change, get_all, identified
from .projects import PROJECTS
from .tickets import TICKETS

if TYPE_CHECKING:
    from aiohttp import web

SESSIONS: Final = Collection(
    "sessions_sessions",
    (
        Field("project_id", "text", indexed=True),
        Field("ticket_id", "text", indexed=True),
        Field("status", "text", indexed=True),
        Field("busy_ticket", "text", unique=True),
    ),
)
"""As they are shown, without ``project`` and ``ticket``; and ``busy_ticket``, the ticket's id while the session is
active, so that a ticket has one such, and ``stopping``, whether it was asked to end and nothing was typed since."""

ACTIVE: Final = ("running", "paused")
_SHOWN = ("project_id", "ticket_id", "type", "status", "context_percent", "pane_id")
_TIMES = ("started_at", "ended_at", "created_at", "updated_at")


async def active_sessions(storage: Storage, *where: Filter) -> list[dict[str, Any]]:
    """The sessions that have not ended, newest first."""
    query = Query(SESSIONS, (Filter("status", "in", ACTIVE), *where), sort=("-id",))
    return [identified(record) async for record in walk(storage, query)]


async def running_on(storage: Storage, ticket_id: str) -> dict[str, Any] | None:
    """The session of a ticket that has not ended."""
    found = await active_sessions(storage, Filter("busy_ticket", "==", ticket_id))
    return found[0] if found else None


async def change_session(app: web.Application, id: str, changes: Mapping[str, Any], *also: Write) -> dict[str, Any]:
    """`documents.change`, and when."""
    updated = {**changes, "updated_at": format_time(app[CLOCK].now())}
    return await change(app[STORAGE], SESSIONS, id, updated, *also)


def changing_status(storage: Storage, id: str) -> AbstractAsyncContextManager[None]:
    """Within it nobody else decides on a session's status by what it was."""
    return storage.locks.hold([f"sessions_status/{id}"])


async def show_sessions(storage: Storage, sessions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sessions as clients see them, with their projects and tickets."""
    sessions = list(sessions)
    projects = await get_all(storage, PROJECTS, [session["project_id"] for session in sessions])
    tickets = await get_all(storage, TICKETS, [session["ticket_id"] for session in sessions])
    return [
        {
            **{name: session[name] for name in ("id", *_SHOWN, *_TIMES)},
            "project": {"id": session["project_id"], "name": projects.get(session["project_id"], {}).get("name", "")},
            "ticket": _brief(session["ticket_id"], tickets.get(session["ticket_id"])),
        }
        for session in sessions
    ]


def _brief(id: str | None, ticket: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if ticket is None else {"id": id, "external_id": ticket["external_id"], "title": ticket["title"]}


api.collections += (SESSIONS,)
