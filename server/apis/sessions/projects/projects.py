"""Projects: repositories on this machine in which sessions run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from .....storage import ABSENT, Conflict, Delete, DeleteWhere, Filter, Put, Query, Storage, retry, walk
from .....storage.records import is_text
from .....storage.times import format_time
from ....errors import ApiError, InvalidBody, Problem
from ....ids import new_id
from ....request import Answer
from ..api import api, caller, id_in_path
from ..folders.files import contained
from ..folders.syncing import FOLDERS
from ..records import documents
from ..records.projects import PROJECTS, show_project
from ..records.sessions import ACTIVE, SESSIONS, active_sessions, show_sessions
from ..records.tickets import STATES, TICKETS, TRANSITIONS, tickets_of
from ..running.runner import RUNNER
from .paging import listed

if TYPE_CHECKING:
    from ....request import ApiRequest

_DEFAULTS: Final = {
    "tickets_path": "docs/jira-tickets/",
    "handoff_path": "docs/ai-context/handoff.md",
    "tmux_window": None,
}
_CAMEL_CASE: Final = {
    "repo_path": "repoPath",
    "tickets_path": "ticketsPath",
    "handoff_path": "handoffPath",
    "tmux_session": "tmuxSession",
    "tmux_window": "tmuxWindow",
}
_TAKEN_BY_TMUX: Final = ".:#\\"
"""Separates in targets, begins formats, escapes: tmux writes it otherwise in a name, or runs what follows."""


@api.get(
    "/api/projects",
    query="sessions#/$defs/PageQuery",
    returns={200: "sessions#/$defs/Projects"},
    auth=caller,
)
async def list_projects(request: ApiRequest) -> Answer:
    """All projects, newest first."""
    return await listed(request, Query(PROJECTS, sort=("-id",)), show_project)


@api.post(
    "/api/projects",
    body="sessions#/$defs/NewProject",
    returns={201: "sessions#/$defs/Project"},
    links={"/api/projects/{id}": {"id": "$response.body#/id"}},
    errors=(409,),
    auth=caller,
)
async def create_project(request: ApiRequest) -> Answer:
    """Registers a repository."""
    now = format_time(request.now)
    times = {"created_at": now, "updated_at": now}
    document = await _checked({**_DEFAULTS, **_members(request.document)}) | times
    id = new_id()
    await _commit(request.storage, Put(PROJECTS, id, document, ABSENT))
    return Answer(show_project({"id": id, **document}), 201)


@api.get(
    "/api/projects/{id}",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/ProjectDetails"},
    errors=(404,),
    auth=caller,
)
async def project_details(request: ApiRequest) -> dict[str, Any]:
    """A project, how many tickets of each state it has, and the newest of its sessions that has not ended."""
    found = await documents.get(request.storage, PROJECTS, request.path["id"])
    await request.app[FOLDERS].read(found["id"])
    counts = [await request.storage.count(tickets_of(found["id"], Filter("state", "==", state))) for state in STATES]
    running = (await active_sessions(request.storage, Filter("project_id", "==", found["id"])))[:1]
    return {
        **show_project(found),
        "ticket_counts": dict(zip(STATES, counts, strict=True)),
        "active_session": next(iter(await show_sessions(request.storage, running)), None),
    }


@api.patch(
    "/api/projects/{id}",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/ProjectChanges",
    returns={200: "sessions#/$defs/Project"},
    errors=(404, 409),
    auth=caller,
)
async def change_project(request: ApiRequest) -> dict[str, Any]:
    """Changes what is given. Sessions that run stay where they are."""
    changes = _members(request.document)
    now = format_time(request.now)

    async def attempt() -> dict[str, Any]:
        record = await documents.find(request.storage, PROJECTS, request.path["id"])
        document = await _checked({**record.decode(), **changes}) | {"updated_at": now}
        await _commit(request.storage, Put(PROJECTS, record.id, document, record.version))
        return {"id": record.id, **document}

    return show_project(await retry(request.storage, [documents.lock(PROJECTS, request.path["id"])], attempt))


@api.delete("/api/projects/{id}", params="sessions#/$defs/Id", returns={204: None}, errors=(404, 409), auth=caller)
async def delete_project(request: ApiRequest) -> Answer:
    """Removes a project with its tickets, their history and its sessions, in one commit, and then what those printed;
    the repository stays as it is."""
    id = id_in_path(request)
    its = (Filter("project_id", "==", id),)

    async def attempt() -> list[str]:
        record = await documents.find(request.storage, PROJECTS, id)
        sessions = [record async for record in walk(request.storage, Query(SESSIONS, its))]
        if any(session.decode()["status"] in ACTIVE for session in sessions):
            raise ApiError("The project has sessions that have not ended", status=409)
        what_it_has = (DeleteWhere(Query(kept, its)) for kept in (TICKETS, TRANSITIONS, SESSIONS))
        await request.storage.commit([Delete(PROJECTS, id, record.version), *what_it_has])
        return [session.id for session in sessions]

    async with request.app[FOLDERS].hold(id):
        ended = await retry(request.storage, [documents.lock(PROJECTS, id)], attempt)
        request.app[FOLDERS].forget(id)
    await request.app[RUNNER].forget(ended)
    return Answer(status=204)


def _members(document: Mapping[str, Any]) -> dict[str, Any]:
    """What was sent of a project, by the names that are kept; of both spellings camelCase counts."""
    names = {"name": "name", **{snake: snake for snake in _CAMEL_CASE}, **{c: s for s, c in _CAMEL_CASE.items()}}
    return {kept: document[sent] for sent, kept in names.items() if sent in document}


async def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a project, if it may be one, its repository by its real path. Raises `InvalidBody`."""
    problems = [
        Problem((_CAMEL_CASE[name],), problem)
        for name in ("tmux_session", "tmux_window")
        if document[name] is not None and (problem := _wrong_in_tmux(document[name]))
    ]
    repo, left = await asyncio.to_thread(_look_at, document)
    if repo is None:
        problems.append(Problem(("repoPath",), "must be the absolute path of an existing directory"))
    problems += [Problem((_CAMEL_CASE[name],), "must be a relative path that stays in repoPath") for name in left]
    if problems:
        raise InvalidBody(problems=problems)
    return {**document, "repo_path": repo}


def _wrong_in_tmux(name: str) -> str | None:
    if not (name[0].isalnum() or name[0] == "_"):
        return "must begin with a letter, a digit or _"
    if any(character in _TAKEN_BY_TMUX for character in name) or not name.isprintable():
        return f"must not contain any of {' '.join(_TAKEN_BY_TMUX)} or what cannot be printed"
    return None


def _look_at(document: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The real path of the repository, None if it is not there, and which relative paths leave it."""
    try:
        repo = os.path.realpath(document["repo_path"], strict=True)
        there = os.path.isabs(document["repo_path"]) and os.path.isdir(repo) and is_text(repo)  # noqa: PTH112, PTH117
    except OSError:
        there = False
    if not there:
        return None, []
    left = [name for name in ("tickets_path", "handoff_path") if _leaves(repo, document[name])]
    return repo, left


def _leaves(repo: str, path: str) -> bool:
    return PurePath(path).is_absolute() or ".." in PurePath(path).parts or contained(repo, path) is None


async def _commit(storage: Storage, write: Put) -> None:
    try:
        await storage.commit([write])
    except Conflict as conflict:
        if conflict.reason == "unique":
            raise ApiError("A project with this repoPath is registered already", status=409) from conflict
        raise
