"""Notifications: kept for a while, and told at once to every WebSocket and every registered device."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, Literal

from uuid_utils import uuid7

from .....storage import Collection, Delete, Field, Filter, Put, Query, Record, retry
from .....storage.times import DAY, format_time
from ....errors import NotFound
from ....jobs import Job
from ....keys import CLOCK, STORAGE
from ....request import ApiRequest
from ..api import api, caller
from ..events import EVENTS
from ..records.sessions import SESSIONS
from ..records.tickets import TICKETS
from .push import PUSHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web

    from .....storage import Storage

log = logging.getLogger(__name__)

Kind = Literal["review_ready", "context_low", "handoff_complete", "error", "waiting_input"]

NOTIFICATIONS: Final = Collection(
    "sessions_notifications", (Field("read", "boolean", indexed=True), Field("created_at", "time", indexed=True))
)
"""As they are shown, without ``session`` and ``ticket``, and with the ``title`` that devices show."""
MAX_LISTED: Final = 200
RETENTION_DAYS: Final = 90
_MARKED = 500
"""How many are marked as read in one commit."""
_MAX_TITLE, _MAX_MESSAGE = 200, 1000
"""Characters."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SHOWN = ("type", "message", "read", "session_id", "ticket_id", "created_at")
_UNREAD = Filter("read", "==", False)


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
        "id": str(uuid7()),
        "type": kind,
        "title": _plain(title, _MAX_TITLE),
        "message": _plain(message, _MAX_MESSAGE),
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


def _plain(text: str, length: int) -> str:
    return _CONTROL.sub(" ", text).strip()[:length]


@api.get(
    "/api/notifications",
    query="sessions#/$defs/NotificationsQuery",
    returns={200: "sessions#/$defs/Notifications"},
    links={"/api/notifications/{id}": {"id": "$response.body#/data/0/id"}},
    auth=caller,
)
async def list_notifications(request: ApiRequest) -> dict[str, Any]:
    """The newest, at most 200."""
    query = request.query
    where = []
    if query["unread"]:
        where.append(_UNREAD)
    if "before" in query:
        where.append(Filter("id", "<", query["before"].lower()))
    page = await request.storage.find(Query(NOTIFICATIONS, tuple(where), sort=("-id",), limit=MAX_LISTED))
    data = await _show(request.storage, page.records)
    return {"data": data, "count": len(data)}


@api.get("/api/notifications/count", returns={200: "sessions#/$defs/Count"}, auth=caller)
async def count_notifications(request: ApiRequest) -> dict[str, Any]:
    """How many are unread."""
    return {"count": await request.storage.count(Query(NOTIFICATIONS, (_UNREAD,)))}


@api.patch(
    "/api/notifications/{id}/read",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Notification"},
    errors=(404,),
    auth=caller,
)
async def read_notification(request: ApiRequest) -> dict[str, Any]:
    """Marks one as read, if it is not."""
    storage, id = request.storage, request.path["id"].lower()

    async def attempt() -> Record:
        record = (await storage.get(NOTIFICATIONS, [id])).get(id)
        if record is None:
            raise NotFound("Notification not found")
        put = _read(record)
        await storage.commit([put])
        return Record(id, 0, put.document)

    marked = await retry(storage, [NOTIFICATIONS.name], attempt)
    return (await _show(storage, [marked]))[0]


@api.post("/api/notifications/mark-all-read", returns={200: "sessions#/$defs/Marked"}, auth=caller)
async def read_all_notifications(request: ApiRequest) -> dict[str, Any]:
    """Marks as read all that there are now; what comes meanwhile is not."""
    storage = request.storage
    newest = await _newest(storage)
    query = Query(NOTIFICATIONS, (_UNREAD, *newest), limit=_MARKED)

    async def attempt() -> int:
        page = await storage.find(query)
        await storage.commit([_read(record) for record in page.records])
        return len(page.records)

    updated = 0
    while newest and (marked := await retry(storage, [NOTIFICATIONS.name], attempt)):
        updated += marked
    return {"success": True, "updated": updated}


@api.delete(
    "/api/notifications/{id}",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Success"},
    errors=(404,),
    auth=caller,
)
async def dismiss_notification(request: ApiRequest) -> dict[str, Any]:
    """Forgets one."""
    if not (await request.storage.commit([Delete(NOTIFICATIONS, request.path["id"].lower())])).counts[0]:
        raise NotFound("Notification not found")
    return {"success": True}


@api.delete("/api/notifications", returns={200: "sessions#/$defs/Dismissed"}, auth=caller)
async def dismiss_all_notifications(request: ApiRequest) -> dict[str, Any]:
    """Forgets all that there are now; what comes meanwhile stays."""
    newest = await _newest(request.storage)
    return {"dismissed": await request.storage.purge(Query(NOTIFICATIONS, newest)) if newest else 0}


async def _newest(storage: Storage) -> tuple[Filter, ...]:
    """The filter for all that there are now: ids rise. None where there are none."""
    page = await storage.find(Query(NOTIFICATIONS, sort=("-id",), limit=1))
    return tuple([Filter("id", "<=", record.id) for record in page.records])


def _read(record: Record) -> Put:
    return Put(NOTIFICATIONS, record.id, record.decode() | {"read": True}, record.version)


async def _show(storage: Storage, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Notifications as clients see them, with their sessions and tickets."""
    documents = [record.decode() for record in records]
    sessions = await _documents(storage, SESSIONS, [document["session_id"] for document in documents])
    tickets = await _documents(storage, TICKETS, [document["ticket_id"] for document in documents])
    return [
        {
            "id": record.id,
            **{name: document[name] for name in _SHOWN},
            "session": _summary(sessions, document["session_id"], "type", "status"),
            "ticket": _summary(tickets, document["ticket_id"], "external_id", "title"),
        }
        for record, document in zip(records, documents, strict=True)
    ]


async def _documents(storage: Storage, collection: Collection, ids: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    found = await storage.get(collection, list({id for id in ids if id is not None}))
    return {id: record.decode() for id, record in found.items()}


def _summary(documents: Mapping[str, Mapping[str, Any]], id: str | None, *names: str) -> dict[str, Any] | None:
    """None for what a notification is not about, or is gone."""
    if id is None or id not in documents:
        return None
    return {"id": id, **{name: documents[id][name] for name in names}}


async def _forget_old(app: web.Application) -> None:
    before = app[CLOCK].now() - RETENTION_DAYS * DAY
    removed = await app[STORAGE].purge(Query(NOTIFICATIONS, (Filter("created_at", "<", before),)))
    if removed:
        log.info("removed %d notifications older than %d days", removed, RETENTION_DAYS)


api.collections += (NOTIFICATIONS,)
api.jobs.append(Job("notification retention", "15 3 * * *", _forget_old))
