"""Notifications: kept, shown with what they are about, read, dismissed and forgotten, on every back end."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from homeport.server.apis.sessions.notifications import inbox
from homeport.server.apis.sessions.notifications.notifying import notify
from homeport.server.apis.sessions.records.sessions import SESSIONS
from homeport.server.apis.sessions.records.tickets import TICKETS
from homeport.storage import Put
from homeport.storage.times import format_time, parse_time

from .conftest import NOW, Serve, Served, on_memory
from .sessions_kit import until

SESSION_ID, TICKET_ID = "01a20184-e37c-7524-827d-a9213b79ad5f", "01a20184-e37c-7524-827d-a9213b79ad60"


@pytest.fixture
async def server(serve: Serve) -> Served:
    return await serve({"apis.enabled": ["sessions"]})


async def call(server: Served, method: str, path: str = "", status: int = 200) -> Any:
    answer = await server(method, f"/api/notifications{path}")
    assert answer.status == status, answer.content
    return answer.json


async def ids(server: Served, query: str = "") -> list[str]:
    listed = await call(server, "GET", query)
    assert listed["count"] == len(listed["data"])
    return [notification["id"] for notification in listed["data"]]


async def tell(server: Served, count: int, **about: Any) -> list[str]:
    """So many notifications; their ids, the newest first."""
    told = [await notify(server.app, "error", f"number {number}", title="T", **about) for number in range(count)]
    return [notification["id"] for notification in reversed(told)]


async def keep_session_and_ticket(server: Served) -> None:
    session = {"project_id": str(uuid4()), "ticket_id": TICKET_ID, "type": "ticket", "status": "running"}
    ticket = {"project_id": str(uuid4()), "external_id": "CSM-1", "prefix": "CSM", "state": "review", "title": "First"}
    await server.storage.commit([Put(SESSIONS, SESSION_ID, session), Put(TICKETS, TICKET_ID, ticket)])


async def test_what_is_shown(server: Served) -> None:
    await keep_session_and_ticket(server)
    [id] = await tell(server, 1, session_id=SESSION_ID, ticket_id=TICKET_ID)
    shown = {
        "id": id,
        "type": "error",
        "message": "number 0",
        "read": False,
        "session_id": SESSION_ID,
        "ticket_id": TICKET_ID,
        "created_at": format_time(parse_time(NOW)),
        "session": {"id": SESSION_ID, "type": "ticket", "status": "running"},
        "ticket": {"id": TICKET_ID, "external_id": "CSM-1", "title": "First"},
    }
    assert await call(server, "GET") == {"data": [shown], "count": 1}
    assert await call(server, "PATCH", f"/{id}/read") == shown | {"read": True}
    assert await call(server, "PATCH", f"/{id.upper()}/read") == shown | {"read": True}
    assert await call(server, "GET") == {"data": [shown | {"read": True}], "count": 1}


async def test_what_it_is_about_may_be_gone_or_nothing(server: Served) -> None:
    await tell(server, 1, session_id=SESSION_ID, ticket_id=TICKET_ID)
    await tell(server, 1)
    nothing, gone = (await call(server, "GET"))["data"]
    assert (gone["session_id"], gone["session"]) == (SESSION_ID, None)
    assert (gone["ticket_id"], gone["ticket"]) == (TICKET_ID, None)
    assert [nothing[name] for name in ("session_id", "session", "ticket_id", "ticket")] == [None] * 4


async def test_unread(server: Served) -> None:
    third, second, first = told = await tell(server, 3)
    await call(server, "PATCH", f"/{second}/read")
    assert await ids(server, "?unread=true") == [third, first]
    assert await ids(server, "?unread=false") == await ids(server) == told
    assert await call(server, "GET", "/count") == {"count": 2}
    assert await call(server, "POST", "/mark-all-read") == {"success": True, "updated": 2}
    assert await call(server, "POST", "/mark-all-read") == {"success": True, "updated": 0}
    assert await call(server, "GET", "/count") == {"count": 0}
    assert await ids(server, "?unread=true") == []


async def test_at_most_200_and_then_those_before(server: Served) -> None:
    told = await tell(server, 205)
    assert await ids(server) == told[:200]
    assert await ids(server, f"?before={told[199]}") == told[200:]
    assert await ids(server, f"?before={told[1].upper()}&unread=true") == told[2:202]
    assert await ids(server, f"?before={told[-1]}") == []


async def test_dismissing(server: Served) -> None:
    told = await tell(server, 4)
    assert await call(server, "DELETE", f"/{told[1]}") == {"success": True}
    assert await ids(server) == [told[0], *told[2:]]
    assert (await call(server, "DELETE", f"/{told[1]}", 404))["message"] == "Notification not found"
    assert await call(server, "DELETE") == {"dismissed": 3}
    assert await call(server, "DELETE") == {"dismissed": 0}
    assert await ids(server) == []


async def test_marking_all_while_others_come(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is marked once, by one of those who mark, or is unread."""
    monkeypatch.setattr(inbox, "_MARKED", 7)
    told = await tell(server, 40)

    async def mark() -> int:
        return int((await call(server, "POST", "/mark-all-read"))["updated"])

    async def read(id: str) -> None:
        assert (await call(server, "PATCH", f"/{id}/read"))["read"]

    async with asyncio.TaskGroup() as group:
        marking = [group.create_task(mark())]
        telling = group.create_task(tell(server, 20))
        marking.append(group.create_task(mark()))
        for id in told[:10]:
            group.create_task(read(id))
        marking.append(group.create_task(mark()))
    marked = sum(task.result() for task in marking)
    unread = await ids(server, "?unread=true")
    assert set(unread) <= set(telling.result())
    assert 60 - 10 <= marked + len(unread) <= 60
    assert len(await ids(server)) == 60


