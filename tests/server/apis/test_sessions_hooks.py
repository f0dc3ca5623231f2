"""Claude Code's hooks and transcripts, as it writes them."""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import uuid7

from homeport.server.apis.sessions.records import documents
from homeport.server.apis.sessions.records.projects import PROJECTS
from homeport.server.apis.sessions.records.sessions import SESSIONS
from homeport.server.apis.sessions.records.tickets import TICKETS
from homeport.server.apis.sessions.running import hooks, transcripts
from homeport.server.apis.sessions.running.transcripts import MOST_BYTES, NotReadable, last_usage
from homeport.storage import Put

from .apns import KEY_ID, TEAM_ID, TOPIC, Say, p8, push_service
from .conftest import NOW, Answer, Serve, Served, on_memory, user_key
from .sessions_kit import OpenDesk, until

CLAUDE = "eb5b0174-0555-4601-804e-672d68069c89"
OTHER_CLAUDE = "11111111-2222-4333-8444-555555555555"
PROJECT = "0194b8e0-0000-7000-8000-000000000001"
TICKET = "0194b8e0-0000-7000-8000-000000000002"


# Transcripts in Claude Code's format


def line(**more: Any) -> str:
    entry = {
        "parentUuid": None,
        "isSidechain": False,
        "userType": "external",
        "cwd": "/home/user/app",
        "sessionId": CLAUDE,
        "version": "2.0.14",
        "gitBranch": "main",
        "uuid": str(uuid7()),
        "timestamp": "2025-12-30T18:00:00.000Z",
    }
    return json.dumps(entry | more)


def prompt(text: str = "please fix the parser") -> str:
    return line(type="user", message={"role": "user", "content": text})


def answer(tokens: int, read: int = 0, created: int = 0, **more: Any) -> str:
    usage = {
        "input_tokens": tokens,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": created, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 311,
        "service_tier": "standard",
    }
    message = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "Done. “usage” is told below."}],
        "stop_reason": None,
        "usage": usage | more.pop("usage", {}),
        **more.pop("message", {}),
    }
    return line(type="assistant", requestId="req_01", message=message, **more)


COMPACTED = line(type="system", subtype="compact_boundary", content="Conversation compacted")


@pytest.mark.parametrize(
    ("lines", "tokens"),
    [
        pytest.param([prompt(), answer(4, 20_000, 1_000)], 21_004, id="one answer"),
        pytest.param([prompt(), answer(1), prompt(), answer(2), prompt()], 2, id="the last one counts"),
        pytest.param([answer(7), answer(1, isSidechain=True)], 7, id="a subagent's is another context"),
        pytest.param([answer(7), answer(0, message={"model": "<synthetic>"})], 7, id="Claude Code's own words"),
        pytest.param([answer(7), prompt('{"usage": {"input_tokens": 1}}')], 7, id="usage in a prompt"),
        pytest.param([answer(7), '{"type":"assistant","message":{"usage":{"input_tok'], 7, id="torn last line"),
        pytest.param([answer(7), "no JSON", '"usage"', "[]", '{"usage": 1}', "\udc80"], 7, id="other lines"),
        pytest.param([answer(7), answer(-1), answer(1.5), answer("9")], 7, id="counts that are none"),  # type: ignore[arg-type]
        pytest.param([answer(7), answer(10**30)], 7, id="a count beyond reason"),
        pytest.param([answer(7, usage={"cache_read_input_tokens": None})], 7, id="null"),
        pytest.param([answer(150_000), COMPACTED, prompt()], None, id="compacted since"),
        pytest.param([answer(150_000), COMPACTED, prompt(), answer(9)], 9, id="answered since it was compacted"),
        pytest.param([answer(7), prompt("compact_boundary")], 7, id="compact_boundary in a prompt"),
        pytest.param([prompt()], None, id="no answer yet"),
        pytest.param([], None, id="empty"),
        pytest.param([answer(7), "[" * 10_000 + '"usage"'], 7, id="nested deeply"),
    ],
)
def test_last_usage(tmp_path: Path, lines: list[str], tokens: int | None) -> None:
    for end in ("", "\n"):
        path = tmp_path / "transcript.jsonl"
        path.write_bytes(("\n".join(lines) + end).encode("utf-8", "surrogateescape"))
        assert last_usage(str(tmp_path), str(path)) == tokens


