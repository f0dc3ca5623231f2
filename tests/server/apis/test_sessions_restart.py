"""Servers that are killed and started again while sessions go on, print and end."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from aiohttp import web
from uuid_utils import uuid7

from homeport.server.apis.sessions.records.sessions import SESSIONS, change_session
from homeport.server.apis.sessions.running import ends
from homeport.storage import ABSENT, Put, Write

from .conftest import NOW, Launch, Process, on_memory
from .sessions_kit import Desk, Room, settings_of, until
from .sockets import Socket, connect

TICKET = "CSM-001-first.md"


@dataclass
class House(Room):
    """A room whose server is a process."""

    server: Process
    launch: Launch
    environment: dict[str, str]

    async def begin(self) -> None:
        """Starts a server, after the last one has gone."""
        self.server = await self.launch("--port", "0", **self.environment)
        await self.server.ready()

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """Within it there is no server."""
        await self.server.kill()
        yield
        await self.begin()

    def type_past(self, session: dict[str, Any], text: str) -> None:
        """Types into a session that no server looks after."""
        self.tmux("send-keys", "-t", session["pane_id"], "-l", f"{text}\n")

    async def told(self) -> list[tuple[str, str]]:
        """Types and sessions of the notifications, in order."""
        found = (await self.call("GET", "/notifications"))["data"]
        return sorted((one["type"], one["session_id"]) for one in found)


@pytest.fixture(params=["sqlite", pytest.param("file", marks=pytest.mark.slow)])
async def house(request: pytest.FixtureRequest, desk_folder: Path, launch: Launch) -> House:
    settings = {"storage.url": f"{request.param}:{desk_folder}/store", **settings_of(desk_folder)}
    environment = {"HOMEPORT_" + name.upper().replace(".", "__"): str(value) for name, value in settings.items()}
    tickets = desk_folder / "repo" / "docs" / "jira-tickets"
    tickets.mkdir(parents=True)
    (tickets / TICKET).write_text("# First\n\nWhat is to be done.\n")
    server = await launch("--port", "0", **environment)
    await server.ready()
    return House(desk_folder, server, launch, environment)


async def test_what_happens_while_there_is_no_server(house: House) -> None:
    project = await house.project()
    [ticket] = await house.call("GET", f"/projects/{project['id']}/tickets")
    completes = (await house.call("POST", f"/tickets/{ticket['id']}/start"))["session"]
    goes_on, fails, dies = [await house.start(project=project) for _ in range(3)]
    await house.printed(completes["id"], "[")
    await house.type(goes_on["id"], "quiet")
    await house.printed(goes_on["id"], "got")
    before = await house.lines(goes_on["id"])

    async with house.killed():
        house.type_past(goes_on, "count 500")
        for session, word in ((completes, "exit 0"), (fails, "exit 3"), (dies, "die")):
            house.type_past(session, word)

        async def ended() -> bool:
            return house.panes() == [goes_on["pane_id"]]

        await until(ended)

    for session, status in ((completes, "completed"), (fails, "error"), (dies, "error")):
        assert (await house.ended(session["id"]))["status"] == status
    assert await house.session(goes_on["id"]) == goes_on
    printed = [*before, *(f"line {number}" for number in range(500)), "got 500"]
    await house.printed(goes_on["id"], "got 500")
    async with connect(house.server) as socket:
        await socket.flat("subscribe", sessionId=goes_on["id"])
        await house.type(goes_on["id"], "say more")
        assert (await socket.printed("got more\n")).splitlines() == [*printed, "got more"]
    assert await house.lines(goes_on["id"]) == [*printed, "got more"]

    notified = sorted([("review_ready", completes["id"]), ("error", fails["id"]), ("error", dies["id"])])
    assert await house.told() == notified
    assert (await house.call("GET", f"/tickets/{ticket['id']}"))["state"] == "review"
    async with house.killed():
        pass
    assert await house.told() == notified
    steps = (await house.call("GET", f"/tickets/{ticket['id']}/history"))["data"]
    assert [step["to_state"] for step in steps] == ["review", "in_progress"]
    assert await house.lines(goes_on["id"]) == [*printed, "got more"]
    assert await house.call("POST", "/sessions/sync") == {"updated": 0}


async def test_panes_of_another_tmux_server(house: House) -> None:
    """One that began since has the same pane ids, and other programs in them."""
    session = await house.start()
    async with house.killed():
        os.kill(int(house.tmux("display-message", "-p", "#{pid}")), signal.SIGKILL)
        await until(lambda: asyncio.to_thread(lambda: not house.panes()))
        house.tmux("new-session", "-d", "-s", "work", "sh")
    assert house.panes() == [session["pane_id"]]
    assert (await house.session(session["id"]))["status"] == "error"
    refused = await house.call("POST", f"/sessions/{session['id']}/input", 409, json={"text": "exit"})
    assert refused["message"] == "The session has ended"
    await house.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    assert house.panes() == [session["pane_id"]]
    assert await house.told() == [("error", session["id"])]


@pytest.mark.slow
async def test_a_server_that_is_killed_again_and_again(house: House) -> None:
    """Whatever it was about to do."""
    project = await house.project()
    path = f"/projects/{project['id']}/sessions"
    for turn in range(4):
        begun = [asyncio.create_task(house.call("POST", path, 201)) for _ in range(3)]
        await asyncio.sleep(0.02 * turn)
        async with house.killed():
            await asyncio.gather(*begun, return_exceptions=True)
        known = await house.call("GET", "/sessions")
        active = [session["pane_id"] for session in known if session["status"] == "running"]
        assert sorted(active) == sorted(house.panes())


@on_memory
async def test_sessions_that_tmux_does_not_have(desk: Desk) -> None:
    session = await desk.start()
    project = session["project_id"]
    id = str(uuid7())
    kept = {name: session[name] for name in session.keys() - {"id", "project", "ticket"}} | {"busy_ticket": None}
    await desk.server.storage.commit([Put(SESSIONS, id, kept | {"project_id": project}, ABSENT)])
    assert await desk.call("POST", "/sessions/sync") == {"updated": 1}
    assert await desk.call("POST", "/sessions/sync") == {"updated": 0}
    lost = await desk.session(id)
    assert (lost["status"], lost["ended_at"]) == ("error", NOW.replace("Z", ".000Z"))
    assert (await desk.session(session["id"]))["status"] == "running"


@on_memory
async def test_an_output_folder_that_is_none_any_more(desk: Desk) -> None:
    """A server starts, knows its sessions, and sees them end; how they ended nobody can tell it."""
    session = await desk.start()
    output = desk.folder / "output"
    output.rename(desk.folder / "elsewhere")
    output.write_text("")
    await desk.restart()
    assert (await desk.session(session["id"]))["status"] == "running"
    await desk.type(session["id"], "exit 0")
    assert (await desk.ended(session["id"]))["status"] == "error"


@on_memory
async def test_a_server_that_is_killed_between_ticket_and_session(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ticket is in review, and the session not known to have ended: whoever finds it tells of it, once."""
    tickets = desk.repo / "docs" / "jira-tickets"
    tickets.mkdir(parents=True)
    (tickets / TICKET).write_text("# First\n")
    project = await desk.project()
    [ticket] = await desk.call("GET", f"/projects/{project['id']}/tickets")
    id = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]["id"]
    await desk.printed(id, "[")
    killed = asyncio.Event()

    async def die(app: web.Application, session_id: str, changes: dict[str, Any], *also: Write) -> dict[str, Any]:
        if "ended_at" in changes and not killed.is_set():
            killed.set()
            raise asyncio.CancelledError
        return await change_session(app, session_id, changes, *also)

    monkeypatch.setattr(ends, "change_session", die)
    await desk.type(id, "exit 0")
    await asyncio.wait_for(killed.wait(), 30)
    assert (await desk.call("GET", f"/tickets/{ticket['id']}"))["state"] == "review"
    assert (await desk.session(id))["status"] == "running"
    await desk.restart()
    assert (await desk.session(id))["status"] == "completed"
    told = (await desk.call("GET", "/notifications"))["data"]
    assert [one["type"] for one in told] == ["review_ready"]


