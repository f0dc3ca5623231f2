"""Projects as they are kept and shown.

Every id is a UUIDv7, so that order of id is order of time, and "newest first" is the order of falling ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .....storage import Collection, Field, Query, Record, Storage, walk
from ....errors import NotFound
from ..api import api

PROJECTS: Final = Collection("sessions_projects", (Field("repo_path", "text", unique=True),))
"""As `show_project` shows them."""

_PROJECT = ("name", "repo_path", "tickets_path", "handoff_path", "tmux_session", "tmux_window")
_TIMES = ("created_at", "updated_at")


def show_project(project: Mapping[str, Any]) -> dict[str, Any]:
    """A project as clients see it."""
    return {name: project[name] for name in ("id", *_PROJECT, *_TIMES)}


def project_lock(id: str) -> str:
    """What writes of a project take turns on, and the beginning of its sessions."""
    return f"{PROJECTS.name}/{id.lower()}"


async def find_project(storage: Storage, id: str) -> Record:
    """The record of a project. Raises `NotFound`."""
    record = (await storage.get(PROJECTS, [id.lower()])).get(id.lower())
    if record is None:
        raise NotFound("Project not found")
    return record


async def get_project(storage: Storage, id: str) -> dict[str, Any]:
    """A project, with its ``id``. Raises `NotFound`."""
    record = await find_project(storage, id)
    return {"id": record.id, **record.decode()}


async def all_projects(storage: Storage) -> list[dict[str, Any]]:
    """Every project, newest first."""
    return [{"id": r.id, **r.decode()} async for r in walk(storage, Query(PROJECTS, sort=("-id",)))]


api.collections += (PROJECTS,)
