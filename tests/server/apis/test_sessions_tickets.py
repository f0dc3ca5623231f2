"""Tickets: lists, states and their history, tickets that are made here, and reviews with real sessions."""

import asyncio
import json
import subprocess
from typing import Any

import pytest

from homeport.server.apis.sessions.records import states
from homeport.server.apis.sessions.running.runner import RUNNER
from homeport.server.errors import ServiceUnavailable

from .conftest import Served, on_memory
from .sessions_kit import Desk

NOBODY = "018f0000-0000-7000-8000-000000000000"
FOLDER = "docs/jira-tickets"


async def ticket_on(desk: Desk, text: str = "# First\n\nDo it.\n", name: str = "CSM-1") -> dict[str, Any]:
    """A ticket of a new project."""
    file = desk.repo / FOLDER / f"{name}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    project = await desk.project()
    (found,) = await desk.call("GET", f"/projects/{project['id']}/tickets")
    return {**found, "project_id": project["id"]}


async def move(desk: Desk, id: str, *to: str) -> None:
    for state in to:
        assert (await desk.call("PATCH", f"/tickets/{id}", json={"state": state}))["state"] == state


async def shown(desk: Desk, id: str) -> dict[str, Any]:
    return dict(await desk.call("GET", f"/tickets/{id}"))


async def history(desk: Desk, id: str) -> list[tuple[str, ...]]:
    """The transitions of a ticket, newest first: from, to, trigger, reason, feedback."""
    names = ("from_state", "to_state", "trigger", "reason", "feedback")
    data = (await desk.call("GET", f"/tickets/{id}/history"))["data"]
    return [tuple(step[name] for name in names if name in step) for step in data]


# Lists


async def test_lists(desk: Desk) -> None:
    folder = desk.repo / FOLDER
    folder.mkdir(parents=True)
    for name in ("CSM-1", "CSM-2", "CSM-10", "NAT-1", "X-1"):
        (folder / f"{name}.md").write_text(f"# {name}\n")
    project = await desk.project()
    path = f"/projects/{project['id']}/tickets"

    async def names(query: str) -> list[str]:
        found = await desk.call("GET", f"{path}?{query}")
        return [ticket["external_id"] for ticket in (found["data"] if isinstance(found, dict) else found)]

    every = ["X-1", "NAT-1", "CSM-10", "CSM-2", "CSM-1"]
    assert await names("") == every
    (folder / "CSM-3.md").write_text("")
    every = ["CSM-3", *every]
    assert await names("") == every
    ids = {ticket["external_id"]: ticket["id"] for ticket in await desk.call("GET", path)}
    await move(desk, ids["CSM-2"], "in_progress")
    for query, expected in {
        "state=in_progress": ["CSM-2"],
        "state=done": [],
        "state=backlog&prefix=CSM": ["CSM-3", "CSM-10", "CSM-1"],
        "prefix=CSM": ["CSM-3", "CSM-10", "CSM-2", "CSM-1"],
        "prefix=CSM-": ["CSM-3", "CSM-10", "CSM-2", "CSM-1"],
        "prefix=CS": [],
        "prefixes=NAT,X": ["X-1", "NAT-1"],
        "prefixes=NAT-&prefixes=X-": ["X-1", "NAT-1"],
        "prefixes=NAT%2C%20Y": ["NAT-1"],
        "state=&prefix=&prefixes=": every,
        "limit=2": every[:2],
        "page=2&limit=2&prefix=CSM": ["CSM-2", "CSM-1"],
    }.items():
        assert await names(query) == expected, query
    paged = await desk.call("GET", f"{path}?limit=4&page=2")
    assert paged["pagination"] == {"page": 2, "limit": 4, "total": 6, "total_pages": 2}
    assert await desk.call("GET", f"{path}/prefixes") == {"data": ["CSM", "NAT", "X"]}
    refused = await desk.call("GET", f"{path}?state=finished", 400)
    assert refused["error"] == "Validation error"


# States


LEGAL = {("backlog", "in_progress"), ("in_progress", "review"), ("review", "done"), ("review", "in_progress")}
WAY = {"backlog": (), "in_progress": ("in_progress",), "review": ("in_progress", "review")}
WAY["done"] = (*WAY["review"], "done")


