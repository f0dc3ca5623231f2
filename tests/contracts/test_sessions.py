"""contracts/sessions.md, "Sessions" (and tmux's own), sentence by sentence: every example whole, on every back end."""

import re
from typing import Any

import pytest

from ..server.apis.conftest import on_memory
from ..server.apis.sessions_kit import Desk, until
from .test_sessions_tickets import NOW, UUID, listed

LATER = "2025-06-03T12:00:05.000Z"
UNKNOWN = "0199aaaa-0000-7000-8000-000000000000"
STEPS = {"POST": ("input", "keys", "focus", "stop"), "GET": ("", "output")}


def session_of(session: dict[str, Any], project: dict[str, Any], ticket: dict[str, Any] | None) -> dict[str, Any]:
    """What a session that was started now looks like."""
    brief = ticket and {name: ticket[name] for name in ("id", "external_id", "title")}
    return {
        "id": session["id"],
        "project_id": project["id"],
        "ticket_id": ticket and ticket["id"],
        "type": "ticket" if ticket else "adhoc",
        "status": "running",
        "context_percent": None,
        "pane_id": session["pane_id"],
        "started_at": NOW,
        "ended_at": None,
        "created_at": NOW,
        "updated_at": NOW,
        "project": {"id": project["id"], "name": "Homeport"},
        "ticket": brief,
    }


async def test_sessions(desk: Desk) -> None:
    project, ticket = await listed(desk)
    path = f"/projects/{project['id']}/sessions"
    adhoc = await desk.call("POST", path, 201, json={"initialPrompt": "Go on."})
    assert UUID.fullmatch(adhoc["id"])
    assert re.fullmatch("%[0-9]+", adhoc["pane_id"])
    assert adhoc == session_of(adhoc, project, None)
    on_ticket = await desk.call("POST", path, 201, json={"ticket_id": ticket["id"]})
    assert on_ticket == session_of(on_ticket, project, ticket)
    bare = await desk.call("POST", path, 201)
    assert bare == session_of(bare, project, None)
    assert await desk.call("GET", f"/sessions/{on_ticket['id']}") == on_ticket
    assert await desk.call("GET", f"/sessions/{on_ticket['id'].upper()}") == on_ticket
    assert await desk.call("GET", "/sessions") == [bare, on_ticket, adhoc]
    assert await desk.call("GET", "/tmux/sessions") == {"data": [{"name": "homeport", "windows": 3, "attached": 0}]}
    assert (await desk.call("GET", f"/projects/{project['id']}"))["active_session"] == bare


async def test_filters(desk: Desk) -> None:
    project, _ = await listed(desk)
    (desk.folder / "other").mkdir()
    other = await desk.project(repoPath=str(desk.folder / "other"), name="Other")
    first, second = [await desk.start(project=project) for _ in range(2)]
    third = await desk.start(project=other)
    stopped = await desk.call("POST", f"/sessions/{first['id']}/stop")
    assert stopped == {**first, "status": "completed", "ended_at": NOW}
    for query, found in {
        "": [third, second, stopped],
        "status=running": [third, second],
        "status=completed": [stopped],
        "status=paused": [],
        "status=error": [],
        f"projectId={project['id']}": [second, stopped],
        f"project_id={project['id'].upper()}": [second, stopped],
        f"projectId={other['id']}&status=running": [third],
        f"projectId={UNKNOWN}": [],
    }.items():
        assert await desk.call("GET", f"/sessions?{query}") == found, query
    for query in ("status=ended", "projectId=7", "project_id=x"):
        assert (await desk.call("GET", f"/sessions?{query}", 400))["error"] == "Validation error", query


async def test_what_is_typed_and_printed(desk: Desk) -> None:
    session = await desk.start("Go on.")
    path = f"/sessions/{session['id']}"
    for body in ({"text": "quiet"}, {"input": "say yes"}, {"text": "say no", "input": "say maybe"}, {"text": ""}):
        assert await desk.call("POST", f"{path}/input", json=body) == {"success": True}
    assert await desk.call("POST", f"{path}/focus") == {"success": True}
    await desk.type(session["id"], "say end")
    lines = ['["Go on."]', "quiet", "got ", "got yes", "got no", "got ", "got end"]
    await desk.printed(session["id"], "got end")
    shown = await desk.call("GET", f"{path}/output")
    assert [line for line in shown["lines"] if not line.startswith("say")] == lines
    assert shown["session_id"] == session["id"]
    assert await desk.call("GET", f"{path}/output?lines=2") == {"session_id": session["id"], "lines": lines[-2:]}
    await desk.type(session["id"], "count 100")
    await desk.printed(session["id"], "got 100")
    assert len((await desk.call("GET", f"{path}/output"))["lines"]) == 50
    assert await desk.call("POST", f"{path}/keys", json={"keys": "C-c"}) == {"success": True}
    assert (await desk.ended(session["id"]))["status"] == "error"
    assert (await desk.call("GET", f"{path}/output?lines=1000"))["lines"][0] == '["Go on."]'


