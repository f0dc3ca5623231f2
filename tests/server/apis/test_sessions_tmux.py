"""Sessions in a real tmux server: what reaches programs, how they end, and what becomes of that."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeport.server.apis.sessions.records.sessions import change_session
from homeport.server.apis.sessions.running import runner
from homeport.server.apis.sessions.tmux import launch
from homeport.server.apis.sessions.tmux.client import Pane, Tmux, TmuxUnavailable
from homeport.storage import Write

from .conftest import on_memory
from .sessions_kit import Desk, OpenDesk, until

pytestmark = on_memory
TRICKY = [
    pytest.param("two words", id="blanks"),
    pytest.param("  around  ", id="blanks around"),
    pytest.param('it\'s "quoted"', id="quotes"),
    pytest.param("a; b ;", id="semicolons"),
    pytest.param(";", id="a semicolon alone"),
    pytest.param("\\;", id="an escaped semicolon"),
    pytest.param("$(touch /tmp/x) `id` $HOME ${HOME}", id="what a shell would run"),
    pytest.param("#{pane_id} #S #(id) #[fg=red] ##", id="what tmux would expand"),
    pytest.param("%H:%M %% %", id="what strftime would expand"),
    pytest.param("Größe 日本語 🙂 \u202e", id="not ASCII"),
    pytest.param("one\ntwo\r\n\tthree\n", id="lines"),
    pytest.param("-rf", id="a leading dash"),
    pytest.param("--", id="two dashes"),
    pytest.param("~ * ? [a] {b} !c & | < > \\ ", id="globs and operators"),
    pytest.param("\x1b[31m\x07\x01", id="control characters"),
    pytest.param("x" * 100_000, id="long"),
]


async def argument(desk: Desk, project: dict[str, Any], prompt: str) -> list[str]:
    """What a program that was started with a prompt has for arguments."""
    body = {"initialPrompt": prompt}
    session = await desk.call("POST", f"/projects/{project['id']}/sessions", 201, json=body)
    end = asyncio.get_running_loop().time() + 20
    while asyncio.get_running_loop().time() < end:
        text = "".join(await desk.lines(session["id"]))
        if text.endswith("]"):
            await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
            return list(json.loads(text))
        await asyncio.sleep(0.01)
    raise AssertionError(text)


@pytest.mark.parametrize("prompt", TRICKY)
async def test_a_prompt_is_one_argument(desk: Desk, prompt: str) -> None:
    assert await argument(desk, await desk.project(), prompt) == [prompt]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=3))
async def test_any_prompt_is_one_argument(desk: Desk, prompts: list[str]) -> None:
    projects = await desk.call("GET", "/projects")
    project = projects[0] if projects else await desk.project()
    for prompt in prompts:
        assert await argument(desk, project, prompt) == [prompt]


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        pytest.param("x" * 131_071, 201, id="the longest"),
        pytest.param("x" * 131_072, 400, id="a byte more"),
        pytest.param("ü" * 65_536, 400, id="bytes count"),
        pytest.param("a\0b", 400, id="U+0000"),
    ],
)
async def test_what_no_program_can_be_given(desk: Desk, prompt: str, status: int) -> None:
    project = await desk.project()
    answer = await desk.call("POST", f"/projects/{project['id']}/sessions", status, json={"initialPrompt": prompt})
    if status == 400:
        assert answer["error"] == "Validation error"
        assert await desk.call("GET", "/sessions") == []


NAMES = [
    pytest.param("with blanks", id="blanks"),
    pytest.param('it\'s "quoted"', id="quotes"),
    pytest.param("a;", id="a semicolon at the end"),
    pytest.param("$(id)`id`$HOME", id="what a shell would run"),
    pytest.param("#{pane_id}#S#[x]#(id) 100%H", id="what tmux would expand"),
    pytest.param("größe 🙂", id="not ASCII"),
    pytest.param("one\ntwo", id="lines"),
    pytest.param("-rf", id="a leading dash"),
    pytest.param("back\\slash", id="a backslash"),
]


@pytest.mark.parametrize("name", NAMES)
async def test_folders_of_any_name(open_desk: OpenDesk, name: str) -> None:
    desk = await open_desk()
    (desk.folder / name).mkdir()
    (desk.folder / name / "repo").mkdir()
    output = desk.folder / name.replace("\n", " ") / "output"  # settings have no control characters
    await desk.restart({"apis.sessions.output_folder": str(output)})
    project = await desk.project(repoPath=str(desk.folder / name / "repo"))
    session = await desk.start(project=project)
    await desk.type(session["id"], "env PWD")
    await desk.type(session["id"], "exit 0")
    assert (await desk.ended(session["id"]))["status"] == "completed"
    kept = await asyncio.to_thread(list, output.iterdir())
    assert [folder.name for folder in kept] == [session["id"]]


@pytest.mark.parametrize("name", ["a b", "it's", "a$0", "größe", "ends;", "100%", "a=b", "a;b"])
async def test_tmux_sessions_of_any_name(desk: Desk, name: str) -> None:
    """And the second session is a window of the same."""
    project = await desk.project(tmuxSession=name, tmuxWindow=name)
    for windows in (1, 2):
        await desk.start(project=project)
        found = await desk.call("GET", "/tmux/sessions")
        assert found == {"data": [{"name": name.replace("$", "_"), "windows": windows, "attached": 0}]}


async def test_the_command_and_its_surroundings(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", "a secret")
    monkeypatch.setenv("HOMEPORT_STORAGE__URL", "memory:")
    monkeypatch.setenv("EDITOR", "ed")
    desk = await open_desk()
    command = f"python3 {desk.folder / 'program.py'} 'two words' \"it's\" $HOME;"
    await desk.restart({"apis.sessions.session_command": command})
    session = await desk.start("go")
    assert json.loads((await desk.lines(session["id"]))[0]) == ["two words", "it's", "$HOME;", "go"]
    told = {
        "HOMEPORT_SESSION_ID": session["id"],
        "PWD": str(desk.repo),
        "EDITOR": "ed",
        "STRIPE_SECRET_KEY": "unset",
        "HOMEPORT_STORAGE__URL": "unset",
    }
    for name, value in told.items():
        if name != "PWD":
            await desk.type(session["id"], f"env {name}")
            await desk.printed(session["id"], f"got {value}")
    assert desk.tmux("display-message", "-p", "-t", session["pane_id"], "#{pane_current_path}").strip() == str(
        desk.repo
    )


# What is typed


@pytest.mark.parametrize("prompt", [case for case in TRICKY if case.id not in ("lines", "control characters", "long")])
async def test_what_is_typed_comes_as_it_is(desk: Desk, prompt: str) -> None:
    session = await desk.start()
    await desk.type(session["id"], f"say {prompt}")
    assert f"got {prompt}".rstrip() in [line.rstrip() for line in await desk.printed(session["id"], "got")]


async def test_lines_are_typed_as_lines(desk: Desk) -> None:
    """More of them than a terminal takes, and before the program reads them."""
    session = await desk.start()
    await desk.type(session["id"], "quiet")
    await desk.printed(session["id"], "got")
    lines = ["sleep 0.2", *(f"say {number} {'x' * 90}" for number in range(600))]
    answer = await desk.call("POST", f"/sessions/{session['id']}/input", json={"input": "\n".join(lines)})
    assert answer == {"success": True}
    await desk.printed(session["id"], "got 599 ")
    assert (await desk.lines(session["id"]))[-len(lines) :] == [f"got {line.partition(' ')[2]}" for line in lines]


async def test_a_line_that_is_too_long(desk: Desk) -> None:
    """The terminal would drop the end of it, unless the program edits lines itself."""
    session = await desk.start()
    path = f"/sessions/{session['id']}/input"
    refused = await desk.call("POST", path, 409, json={"text": "one\n" + "ü" * 2048})
    told = "The program reads lines of at most 4095 bytes: this has 4096"
    assert refused == {"error": "Conflict", "message": told}
    for text in ("x" * 4091, "y" * 20_000):
        await desk.type(session["id"], f"say {text}")
        await desk.printed(session["id"], f"got {text}")
        await desk.type(session["id"], "raw")
        await desk.printed(session["id"], "got raw")


async def test_who_reads_back_is_left_alone_and_the_text_arrives(desk: Desk) -> None:
    session = await desk.start()
    desk.tmux("copy-mode", "-t", session["pane_id"])
    await desk.type(session["id"], "say hello")
    await desk.printed(session["id"], "got hello")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        pytest.param("s a y Space ; Enter", "got ;", id="letters and a semicolon"),
        pytest.param("s a y Space x BSpace y Enter", "got y", id="corrected"),
        pytest.param("s a y C-u e n v Enter", "got unset", id="a control key"),
    ],
)
async def test_keys(desk: Desk, keys: str, said: str) -> None:
    session = await desk.start()
    assert await desk.call("POST", f"/sessions/{session['id']}/keys", json={"keys": keys}) == {"success": True}
    await desk.printed(session["id"], said)


@pytest.mark.parametrize("keys", ["", " ", "Entr", "C-", "C-cc", "F13", "-X cancel", "\x1b", "a " * 101, 7])
async def test_what_is_no_key(desk: Desk, keys: Any) -> None:
    session = await desk.start()
    answer = await desk.call("POST", f"/sessions/{session['id']}/keys", 400, json={"keys": keys})
    assert (answer["error"], answer["details"][0]["path"]) == ("Validation error", ["keys"])


@pytest.mark.parametrize("body", [{}, {"text": 1}, {"text": "\x1b[201~"}, {"input": "\0"}, {"text": "x" * 65_537}])
async def test_what_cannot_be_typed(desk: Desk, body: dict[str, Any]) -> None:
    session = await desk.start()
    answer = await desk.call("POST", f"/sessions/{session['id']}/input", 400, json=body)
    assert answer["error"] == "Validation error"


async def test_focus(desk: Desk) -> None:
    project = await desk.project()
    first, second = [await desk.start(project=project) for _ in range(2)]
    for session in (second, first):
        assert await desk.call("POST", f"/sessions/{session['id']}/focus") == {"success": True}
        assert desk.tmux("display-message", "-p", "-t", "work:", "#{pane_id}").strip() == session["pane_id"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "input", {"text": "x"}),
        ("POST", "keys", {"keys": "x"}),
        ("POST", "focus", None),
        ("POST", "stop", None),
        ("GET", "output", None),
        ("GET", "", None),
    ],
)
async def test_sessions_that_are_not_there(desk: Desk, method: str, path: str, body: Any) -> None:
    path = f"/{path}".rstrip("/")
    unknown = await desk.call(method, f"/sessions/0199aaaa-0000-7000-8000-000000000000{path}", 404, json=body)
    assert unknown == {"error": "Not found", "message": "Session not found"}
    session = await desk.start()
    await desk.type(session["id"], "exit 0")
    await desk.ended(session["id"])
    ended = await desk.call(
        method, f"/sessions/{session['id']}{path}", 409 if body or path == "/focus" else 200, json=body
    )
    if body:
        assert ended == {"error": "Conflict", "message": "The session has ended"}


# How sessions end


def _tmux_server(desk: Desk) -> int:
    return int(desk.tmux("display-message", "-p", "#{pid}"))


ENDS = [
    pytest.param(lambda desk, id: desk.type(id, "exit 0"), "completed", None, id="status 0"),
    pytest.param(lambda desk, id: desk.type(id, "exit 3"), "error", "A session ended with status 3", id="status 3"),
    pytest.param(lambda desk, id: desk.type(id, "die"), "error", "A session was ended from outside", id="a signal"),
    *[
        pytest.param(command, "error", "A session was ended from outside", id=command)
        for command in ("kill-pane", "kill-window", "kill-session", "kill-server")
    ],
    pytest.param("SIGKILL", "error", "A session was ended from outside", id="tmux dies"),
]


@pytest.mark.parametrize(("end", "status", "message"), ENDS)
async def test_how_sessions_end(desk: Desk, end: Any, status: str, message: str | None) -> None:
    session = await desk.start()
    if end == "SIGKILL":
        os.kill(_tmux_server(desk), signal.SIGKILL)
    elif end == "kill-server":
        desk.tmux(end)
    elif isinstance(end, str):
        desk.tmux(end, "-t", session["pane_id"])
    else:
        await end(desk, session["id"])
    ended = await desk.ended(session["id"])
    assert (ended["status"], ended["ended_at"] is None) == (status, False)
    await until(lambda: _told(desk, message))
    assert desk.panes() == []
    again = await desk.start(project=(await desk.call("GET", "/projects"))[0])
    assert again["status"] == "running"


async def _told(desk: Desk, message: str | None) -> bool:
    """Whether there is exactly this one notification."""
    found = (await desk.call("GET", "/notifications"))["data"]
    return [(one["type"], one["message"]) for one in found] == ([("error", message)] if message else [])


async def test_a_session_that_ends_as_it_begins_to_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended, whatever is said of it."""
    id = (await desk.start())["id"]
    reached = asyncio.Event()

    async def late(app: web.Application, id: str, changes: dict[str, Any], *also: Write) -> dict[str, Any]:
        reached.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await desk.ended(id)
        return await change_session(app, id, changes, *also)

    monkeypatch.setattr(runner, "change_session", late)
    waits = {"hook_event_name": "Notification", "session_id": "one"}
    telling = asyncio.create_task(desk.call("POST", "/hooks/claude", json=waits, headers={"X-Homeport-Session": id}))
    await reached.wait()
    await desk.type(id, "exit 0")
    await telling
    assert (await desk.ended(id))["status"] == "completed"


