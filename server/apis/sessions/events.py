"""What happens, told to every WebSocket at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ....storage.times import format_time
from .messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ...clock import Clock


class Events:
    """Tells all that listen. To be called once what it tells is in the store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: set[Callable[[Message], None]] = set()

    def __len__(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @contextmanager
    def heard_by(self, listener: Callable[[Message], None]) -> Iterator[None]:
        """Tells a listener of all that happens for as long as the context lasts."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def status(self, session_id: str, previous: str, new: str) -> None:
        self._tell(
            "session:status",
            flat={"sessionId": session_id, "status": new},
            payload={"sessionId": session_id, "previousStatus": previous, "newStatus": new, "timestamp": self._now()},
        )

    def status_changed(self, session_id: str, previous: str, new: str, reason: str | None = None) -> None:
        """`status` and, where a session begins or ceases to wait for input, `waiting`."""
        self.status(session_id, previous, new)
        if "paused" in (previous, new):
            self.waiting(session_id, new == "paused", reason)

    def waiting(self, session_id: str, waiting: bool, reason: str | None) -> None:
        fields = {"sessionId": session_id, "waiting": waiting, "reason": reason}
        self._tell("session:waiting", flat=fields, payload={**fields, "timestamp": self._now()})

    def ticket_state(self, ticket_id: str, previous: str, new: str, trigger: str, reason: str) -> None:
        self._tell(
            "ticket:state",
            flat={"ticketId": ticket_id, "state": new},
            payload={
                "ticketId": ticket_id,
                "previousState": previous,
                "newState": new,
                "trigger": trigger,
                "reason": reason,
                "timestamp": self._now(),
            },
        )

    def notification(self, document: Mapping[str, Any]) -> None:
        """``document``: as it is kept, with its ``id``."""
        self._tell(
            "notification",
            flat={"notification": {name: document[name] for name in ("id", "type", "message")}},
            payload={
                "id": document["id"],
                "title": document["title"],
                "body": document["message"],
                "timestamp": document["created_at"],
            },
        )

    def _tell(self, kind: str, *, flat: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        message = Message(kind, flat=flat, payload=payload)
        for listener in tuple(self._listeners):
            listener(message)

    def _now(self) -> str:
        return format_time(self._clock.now())


EVENTS = web.AppKey("sessions_events", Events)
