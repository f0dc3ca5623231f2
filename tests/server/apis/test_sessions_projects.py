"""Projects: what may be registered, and what is refused; folders and projects that hold them."""

import asyncio
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from homeport.server.apis.sessions.records.tickets import TICKETS
from homeport.storage import Query

from .conftest import Served, on_memory
from .sessions_kit import Desk, until

TICKET = "docs/jira-tickets/CSM-001-first.md"


def put(repo: Path, path: str = TICKET, text: str | bytes = "# First\n") -> Path:
    """Writes a file of a repository."""
    file = repo / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


async def test_a_projects_life(desk: Desk) -> None:
    made = await desk.project()
    assert await desk.call("GET", "/projects") == [made]
    put(desk.repo)
    counts = {"backlog": 1, "in_progress": 0, "review": 0, "done": 0}
    shown = await desk.call("GET", f"/projects/{made['id']}")
    assert shown == {**made, "ticket_counts": counts, "active_session": None}

    desk.server.move_to("2025-06-04T12:00:00Z")
    changes = {"name": "Other", "ticketsPath": "tickets", "handoff_path": "h.md", "tmuxSession": "s", "tmuxWindow": "w"}
    changed = await desk.call("PATCH", f"/projects/{made['id']}", json=changes)
    assert changed == {
        **made,
        "name": "Other",
        "tickets_path": "tickets",
        "handoff_path": "h.md",
        "tmux_session": "s",
        "tmux_window": "w",
        "updated_at": "2025-06-04T12:00:00.000Z",
    }
    assert (await desk.call("PATCH", f"/projects/{made['id']}", json={"tmux_window": None}))["tmux_window"] is None
    assert await desk.call("GET", f"/projects/{made['id'].upper()}/tickets") == []

    assert await desk.call("DELETE", f"/projects/{made['id']}", 204) is None
    assert await desk.call("GET", "/projects") == []
    assert await desk.call("GET", f"/projects/{made['id']}", 404) == {
        "error": "Not found",
        "message": "Project not found",
    }
    assert (desk.repo / TICKET).read_text() == "# First\n"


async def test_a_project_takes_its_tickets_and_their_history_with_it(desk: Desk) -> None:
    made = await desk.project()
    put(desk.repo)
    (ticket,) = await desk.call("GET", f"/projects/{made['id']}/tickets")
    await desk.call("PATCH", f"/tickets/{ticket['id']}", json={"state": "in_progress"})
    await desk.call("DELETE", f"/projects/{made['id']}", 204)
    await desk.call("GET", f"/tickets/{ticket['id']}", 404)
    await desk.call("GET", f"/tickets/{ticket['id']}/history", 404)

    again = await desk.project()
    (fresh,) = await desk.call("GET", f"/projects/{again['id']}/tickets")
    assert fresh["id"] != ticket["id"]
    assert fresh["state"] == "backlog"


@on_memory
async def test_a_project_with_a_running_session_stays(desk: Desk) -> None:
    made = await desk.project()
    session = await desk.start(project=made)
    shown = await desk.call("GET", f"/projects/{made['id']}")
    assert shown["active_session"] == await desk.session(session["id"])
    assert await desk.call("DELETE", f"/projects/{made['id']}", 409) == {
        "error": "Conflict",
        "message": "The project has sessions that have not ended",
    }
    await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    assert (await desk.call("GET", f"/projects/{made['id']}"))["active_session"] is None
    await desk.call("DELETE", f"/projects/{made['id']}", 204)


@on_memory
async def test_a_project_takes_its_sessions_and_what_they_printed_with_it(desk: Desk) -> None:
    made = await desk.project()
    other = await desk.project(name="Other", repoPath=str(desk.folder))
    kept = await desk.start(project=other)
    session = await desk.start(project=made)
    await desk.type(session["id"], "exit 1")
    await desk.ended(session["id"])
    await desk.call("DELETE", f"/projects/{made['id']}", 204)
    assert [one["id"] for one in await desk.call("GET", "/sessions")] == [kept["id"]]
    await desk.call("GET", f"/sessions/{session['id']}", 404)
    await desk.call("GET", f"/sessions/{session['id']}/output", 404)
    assert [path.name for path in (desk.folder / "output").iterdir()] == [kept["id"]]
    [told] = (await desk.call("GET", "/notifications"))["data"]
    assert (told["session_id"], told["session"]) == (session["id"], None)


