"""The documents of projects and tickets, and how they are shown.

Every id is a UUIDv7, so that order of id is order of time, and "newest first" is the order of falling ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ....storage import Collection, Field, Filter, Query

PROJECTS: Final = Collection("sessions_projects", (Field("repo_path", "text", unique=True),))
"""As `show_project` shows them."""
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
`scanning.Found`) and ``feedback``: of rejections, for the prompt of the next start."""
TRANSITIONS: Final = Collection(
    "sessions_transitions", (Field("ticket_id", "text", indexed=True), Field("project_id", "text", indexed=True))
)
"""The history of tickets: ``from_state``, ``to_state``, ``trigger``, ``reason``, ``feedback`` of a rejection,
``created_at``."""

STATES: Final = ("backlog", "in_progress", "review", "done")
ADHOC: Final = "ADHOC"
"""The prefix of tickets that were made here."""

_PROJECT = ("name", "repo_path", "tickets_path", "handoff_path", "tmux_session", "tmux_window")
_TICKET = ("external_id", "title", "state", "file_path", "is_adhoc", "started_at", "completed_at")
_TIMES = ("created_at", "updated_at")


def tickets_of(project_id: str, *where: Filter) -> Query:
    """A project's tickets, newest first."""
    return Query(TICKETS, (Filter("project_id", "==", project_id), *where), sort=("-id",))


def show_project(project: Mapping[str, Any]) -> dict[str, Any]:
    """A project as clients see it."""
    return {name: project[name] for name in ("id", *_PROJECT, *_TIMES)}


def show_ticket(ticket: Mapping[str, Any]) -> dict[str, Any]:
    """A ticket as lists show it."""
    return {name: ticket[name] for name in ("id", *_TICKET, *_TIMES)}


def project_lock(id: str) -> str:
    """What writes of a project take turns on, and the beginning of its sessions."""
    return f"{PROJECTS.name}/{id.lower()}"