async def test_legal_transitions_and_no_others(desk: Desk) -> None:
    for number in range(len(WAY)):
        for other in range(len(WAY)):
            (desk.repo / FOLDER).mkdir(parents=True, exist_ok=True)
            (desk.repo / FOLDER / f"T-{number}{other}.md").touch()
    project = await desk.project()
    tickets = {t["external_id"]: t["id"] for t in await desk.call("GET", f"/projects/{project['id']}/tickets")}
    for number, before in enumerate(WAY):
        for other, after in enumerate(WAY):
            id = tickets[f"T-{number}{other}"]
            await move(desk, id, *WAY[before])
            kept = await history(desk, id)
            if (before, after) in LEGAL:
                await move(desk, id, after)
                assert await history(desk, id) == [(before, after, "manual", "user_moved"), *kept]
            else:
                refused = await desk.call("PATCH", f"/tickets/{id}", 400, json={"state": after})
                message = f"A ticket that is {before} cannot become {after}"
                assert refused == {"error": "Validation error", "message": message}
                assert await history(desk, id) == kept
                assert (await shown(desk, id))["state"] == before


async def test_when_a_ticket_was_begun_and_done(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    assert (ticket["started_at"], ticket["completed_at"]) == (None, None)
    for hour, state in [(13, "in_progress"), (14, "review"), (15, "in_progress"), (16, "review"), (17, "done")]:
        desk.server.move_to(f"2025-06-03T{hour}:00:00Z")
        await move(desk, ticket["id"], state)
    now = await shown(desk, ticket["id"])
    assert now["started_at"] == "2025-06-03T13:00:00.000Z"
    assert now["completed_at"] == now["updated_at"] == "2025-06-03T17:00:00.000Z"


async def test_of_moves_at_once_one_is_made(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    path = f"/api/tickets/{ticket['id']}"
    answers = await asyncio.gather(*(desk.server("PATCH", path, json={"state": "in_progress"}) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400]
    assert len(await history(desk, ticket["id"])) == 1


async def test_what_the_server_moves_itself(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    await move(desk, ticket["id"], "in_progress")
    app = desk.server.app
    transition = await states.move(app, ticket["id"], "review", trigger="auto", reason="session_completed")
    kept = await desk.call("GET", f"/tickets/{ticket['id']}/history")
    assert kept["data"][0] == transition
    assert (transition["trigger"], transition["created_at"]) == ("auto", "2025-06-03T12:00:00.000Z")


# Tickets that are made here


async def test_adhoc_tickets(desk: Desk) -> None:
    project = await desk.project()
    path = f"/projects/{project['id']}/adhoc-tickets"
    first = await desk.call("POST", path, 201, json={"title": "Größe: 100%!"})
    assert (first["external_id"], first["title"], first["is_adhoc"]) == ("ADHOC-1", "Größe: 100%!", True)
    assert first["file_path"] == f"{FOLDER}/ADHOC-1-groe-100.md"
    assert (desk.repo / first["file_path"]).read_text() == "# Größe: 100%!\n"
    (desk.repo / FOLDER / "inner").mkdir()
    (desk.repo / FOLDER / "inner/ADHOC-007-by-hand.md").touch()
    named = await desk.call("POST", path, 201, json={"title": "日本", "slug": "Slow_start-2"})
    assert named["file_path"] == f"{FOLDER}/ADHOC-8-Slow_start-2.md"
    unnamed = await desk.call("POST", path, 201, json={"title": "日本"})
    assert unnamed["file_path"] == f"{FOLDER}/ADHOC-9-ticket.md"
    assert await desk.call("GET", f"/projects/{project['id']}/tickets?prefix=ADHOC&limit=1") == {
        "data": [unnamed],
        "pagination": {"page": 1, "limit": 1, "total": 4, "total_pages": 4},
    }

    assert await desk.call("DELETE", f"/tickets/{unnamed['id']}") == {"success": True}
    assert not (desk.repo / unnamed["file_path"]).exists()
    await desk.call("GET", f"/tickets/{unnamed['id']}", 404)
    (desk.repo / named["file_path"]).unlink()
    assert await desk.call("DELETE", f"/tickets/{named['id']}") == {"success": True}
    left = await desk.call("GET", f"/projects/{project['id']}/tickets")
    assert [ticket["external_id"] for ticket in left] == ["ADHOC-007", "ADHOC-1"]


async def test_adhoc_tickets_at_once_have_numbers_of_their_own(desk: Desk) -> None:
    path = f"/projects/{(await desk.project())['id']}/adhoc-tickets"
    made = await asyncio.gather(*(desk.call("POST", path, 201, json={"title": "T"}) for _ in range(8)))
    assert sorted(ticket["external_id"] for ticket in made) == [f"ADHOC-{n}" for n in range(1, 9)]


@on_memory
@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no title"),
        pytest.param({"title": ""}, id="an empty title"),
        pytest.param({"title": " \u00a0"}, id="a blank title"),
        pytest.param({"title": "a\nb"}, id="two lines"),
        pytest.param({"title": "T" * 201}, id="a long title"),
        pytest.param({"title": "T", "slug": "../../etc/passwd"}, id="a path"),
        pytest.param({"title": "T", "slug": ""}, id="an empty slug"),
        pytest.param({"title": "T", "slug": "-x"}, id="a hyphen first"),
        pytest.param({"title": "T", "slug": "a\n"}, id="a line break"),
        pytest.param({"title": "T", "slug": "größe"}, id="no ASCII"),
        pytest.param({"title": "T", "slug": "s" * 61}, id="a long slug"),
    ],
)
async def test_adhoc_tickets_that_are_none(desk: Desk, body: Any) -> None:
    project = await desk.project()
    refused = await desk.call("POST", f"/projects/{project['id']}/adhoc-tickets", 400, json=body)
    assert refused["error"] == "Validation error"
    assert refused["details"]
    assert list(desk.repo.iterdir()) == []


@on_memory
async def test_only_adhoc_tickets_are_deleted(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    refused = await desk.call("DELETE", f"/tickets/{ticket['id']}", 409)
    assert refused == {"error": "Conflict", "message": "CSM-1 is no adhoc ticket: delete its file"}
    assert (desk.repo / ticket["file_path"]).exists()


@on_memory
async def test_a_ticket_with_a_running_session_is_not_deleted(desk: Desk) -> None:
    ticket = await ticket_on(desk, name="ADHOC-1")
    await desk.call("POST", f"/tickets/{ticket['id']}/start")
    assert (await desk.call("DELETE", f"/tickets/{ticket['id']}", 409))[
        "message"
    ] == "A session is running on this ticket"
    assert (desk.repo / ticket["file_path"]).exists()


@on_memory
async def test_who_writes_and_who_deletes_do_not_wait_for_each_other(desk: Desk) -> None:
    """Nor where who writes has the folder read first, since the file is not where it was."""
    project = await desk.project()
    body = {"title": "Moves"}
    ticket = await desk.call("POST", f"/projects/{project['id']}/adhoc-tickets", 201, json=body)
    path = f"/api/tickets/{ticket['id']}"
    file = desk.repo / ticket["file_path"]
    async with states.steering(desk.server.app, ticket["id"]):
        writes = asyncio.create_task(desk.server("PUT", f"{path}/content", json={"content": "# Moved\n"}))
        await asyncio.sleep(0.1)  # until they wait, one after the other
        deletes = asyncio.create_task(desk.server("DELETE", path))
        await asyncio.sleep(0.1)
        file.rename(file.with_name(f"{ticket['external_id']}-moved.md"))
    async with asyncio.timeout(10):
        answers = await asyncio.gather(writes, deletes)
    assert [answer.status for answer in answers] == [200, 200]
    assert not [*file.parent.iterdir()]


# Reviews


async def prompt_of(desk: Desk, session: dict[str, Any]) -> list[str]:
    """The arguments that a session's program was given."""
    await desk.printed(session["id"], "[")
    whole = "".join(await desk.lines(session["id"]))
    return list(json.JSONDecoder().raw_decode(whole)[0])


async def test_start_review_reject_approve(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    id = ticket["id"]
    started = await desk.call("POST", f"/tickets/{id}/start")
    session = started["session"]
    listed = {name: value for name, value in ticket.items() if name != "project_id"}
    assert started["ticket"] == {**listed, "state": "in_progress", "started_at": "2025-06-03T12:00:00.000Z"}
    assert (session["status"], session["type"], session["ticket"]["id"]) == ("running", "ticket", id)
    assert await prompt_of(desk, session) == ["# First\n\nDo it.\n"]
    refused = await desk.call("POST", f"/tickets/{id}/start", 409)
    assert refused == {"error": "Conflict", "message": "A session is running on this ticket"}

    await move(desk, id, "review")
    rejected = await desk.call("POST", f"/tickets/{id}/reject", json={"feedback": "More tests; $(id) 'x'"})
    assert rejected == {
        "ticket_id": id,
        "from_state": "review",
        "to_state": "in_progress",
        "trigger": "manual",
        "reason": "user_rejected",
        "timestamp": "2025-06-03T12:00:00.000Z",
    }
    await desk.printed(session["id"], "got tests; $(id) 'x'")  # its first word is a command of the program's

    await move(desk, id, "review")
    approved = await desk.call("POST", f"/tickets/{id}/approve")
    assert approved == {**rejected, "to_state": "done", "reason": "user_approved"}
    assert (await desk.ended(session["id"]))["status"] == "completed"
    assert (await shown(desk, id))["state"] == "done"
    assert await history(desk, id) == [
        ("review", "done", "manual", "user_approved"),
        ("in_progress", "review", "manual", "user_moved"),
        ("review", "in_progress", "manual", "user_rejected", "More tests; $(id) 'x'"),
        ("in_progress", "review", "manual", "user_moved"),
        ("backlog", "in_progress", "manual", "user_started"),
    ]


async def test_feedback_is_kept_for_the_next_session(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    id = ticket["id"]
    await move(desk, id, "in_progress", "review")
    await desk.call("POST", f"/tickets/{id}/reject", json={"feedback": "First\nof two lines"})
    await move(desk, id, "review")
    await desk.call("POST", f"/tickets/{id}/reject", json={"feedback": "  Second "})
    await desk.restart()
    session = (await desk.call("POST", f"/tickets/{id}/start"))["session"]
    head = "The work on this ticket was rejected:\n\nFirst\nof two lines\n\nSecond\n\n"
    assert await prompt_of(desk, session) == [head + "# First\n\nDo it.\n"]

    await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    assert (await shown(desk, id))["state"] == "in_progress"
    again = (await desk.call("POST", f"/tickets/{id}/start"))["session"]
    assert await prompt_of(desk, again) == ["# First\n\nDo it.\n"]


@on_memory
async def test_feedback_that_cannot_be_typed_is_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await ticket_on(desk)
    session = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    await move(desk, ticket["id"], "review")

    async def away(*_: Any) -> None:
        raise ServiceUnavailable("tmux is not available")

    with monkeypatch.context() as patch:
        patch.setattr(desk.server.app[RUNNER], "type", away)
        await desk.call("POST", f"/tickets/{ticket['id']}/reject", json={"feedback": "Again"})
    await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    again = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    assert (await prompt_of(desk, again))[0].startswith("The work on this ticket was rejected:\n\nAgain\n\n# First")


@on_memory
@pytest.mark.parametrize(("way", "status"), [("review", 400), ("done", 400), ("backlog", 200), ("in_progress", 200)])
async def test_from_which_states_a_ticket_starts(desk: Desk, way: str, status: int) -> None:
    ticket = await ticket_on(desk)
    await move(desk, ticket["id"], *WAY[way])
    answer = await desk.call("POST", f"/tickets/{ticket['id']}/start", status)
    if status == 400:
        message = f"A ticket that is {way} cannot become in_progress by a start"
        assert answer == {"error": "Validation error", "message": message}
        assert await desk.call("GET", "/sessions") == []


@on_memory
@pytest.mark.parametrize("state", ["backlog", "in_progress", "done"])
async def test_only_what_is_in_review_is_reviewed(desk: Desk, state: str) -> None:
    ticket = await ticket_on(desk)
    await move(desk, ticket["id"], *WAY[state])
    kept = await history(desk, ticket["id"])
    approve = await desk.call("POST", f"/tickets/{ticket['id']}/approve", 400)
    assert approve["message"] == f"A ticket that is {state} cannot become done"
    reject = await desk.call("POST", f"/tickets/{ticket['id']}/reject", 400, json={"feedback": "no"})
    assert reject["message"] == f"A ticket that is {state} cannot become in_progress"
    assert await history(desk, ticket["id"]) == kept


@on_memory
@pytest.mark.parametrize(
    "feedback",
    [
        pytest.param(..., id="none"),
        pytest.param("", id="empty"),
        pytest.param(" \n\t", id="blank"),
        pytest.param(7, id="a number"),
        pytest.param("a\x1bb", id="an escape"),
        pytest.param("a\0b", id="U+0000"),
        pytest.param("f" * 5001, id="long"),
    ],
)
async def test_feedback_that_is_none(desk: Desk, feedback: Any) -> None:
    ticket = await ticket_on(desk)
    await move(desk, ticket["id"], "in_progress", "review")
    body = {} if feedback is ... else {"feedback": feedback}
    refused = await desk.call("POST", f"/tickets/{ticket['id']}/reject", 400, json=body)
    assert [detail["path"] for detail in refused["details"]] == [["feedback"]]
    assert (await shown(desk, ticket["id"]))["state"] == "review"


@on_memory
async def test_a_start_that_fails_leaves_the_ticket_as_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await ticket_on(desk)

    async def away(*_: Any, **__: Any) -> None:
        raise ServiceUnavailable("The session's window could not be opened")

    with monkeypatch.context() as patch:
        patch.setattr(desk.server.app[RUNNER], "start", away)
        assert (await desk.call("POST", f"/tickets/{ticket['id']}/start", 503))["error"] == "Service unavailable"
    now = await shown(desk, ticket["id"])
    assert (now["state"], now["started_at"]) == ("backlog", None)
    assert (await history(desk, ticket["id"]))[0] == ("in_progress", "backlog", "auto", "session_failed")
    assert (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["ticket"]["state"] == "in_progress"


@on_memory
async def test_without_tmux_nothing_starts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await ticket_on(desk)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(desk.folder))
        await desk.restart()
        assert (await desk.call("POST", f"/tickets/{ticket['id']}/start", 503))["error"] == "Service unavailable"
    assert await history(desk, ticket["id"]) == []


@on_memory
async def test_of_starts_at_once_one_is_made(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    answers = await asyncio.gather(*(desk.server("POST", f"/api/tickets/{ticket['id']}/start") for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    assert len(desk.panes()) == 1


@on_memory
async def test_a_ticket_is_approved_though_its_tmux_died(desk: Desk) -> None:
    ticket = await ticket_on(desk)
    await desk.call("POST", f"/tickets/{ticket['id']}/start")
    await move(desk, ticket["id"], "review")
    subprocess.run(("tmux", "-S", str(desk.socket), "kill-server"), check=True, timeout=20)
    await desk.call("POST", f"/tickets/{ticket['id']}/approve")
    assert (await shown(desk, ticket["id"]))["state"] == "done"


@on_memory
@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        pytest.param('it\'s; "$(id)" `x` \\ größe\t\n\n', 'it\'s; "$(id)" `x` \\ größe\t\n\n', id="a shell's words"),
        pytest.param("a\0b", "a\ufffdb", id="U+0000"),
        pytest.param("", None, id="nothing"),
    ],
)
async def test_prompts(desk: Desk, text: str, prompt: str | None) -> None:
    ticket = await ticket_on(desk, text)
    session = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    assert await prompt_of(desk, session) == ([] if prompt is None else [prompt])


@on_memory
async def test_a_prompt_is_cut_to_what_a_program_takes(desk: Desk) -> None:
    ticket = await ticket_on(desk, "ä" * 100_000)
    prompts: list[str] = []
    runner = desk.server.app[RUNNER]
    start = runner.start

    async def listen(project: Any, *, ticket: Any, prompt: Any) -> Any:
        prompts.append(prompt)
        return await start(project, ticket=ticket, prompt=prompt)

    runner.start = listen  # type: ignore[method-assign, assignment]  # to see what it is given
    await desk.call("POST", f"/tickets/{ticket['id']}/start")
    (prompt,) = prompts
    assert 131_000 < len(prompt.encode()) < 131_072
    assert prompt.endswith(f"ä\n\n… the rest is in {ticket['file_path']}")


# What is not there


@on_memory
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"state": "done"}),
        ("DELETE", "", None),
        ("GET", "/content", None),
        ("PUT", "/content", {"content": ""}),
        ("PATCH", "/title", {"title": "T"}),
        ("GET", "/history", None),
        ("POST", "/start", None),
        ("POST", "/approve", None),
        ("POST", "/reject", {"feedback": "F"}),
    ],
)
async def test_tickets_that_there_are_not(server: Served, method: str, path: str, body: Any) -> None:
    request = {} if body is None else {"json": body}
    answer = await server(method, f"/api/tickets/{NOBODY}{path}", **request)
    assert answer.status == 404
    assert answer.json == {"error": "Not found", "message": "Ticket not found"}
    answer = await server(method, f"/api/tickets/CSM-1{path}", **request)
    assert answer.status == 400
    assert answer.json["error"] == "Validation error"
    if body is not None:
        answer = await server(method, f"/api/tickets/{NOBODY}{path}", json={next(iter(body)): 7})
        assert answer.status == 400
        assert answer.json["details"][0]["path"] == [next(iter(body))]
