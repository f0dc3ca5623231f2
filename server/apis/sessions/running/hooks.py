"""What Claude Code tells of the sessions that it runs in (Claude Code, "Hooks reference"; contracts/sessions.md).

In Claude Code's settings each event that is to be told has this command; its session is known by the window's
environment, and where that says nothing curl leaves the header out::

    curl -s -m 5 -o /dev/null -H 'Content-Type: application/json' -H "X-Homeport-Session: $HOMEPORT_SESSION_ID" \
        --data-binary @- http://127.0.0.1:8000/api/hooks/claude || true
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .....storage import Filter, Query, Storage, walk
from .....storage.records import is_text
from ....errors import BadRequest, NotFound
from ....keys import CONFIG, STORAGE
from ..api import api, caller
from ..notifications.notifying import notify
from ..records import documents, states
from ..records.projects import PROJECTS
from ..records.sessions import ACTIVE, SESSIONS, active_sessions
from ..texts import plain, shortened
from .runner import RUNNER
from .transcripts import NotReadable, last_usage

if TYPE_CHECKING:
    from aiohttp import web

    from ....request import ApiRequest

log = logging.getLogger(__name__)

LOW_CONTEXT = 80
"""Percent of the context; whoever is told can still have a handoff written."""
_SESSION_HEADER = "X-Homeport-Session"
_MOST_MESSAGE = 500
_MOST_PARENTS = 256
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

_AT_WORK = frozenset({"UserPromptSubmit", "PreToolUse", "PostToolUse", "PostToolUseFailure"})
_EVENTS = _AT_WORK | {
    "Notification",
    "PostCompact",
    "PreCompact",
    "SessionEnd",
    "SessionStart",
    "Stop",
    "StopFailure",
    "SubagentStop",
}
_WAITS = (None, "permission_prompt", "idle_prompt", "elicitation_dialog")
"""The types of a Notification that asks for input; versions that send none send no other."""
_WRITES = ("Write", "Edit", "MultiEdit")


@api.post(
    "/api/hooks/claude",
    body="sessions#/$defs/HookEvent",
    reads={"headers": "headers#/$defs/Hooked"},
    returns={200: "sessions#/$defs/Success"},
    auth=caller,
)
async def claude_hook(request: ApiRequest) -> dict[str, Any]:
    """Sets a session's status and context, and tells of what somebody should know. Other events, and those of a
    Claude Code that runs in no session, do nothing."""
    event, app = request.document, request.app
    named = request.raw.headers.get(_SESSION_HEADER)
    if named and not _UUID.fullmatch(named):
        raise BadRequest(f"{_SESSION_HEADER} must be the id of a session")
    if event["hook_event_name"] in _EVENTS:
        session_id = await (_named(app, named.lower(), event) if named else _meant(app, event))
        if session_id is not None:
            async with request.storage.locks.hold([f"hooks of session {session_id}"]):
                await _take(app, session_id, event)
    return {"success": True}


# Which session


async def _named(app: web.Application, session_id: str, event: Mapping[str, Any]) -> str | None:
    """The session in whose window an event came to be.

    A Claude Code that another one started there inherits the environment: its events are none of the session's.
    """
    try:
        session = await documents.get(app[STORAGE], SESSIONS, session_id)
    except NotFound:
        return None
    known, claude = session.get("claude_session_id"), event.get("session_id")
    goes_on = event["hook_event_name"] == "SessionStart" and event.get("source") != "startup"
    if session["status"] not in ACTIVE or (known and claude and claude != known and not goes_on):
        return None
    if claude:
        await _keep(app, session, {"claude_session_id": claude})
    return session_id


async def _meant(app: web.Application, event: Mapping[str, Any]) -> str | None:
    """The session that an event of the same Claude Code was of or, if none was, the newest that is nobody's yet and
    whose project holds the folder."""
    claude = event.get("session_id")
    if not claude:
        return None
    async with app[STORAGE].locks.hold(["sessions of hooks"]):
        sessions = await active_sessions(app[STORAGE])
        for session in sessions:
            if session.get("claude_session_id") == claude:
                return str(session["id"])
        projects = {project["id"] for project in await _holding(app[STORAGE], event.get("cwd", ""))}
        for session in sessions:
            if session["project_id"] in projects and not session.get("claude_session_id"):
                await _keep(app, session, {"claude_session_id": claude})
                return str(session["id"])
    return None


async def _holding(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The projects whose repository is a folder or holds it, the deepest first; none for a path that is not absolute.

    Links are followed, as the system does for whoever works there.
    """
    if not os.path.isabs(folder) or "\0" in folder:  # noqa: PTH117  # a str
        return []
    path = PurePath(await asyncio.to_thread(os.path.realpath, folder))
    paths = [text for text in map(str, (path, *path.parents)) if is_text(text)][-_MOST_PARENTS:]
    query = Query(PROJECTS, (Filter("repo_path", "in", tuple(paths)),))
    found = [documents.identified(record) async for record in walk(storage, query)]
    return sorted(found, key=lambda project: len(project["repo_path"]), reverse=True)


