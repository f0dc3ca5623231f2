"""Notifications: kept for a while, and told at once to every WebSocket and every registered device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from .....storage import Collection, Field, Filter, Put, Query
from .....storage.times import DAY, format_time
from ....ids import new_id
from ....jobs import Job
from ....keys import CLOCK, STORAGE
from ..api import api
from ..events import EVENTS
from ..texts import plain
from .push import PUSHER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

log = logging.getLogger(__name__)

Kind = Literal["review_ready", "context_low", "handoff_complete", "error", "waiting_input"]

NOTIFICATIONS: Final = Collection(
    "sessions_notifications", (Field("read", "boolean", indexed=True), Field("created_at", "time", indexed=True))
)
"""As they are shown, without ``session`` and ``ticket``, and with the ``title`` that devices show."""
RETENTION_DAYS: Final = 90
_MAX_TITLE, _MAX_MESSAGE = 200, 1000
"""Characters."""


def compose(
    app: web.Application,
    kind: Kind,
    message: str,
    *,
    title: str,
    session_id: str | None = None,
    ticket_id: str | None = None,
) -> dict[str, Any]:
    """A notification, with its ``id``, that is neither kept nor told yet. Texts become plain and are cut."""
    return {
        "id": new_id(),
        "type": kind,
        "title": plain(title)[:_MAX_TITLE],
        "message": plain(message)[:_MAX_MESSAGE],
        "read": False,
        "session_id": session_id,
        "ticket_id": ticket_id,
        "created_at": format_time(app[CLOCK].now()),
    }


def put(notification: Mapping[str, Any]) -> Put:
    """What keeps a notification, for a commit that does more."""
    return Put(NOTIFICATIONS, notification["id"], {name: notification[name] for name in notification if name != "id"})


def announce(app: web.Application, notification: Mapping[str, Any]) -> None:
    """Tells everybody of a notification that is kept."""
    app[EVENTS].notification(notification)
    about = {
        "notificationId": notification["id"],
        "type": notification["type"],
        "sessionId": notification["session_id"],
        "ticketId": notification["ticket_id"],
    }
    app[PUSHER].send(
        notification["title"],
        notification["message"],
        {name: value for name, value in about.items() if value is not None},
    )


async def notify(app: web.Application, kind: Kind, message: str, *, title: str, **about: str | None) -> dict[str, Any]:
    """Keeps a notification, then tells everybody; it is returned. See `compose`."""
    notification = compose(app, kind, message, title=title, **about)
    await app[STORAGE].commit([put(notification)])
    announce(app, notification)
    return notification


async def _forget_old(app: web.Application) -> None:
    before = app[CLOCK].now() - RETENTION_DAYS * DAY
    removed = await app[STORAGE].purge(Query(NOTIFICATIONS, (Filter("created_at", "<", before),)))
    if removed:
        log.info("removed %d notifications older than %d days", removed, RETENTION_DAYS)


api.collections += (NOTIFICATIONS,)
api.jobs.append(Job("notification retention", "15 3 * * *", _forget_old))
