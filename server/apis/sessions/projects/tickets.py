"""Tickets, as lists show them, and what is done to them besides reviewing."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .....storage import Filter, Query, walk
from ....errors import ApiError, InvalidBody, Problem, ServiceUnavailable
from ....request import Answer
from ..api import api, caller, id_in_path
from ..folders.files import Folder, Missing, create, refusing, remove
from ..folders.scanning import scan
from ..folders.syncing import FOLDERS
from ..records import documents, states
from ..records.projects import PROJECTS
from ..records.sessions import running_on
from ..records.tickets import ADHOC, TICKETS, TRANSITIONS, removal, show_ticket, tickets_of
from .paging import listed

if TYPE_CHECKING:
    from ....request import ApiRequest

_MAX_HISTORY = 1000
"""The newest transitions of a ticket, which are shown."""
_MAX_SLUG = 60
_NO_SLUG = re.compile(r"[^a-z0-9]+")


@api.get(
    "/api/projects/{id}/tickets",
    params="sessions#/$defs/Id",
    query="sessions#/$defs/TicketsQuery",
    returns={200: "sessions#/$defs/Tickets"},
    links={"/api/tickets/{id}": {"id": "$response.body#/0/id"}},
    errors=(404,),
    auth=caller,
)
async def list_tickets(request: ApiRequest) -> Answer:
    """A project's tickets, newest first; its folder is read before."""
    found = await documents.get(request.storage, PROJECTS, request.path["id"])
    await request.app[FOLDERS].read(found["id"])
    where = []
    if state := request.query.get("state"):
        where.append(Filter("state", "==", state))
    if prefix := request.query.get("prefix"):
        where.append(Filter("prefix", "==", prefix.rstrip("-")))
    if given := ",".join(request.raw.query.getall("prefixes", ())):
        where.append(Filter("prefix", "in", tuple(name.strip().rstrip("-") for name in given.split(","))))
    return await listed(request, tickets_of(found["id"], *where), show_ticket)


@api.get(
    "/api/projects/{id}/tickets/prefixes",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Prefixes"},
    errors=(404,),
    auth=caller,
)
async def list_prefixes(request: ApiRequest) -> dict[str, list[str]]:
    """The prefixes of a project's tickets; its folder is read before."""
    found = await documents.get(request.storage, PROJECTS, request.path["id"])
    await request.app[FOLDERS].read(found["id"])
    query = tickets_of(found["id"])
    return {"data": sorted({record.decode()["prefix"] async for record in walk(request.storage, query)})}


@api.post(
    "/api/projects/{id}/sync-tickets",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Synced"},
    errors=(404,),
    auth=caller,
)
async def sync_tickets(request: ApiRequest) -> dict[str, Any]:
    """Reads a project's folder."""
    synced = await request.app[FOLDERS].read(id_in_path(request))
    return {"message": "Tickets synced", "result": synced._asdict()}


@api.post(
    "/api/projects/{id}/adhoc-tickets",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/NewTicket",
    returns={201: "sessions#/$defs/Ticket"},
    links={"/api/tickets/{id}": {"id": "$response.body#/id"}},
    errors=(404, 409),
    auth=caller,
)
async def create_ticket(request: ApiRequest) -> Answer:
    """Writes a new ticket file into a project's folder, with a number above all that are there."""
    title = titled(request.document)
    slug = request.document.get("slug") or _slug_of(title)
    found = await documents.get(request.storage, PROJECTS, request.path["id"])
    folder, folders = Folder(found["repo_path"], found["tickets_path"]), request.app[FOLDERS]
    async with folders.hold(found["id"]):
        try:
            external_id = await asyncio.to_thread(_write_new, folder, slug, title)
        except Missing:
            raise ApiError("The project's folder is not there", status=409) from None
        await folders.read_held(found["id"])
        made = tickets_of(found["id"], Filter("external_id", "==", external_id))
        records = (await request.storage.find(made)).records
    if not records:
        raise ServiceUnavailable(f"{external_id} was written, but could not be read again")
    return Answer(show_ticket(documents.identified(records[0])), 201)


def _write_new(folder: Folder, slug: str, title: str) -> str:
    """Its external id. Raises `Missing`, and `ApiError` where it cannot be written."""
    with refusing("written"):
        taken = [int(file.external_id.rpartition("-")[2]) for file in scan(folder).files if file.prefix == ADHOC]
        external_id = f"{ADHOC}-{max(taken, default=0) + 1}"
        if not create(folder, f"{external_id}-{slug}.md", f"# {title}\n".encode()):
            raise ApiError(f"{external_id}-{slug}.md is there already", status=409)
    return external_id


@api.patch(
    "/api/tickets/{id}",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/StateChange",
    returns={200: "sessions#/$defs/Ticket"},
    errors=(404,),
    auth=caller,
)
async def change_state(request: ApiRequest) -> dict[str, Any]:
    """Takes a ticket into another state; a session on it goes on."""
    id = id_in_path(request)
    async with states.steering(request.app, id):
        await states.move(request.app, id, request.document["state"], trigger="manual", reason="user_moved")
    return show_ticket(await documents.get(request.storage, TICKETS, id))


@api.delete(
    "/api/tickets/{id}",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Success"},
    errors=(404, 409),
    auth=caller,
)
async def delete_ticket(request: ApiRequest) -> dict[str, bool]:
    """Removes a ticket that was made here, its history and its file."""
    found = await documents.get(request.storage, TICKETS, request.path["id"])
    if not found["is_adhoc"]:
        raise ApiError(f"{found['external_id']} is no adhoc ticket: delete its file", status=409)
    owner = await documents.get(request.storage, PROJECTS, found["project_id"])
    folder = Folder(owner["repo_path"], owner["tickets_path"])
    async with states.steering(request.app, found["id"]), request.app[FOLDERS].hold(owner["id"]):
        found = await documents.get(request.storage, TICKETS, found["id"])
        if await running_on(request.storage, found["id"]):
            raise ApiError("A session is running on this ticket", status=409)
        with suppress(Missing):
            await asyncio.to_thread(remove, folder, folder.below(found["file_path"]))
        await request.storage.commit(removal(found["id"]))
    return {"success": True}


@api.get(
    "/api/tickets/{id}/history",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/History"},
    errors=(404,),
    auth=caller,
)
async def show_history(request: ApiRequest) -> dict[str, Any]:
    """What became of a ticket, newest first."""
    found = await documents.get(request.storage, TICKETS, request.path["id"])
    where = (Filter("ticket_id", "==", found["id"]),)
    page = await request.storage.find(Query(TRANSITIONS, where, sort=("-id",), limit=_MAX_HISTORY))
    return {"data": [_transition(documents.identified(record)) for record in page.records]}


def _transition(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kept.items() if name != "project_id"}


def titled(document: Mapping[str, Any]) -> str:
    """The title that was sent. Raises `InvalidBody` for a blank one."""
    title: str = document["title"].strip()
    if not title:
        raise InvalidBody(problems=[Problem(("title",), "must not be blank")])
    return title


def _slug_of(title: str) -> str:
    """What a title is called in the name of a file: small ASCII letters, digits and hyphens."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return _NO_SLUG.sub("-", ascii_only).strip("-")[:_MAX_SLUG].strip("-") or "ticket"