async def test_a_command_that_is_not_there(open_desk: OpenDesk) -> None:
    desk = await open_desk({"apis.sessions.session_command": "no-such-program"})
    project = await desk.project()
    session = await desk.call("POST", f"/projects/{project['id']}/sessions", 201)
    assert (await desk.ended(session["id"]))["status"] == "error"
    told = f"no-such-program cannot be run in {desk.repo}: No such file or directory"
    assert await desk.lines(session["id"]) == [told]


async def test_a_folder_that_has_gone(desk: Desk) -> None:
    project = await desk.project()
    desk.repo.rmdir()
    answer = await desk.call("POST", f"/projects/{project['id']}/sessions", 409)
    assert answer["error"] == "Conflict"
    assert await desk.call("GET", "/sessions") == []


async def test_stop(desk: Desk) -> None:
    session = await desk.start()
    stopped = await desk.call("POST", f"/sessions/{session['id']}/stop")
    assert (stopped["status"], desk.panes()) == ("completed", [])
    assert await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True}) == stopped


async def test_one_that_is_stopped_before_its_command_begins(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C goes to a terminal that nobody has made his own yet."""
    open_, launchers = Tmux.open, []

    async def slow(self: Tmux, id: str, **where: Any) -> Pane:
        pane = await open_(self, id, **where)
        os.kill(pane.pid, signal.SIGSTOP)
        launchers.append((pane.pid, launch.is_waiting(desk.folder / "output" / id)))
        return pane

    async def lost(self: Tmux, pane: Pane, keys: Sequence[str]) -> None:
        os.kill(pane.pid, signal.SIGCONT)

    project = await desk.project()
    monkeypatch.setattr(Tmux, "open", slow)
    monkeypatch.setattr(Tmux, "press", lost)
    for _ in range(20):
        session = await desk.call("POST", f"/projects/{project['id']}/sessions", 201)
        pid, in_time = launchers.pop()
        if in_time:
            break
        os.kill(pid, signal.SIGCONT)
        await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    assert in_time
    stopped = await desk.call("POST", f"/sessions/{session['id']}/stop")
    assert (stopped["status"], await desk.lines(session["id"])) == ("completed", [])


async def test_who_ignores_it_is_stopped_by_force(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.server.apis.sessions.running.runner._STOP_SECONDS", 0.1)
    monkeypatch.setattr("homeport.server.apis.sessions.running.runner._KILL_SECONDS", 0.1)
    session = await desk.start()
    await desk.type(session["id"], "deaf")
    await desk.printed(session["id"], "got")
    process = Path("/proc", desk.tmux("display-message", "-p", "-t", session["pane_id"], "#{pane_pid}").strip())
    assert (await desk.call("POST", f"/sessions/{session['id']}/stop"))["status"] == "running"
    forced = await desk.call("POST", f"/sessions/{session['id']}/stop", json={"force": True})
    assert forced["status"] == "completed"

    async def gone() -> bool:
        return not process.exists() or "Z" in (process / "stat").read_text().rpartition(")")[2][:3]

    await until(gone)


async def test_who_goes_on_may_fail_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeport.server.apis.sessions.running.runner._STOP_SECONDS", 0.1)
    session = await desk.start()
    await desk.type(session["id"], "deaf")
    await desk.printed(session["id"], "got")
    assert (await desk.call("POST", f"/sessions/{session['id']}/stop"))["status"] == "running"
    await desk.type(session["id"], "exit 3")
    assert (await desk.ended(session["id"]))["status"] == "error"


@pytest.mark.parametrize("sessions", [8, pytest.param(50, marks=pytest.mark.slow)])
async def test_many_that_end_at_once(open_desk: OpenDesk, sessions: int) -> None:
    desk = await open_desk({"apis.sessions.session_command": "sh -c"})
    project = await desk.project()
    ends = [("exit 0", "completed"), ("exit 3", "error"), ("kill -9 $$", "error"), ("echo $$; exit 0", "completed")]
    path = f"/projects/{project['id']}/sessions"
    prompts = [ends[number % len(ends)] for number in range(sessions)]
    begun = await asyncio.gather(
        *(desk.call("POST", path, 201, json={"initialPrompt": prompt}) for prompt, _ in prompts)
    )
    ended = [await desk.ended(session["id"]) for session in begun]
    assert [session["status"] for session in ended] == [status for _, status in prompts]
    assert desk.panes() == []
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if " Z " in Path(f"/proc/{pid}/stat").read_text()]


# tmux that is away


async def test_tmux_is_not_installed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    project, ticket = await _ticket(desk)
    away = {"error": "Service unavailable", "message": "tmux is not installed"}
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(desk.repo))
        assert await desk.call("POST", f"/projects/{project['id']}/sessions", 503) == away
        assert await desk.call("GET", "/tmux/sessions", 503) == away
        assert (await desk.call("POST", f"/tickets/{ticket['id']}/start", 503))["error"] == "Service unavailable"
        assert (await desk.call("GET", f"/tickets/{ticket['id']}"))["state"] == "backlog"
        assert await desk.call("GET", "/sessions") == []
        assert await asyncio.to_thread(lambda: list((desk.folder / "output").iterdir())) == []
        health = await desk.call("GET", "/health")
        assert (health["status"], health["tmux"]) == ("degraded", "unavailable")


NO_ANSWER = {"error": "Service unavailable", "message": "tmux does not answer"}


@contextmanager
def _stopped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tmux server that is there and does nothing."""
    pid = _tmux_server(desk)
    with monkeypatch.context() as patch:
        patch.setattr("homeport.server.apis.sessions.tmux.client._DEADLINE", 0.2)
        patch.setattr("homeport.server.apis.sessions.running.ends._RETRY_SECONDS", 0.1)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_tmux_does_not_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await desk.start()
    with _stopped(desk, monkeypatch):
        for path, body in (("input", {"text": "say late"}), ("keys", {"keys": "x C-u"})):
            assert await desk.call("POST", f"/sessions/{session['id']}/{path}", 503, json=body) == NO_ANSWER
        many = [desk.call("GET", "/tmux/sessions", 503) for _ in range(40)]
        async with asyncio.timeout(5):
            assert await asyncio.gather(*many) == [NO_ANSWER] * 40
        assert await desk.call("POST", "/sessions/sync", 503) == NO_ANSWER
        assert (await desk.session(session["id"]))["status"] == "running"
        assert (await desk.call("GET", "/health"))["tmux"] == "unavailable"
        await desk.restart()
        assert (await desk.session(session["id"]))["status"] == "running"
    await desk.type(session["id"], "exit 0")
    assert (await desk.ended(session["id"]))["status"] == "completed"
    assert "got late" not in await desk.lines(session["id"])

    async def healthy() -> bool:
        return bool((await desk.call("GET", "/health"))["status"] == "healthy")

    await until(healthy)


async def test_who_is_stopped_late(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await desk.start()
    with _stopped(desk, monkeypatch):
        stop = f"/sessions/{session['id']}/stop"
        assert await desk.call("POST", stop, 503, json={"force": True}) == NO_ANSWER
    assert (await desk.ended(session["id"]))["status"] == "completed"


async def test_a_window_that_opens_late(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was answered that there is no session, and so it is."""
    project = await desk.project()
    first = await desk.start(project=project)
    with _stopped(desk, monkeypatch):
        assert await desk.call("POST", f"/projects/{project['id']}/sessions", 503) == NO_ANSWER

    async def alone() -> bool:
        return desk.panes() == [first["pane_id"]]

    await until(alone)
    assert [session["id"] for session in await desk.call("GET", "/sessions")] == [first["id"]]


async def test_a_window_that_opened_untold(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """tmux did what it was asked, and did not say so: the session is there."""
    project = await desk.project()
    open_ = Tmux.open

    async def silent(self: Tmux, id: str, **where: Any) -> Pane:
        await open_(self, id, **where)
        launched = desk.folder / "output" / id / "status"
        await until(lambda: asyncio.to_thread(launched.exists))
        raise TmuxUnavailable("tmux does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Tmux, "open", silent)
        session = await desk.call("POST", f"/projects/{project['id']}/sessions", 201)
    assert session["pane_id"] is None
    await desk.type(session["id"], "say hello")
    await desk.printed(session["id"], "got hello")
    assert [(await desk.session(session["id"]))["pane_id"]] == desk.panes()
    await desk.type(session["id"], "exit 0")
    assert (await desk.ended(session["id"]))["status"] == "completed"


async def test_a_start_that_is_cancelled(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left that is said to run, nor anything that tmux could run later."""
    project, reached = await desk.project(), asyncio.Event()

    async def open_(*_: Any, **where: Any) -> Pane:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Tmux, "open", open_)
    starting = asyncio.create_task(desk.server.app[runner.RUNNER].start(project))
    await reached.wait()
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    [session] = await desk.call("GET", "/sessions")
    assert (await desk.ended(session["id"]))["status"] == "error"
    assert not (desk.folder / "output" / session["id"] / "launch.json").exists()


@pytest.mark.parametrize("how", ["it is told to end", "SIGKILL"])
async def test_what_keeps_the_output_ends(desk: Desk, how: str) -> None:
    session = await desk.start()
    if how == "SIGKILL":
        os.kill(_keeper(desk, session["id"]), signal.SIGKILL)
    else:
        desk.tmux("pipe-pane", "-t", session["pane_id"])

    async def said() -> bool:
        await desk.type(session["id"], "say still here")
        await asyncio.sleep(0.1)
        return "got still here" in await desk.lines(session["id"])

    await until(said)
    assert desk.tmux("list-panes", "-a", "-F", "#{pane_pipe}").strip() == "1"


def _keeper(desk: Desk, id: str) -> int:
    """The process that keeps what a session prints."""
    folder = str(desk.folder / "output" / id)
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(word.endswith("capture.py") for word in words) and folder in words:
                return int(process.name)
    raise AssertionError(folder)


# Tickets


async def _ticket(desk: Desk) -> tuple[dict[str, Any], dict[str, Any]]:
    tickets = desk.repo / "docs" / "jira-tickets"
    tickets.mkdir(parents=True)
    (tickets / "CSM-001-first.md").write_text("# First\n")
    project = await desk.project()
    [ticket] = await desk.call("GET", f"/projects/{project['id']}/tickets")
    return project, ticket


async def test_a_ticket_s_session(desk: Desk) -> None:
    project, ticket = await _ticket(desk)
    started = await desk.call("POST", f"/tickets/{ticket['id']}/start")
    id = started["session"]["id"]
    assert (started["session"]["type"], started["session"]["ticket"]["external_id"]) == ("ticket", "CSM-001")
    body = {"ticket_id": ticket["id"]}
    second = await desk.call("POST", f"/projects/{project['id']}/sessions", 409, json=body)
    assert second == {"error": "Conflict", "message": "A session is running on this ticket"}
    await desk.printed(id, "[")
    await desk.type(id, "exit 0")
    await desk.ended(id)

    async def told() -> bool:
        return [one["type"] for one in (await desk.call("GET", "/notifications"))["data"]] == ["review_ready"]

    await until(told)
    history = await desk.call("GET", f"/tickets/{ticket['id']}/history")
    last = max(history["data"], key=lambda transition: transition["id"])
    assert (last["to_state"], last["trigger"], last["reason"]) == ("review", "auto", "session_completed")


@pytest.mark.parametrize("end", ["exit 3", "stop"])
async def test_a_ticket_stays_where_its_session_did_not_complete(desk: Desk, end: str) -> None:
    _, ticket = await _ticket(desk)
    id = (await desk.call("POST", f"/tickets/{ticket['id']}/start"))["session"]["id"]
    await desk.printed(id, "[")
    if end == "stop":
        await desk.call("POST", f"/sessions/{id}/stop")
    else:
        await desk.type(id, end)
    assert (await desk.ended(id))["status"] == ("completed" if end == "stop" else "error")
    assert (await desk.call("GET", f"/tickets/{ticket['id']}"))["state"] == "in_progress"


async def test_many_at_once_on_one_ticket(desk: Desk) -> None:
    project, ticket = await _ticket(desk)
    body = {"ticket_id": ticket["id"]}
    path = f"/api/projects/{project['id']}/sessions"
    answers = await asyncio.gather(*(desk.server("POST", path, json=body) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409]
    assert len(desk.panes()) == 1


# Projects


async def test_a_project_is_deleted_while_sessions_start(desk: Desk) -> None:
    """One of both comes first: no session is left in a project that is not there."""
    for _ in range(5):
        project = await desk.project()
        path = f"/api/projects/{project['id']}"
        starts = [desk.server("POST", f"{path}/sessions") for _ in range(2)]
        *started, deleted = await asyncio.gather(*starts, desk.server("DELETE", path))
        statuses = {answer.status for answer in started}
        assert (deleted.status, statuses <= {201, 404}) in ((204, True), (409, True)), started
        assert (201 in statuses) == (deleted.status == 409)
        for answer in started:
            if answer.status == 201:
                await desk.call("POST", f"/sessions/{answer.json['id']}/stop", json={"force": True})
        if deleted.status == 409:
            await desk.call("DELETE", f"/projects/{project['id']}", 204)
