"""What changed in a collection: asked for, or told as it happens."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from aiohttp import WSMsgType, hdrs, web

from ....storage.documents import encode
from ....storage.errors import Gone
from ...api_keys import API_KEYS
from ...auth import guard, same_secret, websocket_key
from ...errors import ApiError, BadRequest
from ...keys import CLOCK
from ...live import LIVE, WRONG_KEY, MessageRate
from ...operation import JSON
from ...request import Answer
from ...streams import text_frame
from .access import check_access, may
from .api import api
from .events import change_object, fitting
from .fanout import FANOUT
from .registry import COLLECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ....storage.records import Change, Changes
    from ...request import ApiRequest
    from .user_collection import UserCollection

_EVENTS = "text/event-stream"
_PAGE_BYTES = 8 << 20
"""Documents of one answer, unless a single one is larger."""
_FIRST_READINGS = 4096


class Page(NamedTuple):
    """A part of what changed, and ``since`` for the next."""

    changes: tuple[Change, ...]
    version: int
    more: bool


class FirstReadings:
    """Where those readers are that began with nothing and have not yet come to the last deletion that is forgotten.

    They need not know of it. Another reader who has read as far, at an earlier time, must: it would keep what was
    deleted. So the former get a ``since`` that nobody else has, below 0. One that is not known any more begins again.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[str, int, int]] = {}

    def keep(self, collection: str, after: int, began: int) -> int:
        """A ``since`` for a reader who began at a version and has come to another."""
        if len(self._places) >= _FIRST_READINGS:
            del self._places[next(iter(self._places))]
        since = -1 - secrets.randbelow(2**53 - 1)
        self._places[since] = collection, after, began
        return since

    def find(self, collection: str, since: int) -> tuple[int, int]:
        """What was kept. Raises `Gone`."""
        name, after, began = self._places.get(since, ("", 0, 0))
        if name != collection:
            raise Gone("a first reading that is not remembered")
        return after, began


FIRST_READINGS = web.AppKey("first_readings", FirstReadings)


def start_over(message: str) -> ApiError:
    """410."""
    return ApiError(f"{message}: start over, with since=0", status=410)


def check_store(request: ApiRequest) -> None:
    """Raises 410 where the query says that the client knows another store."""
    store = request.query.get("store")
    if store is not None and store != request.app[COLLECTIONS].store_id:
        raise start_over("This is another store")


async def read_changes(request: ApiRequest, collection: UserCollection, since: int, limit: int) -> Page:
    """What changed since a version. Raises 410 where that cannot be told."""
    first_readings = request.app[FIRST_READINGS]
    try:
        after, began = first_readings.find(collection.name, since) if since < 0 else (since, 0)
        read = await request.storage.changes(collection.storage, after, limit, began=began)
    except Gone:
        raise start_over("What changed since then is not remembered") from None
    page = _bounded(read)
    if since <= 0 and page.more and page.version < read.floor:
        page = page._replace(version=first_readings.keep(collection.name, page.version, began or read.store_version))
    return page


def _bounded(read: Changes) -> Page:
    """As many of the changes as an answer may hold."""
    fit = fitting(read.changes, _PAGE_BYTES)
    if fit < len(read.changes):
        return Page(read.changes[:fit], read.changes[fit - 1].version, True)
    return Page(read.changes, read.version, read.more)


def changes_members(request: ApiRequest, changes: Iterable[Change], page: Page) -> dict[str, object]:
    """The members of an answer that say what changed."""
    return {
        "changes": [msgspec.Raw(change_object(change)) for change in changes],
        "version": page.version,
        "more": page.more,
        "store": request.app[COLLECTIONS].store_id,
    }


@api.get(
    "/collections/{collection}/changes",
    query="collections#/$defs/ChangesQuery",
    reads={"headers": "headers#/$defs/Events"},
    returns={200: "collections#/$defs/Changes"},
    links={"/collections/{collection}/changes": {"since": "$response.body#/version", "store": "$response.body#/store"}},
    produces=(*JSON, _EVENTS),
    errors=(404, 410),
    auth=may("read"),
)
async def changes(request: ApiRequest) -> object:
    """What changed since a version; for who accepts text/event-stream, then what changes."""
    check_store(request)
    query = request.query
    if _EVENTS in request.raw.headers.get(hdrs.ACCEPT, ""):
        return await _stream(request, query["since"])
    page = await read_changes(request, request.caller, query["since"], query["limit"])
    return changes_members(request, page.changes, page)


async def _stream(request: ApiRequest, since: int) -> Answer | web.StreamResponse:
    last = request.raw.headers.get("Last-Event-ID", "")
    if last.isascii() and last.isdecimal():
        since = int(last[:20])
    collection: UserCollection = request.caller
    await _check_remembered(request, collection, since)
    if request.raw.method == hdrs.METH_HEAD:
        return Answer(b"", content_type=_EVENTS)
    async with request.app[LIVE].events(request) as stream:
        with request.app[FANOUT].subscribed(stream, [collection.name], since):
            await stream.gone()
    return stream.response


async def _check_remembered(request: ApiRequest, collection: UserCollection, since: int) -> int:
    """The store's version. Raises 410 where it cannot be told what changed since a version."""
    try:
        if since < 0:
            raise Gone("of another protocol")
        return (await request.storage.changes(collection.storage, since, 1)).store_version
    except Gone:
        raise start_over(f"What changed in {collection.name} since then is not remembered") from None


class Subscribe(msgspec.Struct, tag_field="type", tag="subscribe"):
    """The message of a client: which collections, and since when; absent, from now on."""

    collections: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)]
    since: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] | None = None


_subscribe = msgspec.json.Decoder(Subscribe)


@guard("bearer", "api_key", optional=True)
async def _whoever(request: ApiRequest) -> bool:
    """Lets everybody in, since collections differ; whether no wrong key was presented."""
    key = websocket_key(request)
    if key and not same_secret(key, request.config.server.admin_key) and not await request.app[API_KEYS].verify(key):
        request.guess = True
    return not request.guess


@api.websocket("/changes", auth=_whoever)
async def live_changes(request: ApiRequest) -> web.StreamResponse:
    """A WebSocket that tells what changes in the collections that its client last subscribed to."""
    fanout, rate = request.app[FANOUT], MessageRate(request.app[CLOCK])
    async with request.app[LIVE].socket(request) as stream:
        with ExitStack() as subscription:
            if not request.caller:
                stream.end(WRONG_KEY, "Invalid API key")
            async for message in stream.response:
                try:
                    rate.count()
                    if message.type is not WSMsgType.TEXT:
                        raise BadRequest("A message must be a text")
                    names, since = await _subscribed(request, message.data)
                except ApiError as error:
                    refusal = {"type": "error", "status": error.status, "message": error.message}
                    stream.write(text_frame(encode(refusal)))
                    await stream.drained()
                else:
                    subscription.close()
                    subscription.enter_context(fanout.subscribed(stream, names, since))
    return stream.response


async def _subscribed(request: ApiRequest, message: str) -> tuple[list[str], int]:
    """The collections that a message asks for, and the version since which. Raises `ApiError`."""
    try:
        wanted = _subscribe.decode(message)
    except msgspec.DecodeError as error:
        raise BadRequest(f"A message must be a subscribe with collections and, perhaps, since: {error}") from None
    now = 0
    for name in dict.fromkeys(wanted.collections):
        collection = request.app[COLLECTIONS].get(name)
        await check_access(request, collection, "read", websocket_key(request))
        now = await _check_remembered(request, collection, wanted.since or 0)
    return wanted.collections, now if wanted.since is None else wanted.since
