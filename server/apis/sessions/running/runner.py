"""Sessions: programs that run in windows of tmux, and outlive the server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from uuid_utils import uuid7

from .....storage import ABSENT, Check, Conflict, Delete, Filter, Put, Query, Record, StorageUnavailable, Write, retry
from .....storage.times import format_time
from ....errors import ApiError, BadRequest, NotFound, ServiceUnavailable
from ....keys import CLOCK, CONFIG, STORAGE
from ..events import EVENTS
from ..notifications import notifying
from ..records import documents, states
from ..records.projects import PROJECTS
from ..records.sessions import ACTIVE, SESSIONS, active
from ..records.tickets import TRANSITIONS
from ..tmux.client import Pane, Tmux, TmuxMovedOn, TmuxRefused, TmuxSession, TmuxUnavailable
from ..tmux.following import Follower, Readers, load, make_folder, remove_folder
from ..tmux.launch import LAUNCH, exit_status, withdraw
from ..tmux.output import Output

log = logging.getLogger(__name__)

MAX_ACTIVE = 200
MAX_PROMPT_BYTES = 128 * 1024 - 1
"""What Linux takes as one argument of a program (execve(2), MAX_ARG_STRLEN), less the zero at its end."""
_COMPLETED = "session_completed"
"""Why a ticket went to review whose session ended with status 0."""
MAX_LINE_BYTES = 4095
"""What Linux takes of a line that is typed (termios(3), "Canonical mode"): it drops the rest and says nothing."""
_LINE_ENDS = re.compile("[\r\n]")
_STOP_SECONDS = 2.0
"""How long a request to stop waits for the end, which may come later or, where the program ignores Ctrl-C, never."""
_KILL_SECONDS = 3.0
"""How long a program may go on that has lost its terminal."""
_LINGER_SECONDS = 30.0
"""How long the last output of a session that has ended may take to come."""
_RETRY_SECONDS = 5.0
_OPEN_ATTEMPTS, _OPEN_PAUSE = 20, 0.02
"""How often tmux is asked for a window while its sessions come and go, and seconds in between."""


@dataclass(eq=False)
class _Live:
    """What is known of an active session besides its record. ``pane`` is None until tmux has told; ``all_read``:
    whether nothing more is kept of what it prints."""

    follower: Follower
    pane: Pane | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    all_read: bool = False


class Ended(ApiError):
    """409: there is no program any more that could be told anything."""

    def __init__(self) -> None:
        super().__init__("The session has ended", status=409)


class Runner:
    """The sessions of an application. Methods that name a session raise `NotFound` where there is none, and
    `TmuxUnavailable` where tmux is needed and away."""

    def __init__(self, app: web.Application) -> None:
        config = app[CONFIG].apis.sessions
        self._app = app
        self._tmux = Tmux(config.tmux_socket)
        self._folder = Path(config.output_folder)
        self._command = shlex.split(config.session_command)
        self._readers = Readers()
        self._live: dict[str, _Live] = {}
        self._starting: set[str] = set()
        self._unseen: set[str] = set()
        """Those to be looked after, once they have started."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running_in(self) -> AsyncIterator[None]:
        """Finds the sessions again that ran when the server ended; lets them go on when it ends."""
        try:
            await self.sync()
        except TmuxUnavailable as error:
            log.warning("sessions cannot be found again yet: %s", error.message)
            for id in self._live:
                self._look_after(id)
        try:
            yield
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for id in list(self._live):
                self._release(id)
            self._tmux.close()

    # What others ask

    async def tmux_available(self) -> bool:
        return await self._tmux.available()

    async def tmux_sessions(self) -> list[TmuxSession]:
        return await self._tmux.sessions()

    async def get(self, session_id: str) -> dict[str, Any]:
        """The session as it is kept, with its ``id``."""
        return {"id": session_id, **(await self._find(session_id)).decode()}

    async def output(self, session_id: str) -> Output:
        """What a session has printed; that of one which has ended is read for the occasion."""
        await self._find(session_id)
        if live := self._live.get(session_id):
            return live.follower.output
        folder = self._folder / session_id
        try:
            output, tail = await asyncio.to_thread(load, folder)
        except FileNotFoundError:
            return Output()
        tail.close()
        return output

    async def target(self, session_id: str) -> tuple[str, ...]:
        """The command of a terminal that shows a session's window. Raises `Ended`."""
        return self._tmux.attach(await self._pane(session_id))

    # Beginning

    async def start(
        self, project: dict[str, Any], *, ticket: dict[str, Any] | None = None, prompt: str | None = None
    ) -> dict[str, Any]:
        """Runs the configured command in a window of the project's tmux session, with the prompt, if there is one, as
        its last argument; the session as it is kept, with its ``id``.

        Raises `ApiError`: 409 where a session is active on the ticket or the project's folder is gone, and
        `BadRequest` for a prompt that no program can be given.
        """
        if prompt and (len(prompt.encode()) > MAX_PROMPT_BYTES or "\0" in prompt):
            raise BadRequest(f"The prompt must be at most {MAX_PROMPT_BYTES} bytes of UTF-8, without U+0000")
        if not await asyncio.to_thread(os.path.isdir, project["repo_path"]):
            raise ApiError(f"{project['repo_path']} is no folder any more", status=409)
        if sum(not live.ended.is_set() for live in self._live.values()) >= MAX_ACTIVE:
            raise ServiceUnavailable(f"{MAX_ACTIVE} sessions are running")
        id = str(uuid7())
        self._starting.add(id)
        try:
            return await self._start(id, project, ticket, prompt)
        finally:
            self._starting.discard(id)
            if id in self._unseen:
                self._look_after(id)

    async def _start(
        self, id: str, project: dict[str, Any], ticket: dict[str, Any] | None, prompt: str | None
    ) -> dict[str, Any]:
        storage, folder = self._app[STORAGE], self._folder / id
        now = self._now()
        ticket_id = None if ticket is None else ticket["id"]
        document: dict[str, Any] = {
            "project_id": project["id"],
            "ticket_id": ticket_id,
            "type": "adhoc" if ticket is None else "ticket",
            "status": "running",
            "context_percent": None,
            "pane_id": None,
            "started_at": now,
            "ended_at": None,
            "created_at": now,
            "updated_at": now,
            "busy_ticket": ticket_id,
        }

        async def attempt() -> None:
            owner = (await storage.get(PROJECTS, [project["id"]])).get(project["id"])
            if owner is None:
                raise NotFound("Project not found")
            try:
                await storage.commit([Check(PROJECTS, owner.id, owner.version), Put(SESSIONS, id, document, ABSENT)])
            except Conflict as error:
                if error.reason == "unique":
                    raise ApiError("A session is running on this ticket", status=409) from error
                raise

        # The record comes first: whatever happens then, nothing runs that is not known.
        await retry(storage, [documents.lock(PROJECTS, project["id"])], attempt)
        window = project["tmux_window"] or (self._command[0] if ticket is None else ticket["external_id"])
        try:
            pane = await self._open(id, project, prompt, window)
        except ApiError:
            self._release(id)
            await storage.commit([Delete(SESSIONS, id)])
            await asyncio.to_thread(remove_folder, folder)
            raise
        if pane is None:
            self._look_after(id)
        self._live[id].pane = pane
        started = await self._change(id, {"pane_id": pane and pane.pane_id})
        self._app[EVENTS].status(id, "", "running")
        return started

    async def _open(self, id: str, project: dict[str, Any], prompt: str | None, window: str) -> Pane | None:
        """Opens a session's window; None where tmux has done so and not told. Raises `ServiceUnavailable`: then nothing
        runs, nor will."""
        folder = self._folder / id
        launch = {
            "command": [*self._command, *([prompt] if prompt else [])],
            "folder": project["repo_path"],
            "environment": {"HOMEPORT_SESSION_ID": id},
        }
        try:
            await asyncio.to_thread(_write_launch, folder, launch)
            await self._follow(id, None)
            for _ in range(_OPEN_ATTEMPTS):
                try:
                    return await self._tmux.open(
                        id, tmux_session=project["tmux_session"], window=window, folder=folder, cwd=project["repo_path"]
                    )
                except TmuxMovedOn:
                    if not await asyncio.to_thread((folder / LAUNCH).exists):
                        return None
                    await asyncio.sleep(_OPEN_PAUSE)
        except TmuxUnavailable:
            # What it was asked to do it may do later.
            if await asyncio.to_thread(withdraw, folder):
                raise
            return None
        except (TmuxRefused, OSError) as error:
            log.error("a session cannot be started: %s", error)
        raise ServiceUnavailable("The session's window could not be opened")

    # Steering

    async def type(self, session_id: str, text: str) -> None:
        """Types a text and Enter. Raises `Ended`, and `ApiError` (409) for a line that would not arrive whole."""

        async def say(pane: Pane) -> None:
            longest = max(len(line.encode()) for line in _LINE_ENDS.split(text))
            if longest > MAX_LINE_BYTES and await self._tmux.reads_lines(pane):
                raise ApiError(
                    f"The program reads lines of at most {MAX_LINE_BYTES} bytes: this has {longest}", status=409
                )
            await self._tmux.type(pane, text)

        await self._tell(session_id, say)

    async def keys(self, session_id: str, keys: Sequence[str]) -> None:
        """Presses keys, by the names that tmux has for them. Raises `Ended`."""
        await self._tell(session_id, lambda pane: self._tmux.press(pane, keys))

    async def focus(self, session_id: str) -> None:
        """Shows a session's window to who looks at its tmux session. Raises `Ended`."""
        await self._ask(session_id, self._tmux.focus)

    async def stop(self, session_id: str, force: bool = False) -> dict[str, Any]:
        """Ends a session with Ctrl-C, or by force: it is `completed` then, and its ticket is left as it is. One that
        ignores Ctrl-C goes on. The session, as it is a little later."""
        if force:
            return await self.finish(session_id)
        session = await self.get(session_id)
        if session["status"] not in ACTIVE:
            return session
        await self._change(session_id, {"stopping": True})
        ended = self._live[session_id].ended if session_id in self._live else asyncio.Event()
        with suppress(Ended):
            await self._ask(session_id, lambda pane: self._tmux.press(pane, ["C-c"]))
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _STOP_SECONDS)
        return await self.get(session_id)

    async def finish(self, session_id: str) -> dict[str, Any]:
        """Closes a session's window, if it has one: `completed`, and its ticket is left as it is."""
        session = await self.get(session_id)
        if session["status"] not in ACTIVE:
            return session
        await self._change(session_id, {"stopping": True})  # tmux may do late what it does not answer
        with suppress(Ended):
            pane = await self._pane(session_id)
            await self._tmux.kill(pane)
            asyncio.get_running_loop().call_later(_KILL_SECONDS, _kill_group, pane.pid)
        await self._conclude(session_id, None, stopped=True)
        return await self.get(session_id)

    async def set_status(self, session_id: str, status: str, *, waiting_reason: str | None = None) -> dict[str, Any]:
        """Says whether a session is `running` or `paused`, that is, waits for input; one that has ended stays so."""
        before = await self.get(session_id)
        if before["status"] not in ACTIVE or before["status"] == status:
            return before
        after = await self._change(session_id, {"status": status})
        self._tell_status(session_id, before["status"], status, waiting_reason)
        return after

    async def _tell(self, session_id: str, say: Callable[[Pane], Coroutine[Any, Any, None]]) -> None:
        """What is typed takes back that the session was asked to end."""
        await self._ask(session_id, say)
        if (await self.get(session_id)).get("stopping"):
            await self._change(session_id, {"stopping": False})

    async def _ask(self, session_id: str, say: Callable[[Pane], Coroutine[Any, Any, None]]) -> None:
        pane = await self._pane(session_id)
        try:
            await say(pane)
        except TmuxRefused as error:
            log.info("session %s: %s", session_id, error)
            self._look_after(session_id)
            raise Ended from error

    async def _pane(self, session_id: str) -> Pane:
        if (await self._find(session_id)).decode()["status"] not in ACTIVE:
            raise Ended
        live = self._live.get(session_id)
        if live is None or live.pane is None:
            await self.sync()
            live = self._live.get(session_id)
        if live is None or live.pane is None:
            raise Ended
        return live.pane

    # Seeing what became of them

    async def sync(self) -> int:
        """Matches the records to the panes that live; how many sessions were not as their records said."""
        known = [session for session in await active(self._app[STORAGE]) if session["id"] not in self._starting]
        for session in known:
            if session["id"] not in self._live:
                await self._follow(session["id"], None)
                # Were it begun only now, nobody would know of it.
                await asyncio.to_thread(withdraw, self._folder / session["id"])
        panes = await self._tmux.panes() if known else {}
        updated = 0
        for session in known:
            try:
                updated += await self._match(session, panes.get(session["id"]))
            except NotFound:
                self._release(session["id"])  # it could not be started
        return updated

    async def _match(self, session: dict[str, Any], pane: Pane | None) -> bool:
        id: str = session["id"]
        if pane is None:
            return await self._conclude(id, await asyncio.to_thread(exit_status, self._folder / id))
        live = self._live.get(id)
        if live is not None:
            live.pane = pane
        if not pane.piped:
            try:
                await self._tmux.pipe(pane, self._folder / id)
            except TmuxRefused as error:
                raise TmuxUnavailable("A session ended just now") from error
            if live is not None:
                live.all_read = False
        if session["pane_id"] == pane.pane_id:
            return False
        await self._change(id, {"pane_id": pane.pane_id})
        return True

    def _all_read(self, session_id: str) -> None:
        if live := self._live.get(session_id):
            live.all_read = True
        self._look_after(session_id)

    def _look_after(self, session_id: str) -> None:
        """Sees what became of a session whose output nobody keeps any more, or whose pane is gone."""
        self._unseen.add(session_id)
        if session_id not in self._starting and session_id not in self._tasks:
            self._tasks[session_id] = asyncio.create_task(self._see(session_id), name=f"end of session {session_id}")

    async def _see(self, session_id: str) -> None:
        try:
            while session_id in self._unseen:
                self._unseen.discard(session_id)
                try:
                    session = await self.get(session_id)
                    if session["status"] in ACTIVE:
                        await self._match(session, (await self._tmux.panes()).get(session_id))
                    else:
                        self._release(session_id)
                except (ServiceUnavailable, StorageUnavailable) as error:
                    log.warning("what became of session %s is not known yet: %s", session_id, error)
                    self._unseen.add(session_id)
                    await asyncio.sleep(_RETRY_SECONDS)
        except NotFound:
            self._release(session_id)
        finally:
            del self._tasks[session_id]

    async def _conclude(self, id: str, status_code: int | None, *, stopped: bool = False) -> bool:
        """Writes down that a session has ended, once; whether it was not known. The ticket goes first: were the server
        killed in between, the end would be seen again."""
        storage = self._app[STORAGE]
        async with storage.locks.hold([f"end of session {id}"]):
            session = await self.get(id)
            if session["status"] not in ACTIVE:
                return False
            stopped = stopped or bool(session.get("stopping"))
            status = "completed" if stopped or status_code == 0 else "error"
            told = await self._what_to_tell(session, status, status_code, stopped)
            ended = {"status": status, "ended_at": self._now(), "busy_ticket": None}
            await self._change(id, ended, *map(notifying.put, told))
        self._tell_status(id, session["status"], status, None)
        for notification in told:
            notifying.announce(self._app, notification)
        if live := self._live.get(id):
            live.ended.set()
            if live.all_read:
                self._release(id)
            else:
                asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._release, id)
        return True

    async def _what_to_tell(
        self, session: dict[str, Any], status: str, status_code: int | None, stopped: bool
    ) -> list[dict[str, Any]]:
        """The notifications of an end, which takes the ticket to review where the work is done."""
        about = {"session_id": session["id"], "ticket_id": session["ticket_id"]}
        if status == "error":
            why = "was ended from outside" if status_code is None else f"ended with status {status_code}"
            return [notifying.compose(self._app, "error", f"A session {why}", title="Session failed", **about)]
        if stopped or session["ticket_id"] is None or not await self._to_review(session["ticket_id"]):
            return []
        message = "A session has completed its ticket"
        return [notifying.compose(self._app, "review_ready", message, title="Ready for review", **about)]

    async def _to_review(self, ticket_id: str) -> bool:
        """Takes a ticket that is in progress to review; whether that, or the same before the server was killed, took it
        there."""
        try:
            await states.move(self._app, ticket_id, "review", trigger="auto", reason=_COMPLETED)
        except NotFound:
            return False
        except BadRequest:
            history = Query(TRANSITIONS, (Filter("ticket_id", "==", ticket_id),), sort=("-id",), limit=1)
            newest = (await self._app[STORAGE].find(history)).records
            return bool(newest) and newest[0].decode()["reason"] == _COMPLETED
        return True

    def _tell_status(self, id: str, before: str, after: str, reason: str | None) -> None:
        events = self._app[EVENTS]
        events.status(id, before, after)
        if "paused" in (before, after):
            events.waiting(id, after == "paused", reason)

    # Records and output

    async def _follow(self, id: str, pane: Pane | None) -> None:
        """Begins to read what a session prints."""
        folder = self._folder / id
        follower = Follower(folder, self._readers, partial(self._all_read, id))
        self._live[id] = _Live(follower, pane)
        try:
            await asyncio.to_thread(make_folder, folder)
            await follower.open()
        except OSError as error:
            log.error("the output of session %s cannot be read: %s", id, error)

    def _release(self, id: str) -> None:
        live = self._live.pop(id, None)
        if live is not None:
            live.follower.close()

    async def _find(self, session_id: str) -> Record:
        session_id = session_id.lower()
        record = (await self._app[STORAGE].get(SESSIONS, [session_id])).get(session_id)
        if record is None:
            raise NotFound("Session not found")
        return record

    async def _change(self, session_id: str, changes: dict[str, Any], *also: Write) -> dict[str, Any]:
        storage = self._app[STORAGE]

        async def attempt() -> dict[str, Any]:
            record = await self._find(session_id)
            document = record.decode() | changes | {"updated_at": self._now()}
            await storage.commit([Put(SESSIONS, session_id, document, record.version), *also])
            return {"id": session_id, **document}

        return await retry(storage, [f"{SESSIONS.name}/{session_id}"], attempt)

    def _now(self) -> str:
        return format_time(self._app[CLOCK].now())


RUNNER = web.AppKey("sessions_runner", Runner)


def _write_launch(folder: Path, launch: dict[str, Any]) -> None:
    make_folder(folder)
    descriptor = os.open(folder / LAUNCH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(launch, file)


def _kill_group(leader: int) -> None:
    """Kills what a window's program leads, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getsid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)
