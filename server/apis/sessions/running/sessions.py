"""The operations of sessions (contracts/sessions.md, "Sessions")."""

from __future__ import annotations

from typing import Any, Final

from .....storage import Filter, Query
from ....errors import NotFound
from ....request import Answer, ApiRequest
from ..api import api, caller, id_in_path
from ..records import documents
from ..records.projects import PROJECTS
from ..records.sessions import SESSIONS, show_sessions
from ..records.tickets import TICKETS
from ..tmux.keys import keys_of
from .runner import RUNNER

MAX_LISTED: Final = 1000
"""Sessions in a list; the newest."""


@api.get(
    "/api/sessions",
    query="sessions#/$defs/SessionsQuery",
    returns={200: "sessions#/$defs/Sessions"},
    links={"/api/sessions/{id}": {"id": "$response.body#/0/id"}},
    auth=caller,
)
async def list_sessions(request: ApiRequest) -> list[dict[str, Any]]:
    """The newest sessions, at most 1,000."""
    query = request.query
    where = []
    if "status" in query:
        where.append(Filter("status", "==", query["status"]))
    if project := query.get("projectId") or query.get("project_id"):
        where.append(Filter("project_id", "==", project.lower()))
    page = await request.storage.find(Query(SESSIONS, tuple(where), sort=("-id",), limit=MAX_LISTED))
    return await show_sessions(request.storage, [documents.identified(record) for record in page.records])


@api.get(
    "/api/sessions/{id}",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Session"},
    errors=(404,),
    auth=caller,
)
async def show_session(request: ApiRequest) -> dict[str, Any]:
    """A session."""
    return await _shown(request, await documents.get(request.storage, SESSIONS, id_in_path(request)))


@api.post(
    "/api/projects/{id}/sessions",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/NewSession",
    optional_body=True,
    returns={201: "sessions#/$defs/Session"},
    links={
        "/api/sessions/{id}": {"id": "$response.body#/id"},
        "/api/hooks/claude": {"X-Homeport-Session": "$response.body#/id"},
    },
    errors=(404, 409, 503),
    auth=caller,
)
async def start_session(request: ApiRequest) -> Answer:
    """Starts a session in a project, on a ticket of it or on none; the states of tickets are left as they are."""
    document = request.document
    project = await documents.get(request.storage, PROJECTS, id_in_path(request))
    ticket = None
    if ticket_id := document.get("ticket_id"):
        ticket = await documents.get(request.storage, TICKETS, ticket_id)
        if ticket["project_id"] != project["id"]:
            raise NotFound("Ticket not found")
    session = await request.app[RUNNER].start(project, ticket=ticket, prompt=document.get("initialPrompt"))
    return Answer(await _shown(request, session), 201)


@api.post(
    "/api/sessions/{id}/input",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/Input",
    returns={200: "sessions#/$defs/Success"},
    errors=(404, 409, 503),
    auth=caller,
)
async def type_input(request: ApiRequest) -> dict[str, Any]:
    """Types a text, and Enter. A line of more than 4,095 bytes is refused with 409 where the program does not edit
    lines itself: the terminal would drop the end of it."""
    document = request.document
    await request.app[RUNNER].type(id_in_path(request), document["text"] if "text" in document else document["input"])
    return {"success": True}


@api.post(
    "/api/sessions/{id}/keys",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/Keys",
    returns={200: "sessions#/$defs/Success"},
    errors=(404, 409, 503),
    auth=caller,
)
async def press_keys(request: ApiRequest) -> dict[str, Any]:
    """Presses keys, named as tmux names them, with blanks between."""
    await request.app[RUNNER].keys(id_in_path(request), keys_of(request.document["keys"]))
    return {"success": True}


@api.post(
    "/api/sessions/{id}/focus",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Success"},
    errors=(404, 409, 503),
    auth=caller,
)
async def focus(request: ApiRequest) -> dict[str, Any]:
    """Makes its window the one that the tmux session shows."""
    await request.app[RUNNER].focus(id_in_path(request))
    return {"success": True}


@api.get(
    "/api/sessions/{id}/output",
    params="sessions#/$defs/Id",
    query="sessions#/$defs/OutputQuery",
    returns={200: "sessions#/$defs/Output"},
    errors=(404,),
    auth=caller,
)
async def show_output(request: ApiRequest) -> dict[str, Any]:
    """The last lines that it printed."""
    output = await request.app[RUNNER].output(id_in_path(request))
    return {"session_id": id_in_path(request), "lines": output.lines(request.query["lines"])}


@api.post(
    "/api/sessions/{id}/stop",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/Stop",
    optional_body=True,
    returns={200: "sessions#/$defs/Session"},
    errors=(404, 503),
    auth=caller,
)
async def stop_session(request: ApiRequest) -> dict[str, Any]:
    """Ends it with Ctrl-C, which it may ignore, or by force; one that has ended is answered as it is."""
    session = await request.app[RUNNER].stop(id_in_path(request), request.document.get("force", False))
    return await _shown(request, session)


@api.post("/api/sessions/sync", returns={200: "sessions#/$defs/Updated"}, errors=(503,), auth=caller)
async def sync_sessions(request: ApiRequest) -> dict[str, Any]:
    """Matches the records to the panes that live."""
    return {"updated": await request.app[RUNNER].ends.sync()}


@api.get("/api/tmux/sessions", returns={200: "sessions#/$defs/TmuxSessions"}, errors=(503,), auth=caller)
async def list_tmux_sessions(request: ApiRequest) -> dict[str, Any]:
    """What tmux calls sessions; windows are ours, and whoever else's."""
    sessions = await request.app[RUNNER].tmux.sessions()
    return {
        "data": [
            {"name": session.name, "windows": session.windows, "attached": session.attached} for session in sessions
        ]
    }


async def _shown(request: ApiRequest, session: dict[str, Any]) -> dict[str, Any]:
    return (await show_sessions(request.storage, [session]))[0]
