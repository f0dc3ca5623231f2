"""What happens, told to every WebSocket at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from ....storage.times import format_time
from . import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ...clock import Clock


class Events:
    """Tells all that listen. To be called once what it tells is in the store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: set[Callable[[messages.Message], None]] = set()

    def __len__(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @contextmanager
    def heard_by(self, listener: Callable[[messages.Message], None]) -> Iterator[None]:
        """Tells a listener of all that happens for as long as the context lasts."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def status(self, session_id: str, previous: str, new: str) -> None:
        self._tell(messages.status(session_id, previous, new, self._now()))

    def waiting(self, session_id: str, waiting: bool, reason: str | None) -> None:
        self._tell(messages.waiting(session_id, waiting, reason, self._now()))

    def ticket_state(self, ticket_id: str, previous: str, new: str, trigger: str, reason: str) -> None:
        self._tell(messages.ticket_state(ticket_id, previous, new, trigger, reason, self._now()))

    def notification(self, document: Mapping[str, object]) -> None:
        """``document``: as it is kept, with its ``id``."""
        self._tell(messages.notification(document))

    def _tell(self, message: messages.Message) -> None:
        for listener in tuple(self._listeners):
            listener(message)

    def _now(self) -> str:
        return format_time(self._clock.now())


EVENTS = web.AppKey("sessions_events", Events)