@pytest.mark.parametrize("after", [10, 65_000, 65_536, 200_000, 3_000_000])
def test_a_long_line_after_the_last_answer(tmp_path: Path, after: int) -> None:
    path = tmp_path / "transcript.jsonl"
    path.write_text("\n".join([answer(1), answer(7), prompt("x" * after), prompt()]))
    assert last_usage(str(tmp_path), str(path)) == 7


def test_a_huge_transcript_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    with path.open("wb") as file:
        file.write(answer(1).encode() + b"\n")
        file.seek(200 << 20)  # a hole
        file.write(b"\n" + answer(7).encode() + b"\n")
    assert last_usage(str(tmp_path), str(path)) == 7
    with path.open("ab") as file:
        file.write(b"x" * (MOST_BYTES + 1))
    assert last_usage(str(tmp_path), str(path)) is None


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 64))
def test_lines_from_the_end(lengths: list[int], chunk: int) -> None:
    lines = [bytes([65 + place]) * length for place, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcripts, "_CHUNK", chunk)
        file = os.memfd_create("transcript")
        try:
            os.write(file, b"\n".join(lines))
            assert list(transcripts._from_end(file)) == b"\n".join(lines).split(b"\n")[::-1]
        finally:
            os.close(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of transcripts, with a secret beside it."""
    root = tmp_path / "projects"
    (root / "app").mkdir(parents=True)
    (root / "app" / "good.jsonl").write_text(answer(7))
    (tmp_path / "secret.jsonl").write_text(answer(8))
    (tmp_path / "projects-of-others").mkdir()
    (tmp_path / "projects-of-others" / "secret.jsonl").write_text(answer(8))
    (root / "app" / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "out").symlink_to(tmp_path)
    (root / "app" / "in.jsonl").symlink_to(root / "app" / "good.jsonl")
    os.mkfifo(root / "app" / "pipe.jsonl")
    return root


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("{root}/../secret.jsonl", id="dots"),
        pytest.param("{root}/app/../../secret.jsonl", id="dots further down"),
        pytest.param("{root}-of-others/secret.jsonl", id="a name that begins the same"),
        pytest.param("{root}/app/out.jsonl", id="a link out"),
        pytest.param("{root}/out/secret.jsonl", id="a folder that is a link out"),
        pytest.param("{root}/app/in.jsonl", id="a link at all"),
        pytest.param("{root}/app/pipe.jsonl", id="a pipe"),
        pytest.param("{root}/app", id="a folder"),
        pytest.param("{root}", id="the root"),
        pytest.param("{root}/app/missing.jsonl", id="missing"),
        pytest.param("{root}/app/good.jsonl/x", id="below a file"),
        pytest.param("{root}/app/\0good.jsonl", id="U+0000"),
        pytest.param("{root}/" + "x" * 300, id="a long name"),
        pytest.param("app/good.jsonl", id="relative"),
        pytest.param("/dev/zero", id="a device"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_not_read(root: Path, path: str) -> None:
    with pytest.raises(NotReadable):
        last_usage(str(root), path.format(root=root))


def test_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    for path in (root / "app" / "good.jsonl", tmp_path / "link" / "app" / "good.jsonl"):
        assert last_usage(str(tmp_path / "link"), str(path)) == 7


# Hooks


@dataclass
class Hooked:
    """A project in a folder of its own, its ticket, and sessions that hooks tell of."""

    server: Served
    folder: Path

    async def session(self, *, ticket: bool = False, status: str = "running", **more: Any) -> str:
        """One that is known, though nothing runs."""
        id, now = str(uuid7()), NOW
        document = {
            "project_id": PROJECT,
            "ticket_id": TICKET if ticket else None,
            "type": "ticket" if ticket else "adhoc",
            "status": status,
            "context_percent": None,
            "pane_id": None,
            "started_at": now,
            "ended_at": None,
            "created_at": now,
            "updated_at": now,
            "busy_ticket": TICKET if ticket else None,
        }
        await self.server.storage.commit([Put(SESSIONS, id, document | more)])
        return id

    async def told(self, name: str, session: str | None = None, **more: Any) -> Answer:
        """Posts an event, from the window of a session if one is given."""
        body = {"session_id": CLAUDE, "cwd": str(self.folder), "hook_event_name": name} | more
        headers = {"X-Homeport-Session": session} if session else {}
        answer = await self.server("POST", "/api/hooks/claude", json=body, headers=headers)
        assert (answer.status, answer.json) == (200, {"success": True})
        return answer

    async def status(self, session: str) -> str:
        return str((await self.server.get(f"/api/sessions/{session}")).json["status"])

    async def percent(self, session: str) -> int | None:
        percent: int | None = (await self.server.get(f"/api/sessions/{session}")).json["context_percent"]
        return percent

    async def notifications(self) -> list[tuple[str, str]]:
        """Type and message of each, the oldest first."""
        rows = (await self.server.get("/api/notifications")).json["data"]
        return [(row["type"], row["message"]) for row in reversed(rows)]

    async def ticket_state(self) -> str:
        return str((await self.server.storage.get(TICKETS, [TICKET]))[TICKET].decode()["state"])

    def transcript(self, *lines: str) -> str:
        path = self.folder / "transcripts" / "app" / f"{CLAUDE}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
        return str(path)


async def hook(serve: Serve, folder: Path, settings: dict[str, Any] | None = None) -> Hooked:
    server = await serve(
        {
            **(settings or {}),
            "apis.sessions.transcript_root": str(folder / "transcripts"),
            "apis.sessions.output_folder": str(folder / "output"),
            "apis.sessions.tmux_socket": str(folder / "tmux"),
        }
    )
    times = {"created_at": NOW, "updated_at": NOW}
    project = {
        "name": "App",
        "repo_path": str(folder),
        "tickets_path": "docs/jira-tickets/",
        "handoff_path": "docs/ai-context/handoff.md",
        "tmux_session": "app",
        "tmux_window": None,
    }
    ticket: dict[str, Any] = {
        "external_id": "CSM-001",
        "title": "First",
        "state": "in_progress",
        "file_path": "docs/jira-tickets/CSM-001-first.md",
        "is_adhoc": False,
        "started_at": NOW,
        "completed_at": None,
        "project_id": PROJECT,
        "prefix": "CSM",
        "stamp": "",
        "feedback": [],
    }
    file = folder / ticket["file_path"]  # else the ticket goes when its folder is read, which the server does at times
    file.parent.mkdir(parents=True)
    file.write_text("# First\n")
    await server.storage.commit([Put(PROJECTS, PROJECT, project | times), Put(TICKETS, TICKET, ticket | times)])
    return Hooked(server, folder)


@pytest.fixture
async def hooked(serve: Serve, tmp_path: Path) -> Hooked:
    return await hook(serve, tmp_path.resolve())


async def test_a_turn_of_a_ticket(hooked: Hooked) -> None:
    session = await hooked.session(ticket=True)
    transcript = hooked.transcript(prompt(), answer(4, 20_000, 30_000))
    await hooked.told("SessionStart", session, source="startup", transcript_path=transcript)
    await hooked.told("UserPromptSubmit", session, prompt="Do it")
    assert (await hooked.status(session), await hooked.percent(session)) == ("running", 25)
    await hooked.told(
        "Notification",
        session,
        message="Claude needs your permission to use Bash",
        notification_type="permission_prompt",
    )
    assert await hooked.status(session) == "paused"
    await hooked.told("PostToolUse", session, tool_name="Bash", tool_input={"command": "make"})
    assert await hooked.status(session) == "running"
    assert await hooked.ticket_state() == "in_progress"
    for _ in range(2):
        await hooked.told("Stop", session, stop_hook_active=False)
        assert (await hooked.status(session), await hooked.ticket_state()) == ("paused", "review")
    await hooked.told("Notification", session, message="Claude is waiting for your input")
    assert await hooked.notifications() == [
        ("waiting_input", "Claude needs your permission to use Bash"),
        ("review_ready", "Claude has finished with a ticket"),
    ]


async def test_two_that_stop_at_once_are_one_review(hooked: Hooked) -> None:
    session = await hooked.session(ticket=True)
    await asyncio.gather(*(hooked.told("Stop", session) for _ in range(5)))
    assert await hooked.ticket_state() == "review"
    assert [kind for kind, _ in await hooked.notifications()] == ["review_ready"]


@on_memory
@pytest.mark.parametrize(
    ("name", "more", "before", "after"),
    [
        pytest.param("UserPromptSubmit", {}, "paused", "running", id="prompt"),
        pytest.param("PreToolUse", {"tool_name": "Bash"}, "paused", "running", id="before a tool"),
        pytest.param("PostToolUse", {"tool_name": "Bash"}, "paused", "running", id="after a tool"),
        pytest.param("PostToolUseFailure", {"tool_name": "Bash"}, "paused", "running", id="after a tool that failed"),
        pytest.param("Notification", {}, "running", "paused", id="notification of an old version"),
        pytest.param("Notification", {"notification_type": "idle_prompt"}, "running", "paused", id="idle"),
        pytest.param("Notification", {"notification_type": "auth_success"}, "running", "running", id="logged in"),
        pytest.param("Stop", {}, "running", "paused", id="stop"),
        pytest.param("StopFailure", {}, "running", "paused", id="stop with an error"),
        pytest.param("SubagentStop", {}, "running", "running", id="subagent"),
        pytest.param("PreCompact", {"trigger": "auto"}, "running", "running", id="compaction"),
        pytest.param("SessionStart", {"source": "startup"}, "running", "running", id="start"),
        pytest.param("SessionEnd", {"reason": "exit"}, "running", "running", id="end"),
        pytest.param("SomethingNew", {}, "paused", "paused", id="unknown"),
    ],
)
async def test_status(hooked: Hooked, name: str, more: dict[str, Any], before: str, after: str) -> None:
    session = await hooked.session(status=before)
    await hooked.told(name, session, **more)
    assert await hooked.status(session) == after


@on_memory
@pytest.mark.parametrize(
    ("events", "notifications"),
    [
        pytest.param([("Notification", {"message": "a\n\x1b[1mb"})] * 2, [("waiting_input", "a [1mb")], id="told once"),
        pytest.param(
            [("Notification", {})], [("waiting_input", "Claude is waiting for your input")], id="without a message"
        ),
        pytest.param(
            [("Notification", {"message": "x" * 501})], [("waiting_input", "x" * 499 + "…")], id="a long message"
        ),
        pytest.param(
            [("Stop", {}), ("Notification", {"notification_type": "idle_prompt", "message": "idle"})],
            [("waiting_input", "Claude has finished and waits for input")],
            id="stop, then idle",
        ),
        pytest.param(
            [("Notification", {"message": "a"}), ("UserPromptSubmit", {}), ("Notification", {"message": "b"})],
            [("waiting_input", "a"), ("waiting_input", "b")],
            id="told again",
        ),
        pytest.param([("StopFailure", {})], [("error", "Claude stopped because of an error")], id="error"),
    ],
)
async def test_notifications(
    hooked: Hooked, events: list[tuple[str, dict[str, Any]]], notifications: list[tuple[str, str]]
) -> None:
    session = await hooked.session()
    for name, more in events:
        await hooked.told(name, session, **more)
    assert await hooked.notifications() == notifications


async def test_context_is_told_once_when_it_becomes_low(hooked: Hooked) -> None:
    session = await hooked.session()
    for tokens in (158_999, 159_000, 180_000, 250_000, 1_000, 160_000):  # of 200,000
        await hooked.told("PostToolUse", session, transcript_path=hooked.transcript(answer(tokens)))
    assert await hooked.percent(session) == 80
    assert await hooked.notifications() == [
        ("context_low", "80 % of the context is used"),
        ("context_low", "80 % of the context is used"),
    ]


@on_memory
async def test_a_transcript_that_is_none_changes_nothing(hooked: Hooked, tmp_path: Path) -> None:
    session = await hooked.session()
    (tmp_path / "secret.jsonl").write_text(answer(100_000))
    for path in (str(tmp_path / "secret.jsonl"), "", "/dev/zero", "\0"):
        await hooked.told("UserPromptSubmit", session, transcript_path=path)
    assert (await hooked.status(session), await hooked.percent(session)) == ("running", None)


HANDOFF = "docs/ai-context/handoff.md"


@on_memory
@pytest.mark.parametrize(
    ("tool", "path", "told"),
    [
        pytest.param("Write", "{folder}/" + HANDOFF, True, id="written"),
        pytest.param("Edit", "{folder}/docs/../" + HANDOFF, True, id="edited, by another path"),
        pytest.param("Read", "{folder}/" + HANDOFF, False, id="read"),
        pytest.param("Write", "{folder}/README.md", False, id="another file"),
        pytest.param("Write", "/elsewhere/" + HANDOFF, False, id="another project's"),
        pytest.param("Write", "\0", False, id="U+0000"),
        pytest.param("Write", 5, False, id="no path"),
    ],
)
async def test_handoff(hooked: Hooked, tool: str, path: object, told: bool) -> None:
    session = await hooked.session()
    named = path.format(folder=hooked.folder) if isinstance(path, str) else path
    for _ in range(2):
        await hooked.told("PostToolUse", session, tool_name=tool, tool_input={"file_path": named, "content": "x"})
    once = [("handoff_complete", f"{HANDOFF} is written")] if told else []
    assert await hooked.notifications() == once
    await hooked.told("UserPromptSubmit", session)
    await hooked.told("PostToolUse", session, tool_name=tool, tool_input={"file_path": named})
    assert await hooked.notifications() == once * 2


@on_memory
@pytest.mark.parametrize("tool_input", [None, [], "x", {}])
async def test_input_of_a_tool_that_is_none(hooked: Hooked, tool_input: object) -> None:
    await hooked.told("PostToolUse", await hooked.session(), tool_name="Write", tool_input=tool_input)
    assert await hooked.notifications() == []


# Which session is meant


async def test_without_the_windows_word_the_newest_that_is_nobodys(hooked: Hooked) -> None:
    older, newer = await hooked.session(), await hooked.session()
    await hooked.session(status="completed")
    inner = hooked.folder / "src" / "deep"
    inner.mkdir(parents=True)
    await hooked.told("Stop", cwd=str(inner))
    assert [await hooked.status(id) for id in (older, newer)] == ["running", "paused"]
    await hooked.told("UserPromptSubmit", cwd="/")
    assert await hooked.status(newer) == "running", "it is known by its session_id now"
    await hooked.told("Stop", session_id=OTHER_CLAUDE)
    assert [await hooked.status(id) for id in (older, newer)] == ["paused", "running"]
    await hooked.told("Stop", session_id="a third")
    assert [await hooked.status(id) for id in (older, newer)] == ["paused", "running"]


async def test_it_is_remembered_by_the_next_server(serve: Serve, tmp_path: Path) -> None:
    first = await hook(serve, tmp_path.resolve())
    session = await first.session()
    await first.told("SessionStart", source="startup")
    second = Hooked(await serve({"apis.sessions.tmux_socket": str(tmp_path / "tmux")}), first.folder)
    record = (await second.server.storage.get(SESSIONS, [session]))[session]
    await second.server.storage.commit([Put(SESSIONS, session, record.decode() | {"status": "running"})])
    await second.told("Stop", cwd="/")
    assert await second.status(session) == "paused"


@on_memory
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"cwd": "/"}, id="elsewhere"),
        pytest.param({"cwd": "relative"}, id="a relative folder"),
        pytest.param({"cwd": "\0"}, id="U+0000"),
        pytest.param({"cwd": "{folder}-of-others"}, id="a name that begins the same"),
    ],
)
async def test_no_session_is_meant(hooked: Hooked, more: dict[str, str]) -> None:
    session = await hooked.session()
    await hooked.told("Stop", cwd=more["cwd"].format(folder=hooked.folder))
    assert await hooked.status(session) == "running"


async def test_another_claude_in_the_same_window_changes_nothing(hooked: Hooked) -> None:
    session = await hooked.session(ticket=True)
    await hooked.told("SessionStart", session, source="startup")
    for name, more in (("SessionStart", {"source": "startup"}), ("Stop", {}), ("SessionEnd", {})):
        await hooked.told(name, session, session_id=OTHER_CLAUDE, **more)
    assert (await hooked.status(session), await hooked.ticket_state()) == ("running", "in_progress")


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([("SessionStart", OTHER_CLAUDE, {"source": "resume"})], id="resumed"),
        pytest.param(
            [("SessionEnd", CLAUDE, {"reason": "clear"}), ("SessionStart", OTHER_CLAUDE, {"source": "clear"})],
            id="cleared",
        ),
        pytest.param(
            [("SessionEnd", CLAUDE, {"reason": "exit"}), ("SessionStart", OTHER_CLAUDE, {"source": "startup"})],
            id="ended and begun",
        ),
    ],
)
@on_memory
async def test_claudes_session_goes_on_under_another_id(
    hooked: Hooked, between: list[tuple[str, str, dict[str, str]]]
) -> None:
    session = await hooked.session()
    await hooked.told("SessionStart", session, source="startup")
    for name, claude, more in between:
        await hooked.told(name, session, session_id=claude, **more)
    await hooked.told("Stop", session, session_id=OTHER_CLAUDE)
    assert await hooked.status(session) == "paused"


@on_memory
async def test_one_that_waits_its_turn_while_its_session_ends_changes_nothing(hooked: Hooked) -> None:
    session, storage = await hooked.session(ticket=True), hooked.server.storage

    async def known() -> bool:
        return (await documents.get(storage, SESSIONS, session)).get("claude_session_id") == CLAUDE

    async with storage.locks.hold([f"hooks of session {session}"]):
        telling = asyncio.create_task(hooked.told("Stop", session))
        await until(known)
        await documents.change(storage, SESSIONS, session, {"status": "completed"})
    await telling
    assert await hooked.ticket_state() == "in_progress"
    assert await hooked.notifications() == []


@on_memory
async def test_a_session_that_is_over_or_unknown(hooked: Hooked) -> None:
    ended = await hooked.session(status="error")
    for session in (ended, ended.upper(), str(uuid7())):
        await hooked.told("Stop", session)
    assert await hooked.status(ended) == "error"
    assert await hooked.notifications() == []


@on_memory
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param({}, {}, id="no event"),
        pytest.param([], {}, id="a list"),
        pytest.param({"hook_event_name": 5}, {}, id="event is no text"),
        pytest.param({"hook_event_name": "Stop", "cwd": 5}, {}, id="folder is no text"),
        pytest.param({"hook_event_name": "Stop", "cwd": "x" * 4097}, {}, id="folder is long"),
        pytest.param({"hook_event_name": "Stop"}, {"X-Homeport-Session": "../x"}, id="session is no id"),
    ],
)
async def test_what_is_no_event(hooked: Hooked, body: object, headers: dict[str, str]) -> None:
    answer = await hooked.server("POST", "/api/hooks/claude", json=body, headers=headers)
    assert (answer.status, answer.json["error"]) == (400, "Validation error")
    assert answer.json["message"]


async def test_a_notification_is_pushed_and_nobody_waits_for_it(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = user_key("phone")
    async with push_service(tmp_path) as (service, trusted):
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        apns = {"key": p8()[0], "key_id": KEY_ID, "team_id": TEAM_ID, "topic": TOPIC, "server": service.url}
        settings = {f"apis.sessions.apns.{name}": value for name, value in apns.items()}
        hooked = await hook(serve, tmp_path.resolve(), settings)
        service.will(device, Say(None), Say(None))
        registered = await hooked.server("POST", "/api/devices/register", json={"token": device})
        assert registered.status == 200
        session = await hooked.session(ticket=True)
        await hooked.told("Notification", session, message="May I?")
        (pushed,) = await service.until(1)
        await hooked.told("Stop", session)  # while the first is not answered
        (notification,) = (await hooked.server.get("/api/notifications")).json["data"][1:]
        assert pushed.token == device
        assert pushed.payload == {
            "aps": {"alert": {"title": "Waiting for input", "body": "May I?"}, "sound": "default"},
            "notificationId": notification["id"],
            "type": "waiting_input",
            "sessionId": session,
            "ticketId": TICKET,
        }
        assert (await service.until(2))[1].payload["type"] == "review_ready"


# The documented command, in a window of tmux


@on_memory
@pytest.mark.parametrize("known", [True, False], ids=["by the environment", "by the folder"])
async def test_the_documented_command(open_desk: OpenDesk, known: bool) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    desk = await open_desk()
    (desk.folder / "program.py").write_text("import os, sys\nprint('[')\nfor line in sys.stdin: os.system(line)\n")
    session = await desk.start()
    event = {"hook_event_name": "Stop", "session_id": CLAUDE, "cwd": "/" if known else str(desk.repo)}
    (desk.repo / "event.json").write_text(json.dumps(event))
    assert hooks.__doc__ is not None
    command = "curl " + hooks.__doc__.partition("    curl ")[2].replace("http://127.0.0.1:8000", desk.server.url)
    (desk.repo / "hook.sh").write_text(command)
    environment = "" if known else "env -u HOMEPORT_SESSION_ID "
    await desk.type(session["id"], f"{environment}sh hook.sh < event.json; echo done")
    assert await desk.printed(session["id"], "done") == ["[", ANY, "done"], "it says nothing itself"
    assert (await desk.session(session["id"]))["status"] == "paused"
