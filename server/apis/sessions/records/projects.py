"""Projects as they are kept and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .....storage import Collection, Field, Query, Storage, walk
from ..api import api
from .documents import identified

PROJECTS: Final = Collection("sessions_projects", (Field("repo_path", "text", unique=True),))
"""As `show_project` shows them."""

_PROJECT = ("name", "repo_path", "tickets_path", "handoff_path", "tmux_session", "tmux_window")
_TIMES = ("created_at", "updated_at")


def show_project(project: Mapping[str, Any]) -> dict[str, Any]:
    """A project as clients see it."""
    return {name: project[name] for name in ("id", *_PROJECT, *_TIMES)}


async def all_projects(storage: Storage) -> list[dict[str, Any]]:
    """Every project, newest first."""
    return [identified(record) async for record in walk(storage, Query(PROJECTS, sort=("-id",)))]


api.collections += (PROJECTS,)