# What becomes of it


async def _take(app: web.Application, session_id: str, event: Mapping[str, Any]) -> None:
    runner, name = app[RUNNER], event["hook_event_name"]
    session = await documents.get(app[STORAGE], SESSIONS, session_id)
    if session["status"] not in ACTIVE:  # it has ended while another hook had its turn
        return
    if "transcript_path" in event:
        await _measure(app, session, event["transcript_path"])
    if name in _AT_WORK:
        await runner.set_status(session_id, "running")
    match name:
        case "UserPromptSubmit":
            await _keep(app, session, {"handoff_told": False})
        case "PostToolUse":
            await _look_for_handoff(app, session, event)
        case "Notification" if event.get("notification_type") in _WAITS:
            message = (
                shortened(plain(event.get("message", "")[: 2 * _MOST_MESSAGE]), _MOST_MESSAGE)
                or "Claude is waiting for your input"
            )
            await _pause(app, session, message)
        case "Stop":
            moved = await _to_review(app, session)
            await _pause(app, session, "Claude has finished and waits for input", told=moved)
        case "StopFailure":
            await _pause(app, session, "Claude stopped because of an error", told=True)
            await _tell(app, session, "error", "Claude stopped because of an error", "Session failed")
        case "SessionEnd":
            await _keep(app, session, {"claude_session_id": None})


async def _measure(app: web.Application, session: Mapping[str, Any], path: str) -> None:
    """Keeps how full the context is; tells once when it becomes low."""
    config = app[CONFIG].apis.sessions
    try:
        tokens = await asyncio.to_thread(last_usage, config.transcript_root, path)
    except NotReadable as error:
        log.info("the transcript of session %s is not read: %s", session["id"], error)
        return
    if tokens is None:
        return
    percent = min(100, round(100 * tokens / config.context_window))
    await _keep(app, session, {"context_percent": percent})
    if (session["context_percent"] or 0) < LOW_CONTEXT <= percent:
        await _tell(app, session, "context_low", f"{percent} % of the context is used", "Context is running low")


async def _pause(app: web.Application, session: Mapping[str, Any], reason: str, *, told: bool = False) -> None:
    """The session waits for input. That is told of a session that did not wait already, unless something else is."""
    waits = await app[RUNNER].set_status(session["id"], "paused", waiting_reason=reason)
    if waits and session["status"] != "paused" and not told:
        await _tell(app, session, "waiting_input", reason, "Waiting for input")


async def _to_review(app: web.Application, session: Mapping[str, Any]) -> bool:
    """Whether the session's ticket was in progress, and is in review now."""
    if session["ticket_id"] is None:
        return False
    try:
        await states.move(app, session["ticket_id"], "review", trigger="auto", reason="session_stopped")
    except (BadRequest, NotFound):
        return False
    await _tell(app, session, "review_ready", "Claude has finished with a ticket", "Ready for review")
    return True


async def _look_for_handoff(app: web.Application, session: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    """Tells of a handoff that was written, once until the next prompt."""
    written = event.get("tool_input")
    path = written.get("file_path") if isinstance(written, dict) else None
    if event.get("tool_name") not in _WRITES or not isinstance(path, str) or session.get("handoff_told"):
        return
    of = await documents.get(app[STORAGE], PROJECTS, session["project_id"])
    if await asyncio.to_thread(_is_same, os.path.join(of["repo_path"], of["handoff_path"]), path):  # noqa: PTH118
        await _keep(app, session, {"handoff_told": True})
        await _tell(app, session, "handoff_complete", f"{of['handoff_path']} is written", "Handoff is complete")


def _is_same(path: str, other: str) -> bool:
    return "\0" not in other and os.path.realpath(path) == os.path.realpath(other)


async def _tell(app: web.Application, session: Mapping[str, Any], kind: Any, message: str, title: str) -> None:
    await notify(app, kind, message, title=title, session_id=session["id"], ticket_id=session["ticket_id"])


async def _keep(app: web.Application, session: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Writes members of a session's record that only hooks know."""
    if all(session.get(name) == value for name, value in changes.items()):
        return
    with suppress(NotFound):
        await documents.change(app[STORAGE], SESSIONS, session["id"], changes)
