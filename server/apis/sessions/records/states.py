"""What becomes of tickets: backlog, in progress, review, done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, Literal

from .....storage import ABSENT, Put, retry
from .....storage.times import format_time
from ....errors import BadRequest
from ....ids import new_id
from ....keys import CLOCK, STORAGE
from ..events import EVENTS
from . import documents
from .tickets import TICKETS, TRANSITIONS

if TYPE_CHECKING:
    from aiohttp import web

COMES_FROM: Final[Mapping[str, Collection[str]]] = {
    "backlog": (),
    "in_progress": ("backlog", "review"),
    "review": ("in_progress",),
    "done": ("review",),
}
"""The legal transitions: from which states a ticket may come into each."""
_MOST_FEEDBACK = 5
"""Rejections: as many as the prompt of a start can hold."""


async def move(
    app: web.Application,
    ticket_id: str,
    to: str,
    *,
    trigger: Literal["manual", "auto"],
    reason: str,
    feedback: str | None = None,
    legal: Collection[str] | None = None,
) -> dict[str, Any]:
    """Takes a ticket into another state: ticket and history are one commit, and every WebSocket is told after it.

    ``feedback`` goes into the history, and is kept for the prompt of the ticket's next start. ``legal``: the states
    that it may come from, if not those of `COMES_FROM`. Returns the transition as the history shows it. Raises
    `NotFound`, and `BadRequest` naming both states where the transition is not legal.
    """
    storage, clock = app[STORAGE], app[CLOCK]

    async def attempt() -> dict[str, Any]:
        record = await documents.find(storage, TICKETS, ticket_id)
        ticket = record.decode()
        before = ticket["state"]
        check(before, to, legal)
        now = format_time(clock.now())
        ticket |= {"state": to, "updated_at": now} | _times(ticket, to, now)
        transition = {
            "ticket_id": ticket_id,
            "from_state": before,
            "to_state": to,
            "trigger": trigger,
            "reason": reason,
        }
        if feedback is not None:
            transition["feedback"] = feedback
            ticket["feedback"] = [*ticket["feedback"], feedback][-_MOST_FEEDBACK:]
        transition["created_at"] = now
        id = new_id()
        kept = transition | {"project_id": ticket["project_id"]}
        await storage.commit([Put(TICKETS, ticket_id, ticket, record.version), Put(TRANSITIONS, id, kept, ABSENT)])
        return {"id": id, **transition}

    transition = await retry(storage, [documents.lock(TICKETS, ticket_id)], attempt)
    app[EVENTS].ticket_state(ticket_id, transition["from_state"], to, trigger, reason)
    return transition


def check(before: str, to: str, legal: Collection[str] | None = None) -> None:
    """Raises `BadRequest` where a transition is not legal."""
    if before not in (COMES_FROM[to] if legal is None else legal):
        raise BadRequest(f"A ticket that is {before} cannot become {to}")


def _times(ticket: Mapping[str, Any], to: str, now: str) -> dict[str, str | None]:
    match to:
        case "backlog":
            return {"started_at": None}
        case "in_progress":
            return {"started_at": ticket["started_at"] or now}
        case "done":
            return {"completed_at": now}
    return {}


def steering(app: web.Application, ticket_id: str) -> AbstractAsyncContextManager[None]:
    """Within it nobody else starts, reviews, moves, writes or deletes a ticket: what takes more than one commit.

    Who holds a project's folder (`TicketFolders.hold`) is not to ask for it: within it folders are read."""
    return app[STORAGE].locks.hold([f"sessions_steering/{ticket_id.lower()}"])
