"""contracts/sessions.md, "Projects" and "Tickets", sentence by sentence: every example whole, on every back end."""

import re
from typing import Any

from ..server.apis.conftest import Served
from ..server.apis.sessions_kit import Desk

NOW = "2025-06-03T12:00:00.000Z"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def project_of(desk: Desk, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "name": "Homeport",
        "repo_path": str(desk.repo),
        "tickets_path": "docs/jira-tickets/",
        "handoff_path": "docs/ai-context/handoff.md",
        "tmux_session": "homeport",
        "tmux_window": None,
        "created_at": NOW,
        "updated_at": NOW,
    }


async def registered(desk: Desk) -> dict[str, Any]:
    """The contract's project, with one ticket file."""
    folder = desk.repo / "docs/jira-tickets"
    folder.mkdir(parents=True)
    (folder / "CSM-001-first.md").write_text("# First\n\nWhat is to be done.\n")
    body = {"name": "Homeport", "repoPath": str(desk.repo), "tmuxSession": "homeport"}
    project = await desk.call("POST", "/projects", 201, json=body)
    assert UUID.fullmatch(project["id"])
    return dict(project)


async def listed(desk: Desk) -> tuple[dict[str, Any], dict[str, Any]]:
    """The project and its ticket."""
    project = await registered(desk)
    (ticket,) = await desk.call("GET", f"/projects/{project['id']}/tickets")
    return project, ticket


async def test_projects(desk: Desk) -> None:
    project = await registered(desk)
    id = project["id"]
    assert project == project_of(desk, id)
    assert await desk.call("GET", "/projects") == [project]
    pagination = {"page": 1, "limit": 10, "total": 1, "total_pages": 1}
    assert await desk.call("GET", "/projects?page=1&limit=10") == {"data": [project], "pagination": pagination}
    assert await desk.call("GET", f"/projects/{id}") == {
        **project,
        "ticket_counts": {"backlog": 1, "in_progress": 0, "review": 0, "done": 0},
        "active_session": None,
    }
    assert await desk.call("PATCH", f"/projects/{id}", json={"name": "Port"}) == {**project, "name": "Port"}
    body = {"name": "Again", "repo_path": str(desk.repo), "tmux_session": "again"}
    assert (await desk.call("POST", "/projects", 409, json=body))["error"] == "Conflict"
    for wrong in ({"repo_path": "relative"}, {"repo_path": "/nowhere"}, {"tickets_path": "../out"}):
        assert (await desk.call("POST", "/projects", 400, json=body | wrong))["error"] == "Validation error"
    assert await desk.call("DELETE", f"/projects/{id}", 204) is None
    assert await desk.call("GET", f"/projects/{id}", 404) == {"error": "Not found", "message": "Project not found"}
    assert (await desk.call("GET", "/projects/7", 400))["error"] == "Validation error"


async def test_tickets(desk: Desk) -> None:
    project, ticket = await listed(desk)
    assert UUID.fullmatch(ticket["id"])
    assert ticket == {
        "id": ticket["id"],
        "external_id": "CSM-001",
        "title": "First",
        "state": "backlog",
        "file_path": "docs/jira-tickets/CSM-001-first.md",
        "is_adhoc": False,
        "started_at": None,
        "completed_at": None,
        "created_at": NOW,
        "updated_at": NOW,
    }
    tickets = f"/projects/{project['id']}/tickets"
    assert await desk.call("GET", f"{tickets}?state=backlog&prefix=CSM") == [ticket]
    assert await desk.call("GET", f"{tickets}?prefixes=A,CSM") == [ticket]
    assert await desk.call("GET", f"{tickets}?state=done") == []
    pagination = {"page": 1, "limit": 100, "total": 1, "total_pages": 1}
    assert await desk.call("GET", f"{tickets}?limit=100") == {"data": [ticket], "pagination": pagination}
    assert await desk.call("GET", f"{tickets}/prefixes") == {"data": ["CSM"]}
    synced = await desk.call("POST", f"/projects/{project['id']}/sync-tickets")
    assert synced == {"message": "Tickets synced", "result": {"created": 0, "updated": 0, "deleted": 0, "errors": 0}}


