"""Terminals of clients: each is a `tmux attach`, as they would have it on this machine."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ....errors import ApiError, ServiceUnavailable
from ..messages import Message, enveloped
from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ....streams import Stream

log = logging.getLogger(__name__)

MAX_TERMINALS = 16
"""Of one client."""


class Terminals:
    """The terminals of one client, one a session."""

    def __init__(self, stream: Stream, tell: Callable[[Message], None]) -> None:
        self._stream = stream
        self._tell = tell
        self._terminals: dict[str, tuple[Terminal, asyncio.Task[None]]] = {}

    async def attach(self, session_id: str, command: Sequence[str], columns: int, rows: int) -> None:
        """Shows a session; anew, if it is shown already. ``command`` attaches to it."""
        self.detach(session_id)
        if len(self._terminals) >= MAX_TERMINALS:
            raise ApiError(f"A client may attach to {MAX_TERMINALS} sessions at a time", status=409)
        try:
            terminal = await Terminal.open(command, columns, rows)
        except OSError as error:
            log.error("no terminal can be opened: %s", error)
            raise ServiceUnavailable("No terminal can be opened") from None
        self._tell(enveloped("pty:attached", sessionId=session_id, cols=columns, rows=rows))
        showing = asyncio.create_task(self._show(session_id, terminal), name="terminal")
        self._terminals[session_id] = terminal, showing

    async def write(self, session_id: str, text: str) -> None:
        """Types. Raises `ApiError`."""
        try:
            await self._find(session_id).write(text)
        except TimeoutError:
            raise ServiceUnavailable("The terminal takes no input") from None
        except OSError:
            return  # it has ended, as the client is told

    def resize(self, session_id: str, columns: int, rows: int) -> None:
        """Raises `ApiError`."""
        self._find(session_id).resize(columns, rows)

    def detach(self, session_id: str) -> None:
        """Shows a session no more; one that is not shown is no error."""
        if session_id in self._terminals:
            terminal, showing = self._terminals.pop(session_id)
            showing.cancel()
            terminal.close()

    def detach_all(self) -> list[str]:
        """Shows no session any more; those that were."""
        shown = list(self._terminals)
        for session_id in shown:
            self.detach(session_id)
        return shown

    def _find(self, session_id: str) -> Terminal:
        if session_id not in self._terminals:
            raise ApiError("The client is not attached to this session", status=409, code="NOT_SUBSCRIBED")
        return self._terminals[session_id][0]

    async def _show(self, session_id: str, terminal: Terminal) -> None:
        try:
            while text := await terminal.read():
                self._tell(enveloped("pty:output", sessionId=session_id, data=text))
                await self._stream.drained()  # the terminal waits for its reader
                await asyncio.sleep(0)
            code = await terminal.exit_code()
            self._terminals.pop(session_id, None)
            self._tell(enveloped("pty:exit", sessionId=session_id, exitCode=code))
        finally:
            terminal.close()
