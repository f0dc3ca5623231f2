"""Reading and writing records, one or many (contracts/collections.md, "Records" and "Reading many")."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from ....storage import ABSENT, Conflict, Delete, Put, Record, retry
from ....storage.documents import encode
from ...errors import ApiError, NotFound, TooLarge
from ...idempotency import IDEMPOTENCY, Draft
from ...ids import new_id
from ...operation import JSON
from ...request import Answer, ApiRequest
from .access import may
from .api import api
from .batch import apply, read_operations
from .ids import check_id, check_id_in, id_in
from .patching import merged
from .preconditions import Preconditions, etag
from .queries import read_page, read_query
from .records import kept, parse, plain, shown, shown_around

if TYPE_CHECKING:
    from ...idempotency import Once, Text
    from .user_collection import UserCollection

_COLLECTION = "/collections/{collection}"
_RECORD = "/collections/{collection}/{id}"
_PATH = "collections#/$defs/RecordPath"
"""Other ids may name what is no record, and takes other methods: 405."""
_MERGE_PATCH = ("application/merge-patch+json", *JSON)
MAX_LARGE_BODY = 16 * 2**20
"""Bytes of a batch, or a sync."""


@api.get(
    _COLLECTION,
    reads={"query": "collections#/$defs/ListQuery"},
    returns={200: "collections#/$defs/Records"},
    gives={200: "headers#/$defs/Paged"},
    links={_COLLECTION: {"cursor": "$response.body#/next"}},
    errors=(400, 404),
    auth=may("read"),
)
async def list_records(request: ApiRequest) -> Answer:
    """Many records: filtered, sorted, a page at a time."""
    listing = read_query(request.caller.storage, request.raw.query.items())
    records, following, version = await read_page(request.storage, listing)
    body = b'{"records":[%b],"next":%b,"version":%d}' % (b",".join(records), encode(following), version)
    if following is None:
        return Answer(body)
    url = request.raw.rel_url.update_query(cursor=following)
    return Answer(body, headers={"Link": f'<{url}>; rel="next"'})


@api.post(
    _COLLECTION,
    content_types=JSON,
    reads={"headers": "headers#/$defs/Once", "body": "collections#/$defs/Document"},
    returns={201: "collections#/$defs/Record"},
    gives={201: "headers#/$defs/Created"},
    links={_RECORD: {"id": "$response.body#/_meta/id"}},
    errors=(404, 409, 422),
    auth=may("write"),
)
async def create(request: ApiRequest) -> Answer:
    """Creates a record, under its own ``id`` if it has one."""
    body, document = parse(request.body)
    collection: UserCollection = request.caller

    async def act(once: Once) -> Answer:
        id = check_id(said if (said := id_in(document)) is not None else new_id())
        await collection.verify(document, len(body))
        write = Put(collection.storage, id, kept(body, request.now), ABSENT)
        before, after = (part.decode() for part in shown_around(id, write.document))
        headers: dict[str, Text] = {"ETag": ['"', 1, '"'], "Location": [_location(request, id)]}
        try:
            return await once.commit(Draft(201, headers, [before, 1, after]), [write])
        except Conflict as conflict:
            raise _taken(conflict) from conflict

    return await request.app[IDEMPOTENCY].run(request, encode(document), act)


@api.post(
    f"{_COLLECTION}/batch",
    content_types=JSON,
    reads={"headers": "headers#/$defs/Once", "body": "collections#/$defs/Batch"},
    returns={200: "collections#/$defs/BatchResults"},
    links={_RECORD: {"id": "$response.body#/results/0/id"}},
    errors=(404, 409, 412, 422),
    auth=may("write"),
    max_body=MAX_LARGE_BODY,
)
async def batch(request: ApiRequest) -> Answer:
    """Up to 1,000 writes, all or none."""

    async def act(once: Once) -> Answer:
        operations = await read_operations(request.caller, request.body, request.now)
        request.entries_count = len(operations)
        return await apply(request.storage, request.caller, operations, once)

    return await request.app[IDEMPOTENCY].run(request, request.body, act)


@api.get(
    _RECORD,
    reads={"params": _PATH, "headers": "headers#/$defs/Reading"},
    returns={200: "collections#/$defs/Record", 304: None},
    gives={200: "headers#/$defs/Tagged", 304: "headers#/$defs/Tagged"},
    errors=(400, 404, 405, 412),
    auth=may("read"),
)
async def read(request: ApiRequest) -> Answer:
    """One record."""
    record = await _find(request, check_id(request.path["id"]))
    preconditions = Preconditions.of(request.raw)
    preconditions.check_read(record.version)
    if preconditions.has(record.version):
        return Answer(status=304, headers=etag(record.version))
    return Answer(shown(record), headers=etag(record.version))


@api.put(
    _RECORD,
    content_types=JSON,
    reads={"params": _PATH, "headers": "headers#/$defs/Writing", "body": "collections#/$defs/Document"},
    returns={200: "collections#/$defs/Record", 201: "collections#/$defs/Record"},
    gives={200: "headers#/$defs/Tagged", 201: "headers#/$defs/Created"},
    links={_RECORD: {}},
    errors=(404, 405, 409, 412),
    auth=may("write"),
)
async def put(request: ApiRequest) -> Answer:
    """Creates or replaces a record."""
    id = check_id(request.path["id"])
    body, document = parse(request.body)
    check_id_in(document, id)
    await request.caller.verify(document, len(body))
    preconditions = Preconditions.of(request.raw)

    async def attempt() -> tuple[Record, bool]:
        present = (await request.storage.get(request.caller.storage, [id])).get(id)
        version = ABSENT if present is None else present.version
        preconditions.check(version)
        return await _put(request, id, body, version), present is None

    record, created = await retry(request.storage, [_lock(request, id)], attempt)
    headers = etag(record.version)
    if created:
        headers["Location"] = _location(request, id)
    return Answer(shown(record), 201 if created else 200, headers)


@api.patch(
    _RECORD,
    content_types=_MERGE_PATCH,
    reads={"params": _PATH, "headers": "headers#/$defs/Writing", "body": "collections#/$defs/Patch"},
    returns={200: "collections#/$defs/Record"},
    gives={200: "headers#/$defs/Tagged"},
    errors=(404, 405, 409, 412),
    auth=may("write"),
)
async def patch(request: ApiRequest) -> Answer:
    """Merges a patch into a record (RFC 7396)."""
    id = check_id(request.path["id"])
    changes, _ = parse(request.body)
    preconditions = Preconditions.of(request.raw)
    largest = request.config.server.max_body_bytes

    async def attempt() -> Record:
        present = await _find(request, id)
        preconditions.check(present.version)
        body = merged(plain(present.document), changes)
        if len(body) > largest:
            raise TooLarge(largest)
        body, document = parse(body)
        check_id_in(document, id)
        await request.caller.verify(document, len(body))
        return await _put(request, id, body, present.version)

    record = await retry(request.storage, [_lock(request, id)], attempt)
    return Answer(shown(record), headers=etag(record.version))


@api.delete(
    _RECORD,
    reads={"params": _PATH, "headers": "headers#/$defs/Writing"},
    returns={204: None},
    errors=(400, 404, 405, 412),
    auth=may("write"),
)
async def delete(request: ApiRequest) -> Answer:
    """Removes a record."""
    id = check_id(request.path["id"])
    preconditions = Preconditions.of(request.raw)

    async def attempt() -> None:
        record = await _find(request, id)
        preconditions.check(record.version)
        await request.storage.commit([Delete(request.caller.storage, id, record.version)])

    await retry(request.storage, [_lock(request, id)], attempt)
    return Answer(status=204)


async def _find(request: ApiRequest, id: str) -> Record:
    record = (await request.storage.get(request.caller.storage, [id])).get(id)
    if record is None:
        raise NotFound("There is no such record")
    return record


async def _put(request: ApiRequest, id: str, body: bytes, if_version: int) -> Record:
    write = Put(request.caller.storage, id, kept(body, request.now), if_version)
    try:
        commit = await request.storage.commit([write])
    except Conflict as conflict:
        if conflict.reason == "unique":
            raise _taken(conflict) from conflict
        raise
    return Record(id, commit.versions[0], write.document)


def _lock(request: ApiRequest, id: str) -> str:
    return f"{request.caller.storage.name}/{id}"


def _taken(conflict: Conflict) -> ApiError:
    """409: a record has the id, or a value that no two may share."""
    what = f"There is a record {conflict.id}" if conflict.reason == "version" else f"{conflict.field} is taken"
    return ApiError(what, status=HTTPStatus.CONFLICT)


def _location(request: ApiRequest, id: str) -> str:
    return f"{request.config.server.base_path}/collections/{request.caller.name}/{quote(id, safe='')}"
