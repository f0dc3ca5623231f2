"""Notifications: kept for a while, and told at once to every WebSocket and every registered device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from uuid_utils import uuid7

from ....storage import Collection, Field, Put
from ....storage.times import format_time
from ...keys import CLOCK, STORAGE
from .api import api
from .events import EVENTS
from .push import PUSHER

if TYPE_CHECKING:
    from aiohttp import web

Kind = Literal["review_ready", "context_low", "handoff_complete", "error", "waiting_input"]

NOTIFICATIONS = Collection(
    "sessions_notifications", (Field("read", "boolean", indexed=True), Field("created_at", "time", indexed=True))
)
"""As they are shown, and the ``title`` that devices show. The order of ids is that of time."""


async def notify(
    app: web.Application,
    kind: Kind,
    message: str,
    *,
    title: str,
    session_id: str | None = None,
    ticket_id: str | None = None,
) -> dict[str, Any]:
    """Keeps a notification, then tells everybody; the document, with its ``id``."""
    document = {
        "type": kind,
        "title": title,
        "message": message,
        "read": False,
        "session_id": session_id,
        "ticket_id": ticket_id,
        "created_at": format_time(app[CLOCK].now()),
    }
    id = str(uuid7())
    await app[STORAGE].commit([Put(NOTIFICATIONS, id, document)])
    notification = {"id": id, **document}
    app[EVENTS].notification(notification)
    about = {"notificationId": id, "type": kind, "sessionId": session_id, "ticketId": ticket_id}
    app[PUSHER].send(title, message, {name: value for name, value in about.items() if value is not None})
    return notification


api.collections += (NOTIFICATIONS,)
