"""What a client did while it was offline, and what others did."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ....storage import ABSENT, Conflict, Delete, Filter, InvalidDocument, Put, Query, retry
from ....storage.documents import decode, encode
from ...errors import BadRequest, InvalidBody, Problem
from ...idempotency import IDEMPOTENCY, Draft
from .access import check_access, may
from .api import api
from .changes import changes_members, check_store, read_changes
from .ids import check_id, check_id_in
from .records import kept, plain, shown, without_meta

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from ....storage import Collection, Record, Storage
    from ....storage.records import Value
    from ...idempotency import Once
    from ...request import Answer, ApiRequest
    from .user_collection import UserCollection

_MAX_BODY = 16 << 20
_PAGE = 1000
"""Changes of others in an answer."""
_AT_ONCE = 100
"""Changes that are checked before others have their turn on the loop."""


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


@api.post(
    "/collections/{collection}/sync",
    body="collections#/$defs/SyncRequest",
    query="collections#/$defs/StoreQuery",
    reads={"headers": "headers#/$defs/Once"},
    returns={200: "collections#/$defs/SyncResponse"},
    links={"/collections/{collection}/changes": {"since": "$response.body#/version", "store": "$response.body#/store"}},
    errors=(404, 409, 410, 422),
    auth=may("write"),
    max_body=_MAX_BODY,
)
async def sync(request: ApiRequest) -> dict[str, object]:
    """Applies each change, or says what there is instead; nothing, where one is invalid or ``since`` is too old."""
    collection: UserCollection = request.caller
    await check_access(request, collection, "read")
    check_store(request)
    edits = await _edits(request, collection)
    request.entries_count = len(edits)
    since = int(request.document["since"])
    await read_changes(request, collection, since, 1)
    answer = await request.app[IDEMPOTENCY].run(request, request.body, lambda once: _apply(request, edits, once))
    outcome = decode(answer.body)
    page = await read_changes(request, collection, since, _PAGE)
    own = {applied["version"] for applied in outcome["applied"]}
    return {
        "applied": outcome["applied"],
        "conflicts": await _conflicts(request, outcome["conflicts"]),
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


async def _apply(request: ApiRequest, edits: list[Edit], once: Once) -> Answer:
    """Commits the changes that do not conflict, together; each is judged on its own. Answers with ``applied`` and, of
    ``conflicts``, the ids and what is taken."""
    storage, collection = request.storage, request.caller.storage

    async def attempt() -> Answer:
        present = await storage.get(collection, [edit.id for edit in edits])
        versions = {edit.id: present[edit.id].version if edit.id in present else ABSENT for edit in edits}
        done: set[str] = set()
        writes: dict[str, Put | Delete] = {}
        for edit in edits:
            version = versions[edit.id]
            if _is_so(present.get(edit.id), edit.document):
                done.add(edit.id)
            elif edit.if_version in (None, version):
                if edit.document is None:
                    writes[edit.id] = Delete(collection, edit.id, version)
                else:
                    writes[edit.id] = Put(collection, edit.id, kept(edit.document, request.now), version)
        taken = await _taken(storage, collection, writes)
        while True:
            for id in taken:
                writes.pop(id, None)
            try:
                return await once.commit(_draft(versions, done, writes, taken), tuple(writes.values()))
            except Conflict as conflict:
                if conflict.reason != "unique":
                    raise
                taken[conflict.id] = conflict.field or ""

    return await retry(storage, [f"{collection.name}/{edit.id}" for edit in edits], attempt)


def _is_so(record: Record | None, document: bytes | None) -> bool:
    """Whether a record is what it is to be: the same but for white space."""
    if record is None or document is None:
        return record is None and document is None
    present = plain(record.document)
    return present == document or encode(decode(present)) == encode(decode(document))


async def _taken(storage: Storage, collection: Collection, writes: Mapping[str, Put | Delete]) -> dict[str, str]:
    """The writes whose value of a unique field another record holds, or one before them is to have, and the field.

    What the writes make of each other's records is not looked at: the commit finds it.
    """
    taken: dict[str, str] = {}
    for place, name in collection.unique:
        owners: dict[Value, str] = {}
        for id, write in writes.items():
            value = write.values[place] if isinstance(write, Put) else None
            if value is not None and owners.setdefault(value, id) != id:
                taken[id] = name
        if owners:
            found = await storage.find(Query(collection, (Filter(name, "in", tuple(owners)),)))
            for record in found.records:
                if record.id not in writes:
                    value = collection.values(record.decode(), strict=False)[place]
                    taken[owners[value]] = name
    return taken


def _draft(
    versions: Mapping[str, int], done: Container[str], writes: Container[str], taken: Mapping[str, str]
) -> Draft:
    applied: list[str | int] = []
    conflicts: list[dict[str, str]] = []
    written = 0
    for id, version in versions.items():
        if id in done or id in writes:
            applied.append(f'{"," if applied else ""}{{"id":{encode(id).decode()},"version":')
            if id in done:
                applied.append(str(version))
            else:
                written += 1
                applied.append(written)
            applied.append("}")
        else:
            conflicts.append({"id": id} | ({"taken": taken[id]} if id in taken else {}))
    return Draft(200, {}, ['{"applied":[', *applied, f'],"conflicts":{encode(conflicts).decode()}}}'])


async def _conflicts(request: ApiRequest, conflicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conflicts with the records that are there."""
    records = await request.storage.get(request.caller.storage, [conflict["id"] for conflict in conflicts])
    shown_conflicts: list[dict[str, Any]] = []
    for conflict in conflicts:
        record = records.get(conflict["id"])
        if record is None:
            shown_conflicts.append(conflict | {"version": ABSENT, "deleted": True})
        else:
            shown_conflicts.append(conflict | {"version": record.version, "record": msgspec.Raw(shown(record))})
    return shown_conflicts