async def test_lists_are_newest_first_and_paged_where_asked(desk: Desk) -> None:
    made = []
    for number in range(5):
        (desk.folder / f"repo{number}").mkdir()
        made.append(await desk.project(name=f"{number}", repoPath=str(desk.folder / f"repo{number}")))
    newest = made[::-1]
    assert await desk.call("GET", "/projects") == newest
    for query, data, pagination in [
        ("page=1", newest, {"page": 1, "limit": 50, "total": 5, "total_pages": 1}),
        ("limit=2", newest[:2], {"page": 1, "limit": 2, "total": 5, "total_pages": 3}),
        ("page=3&limit=2", newest[4:], {"page": 3, "limit": 2, "total": 5, "total_pages": 3}),
        ("page=9&limit=2", [], {"page": 9, "limit": 2, "total": 5, "total_pages": 3}),
    ]:
        assert await desk.call("GET", f"/projects?{query}") == {"data": data, "pagination": pagination}


@on_memory
@pytest.mark.parametrize("query", ["page=0", "limit=0", "limit=1001", "page=x", "page=-1", "page=1.5"])
async def test_pages_that_there_are_not(server: Served, query: str) -> None:
    answer = await server.get(f"/api/projects?{query}")
    assert answer.status == 400
    assert answer.json["error"] == "Validation error"


async def test_snake_case_is_accepted_too(desk: Desk) -> None:
    body = {
        "name": "N",
        "repo_path": str(desk.repo),
        "tmux_session": "s",
        "tickets_path": "t",
        "handoff_path": "h",
        "tmux_window": "w",
        "unknown": "dropped",
    }
    made = await desk.call("POST", "/projects", 201, json=body)
    times = {"id": made["id"], "created_at": made["created_at"], "updated_at": made["updated_at"]}
    assert made == {name: value for name, value in body.items() if name != "unknown"} | times


async def test_a_repository_is_registered_once(desk: Desk) -> None:
    (desk.folder / "link").symlink_to(desk.repo)
    names = [str(desk.repo), f"{desk.repo}/", f"{desk.repo}/../repo/.", str(desk.folder / "link")]
    answers = await asyncio.gather(
        *(
            desk.server("POST", "/api/projects", json={"name": "N", "repoPath": name, "tmuxSession": "s"})
            for name in names
        )
    )
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
    (made,) = await desk.call("GET", "/projects")
    assert made["repo_path"] == str(desk.repo)
    (desk.folder / "other").mkdir()
    other = await desk.project(repoPath=str(desk.folder / "other"))
    refused = await desk.call("PATCH", f"/projects/{other['id']}", 409, json={"repoPath": str(desk.repo)})
    assert refused == {"error": "Conflict", "message": "A project with this repoPath is registered already"}
    await desk.call("PATCH", f"/projects/{made['id']}", json={"repoPath": str(desk.folder / "link")})


NO_FOLDER = "must be the absolute path of an existing directory"
LEAVES = "must be a relative path that stays in repoPath"
BEGINS = "must begin with a letter, a digit or _"
HOLDS = "must not contain any of . : # \\ or what cannot be printed"


