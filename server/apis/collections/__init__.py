"""Collections of anybody's documents (contracts/collections.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ....storage import ABSENT, Delete, InvalidDocument, Put, Record, retry
from ....storage.documents import decode
from ...errors import InvalidBody, NotFound, Problem
from ...keys import CLOCK, CONFIG, STORAGE
from ...operation import JSON
from ...request import Answer, ApiRequest
from . import changes, syncing  # noqa: F401  # declare their operations
from .access import may
from .api import api
from .changes import FIRST_READINGS, FirstReadings
from .fanout import FANOUT, Fanout
from .ids import check_id, check_id_in
from .preconditions import Preconditions, etag
from .records import kept, shown, without_meta
from .registry import COLLECTIONS, Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

_RECORD = "/collections/{collection}/{id}"


@api.get(_RECORD, returns={200: "collections#/$defs/Record", 304: None}, auth=may("read"))
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
    returns={200: "collections#/$defs/Record", 201: "collections#/$defs/Record"},
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
        version = await _version(request, id)
        preconditions.check(version)
        return await _put(request, id, body, version), not version

    record, created = await retry(request.storage, [_lock(request, id)], attempt)
    headers = etag(record.version) | (_location(request, id) if created else {})
    return Answer(shown(record), 201 if created else 200, headers)


@api.delete(_RECORD, returns={204: None}, auth=may("write"))
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


def parse(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """A body that has to be a JSON object, without its ``_meta``, and its value. Raises `InvalidBody`."""
    if not body:
        raise InvalidBody(problems=[Problem((), "is required")])
    try:
        document = decode(body)
    except InvalidDocument as error:
        raise InvalidBody(problems=[Problem((), error.message)]) from error
    if not isinstance(document, dict):
        raise InvalidBody(problems=[Problem((), "must be an object", "type")])
    document.pop("_meta", None)
    return without_meta(body), document


async def _find(request: ApiRequest, id: str) -> Record:
    record = (await request.storage.get(request.caller.storage, [id])).get(id)
    if record is None:
        raise NotFound("There is no such record")
    return record


async def _version(request: ApiRequest, id: str) -> int:
    record = (await request.storage.get(request.caller.storage, [id])).get(id)
    return ABSENT if record is None else record.version


async def _put(request: ApiRequest, id: str, body: bytes, if_version: int) -> Record:
    write = Put(request.caller.storage, id, kept(body, request.now), if_version)
    commit = await request.storage.commit([write])
    return Record(id, commit.versions[0], write.document)


def _lock(request: ApiRequest, id: str) -> str:
    return f"{request.caller.storage.name}/{id}"


def _location(request: ApiRequest, id: str) -> dict[str, str]:
    path = f"/collections/{request.caller.name}/{quote(id, safe='')}"
    return {"Location": request.config.server.base_path + path}


def _set_up(app: web.Application) -> None:
    app[COLLECTIONS] = Registry(app[CONFIG])


api.set_up = _set_up


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    await app[COLLECTIONS].open(app[STORAGE], app[CLOCK])
    app[FANOUT] = Fanout(app[STORAGE], app[COLLECTIONS])
    app[FIRST_READINGS] = FirstReadings()
    yield


api.lifespan = _lifespan


async def _reset(app: web.Application) -> None:
    await app[COLLECTIONS].reset()


api.reset = _reset