# All of it


async def how_late(socket: Socket, id: str) -> float:
    """Seconds from when a line is printed until it is here: the median of some."""
    late = []
    for _ in range(9):
        await socket.envelope("session:input", sessionId=id, text="now")
        said = await socket.printed("\n")
        while "got " not in said:
            said += await socket.printed("\n")
        late.append(time.time() - float(said.rpartition("got ")[2]))
    return median(late)


async def test_a_ticket_from_backlog_to_done(house: House) -> None:
    await asyncio.to_thread(subprocess.run, ("git", "init", "-q", str(house.repo)), check=True, timeout=20)
    project = await house.project()
    [ticket] = await house.call("GET", f"/projects/{project['id']}/tickets")
    assert (ticket["external_id"], ticket["title"], ticket["state"]) == ("CSM-001", "First", "backlog")
    path = f"/tickets/{ticket['id']}"

    async with connect(house.server) as socket:
        started = await house.call("POST", f"{path}/start")
        id = started["session"]["id"]
        assert started["ticket"]["state"] == "in_progress"
        await house.printed(id, "[")
        assert house.tmux("display-message", "-p", "-t", "work:", "#{pane_current_path}").strip() == str(house.repo)
        await house.type(id, "quiet")
        await house.printed(id, "got")
        await socket.envelope("session:subscribe", sessionId=id)
        await socket.until("subscribed")
        assert await how_late(socket, id) < 0.1
    lines = await house.lines(id)

    async with house.killed():
        house.type_past(started["session"], "count 300")
    lines += [*(f"line {number}" for number in range(300)), "got 300"]

    async with connect(house.server) as socket:
        await socket.envelope("session:subscribe", sessionId=id)
        await socket.envelope("session:input", sessionId=id, text="say answered")
        await socket.printed("got answered")
        lines.append("got answered")
        assert await house.lines(id) == lines
        await socket.envelope("session:input", sessionId=id, text="exit 0")
        told = [await socket.until(kind) for kind in ("ticket:state", "session:status", "notification")]
    state, status, notification = [message["payload"] for message in told]
    assert (state["ticketId"], state["newState"], state["trigger"]) == (ticket["id"], "review", "auto")
    assert (status["sessionId"], status["newStatus"]) == (id, "completed")
    assert notification["title"] == "Ready for review"
    assert await house.lines(id) == lines
    assert (await house.call("GET", path))["state"] == "review"

    await house.call("POST", f"{path}/reject", json={"feedback": "It fails."})
    second = (await house.call("POST", f"{path}/start"))["session"]["id"]
    prompt = (await house.printed(second, "["))[0]
    assert prompt.startswith('["The work on this ticket was rejected:\\n\\nIt fails.\\n\\n# First')
    hook = {"session_id": "s", "hook_event_name": "Stop", "cwd": str(house.repo)}
    for turn in ("first", "second"):
        await house.call("POST", "/hooks/claude", json=hook, headers={"X-Homeport-Session": second})
        await until(lambda: in_state(house, path, "review"))
        async with house.killed():
            pass
        if turn == "first":
            await house.call("POST", f"{path}/reject", json={"feedback": "say better"})
            await house.printed(second, "got better")
            assert (await house.call("GET", path))["state"] == "in_progress"
    await house.call("POST", f"{path}/approve")
    assert (await house.call("GET", path))["state"] == "done"
    assert (await house.session(second))["status"] == "completed"
    assert house.panes() == []


async def in_state(house: House, path: str, state: str) -> bool:
    return bool((await house.call("GET", path))["state"] == state)
