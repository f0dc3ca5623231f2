"""What becomes of sessions: that they have ended is seen, written down once, and told."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .....storage import Filter, Query, StorageUnavailable
from .....storage.times import format_time
from ....errors import BadRequest, NotFound, ServiceUnavailable
from ....keys import CLOCK, STORAGE
from ..events import EVENTS
from ..notifications import notifying
from ..records import documents, states
from ..records.sessions import ACTIVE, SESSIONS, active_sessions, change_session, changing_status
from ..records.tickets import TRANSITIONS
from ..tmux.client import Pane, Tmux, TmuxRefused, TmuxUnavailable
from ..tmux.launch import exit_status, withdraw
from .active import ActiveSessions

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

_COMPLETED = "session_completed"
"""Why a ticket went to review whose session ended with status 0."""
_LINGER_SECONDS = 30.0
"""How long the last output of a session that has ended may take to come."""
_RETRY_SECONDS = 5.0


class Ends:
    """Sees what becomes of the sessions of an application."""

    def __init__(self, app: web.Application, tmux: Tmux, root: Path) -> None:
        self.active = ActiveSessions(root, self._all_read)
        self._app = app
        self._tmux = tmux
        self._unseen: set[str] = set()
        """Those to be looked after; what is starting, once it has started."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Lets the sessions go on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for id in self.active.ids():
            self.active.release(id)

    async def sync(self) -> int:
        """Matches the records to the panes that live; how many sessions were not as their records said."""
        known = await active_sessions(self._app[STORAGE])
        known = [session for session in known if not self._is_starting(session["id"])]
        for session in known:
            id = session["id"]
            if self.active.get(id) is None:
                self.active.add(id)
                await self.active.follow(id)
                # Were it begun only now, nobody would know of it. Who cannot remove it cannot begin it either.
                with suppress(OSError):
                    await asyncio.to_thread(withdraw, self.active.folder(id))
        panes = await self._tmux.panes() if known else {}
        updated = 0
        for session in known:
            try:
                updated += await self._match(session, panes.get(session["id"]))
            except NotFound:
                self.active.release(session["id"])  # it could not be started
        return updated

    def look_after(self, id: str) -> None:
        """Sees what became of a session whose output nobody keeps any more, or whose pane is gone."""
        self._unseen.add(id)
        if id not in self._tasks and not self._is_starting(id):
            self._tasks[id] = asyncio.create_task(self._see(id), name=f"end of session {id}")

    def started(self, id: str) -> None:
        """A session that was starting has started, or could not."""
        if session := self.active.get(id):
            session.starting = False
        if id in self._unseen:
            self.look_after(id)

    def _is_starting(self, id: str) -> bool:
        session = self.active.get(id)
        return session is not None and session.starting

    def _all_read(self, id: str) -> None:
        if session := self.active.get(id):
            session.all_read = True
        self.look_after(id)

    async def _see(self, id: str) -> None:
        try:
            while id in self._unseen:
                self._unseen.discard(id)
                try:
                    session = await documents.get(self._app[STORAGE], SESSIONS, id)
                    if session["status"] in ACTIVE:
                        await self._match(session, (await self._tmux.panes()).get(id))
                    else:
                        self.active.release(id)
                except (ServiceUnavailable, StorageUnavailable) as error:
                    log.warning("what became of session %s is not known yet: %s", id, error)
                    self._unseen.add(id)
                    await asyncio.sleep(_RETRY_SECONDS)
        except NotFound:
            self.active.release(id)
        finally:
            del self._tasks[id]

    async def _match(self, session: dict[str, Any], pane: Pane | None) -> bool:
        """Whether a session was not as its record says."""
        id: str = session["id"]
        if pane is None:
            return await self.conclude(id, await asyncio.to_thread(exit_status, self.active.folder(id)))
        known = self.active.get(id)
        if known is not None:
            known.pane = pane
        if not pane.piped:
            try:
                await self._tmux.pipe(pane, self.active.folder(id))
            except TmuxRefused as error:
                raise TmuxUnavailable("A session ended just now") from error
            if known is not None:
                known.all_read = False
        if session["pane_id"] == pane.pane_id:
            return False
        await change_session(self._app, id, {"pane_id": pane.pane_id})
        return True

    async def conclude(self, id: str, status_code: int | None, *, stopped: bool = False) -> bool:
        """Writes down that a session has ended, once; whether it was not known. The ticket goes first: were the server
        killed in between, the end would be seen again."""
        storage = self._app[STORAGE]
        async with changing_status(storage, id):
            session = await documents.get(storage, SESSIONS, id)
            if session["status"] not in ACTIVE:
                return False
            stopped = stopped or bool(session.get("stopping"))
            status = "completed" if stopped or status_code == 0 else "error"
            told = await self._what_to_tell(session, status, status_code, stopped)
            ended = {"status": status, "ended_at": format_time(self._app[CLOCK].now()), "busy_ticket": None}
            await change_session(self._app, id, ended, *map(notifying.put, told))
        self._app[EVENTS].status_changed(id, session["status"], status)
        for notification in told:
            notifying.announce(self._app, notification)
        if known := self.active.get(id):
            known.ended.set()
            if known.all_read:
                self.active.release(id)
            else:
                asyncio.get_running_loop().call_later(_LINGER_SECONDS, self.active.release, id)
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
