"""The operations of notifications (contracts/sessions.md, "Notifications")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .....storage import Delete, Filter, Put, Query, Record, retry
from ....errors import NotFound
from ....request import ApiRequest
from ..api import api, caller, id_in_path
from ..records import documents
from ..records.sessions import SESSIONS
from ..records.tickets import TICKETS
from .notifying import NOTIFICATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .....storage import Storage

MAX_LISTED: Final = 200
_MARKED = 500
"""How many are marked as read in one commit."""
_SHOWN = ("type", "message", "read", "session_id", "ticket_id", "created_at")
_UNREAD = Filter("read", "==", False)


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
    storage, id = request.storage, id_in_path(request)

    async def attempt() -> Record:
        put = _read(await documents.find(storage, NOTIFICATIONS, id))
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
    if not (await request.storage.commit([Delete(NOTIFICATIONS, id_in_path(request))])).counts[0]:
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
    shown = [record.decode() for record in records]
    sessions = await documents.get_all(storage, SESSIONS, [document["session_id"] for document in shown])
    tickets = await documents.get_all(storage, TICKETS, [document["ticket_id"] for document in shown])
    return [
        {
            "id": record.id,
            **{name: document[name] for name in _SHOWN},
            "session": _summary(sessions, document["session_id"], "type", "status"),
            "ticket": _summary(tickets, document["ticket_id"], "external_id", "title"),
        }
        for record, document in zip(records, shown, strict=True)
    ]


def _summary(documents: Mapping[str, Mapping[str, Any]], id: str | None, *names: str) -> dict[str, Any] | None:
    """None for what a notification is not about, or is gone."""
    if id is None or id not in documents:
        return None
    return {"id": id, **{name: documents[id][name] for name in names}}
