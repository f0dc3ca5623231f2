"""Sessions begun and steered: programs that run in windows of tmux, and outlive the server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from .....storage import ABSENT, Check, Conflict, Delete, Put, retry
from .....storage.times import format_time
from ....errors import ApiError, BadRequest, ServiceUnavailable
from ....ids import new_id
from ....keys import CLOCK, CONFIG, STORAGE
from ..events import EVENTS
from ..records import documents
from ..records.projects import PROJECTS
from ..records.sessions import ACTIVE, SESSIONS, change_session, changing_status
from ..tmux import launch
from ..tmux.client import Pane, Tmux, TmuxMovedOn, TmuxRefused, TmuxUnavailable
from ..tmux.following import remove_folder
from ..tmux.output import Output
from .ends import Ends

log = logging.getLogger(__name__)

MAX_ACTIVE = 200
MAX_PROMPT_BYTES = 128 * 1024 - 1
"""What Linux takes as one argument of a program (execve(2), MAX_ARG_STRLEN), less the zero at its end."""
MAX_LINE_BYTES = 4095
"""What Linux takes of a line that is typed (termios(3), "Canonical mode"): it drops the rest and says nothing."""
_LINE_ENDS = re.compile("[\r\n]")
_STOP_SECONDS = 2.0
"""How long a request to stop waits for the end, which may come later or, where the program ignores Ctrl-C, never."""
_KILL_SECONDS = 3.0
"""How long a program may go on that has lost its terminal."""
_OPEN_ATTEMPTS, _OPEN_PAUSE = 20, 0.02
"""How often tmux is asked for a window while its sessions come and go, and seconds in between."""


class Ended(ApiError):
    """409: there is no program any more that could be told anything."""

    def __init__(self) -> None:
        super().__init__("The session has ended", status=409)


class SessionRunner:
    """The sessions of an application. Methods that name a session raise `NotFound` where there is none, and
    `TmuxUnavailable` where tmux is needed and away."""

    def __init__(self, app: web.Application) -> None:
        config = app[CONFIG].apis.sessions
        self.tmux = Tmux(config.tmux_socket)
        self.ends = Ends(app, self.tmux, Path(config.output_folder))
        self._app = app
        self._active = self.ends.active
        self._command = shlex.split(config.session_command)

    @asynccontextmanager
    async def running_in(self) -> AsyncIterator[None]:
        """Finds the sessions again that ran when the server ended; lets them go on when it ends."""
        try:
            await self.ends.sync()
        except TmuxUnavailable as error:
            log.warning("sessions cannot be found again yet: %s", error.message)
            for id in self._active.ids():
                self.ends.look_after(id)
        try:
            yield
        finally:
            await self.ends.close()
            self.tmux.close()

    async def output(self, session_id: str) -> Output:
        """What a session has printed, and will."""
        record = await documents.find(self._app[STORAGE], SESSIONS, session_id)
        return await self._active.output(record.id)

    async def target(self, session_id: str) -> tuple[str, ...]:
        """The command of a terminal that shows a session's window. Raises `Ended`."""
        return self.tmux.attach(await self._pane(session_id))

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
        if len(self._active) >= MAX_ACTIVE:
            raise ServiceUnavailable(f"{MAX_ACTIVE} sessions are running")
        id = new_id()
        try:
            return await self._start(id, project, ticket, prompt)
        except BaseException:
            self.ends.look_after(id)  # if anything is left of it
            raise
        finally:
            self.ends.started(id)

    async def _start(
        self, id: str, project: dict[str, Any], ticket: dict[str, Any] | None, prompt: str | None
    ) -> dict[str, Any]:
        session = self._active.add(id, starting=True)
        try:
            # The record comes first: whatever happens then, nothing runs that is not known.
            await self._write_down(id, project, ticket)
        except BaseException:
            self._active.release(id)
            raise
        window = project["tmux_window"] or (self._command[0] if ticket is None else ticket["external_id"])
        try:
            session.pane = await self._open(id, project, prompt, window)
        except ApiError:
            await self._app[STORAGE].commit([Delete(SESSIONS, id)])
            await self.forget([id])
            raise
        except BaseException:
            with suppress(OSError):
                await asyncio.to_thread(launch.withdraw, self._active.folder(id))  # tmux may yet open the window
            raise
        if session.pane is None:
            self.ends.look_after(id)
        started = await change_session(self._app, id, {"pane_id": session.pane and session.pane.pane_id})
        self._app[EVENTS].status(id, "running", "running")  # no client knows a status of what was not there
        return started

    async def _write_down(self, id: str, project: dict[str, Any], ticket: dict[str, Any] | None) -> None:
        """Raises `NotFound` where the project is gone, and `ApiError` (409) where a session is active on the ticket."""
        storage, now = self._app[STORAGE], format_time(self._app[CLOCK].now())
        ticket_id = None if ticket is None else ticket["id"]
        document = {
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
            owner = await documents.find(storage, PROJECTS, project["id"])
            try:
                await storage.commit([Check(PROJECTS, owner.id, owner.version), Put(SESSIONS, id, document, ABSENT)])
            except Conflict as error:
                if error.reason == "unique":
                    raise ApiError("A session is running on this ticket", status=409) from error
                raise

        await retry(storage, [documents.lock(PROJECTS, project["id"])], attempt)

    async def _open(self, id: str, project: dict[str, Any], prompt: str | None, window: str) -> Pane | None:
        """Opens a session's window; None where tmux has done so and not told. Raises `ServiceUnavailable`: then nothing
        runs, nor will."""
        folder, repo = self._active.folder(id), project["repo_path"]
        command = [*self._command, *([prompt] if prompt else [])]
        try:
            await self._active.follow(id)
            await asyncio.to_thread(launch.write, folder, command, repo, {"HOMEPORT_SESSION_ID": id})
            for _ in range(_OPEN_ATTEMPTS):
                try:
                    return await self.tmux.open(
                        id, tmux_session=project["tmux_session"], window=window, folder=folder, cwd=repo
                    )
                except TmuxMovedOn:
                    if not await asyncio.to_thread(launch.is_waiting, folder):
                        return None
                    await asyncio.sleep(_OPEN_PAUSE)
        except TmuxUnavailable:
            # What it was asked to do it may do later.
            if await asyncio.to_thread(launch.withdraw, folder):
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
            if longest > MAX_LINE_BYTES and await self.tmux.reads_lines(pane):
                raise ApiError(
                    f"The program reads lines of at most {MAX_LINE_BYTES} bytes: this has {longest}", status=409
                )
            await self.tmux.type(pane, text)

        await self._tell(session_id, say)

    async def keys(self, session_id: str, keys: Sequence[str]) -> None:
        """Presses keys, by the names that tmux has for them. Raises `Ended`."""
        await self._tell(session_id, lambda pane: self.tmux.press(pane, keys))

    async def focus(self, session_id: str) -> None:
        """Shows a session's window to who looks at its tmux session. Raises `Ended`."""
        await self._ask(session_id, self.tmux.focus)

    async def stop(self, session_id: str, force: bool = False) -> dict[str, Any]:
        """Ends a session with Ctrl-C, or by force: it is `completed` then, and its ticket is left as it is. One that
        ignores Ctrl-C goes on. The session, as it is a little later."""
        if force:
            return await self.finish(session_id)
        session = await self._get(session_id)
        if session["status"] not in ACTIVE:
            return session
        await change_session(self._app, session_id, {"stopping": True})
        with suppress(OSError):  # a command that is not there yet never comes: Ctrl-C would meet nobody
            await asyncio.to_thread(launch.withdraw, self._active.folder(session_id))
        with suppress(Ended):
            await self._ask(session_id, lambda pane: self.tmux.press(pane, ["C-c"]))
        if known := self._active.get(session_id):
            with suppress(TimeoutError):
                await asyncio.wait_for(known.ended.wait(), _STOP_SECONDS)
        return await self._get(session_id)

    async def finish(self, session_id: str) -> dict[str, Any]:
        """Closes a session's window, if it has one: `completed`, and its ticket is left as it is."""
        session = await self._get(session_id)
        if session["status"] not in ACTIVE:
            return session
        await change_session(self._app, session_id, {"stopping": True})  # tmux may do late what it does not answer
        with suppress(Ended):
            pane = await self._pane(session_id)
            await self.tmux.kill(pane)
            asyncio.get_running_loop().call_later(_KILL_SECONDS, _kill_group, pane.pid)
        await self.ends.conclude(session_id, None, stopped=True)
        return await self._get(session_id)

    async def set_status(self, session_id: str, status: str, *, waiting_reason: str | None = None) -> bool:
        """Says whether a session is `running` or `paused`, that is, waits for input; one that has ended stays so.
        Whether it is so now."""
        async with changing_status(self._app[STORAGE], session_id):
            before = (await self._get(session_id))["status"]
            if before in ACTIVE and before != status:
                await change_session(self._app, session_id, {"status": status})
                self._app[EVENTS].status_changed(session_id, before, status, waiting_reason)
            return before in ACTIVE

    async def forget(self, ids: Sequence[str]) -> None:
        """Removes what sessions printed that are kept no longer."""
        for id in ids:
            self._active.release(id)
            await asyncio.to_thread(remove_folder, self._active.folder(id))

    async def _get(self, session_id: str) -> dict[str, Any]:
        return await documents.get(self._app[STORAGE], SESSIONS, session_id)

    async def _tell(self, session_id: str, say: Callable[[Pane], Coroutine[Any, Any, None]]) -> None:
        """What is typed takes back that the session was asked to end."""
        await self._ask(session_id, say)
        if (await self._get(session_id)).get("stopping"):
            await change_session(self._app, session_id, {"stopping": False})

    async def _ask(self, session_id: str, say: Callable[[Pane], Coroutine[Any, Any, None]]) -> None:
        pane = await self._pane(session_id)
        try:
            await say(pane)
        except TmuxRefused as error:
            log.info("session %s: %s", session_id, error)
            self.ends.look_after(session_id)
            raise Ended from error

    async def _pane(self, session_id: str) -> Pane:
        if (await self._get(session_id))["status"] not in ACTIVE:
            raise Ended
        if pane := self._known_pane(session_id):
            return pane
        await self.ends.sync()
        if pane := self._known_pane(session_id):
            return pane
        raise Ended

    def _known_pane(self, session_id: str) -> Pane | None:
        session = self._active.get(session_id)
        return None if session is None else session.pane


RUNNER = web.AppKey("sessions_runner", SessionRunner)


def _kill_group(leader: int) -> None:
    """Kills what a window's program leads, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getsid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)
