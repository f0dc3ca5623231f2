"""Starting work on a ticket, and saying whether it is good.

Each step leaves a state to go on from, should the server be killed after it: a ticket that is in progress without a
session can be started again, one in review can be approved again, and feedback is kept until a session has it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ....errors import ApiError, BadRequest, InvalidBody, Problem, ServiceUnavailable
from ....keys import STORAGE
from ..api import api, caller, id_in_path
from ..records import documents, states
from ..records.projects import PROJECTS
from ..records.sessions import running_on, show_sessions
from ..records.tickets import TICKETS, show_ticket
from ..running.runner import MAX_PROMPT_BYTES, RUNNER
from .contents import with_content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ....request import ApiRequest

log = logging.getLogger(__name__)

_MAY_START = ("backlog", "in_progress")


@api.post(
    "/api/tickets/{id}/start",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Started"},
    errors=(404, 409, 503),
    auth=caller,
)
async def start(request: ApiRequest) -> dict[str, Any]:
    """Begins a session on a ticket, which is in progress then."""
    app, id = request.app, id_in_path(request)
    runner = app[RUNNER]
    async with states.steering(app, id):
        found, content = await with_content(app, id)
        if found["state"] not in _MAY_START:
            raise BadRequest(f"A ticket that is {found['state']} cannot become in_progress by a start")
        if await running_on(app[STORAGE], id):
            raise ApiError("A session is running on this ticket", status=409)
        if not await runner.tmux.available():
            raise ServiceUnavailable("tmux is not available")
        owner = await documents.get(app[STORAGE], PROJECTS, found["project_id"])
        # First the state: the session may end, and the ticket go to review, before anything else is done here.
        began = found["state"] == "backlog"
        if began:
            await states.move(app, id, "in_progress", trigger="manual", reason="user_started")
            found = await documents.get(app[STORAGE], TICKETS, id)
        try:
            session = await runner.start(owner, ticket=found, prompt=_prompt(found, content.text))
        except ApiError:
            if began:
                await states.move(app, id, "backlog", trigger="auto", reason="session_failed", legal=("in_progress",))
            raise
        if found["feedback"]:
            await documents.change(app[STORAGE], TICKETS, id, {"feedback": []})
    (shown,) = await show_sessions(app[STORAGE], [session])
    return {"ticket": show_ticket(found), "session": shown}


def _prompt(found: Mapping[str, Any], content: str) -> str:
    """What a session on a ticket is told: what is in its file and, above that, the feedback of rejections that no
    session has been told, oldest first.

        The work on this ticket was rejected:

        <feedback>

        # The ticket's heading
        …

    A program takes 128 KiB: what is beyond is left to the file, whose path then stands at the end.
    """
    head = "".join(["The work on this ticket was rejected:\n\n", *(f"{text}\n\n" for text in found["feedback"])])
    prompt = (head if found["feedback"] else "") + content
    prompt = prompt.replace("\0", "\N{REPLACEMENT CHARACTER}")
    whole = prompt.encode()
    if len(whole) <= MAX_PROMPT_BYTES:
        return prompt
    more = f"\n\n… the rest is in {found['file_path']}"
    return whole[: MAX_PROMPT_BYTES - len(more.encode())].decode(errors="ignore") + more


@api.post(
    "/api/tickets/{id}/approve",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/Reviewed"},
    errors=(404, 503),
    auth=caller,
)
async def approve(request: ApiRequest) -> dict[str, Any]:
    """Ends the session on a ticket in review, if one runs: the ticket is done."""
    app, id = request.app, id_in_path(request)
    async with states.steering(app, id):
        states.check((await documents.get(app[STORAGE], TICKETS, id))["state"], "done")
        if session := await running_on(app[STORAGE], id):
            await app[RUNNER].finish(session["id"])
        return _reviewed(await states.move(app, id, "done", trigger="manual", reason="user_approved"))


@api.post(
    "/api/tickets/{id}/reject",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/Rejection",
    returns={200: "sessions#/$defs/Reviewed"},
    errors=(404,),
    auth=caller,
)
async def reject(request: ApiRequest) -> dict[str, Any]:
    """Takes a ticket in review back to work. The feedback is typed into the session that runs on it; where there is
    none, or it cannot be reached, the next one is told."""
    app, id = request.app, id_in_path(request)
    feedback: str = request.document["feedback"].strip()
    if not feedback:
        raise InvalidBody(problems=[Problem(("feedback",), "must not be blank")])
    async with states.steering(app, id):
        kept = (await documents.get(app[STORAGE], TICKETS, id))["feedback"]
        transition = await states.move(
            app, id, "in_progress", trigger="manual", reason="user_rejected", feedback=feedback, legal=("review",)
        )
        if session := await running_on(app[STORAGE], id):
            try:
                await app[RUNNER].type(session["id"], feedback)
            except ApiError as error:
                log.warning("feedback is kept for the next session on ticket %s: %s", id, error.message)
            else:
                await documents.change(app[STORAGE], TICKETS, id, {"feedback": kept})
    return _reviewed(transition)


def _reviewed(transition: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: transition[name] for name in ("ticket_id", "from_state", "to_state", "trigger", "reason")}
    return {**shown, "timestamp": transition["created_at"]}