async def test_one_ticket(desk: Desk) -> None:
    project, ticket = await listed(desk)
    path = f"/tickets/{ticket['id']}"
    content = "# First\n\nWhat is to be done.\n"
    assert await desk.call("GET", path) == {**ticket, "content": content, "project_id": project["id"]}
    shown = {"ticket_id": ticket["id"], "file_path": ticket["file_path"], "content": content}
    server: Served = desk.server
    answer = await server.get(f"/api{path}/content")
    assert answer.json == shown
    match = {"If-Match": answer.headers["ETag"]}
    written = await server("PUT", f"/api{path}/content", json={"content": "# Other\n"}, headers=match)
    assert (written.status, written.json) == (200, {**shown, "content": "# Other\n"})
    assert written.headers["ETag"] != match["If-Match"]
    late = await server("PUT", f"/api{path}/content", json={"content": "late"}, headers=match)
    assert (late.status, late.json["error"]) == (412, "Precondition failed")
    assert await desk.call("PATCH", f"{path}/title", json={"title": "Third"}) == {**ticket, "title": "Third"}
    assert (desk.repo / ticket["file_path"]).read_text() == "# Third\n"

    moved = await desk.call("PATCH", path, json={"state": "in_progress"})
    assert moved == {**ticket, "title": "Third", "state": "in_progress", "started_at": NOW}
    (step,) = (await desk.call("GET", f"{path}/history"))["data"]
    assert step == {
        "id": step["id"],
        "ticket_id": ticket["id"],
        "from_state": "backlog",
        "to_state": "in_progress",
        "trigger": "manual",
        "reason": "user_moved",
        "created_at": NOW,
    }
    refused = await desk.call("PATCH", path, 400, json={"state": "done"})
    assert refused["error"] == "Validation error"
    assert "in_progress" in refused["message"]
    assert "done" in refused["message"]


async def test_adhoc_tickets(desk: Desk) -> None:
    project = await registered(desk)
    body = {"title": "Slow start", "slug": "slow"}
    made = await desk.call("POST", f"/projects/{project['id']}/adhoc-tickets", 201, json=body)
    assert made == {
        "id": made["id"],
        "external_id": "ADHOC-1",
        "title": "Slow start",
        "state": "backlog",
        "file_path": "docs/jira-tickets/ADHOC-1-slow.md",
        "is_adhoc": True,
        "started_at": None,
        "completed_at": None,
        "created_at": NOW,
        "updated_at": NOW,
    }
    assert (desk.repo / made["file_path"]).read_text() == "# Slow start\n"
    assert await desk.call("DELETE", f"/tickets/{made['id']}") == {"success": True}
    assert not (desk.repo / made["file_path"]).exists()


async def test_a_ticket_is_started_rejected_and_approved(desk: Desk) -> None:
    _, ticket = await listed(desk)
    path = f"/tickets/{ticket['id']}"
    started = await desk.call("POST", f"{path}/start")
    session = started["session"]
    assert started == {
        "ticket": {**ticket, "state": "in_progress", "started_at": NOW},
        "session": await desk.session(session["id"]),
    }
    assert session["ticket"] == {"id": ticket["id"], "external_id": "CSM-001", "title": "First"}
    assert (await desk.call("POST", f"{path}/start", 409))["error"] == "Conflict"
    await desk.printed(session["id"], "[")

    await desk.call("PATCH", path, json={"state": "review"})
    assert (await desk.call("POST", f"{path}/reject", 400, json={"feedback": ""}))["error"] == "Validation error"
    rejected = await desk.call("POST", f"{path}/reject", json={"feedback": "please test it"})
    assert rejected == {
        "ticket_id": ticket["id"],
        "from_state": "review",
        "to_state": "in_progress",
        "trigger": "manual",
        "reason": "user_rejected",
        "timestamp": NOW,
    }
    await desk.printed(session["id"], "got test it")  # the program takes the first word for a command

    await desk.call("PATCH", path, json={"state": "review"})
    approved = await desk.call("POST", f"{path}/approve")
    assert approved == {**rejected, "to_state": "done", "reason": "user_approved"}
    assert (await desk.ended(session["id"]))["status"] == "completed"
    steps = (await desk.call("GET", f"{path}/history"))["data"]
    assert [(step["from_state"], step["to_state"], step.get("feedback")) for step in steps] == [
        ("review", "done", None),
        ("in_progress", "review", None),
        ("review", "in_progress", "please test it"),
        ("in_progress", "review", None),
        ("backlog", "in_progress", None),
    ]
