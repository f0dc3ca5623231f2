"""The sessions that run, and what a process knows of them besides their records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..tmux.client import Pane
from ..tmux.following import Follower, Readers, load
from ..tmux.output import Output

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ActiveSession:
    """``starting``: nobody is to see yet what became of it. ``pane``: None until tmux has told. ``ended``: set when its
    record says so. ``all_read``: whether nothing more is kept of what it prints."""

    follower: Follower
    starting: bool
    pane: Pane | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    all_read: bool = False


class ActiveSessions:
    """Those of an application, by id. ``all_read`` is called with the id of one when nobody keeps any more what it
    prints, and all of that is read."""

    def __init__(self, root: Path, all_read: Callable[[str], None]) -> None:
        self._root = root
        self._all_read = all_read
        self._readers = Readers()
        self._sessions: dict[str, ActiveSession] = {}

    def __len__(self) -> int:
        return sum(not session.ended.is_set() for session in self._sessions.values())

    def ids(self) -> list[str]:
        return list(self._sessions)

    def get(self, id: str) -> ActiveSession | None:
        return self._sessions.get(id)

    def folder(self, id: str) -> Path:
        """Where the output of a session is kept, and what it is to run."""
        return self._root / id

    def add(self, id: str, *, starting: bool = False) -> ActiveSession:
        """Whoever asks for its output from now on gets what `follow` will read."""
        follower = Follower(self.folder(id), self._readers, partial(self._all_read, id))
        session = self._sessions[id] = ActiveSession(follower, starting)
        return session

    async def follow(self, id: str) -> None:
        """Begins to read what a session prints, also where who waits for that is cancelled."""
        opening = _open(id, self._sessions[id].follower)
        await asyncio.shield(asyncio.create_task(opening, name=f"output of session {id}"))

    async def output(self, id: str) -> Output:
        """What a session has printed; that of one which has ended is read for the occasion."""
        if session := self._sessions.get(id):
            return await session.follower.loaded()
        try:
            output, tail = await asyncio.to_thread(load, self.folder(id))
        except FileNotFoundError:
            return Output()
        tail.close()
        output.complete = True
        return output

    def release(self, id: str) -> None:
        """Reads no more of a session; one that is not there is no error."""
        if session := self._sessions.pop(id, None):
            session.follower.close()


async def _open(id: str, follower: Follower) -> None:
    try:
        await follower.open()
    except OSError as error:
        log.error("the output of session %s cannot be read: %s", id, error)
