"""What a client did while it was offline, and what others did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ....storage import ABSENT, Conflict, Delete, InvalidDocument, Put, retry
from ....storage.documents import decode, encode
from ...errors import BadRequest, InvalidBody, Problem
from .access import check_access, may
from .api import api
from .changes import changes_members, check_store, read_changes
from .ids import check_id, check_id_in
from .records import kept, plain, shown, without_meta

if TYPE_CHECKING:
    from ....storage import Record
    from ...request import ApiRequest
    from .registry import UserCollection

_MAX_BODY = 16 << 20
_PAGE = 1000
"""Changes of others in an answer."""
_AT_ONCE = 100
"""Changes that are applied before others have their turn on the loop."""


class _Posted(msgspec.Struct):
    """Of a change that came, the ``record`` in the bytes it came in."""

    record: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct):
    changes: list[_Posted]


class Edit(NamedTuple):
    """A change that a client made. ``document``: what the record is to be, None for not there."""

    id: str
    if_version: int | None
    document: bytes | None


class Applied(NamedTuple):
    """``version``: the record's, 0 for one that was not there. ``written``: whether it became so by this request."""

    version: int
    written: bool


class Refused(NamedTuple):
    """``record``: what is there. ``taken``: the unique field whose value another record holds."""

    record: Record | None
    taken: str | None = None


@api.post(
    "/collections/{collection}/sync",
    body="collections#/$defs/SyncRequest",
    query="collections#/$defs/StoreQuery",
    returns={200: "collections#/$defs/SyncResponse"},
    auth=may("write"),
    max_body=_MAX_BODY,
)
async def sync(request: ApiRequest) -> dict[str, object]:
    """Applies each change, or says what there is instead; nothing, where one is invalid or ``since`` is too old."""
    collection: UserCollection = request.caller
    await check_access(request, collection, "read")
    check_store(request)
    edits = await _edits(request, collection)
    since = int(request.document["since"])
    await read_changes(request, collection, since, 1)
    outcomes: list[Applied | Refused] = []
    for begin in range(0, len(edits), _AT_ONCE):
        part = edits[begin : begin + _AT_ONCE]
        outcomes += await asyncio.gather(*(_apply(request, collection, edit) for edit in part))
    page = await read_changes(request, collection, since, _PAGE)
    own = {outcome.version for outcome in outcomes if isinstance(outcome, Applied) and outcome.written}
    return {
        **_members(edits, outcomes),
        **changes_members(request, (change for change in page.changes if change.version not in own), page),
    }


async def _edits(request: ApiRequest, collection: UserCollection) -> list[Edit]:
    """The changes of a request. Raises `InvalidBody` with what is wrong with any of them: a client sets these aside
    and sends the others."""
    bodies = msgspec.json.decode(request.body, type=_Body).changes
    edits: list[Edit] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for place, (change, body) in enumerate(zip(request.document["changes"], bodies, strict=True)):
        path: tuple[str | int, ...] = ("changes", place)
        try:
            id = check_id(change["id"])
            if id in seen:
                raise InvalidBody(problems=[Problem(("id",), "must not come twice: send a record's last state")])
            seen.add(id)
            document = None
            if "record" in change:
                path = (*path, "record")
                document = without_meta(bytes(body.record))
                await _check(collection, id, document)
            edits.append(Edit(id, change.get("if_version"), document))
        except BadRequest as error:
            problems += [problem._replace(path=(*path, *problem.path)) for problem in error.problems]
        if place % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    if problems:
        raise InvalidBody(problems=problems)
    return edits


async def _check(collection: UserCollection, id: str, document: bytes) -> None:
    """Raises `InvalidBody` unless a record may be this."""
    value: dict[str, Any] = decode(document)
    check_id_in(value, id)
    await collection.verify(value, len(document))
    try:
        collection.storage.values(value)
    except InvalidDocument as error:
        raise InvalidBody(problems=[Problem((error.field,) if error.field else (), error.message)]) from error


async def _apply(request: ApiRequest, collection: UserCollection, edit: Edit) -> Applied | Refused:
    storage = request.storage

    async def attempt() -> Applied | Refused:
        record = (await storage.get(collection.storage, [edit.id])).get(edit.id)
        version = ABSENT if record is None else record.version
        if _is_so(record, edit.document):
            return Applied(version, written=False)
        if edit.if_version not in (None, version):
            return Refused(record)
        if edit.document is None:
            write: Put | Delete = Delete(collection.storage, edit.id, version)
        else:
            write = Put(collection.storage, edit.id, kept(edit.document, request.now), version)
        try:
            commit = await storage.commit([write])
        except Conflict as conflict:
            if conflict.reason == "unique":
                return Refused(record, conflict.field)
            raise
        return Applied(commit.versions[0], written=True)

    return await retry(storage, [f"{collection.storage.name}/{edit.id}"], attempt)


def _is_so(record: Record | None, document: bytes | None) -> bool:
    """Whether a record is what it is to be: the same but for white space."""
    if record is None or document is None:
        return record is None and document is None
    present = plain(record.document)
    return present == document or encode(decode(present)) == encode(decode(document))


def _members(edits: list[Edit], outcomes: list[Applied | Refused]) -> dict[str, object]:
    """The members of an answer that say what became of the changes."""
    applied: list[object] = []
    conflicts: list[object] = []
    for edit, outcome in zip(edits, outcomes, strict=True):
        if isinstance(outcome, Applied):
            applied.append({"id": edit.id, "version": outcome.version})
        else:
            conflicts.append({"id": edit.id} | _present(outcome))
    return {"applied": applied, "conflicts": conflicts}


def _present(refused: Refused) -> dict[str, object]:
    record, taken = refused
    shows: dict[str, object] = {"version": ABSENT, "deleted": True}
    if record is not None:
        shows = {"version": record.version, "record": msgspec.Raw(shown(record))}
    return shows if taken is None else shows | {"taken": taken}
