"""Console usage: a scraper pushes what the console says of its limits, widgets read the newest
(contracts/console-usage.md)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from ....storage.documents import decode, encode
from ....storage.times import MINUTE, SECOND, format_time, parse_time
from ...auth import guard, same_secret
from ...errors import ApiError, NotFound, Unauthorized, as_api_error
from ...jobs import Job
from ...keys import CLOCK, CONFIG, STORAGE
from ...operation import Api
from ...request import Answer, ApiRequest
from .history import SNAPSHOTS, History, Kept, Place

log = logging.getLogger(__name__)

_PATH = "/api/claude/console-usage"
_HISTORY = web.AppKey("console_usage_history", History)
_VERSION = re.compile(r"-?[1-9][0-9]{0,17}")
_ETAG = re.compile(r'"([^"]*)"')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _envelope(error: ApiError, request: ApiRequest) -> Answer:
    """Scrapers are told ``success``, and with what is wrong where; widgets an ``error``."""
    if request.raw.method in ("GET", "HEAD"):
        return error.answer({"error": error.code or error.status.phrase, "message": error.message, **error.extra})
    body: dict[str, Any] = {"success": False, "message": error.message, "timestamp": format_time(request.now)}
    if error.problems:
        first = error.problems[0]
        body["message"] = f"Invalid data: {first.field} {first.message}"
        body["errors"] = [{"field": problem.field, "message": problem.message} for problem in error.problems]
    return error.answer(body)


api = Api(
    "console_usage",
    _envelope,
    title="Snapshots of console limits that a scraper pushes and widgets read.",
    error="console_usage#/$defs/Error",
    collections=(SNAPSHOTS,),
)


@guard("api_key", optional=True)
async def _scraper(request: ApiRequest) -> None:
    """Who has the key or, where none is set on a server that is not exposed, who calls from this machine."""
    key = request.config.apis.console_usage.api_key
    if key is None and request.client.loopback and not request.config.exposed:
        return
    presented = request.raw.headers.get("X-API-Key")
    if not same_secret(presented, key):
        raise Unauthorized("Invalid API key" if presented else "Missing API key")


@api.post(
    _PATH,
    body="console_usage#/$defs/Snapshot",
    returns={200: "console_usage#/$defs/Synced"},
    auth=_scraper,
)
async def sync(request: ApiRequest) -> dict[str, Any]:
    """Keeps a snapshot as the newest version."""
    try:
        snapshot = await request.app[_HISTORY].add(request.body)
    except Exception as error:
        as_api_error(error)  # which logs it
        raise ApiError("Storage write failed") from error
    age = max(0, snapshot.accepted - parse_time(request.document["lastUpdated"]))
    at = format_time(snapshot.accepted)
    log.info("console usage %d synced at %s: the data is %d seconds old", snapshot.number, at, age // SECOND)
    return {"success": True, "message": "Usage data synced", "timestamp": at}


@api.get(
    _PATH,
    query="console_usage#/$defs/SnapshotQuery",
    reads={"headers": "headers#/$defs/IfNewer"},
    returns={200: "console_usage#/$defs/Reading", 304: None},
    gives={200: "headers#/$defs/Dated", 304: "headers#/$defs/Dated"},
    errors=(404,),
    error="console_usage#/$defs/ReadingError",
)
async def read(request: ApiRequest) -> Answer:
    """The newest snapshot, or another that is kept, with its gaps filled and its age."""
    kept = await request.app[_HISTORY].kept()
    if kept is None:
        raise NotFound("No synced data found", code="No data available", extra={"versionsAvailable": 0})
    snapshot, current = await _chosen(kept, request.query)
    members = await kept.filled(snapshot)
    updated = parse_time(decode(bytes(snapshot.members["lastUpdated"])))
    age = max(0, request.now - updated)
    minutes = (age + MINUTE // 2) // MINUTE
    stale = minutes > request.config.apis.console_usage.stale_minutes
    modified = _EPOCH + timedelta(seconds=updated // SECOND)
    tag = hashlib.sha256(encode([snapshot.number, snapshot.accepted, stale, members])).hexdigest()[:32]
    headers = {
        "ETag": f'W/"{tag}"',  # weak: the answer's age goes on while the tag stays
        "Last-Modified": format_datetime(modified, usegmt=True),
        "Cache-Control": _cache_control(age),
    }
    if _has(request.raw, tag, modified):
        return Answer(status=304, headers=headers)
    reading = {
        "isStale": stale,
        "ageMinutes": minutes,
        "source": "ec2-sync",
        "versionInfo": {
            "current": current,
            "total": kept.total,
            "timestamp": format_time(snapshot.accepted),
            "filename": f"console-usage-{snapshot.number}.json",
        },
    }
    return Answer(members | reading, headers=headers)


async def _chosen(kept: Kept, query: Mapping[str, str]) -> Place:
    """The snapshot that a query names, the newest if none. Raises 400."""
    version, timestamp = query.get("version"), query.get("timestamp")
    valid = {"validRange": f"1 to {kept.total}, or -{kept.total} to -1"}
    if version and timestamp:
        message = "version and timestamp cannot be given together"
        raise ApiError(message, status=400, code="Invalid query", extra=valid)
    if version:
        number = int(version) if _VERSION.fullmatch(version) else 0
        place = number if number > 0 else kept.total + 1 + number
        found = await kept.at(place) if number and 1 <= place <= kept.total else None
        if found is None:
            message = f"version must be {valid['validRange']}"
            raise ApiError(message, status=400, code="Invalid version", extra=valid)
        return found
    if timestamp:
        try:
            found = await kept.accepted_by(parse_time(timestamp))
            message = "timestamp is before every snapshot that is kept"
        except ValueError as error:
            found, message = None, f"timestamp {error}"
        if found is None:
            raise ApiError(message, status=400, code="Invalid timestamp", extra=valid)
        return found
    return Place(kept.newest, kept.total)


def _cache_control(age: int) -> str:
    if age < 5 * MINUTE:
        return "public, max-age=60"
    return "public, max-age=30" if age < 10 * MINUTE else "no-cache"


def _has(request: web.Request, tag: str, modified: datetime) -> bool:
    """Whether the client has it already (RFC 9110 13.2.2)."""
    if tags := ",".join(request.headers.getall("If-None-Match", ())):
        return tags.strip() == "*" or tag in _ETAG.findall(tags)
    since = request.if_modified_since
    return since is not None and modified <= since


async def _forget_old(app: web.Application) -> None:
    if removed := await app[_HISTORY].forget_old():
        log.info("removed %d old console usage snapshots", removed)


api.jobs.append(Job("console usage retention", "0 3 * * *", _forget_old))


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    path = app[STORAGE].path
    folder = path if path is not None and await asyncio.to_thread(path.is_dir) else None
    app[_HISTORY] = history = History(app[STORAGE], app[CLOCK], app[CONFIG].apis.console_usage, folder)
    await history.publish()
    yield


async def _reset(app: web.Application) -> None:
    await app[_HISTORY].unpublish()


api.lifespan = _lifespan
api.reset = _reset
