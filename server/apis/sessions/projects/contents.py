"""What is in a ticket's file."""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import hdrs

from .....storage.documents import encode
from .....storage.times import format_time
from ....errors import ApiError, NotFound
from ....keys import CLOCK, STORAGE
from ....request import Answer
from ..api import api, caller
from ..folders.files import MAX_CONTENT, Content, Folder, Missing, read, write
from ..folders.headings import title_of, with_title
from ..folders.syncing import FOLDERS
from ..records import documents, states
from ..records.projects import PROJECTS
from ..records.tickets import TICKETS, show_ticket
from .tickets import titled

if TYPE_CHECKING:
    from aiohttp import web

    from ....request import ApiRequest

T = TypeVar("T")

_PIECE = 64 * 1024


@api.get(
    "/api/tickets/{id}",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/TicketDetails"},
    errors=(404, 409),
    auth=caller,
)
async def ticket_details(request: ApiRequest) -> Answer:
    """A ticket with what is in its file."""
    found, content = await with_content(request.app, request.path["id"])
    shown = {**show_ticket(found), "project_id": found["project_id"]}
    return Answer(await asyncio.to_thread(_encoded, shown, content))


@api.get(
    "/api/tickets/{id}/content",
    params="sessions#/$defs/Id",
    returns={200: "sessions#/$defs/TicketContent"},
    gives={200: "headers#/$defs/Tagged"},
    errors=(404, 409),
    auth=caller,
)
async def show_content(request: ApiRequest) -> Answer:
    """What is in a ticket's file, with its ETag."""
    return await _answer(*await with_content(request.app, request.path["id"]))


@api.put(
    "/api/tickets/{id}/content",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/NewContent",
    reads={"headers": "headers#/$defs/IfMatch"},
    returns={200: "sessions#/$defs/TicketContent"},
    gives={200: "headers#/$defs/Tagged"},
    errors=(404, 409, 412),
    auth=caller,
)
async def put_content(request: ApiRequest) -> Answer:
    """Replaces what is in a ticket's file; with ``If-Match``, only what is known of it."""
    data: bytes = request.document["content"].encode()
    match = request.raw.headers.get(hdrs.IF_MATCH)

    def change(present: Content) -> bytes:
        if match is not None and match.strip() != "*" and present.etag not in map(str.strip, match.split(",")):
            raise ApiError("The ticket's file has changed", status=412, headers={hdrs.ETAG: present.etag})
        return data

    return await _answer(*await _rewrite(request.app, request.path["id"], change))


@api.patch(
    "/api/tickets/{id}/title",
    params="sessions#/$defs/Id",
    body="sessions#/$defs/NewTitle",
    returns={200: "sessions#/$defs/Ticket"},
    errors=(404, 409),
    auth=caller,
)
async def change_title(request: ApiRequest) -> dict[str, Any]:
    """Writes a ticket's title into its file, as its heading."""
    title = titled(request.document)
    found, _ = await _rewrite(request.app, request.path["id"], lambda present: with_title(present.data, title))
    return show_ticket(found)


async def with_content(app: web.Application, id: str) -> tuple[dict[str, Any], Content]:
    """A ticket and what is in its file. Raises `NotFound`, and `ApiError` 409 or 503 where it cannot be read."""
    return await _at_file(app, id, read)


async def _rewrite(app: web.Application, id: str, change: Callable[[Content], bytes]) -> tuple[dict[str, Any], Content]:
    """Makes something else of a ticket's file; the ticket with the title that this has, and the new content."""

    def bounded(present: Content) -> bytes:
        data = change(present)
        if present.cut or len(data) > MAX_CONTENT:
            raise ApiError(f"A ticket's file of more than {MAX_CONTENT:,} bytes is not written", status=413)
        return data

    async with states.steering(app, id):
        found, (content, stamp) = await _at_file(app, id, lambda folder, path: write(folder, path, bounded))
        changes = {
            "title": title_of(found["file_path"], content.data),
            "stamp": stamp,
            "updated_at": format_time(app[CLOCK].now()),
        }
        return await documents.change(app[STORAGE], TICKETS, found["id"], changes), content


async def _at_file(app: web.Application, id: str, work: Callable[[Folder, str], T]) -> tuple[dict[str, Any], T]:
    """Has a thread work at a ticket's file; where it is not where it was, the folder is read first."""
    found = await documents.get(app[STORAGE], TICKETS, id)
    owner = await documents.get(app[STORAGE], PROJECTS, found["project_id"])
    folder = Folder(owner["repo_path"], owner["tickets_path"])
    try:
        return found, await asyncio.to_thread(_work, folder, found["file_path"], work)
    except Missing:
        await app[FOLDERS].read(owner["id"])
    found = await documents.get(app[STORAGE], TICKETS, id)
    try:
        return found, await asyncio.to_thread(_work, folder, found["file_path"], work)
    except Missing:
        raise NotFound("The ticket's file is not there") from None


def _work(folder: Folder, file_path: str, work: Callable[[Folder, str], T]) -> T:
    return work(folder, folder.below(file_path))


async def _answer(found: dict[str, Any], content: Content) -> Answer:
    shown = {"ticket_id": found["id"], "file_path": found["file_path"]}
    etag, body = await asyncio.to_thread(lambda: (content.etag, _encoded(shown, content)))
    return Answer(body, headers={hdrs.ETAG: etag})


def _encoded(members: dict[str, Any], content: Content) -> bytes:
    """Members of an answer and the content, as JSON. It may be long: for a thread, which lets the loop go on between
    any two pieces of it."""
    decode = getincrementaldecoder("utf-8")(errors="replace").decode
    ends = range(_PIECE, len(content.data) + _PIECE, _PIECE)
    pieces = [decode(content.data[end - _PIECE : end], final=end >= len(content.data)) for end in ends]
    text = b"".join([encode(piece)[1:-1] for piece in pieces])
    cut = {"truncated": True} if content.cut else {}
    return b'%b,"content":"%b"}' % (encode(members | cut)[:-1], text)