@on_memory
@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        pytest.param("repoPath", "repo", NO_FOLDER, id="a relative repository"),
        pytest.param("repoPath", "/nowhere/at/all", NO_FOLDER, id="no repository"),
        pytest.param("repoPath", "{folder}/program.py", NO_FOLDER, id="a file"),
        pytest.param("repoPath", "{folder}/loop", NO_FOLDER, id="a link to itself"),
        pytest.param("repoPath", "/tmp\0", NO_FOLDER, id="a path with U+0000"),
        pytest.param("repoPath", "/" + "a" * 300, NO_FOLDER, id="a name that no disk takes"),
        pytest.param("ticketsPath", "../other", LEAVES, id="up and out"),
        pytest.param("ticketsPath", "docs/../../other", LEAVES, id="down, up and out"),
        pytest.param("ticketsPath", "docs/../tickets", LEAVES, id="down and up"),
        pytest.param("ticketsPath", "/etc", LEAVES, id="absolute"),
        pytest.param("ticketsPath", "out/tickets", LEAVES, id="through a link out of it"),
        pytest.param("ticketsPath", "a\0b", LEAVES, id="tickets with U+0000"),
        pytest.param("handoffPath", "../handoff.md", LEAVES, id="a handoff outside"),
        pytest.param("handoffPath", "out/handoff.md", LEAVES, id="a handoff through a link"),
        pytest.param("tmuxSession", "a.b", HOLDS, id="a dot"),
        pytest.param("tmuxSession", "a:b", HOLDS, id="a colon"),
        pytest.param("tmuxSession", "a#(id)", HOLDS, id="a format"),
        pytest.param("tmuxSession", "a\\b", HOLDS, id="a backslash"),
        pytest.param("tmuxSession", "a\u200bb", HOLDS, id="what has no width"),
        pytest.param("tmuxSession", "$1", BEGINS, id="an id of a session"),
        pytest.param("tmuxSession", "=a", BEGINS, id="an exact match"),
        pytest.param("tmuxSession", "-a", BEGINS, id="an option"),
        pytest.param("tmuxSession", " ", BEGINS, id="a blank"),
        pytest.param("tmuxWindow", "@1", BEGINS, id="an id of a window"),
        pytest.param("tmuxWindow", "w#{pid}", HOLDS, id="a format as window"),
    ],
)
async def test_what_no_project_can_be(desk: Desk, field: str, value: str, problem: str) -> None:
    (desk.repo / "out").symlink_to(desk.folder)
    (desk.folder / "loop").symlink_to("loop")
    value = value.replace("{folder}", str(desk.folder))
    body = {"name": "N", "repoPath": str(desk.repo), "tmuxSession": "s", field: value}
    refused = await desk.call("POST", "/projects", 400, json=body)
    assert refused["error"] == "Validation error"
    assert [(detail["path"], detail["message"]) for detail in refused["details"]] == [([field], problem)]
    assert await desk.call("GET", "/projects") == []

    made = await desk.project()
    await desk.call("PATCH", f"/projects/{made['id']}", 400, json={field: value})
    assert await desk.call("GET", "/projects") == [made]


@on_memory
@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"name": "N", "tmuxSession": "s"}, id="no repository"),
        pytest.param({"name": "N", "repoPath": "/tmp"}, id="no tmux session"),
        pytest.param({"repoPath": "/tmp", "tmuxSession": "s"}, id="no name"),
        pytest.param({"name": "", "repoPath": "/tmp", "tmuxSession": "s"}, id="an empty name"),
        pytest.param({"name": "a\nb", "repoPath": "/tmp", "tmuxSession": "s"}, id="a name of two lines"),
        pytest.param({"name": "N" * 201, "repoPath": "/tmp", "tmuxSession": "s"}, id="a long name"),
        pytest.param({"name": "N", "repoPath": 1, "tmuxSession": "s"}, id="a number"),
        pytest.param({"name": "N", "repoPath": "/tmp", "tmuxSession": ""}, id="an empty session"),
        pytest.param({"name": "N", "repoPath": "/tmp", "tmuxSession": "s" * 101}, id="a long session"),
        pytest.param({"name": "N", "repoPath": "/tmp", "tmuxSession": "a\x1b"}, id="an escape"),
        pytest.param({"name": "N", "repoPath": "/tmp", "tmuxSession": "s", "ticketsPath": None}, id="no path"),
        pytest.param([], id="a list"),
    ],
)
async def test_bodies_that_are_none(server: Served, body: Any) -> None:
    answer = await server("POST", "/api/projects", json=body)
    assert answer.status == 400
    assert answer.json["error"] == "Validation error"
    assert answer.json["details"]
    assert (await server.get("/api/projects")).json == []


