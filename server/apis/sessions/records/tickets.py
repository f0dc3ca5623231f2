"""Tickets and their history as they are kept and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .....storage import Collection, Delete, DeleteWhere, Field, Filter, Query, Write
from ..api import api

TICKETS: Final = Collection(
    "sessions_tickets",
    (
        Field("project_id", "text", indexed=True),
        Field("external_id", "text"),
        Field("prefix", "text"),
        Field("state", "text"),
    ),
)
"""As `show_ticket` shows them, and ``project_id``, ``prefix``, ``stamp`` (what the file's content is known by, see
`folders.scanning.Found`) and ``feedback``: of rejections, for the prompt of the next start."""
TRANSITIONS: Final = Collection(
    "sessions_transitions", (Field("ticket_id", "text", indexed=True), Field("project_id", "text", indexed=True))
)
"""The history of tickets: ``from_state``, ``to_state``, ``trigger``, ``reason``, ``feedback`` of a rejection,
``created_at``."""

STATES: Final = ("backlog", "in_progress", "review", "done")
ADHOC: Final = "ADHOC"
"""The prefix of tickets that were made here."""

_TICKET = ("external_id", "title", "state", "file_path", "is_adhoc", "started_at", "completed_at")
_TIMES = ("created_at", "updated_at")


def tickets_of(project_id: str, *where: Filter) -> Query:
    """A project's tickets, newest first."""
    return Query(TICKETS, (Filter("project_id", "==", project_id), *where), sort=("-id",))


def show_ticket(ticket: Mapping[str, Any]) -> dict[str, Any]:
    """A ticket as lists show it."""
    return {name: ticket[name] for name in ("id", *_TICKET, *_TIMES)}


def removal(ticket_id: str) -> tuple[Write, Write]:
    """The writes that remove a ticket and its history."""
    history = DeleteWhere(Query(TRANSITIONS, (Filter("ticket_id", "==", ticket_id),)))
    return Delete(TICKETS, ticket_id), history


api.collections += (TICKETS, TRANSITIONS)