async def test_they_are_kept_for_90_days(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions"]}, now="2025-06-03T12:00:00Z")
    await tell(server, 2)
    server.move_to("2025-06-04T12:00:00Z")
    recent = await tell(server, 3)
    server.move_to("2025-09-02T03:20:00Z")  # 90 days and 15 hours after the first, 89 and 15 after the others

    async def forgotten() -> bool:
        return await ids(server) == recent

    await until(forgotten)


@on_memory
async def test_texts_are_plain_and_bounded(server: Served) -> None:
    kept = await notify(server.app, "error", "one\n\x1b[31mtwo " + "x" * 2000, title="T\0" + "t" * 300)
    [shown] = (await call(server, "GET"))["data"]
    assert shown["message"].startswith("one [31mtwo xxx")
    assert len(shown["message"]) == 1000
    assert kept["title"] == "T " + "t" * 198


@on_memory
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "?before=nope", 400),
        ("GET", "?unread=maybe", 400),
        ("PATCH", "/nope/read", 400),
        ("DELETE", "/nope", 400),
        ("PATCH", f"/{SESSION_ID}/read", 404),
        ("DELETE", f"/{SESSION_ID}", 404),
        ("PUT", "", 405),
        ("GET", f"/{SESSION_ID}", 405),
    ],
)
async def test_refusals(server: Served, method: str, path: str, status: int) -> None:
    answer = await call(server, method, path, status)
    kinds = {400: "Validation error", 404: "Not found", 405: "Method not allowed"}
    assert answer["error"] == kinds[status]
    assert answer["message"]


@on_memory
async def test_who_may(serve: Serve) -> None:
    server = await serve({"apis.enabled": ["sessions"], "apis.sessions.api_key": "right"})
    beyond = {"X-Forwarded-For": "192.0.2.1"}
    for method, path in (("GET", ""), ("GET", "/count"), ("POST", "/mark-all-read"), ("DELETE", "")):
        url = f"/api/notifications{path}"
        assert (await server(method, url, headers=beyond)).status == 401
        assert (await server(method, url, headers={**beyond, "X-API-Key": "right"})).status == 200
        assert (await server(method, url)).status == 200