@pytest.mark.parametrize("body", [None, {}, {"force": False}, {"force": True}])
async def test_stop(desk: Desk, body: dict[str, Any] | None) -> None:
    """`completed`, and the ticket is left as it is."""
    _, ticket = await listed(desk)
    session = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    await desk.printed(session["id"], "[")
    desk.server.move_to(LATER)
    stopped = await desk.call("POST", f"/sessions/{session['id']}/stop", json=body)
    assert stopped == {**session, "status": "completed", "ended_at": LATER, "updated_at": LATER}
    assert (await desk.call("GET", f"/tickets/{ticket['id']}"))["state"] == "in_progress"
    assert (await desk.call("GET", "/notifications"))["data"] == []


async def test_a_session_that_ends_by_itself(desk: Desk) -> None:
    _, ticket = await listed(desk)
    session = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    await desk.printed(session["id"], "[")
    await desk.type(session["id"], "exit 0")
    assert await desk.ended(session["id"]) == {**session, "status": "completed", "ended_at": NOW}

    async def told() -> bool:
        return bool((await desk.call("GET", "/notifications"))["data"])

    await until(told)
    assert (await desk.call("GET", f"/tickets/{ticket['id']}"))["state"] == "review"
    ((notification),) = (await desk.call("GET", "/notifications"))["data"]
    assert (notification["type"], notification["session_id"]) == ("review_ready", session["id"])


@on_memory
async def test_sync(desk: Desk) -> None:
    """An ended one is as its exit status says; what nobody knows it of is an error."""
    await desk.start()
    assert await desk.call("POST", "/sessions/sync") == {"updated": 0}


@on_memory
async def test_refusals(desk: Desk) -> None:
    project, ticket = await listed(desk)
    missing = {"error": "Not found", "message": "Session not found"}
    bodies = {"input": {"text": "x"}, "keys": {"keys": "x"}}
    for method, steps in STEPS.items():
        for step in steps:
            body = bodies.get(step)
            assert await desk.call(method, f"/sessions/{UNKNOWN}/{step}".rstrip("/"), 404, json=body) == missing
            refused = await desk.call(method, f"/sessions/7/{step}".rstrip("/"), 400, json=body)
            assert refused["error"] == "Validation error"
    path = f"/projects/{project['id']}/sessions"
    nowhere = {"error": "Not found", "message": "Project not found"}
    assert await desk.call("POST", f"/projects/{UNKNOWN}/sessions", 404) == nowhere
    nothing = {"error": "Not found", "message": "Ticket not found"}
    assert await desk.call("POST", path, 404, json={"ticket_id": UNKNOWN}) == nothing
    wrong: Any
    for wrong in ({"ticket_id": "7"}, {"initialPrompt": 1}, {"initialPrompt": "\0"}, []):
        assert (await desk.call("POST", path, 400, json=wrong))["error"] == "Validation error"
    session = await desk.call("POST", path, 201, json={"ticket_id": ticket["id"]})
    busy = {"error": "Conflict", "message": "A session is running on this ticket"}
    assert await desk.call("POST", path, 409, json={"ticket_id": ticket["id"]}) == busy
    assert (await desk.call("DELETE", f"/projects/{project['id']}", 409))["error"] == "Conflict"
    for step, wrong in (("input", {}), ("input", {"text": None}), ("keys", {}), ("stop", {"force": "yes"})):
        refused = await desk.call("POST", f"/sessions/{session['id']}/{step}", 400, json=wrong)
        assert refused["error"] == "Validation error"
    for lines in ("0", "10001", "x"):
        refused = await desk.call("GET", f"/sessions/{session['id']}/output?lines={lines}", 400)
        assert (refused["error"], refused["details"][0]["path"]) == ("Validation error", ["lines"])
    await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    ended = {"error": "Conflict", "message": "The session has ended"}
    for step in ("input", "keys", "focus"):
        assert await desk.call("POST", f"/sessions/{session['id']}/{step}", 409, json=bodies.get(step)) == ended
    assert await desk.call("DELETE", f"/projects/{project['id']}", 204) is None