@on_memory
@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/projects/7", 400, "Validation error"),
        ("GET", "/projects/018f0000-0000-7000-8000-000000000000", 404, "Not found"),
        ("PATCH", "/projects/018f0000-0000-7000-8000-000000000000", 404, "Not found"),
        ("DELETE", "/projects/018f0000-0000-7000-8000-000000000000", 404, "Not found"),
        ("GET", "/projects/018f0000-0000-7000-8000-000000000000/tickets", 404, "Not found"),
        ("GET", "/projects/018f0000-0000-7000-8000-000000000000/tickets/prefixes", 404, "Not found"),
        ("POST", "/projects/018f0000-0000-7000-8000-000000000000/sync-tickets", 404, "Not found"),
        ("POST", "/projects/..%2f/sync-tickets", 400, "Validation error"),
        ("PUT", "/projects", 405, "Method not allowed"),
    ],
)
async def test_projects_that_there_are_not(server: Served, method: str, path: str, status: int, error: str) -> None:
    body: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    answer = await server(method, f"/api{path}", **body)
    assert (answer.status, answer.json["error"]) == (status, error)


@on_memory
async def test_names_that_look_odd_and_are_not(desk: Desk) -> None:
    repo = desk.folder / 'it\'s; a "repo"\n$(id) größe'
    repo.mkdir()
    made = await desk.project(name="<b>&", repoPath=str(repo), tmuxSession="a b;'$(id) größe", ticketsPath=".")
    assert made["repo_path"] == str(repo)
    put(repo, "X-1.md")
    (ticket,) = await desk.call("GET", f"/projects/{made['id']}/tickets")
    assert ticket["file_path"] == "X-1.md"


@on_memory
async def test_tickets_follow_to_another_folder(desk: Desk) -> None:
    made = await desk.project()
    put(desk.repo)
    (ticket,) = await desk.call("GET", f"/projects/{made['id']}/tickets")
    (desk.repo / "docs/jira-tickets").rename(desk.repo / "tickets")
    await desk.call("PATCH", f"/projects/{made['id']}", json={"ticketsPath": "tickets"})
    (moved,) = await desk.call("GET", f"/projects/{made['id']}/tickets")
    assert (moved["id"], moved["file_path"]) == (ticket["id"], "tickets/CSM-001-first.md")


@on_memory
async def test_a_folder_is_read_when_it_comes_to_be(desk: Desk) -> None:
    made = await desk.project()
    assert await desk.call("GET", f"/projects/{made['id']}/tickets") == []
    looked = 0

    async def noticed() -> bool:
        nonlocal looked
        looked += 1
        if looked % 50 == 0:  # it may not have been watched yet
            rmtree(desk.repo / "docs", ignore_errors=True)
            put(desk.repo)
        return await desk.server.storage.count(Query(TICKETS)) == 1

    await until(noticed)


@on_memory
async def test_watching_goes_on_where_it_failed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system watches so many folders and no more."""

    watching = import_module("homeport.server.apis.sessions.folders.watching")
    answers = [OSError(28, "OS file watch limit reached")]
    changes = watching._changes

    def once_refused(*arguments: Any) -> Any:
        if answers:
            raise answers.pop()
        return changes(*arguments)

    monkeypatch.setattr(watching, "_PAUSE", 0.01)
    monkeypatch.setattr(watching, "_changes", once_refused)
    await test_a_folder_is_read_when_it_changes(desk)
    assert not answers


@on_memory
async def test_a_folder_is_read_when_it_changes(desk: Desk) -> None:
    file = put(desk.repo)
    made = await desk.project()
    (ticket,) = await desk.call("GET", f"/projects/{made['id']}/tickets")
    written = 0

    async def noticed() -> bool:
        nonlocal written
        written += 1
        if written % 50 == 1:  # it may not have been watched yet
            file.write_text(f"# Edited {written}\n")
        return str((await desk.call("GET", f"/tickets/{ticket['id']}"))["title"]).startswith("Edited")

    await until(noticed)
