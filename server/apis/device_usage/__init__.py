"""Device usage: clients on many machines push their totals, a user sees all machines together
(contracts/device-usage.md)."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping
from decimal import Context, Decimal
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import msgspec

from ....storage.times import DAY, format_time, parse_time
from ...auth import guard
from ...errors import ApiError, Forbidden, InvalidBody, InvalidParameters, NotFound, Problem
from ...jobs import Job
from ...keys import CLOCK, CONFIG, STORAGE
from ...operation import Api
from ...ratelimit import per_address, per_document
from ...request import Answer, ApiRequest
from .ledger import DEVICES, REPORTS, USERS, Admission, Ledger, Report, user_id
from .original import IMPORTS, import_original

if TYPE_CHECKING:
    from aiohttp import web

    from ...config import Config

log = logging.getLogger(__name__)

_GROUPS = {
    "usage": frozenset(("totalTokens", "inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens")),
    "sessions": frozenset(("total", "active", "averageDuration")),
    "costs": frozenset(("opus", "sonnet", "haiku", "actual")),
}
_EXACT = Context(prec=400)
"""Room for every digit from a double's least to the sum of the greatest costs."""
_KEPT = ("hostname", "timestamp", *_GROUPS, "hourlyUsage", "version")


def _envelope(error: ApiError, request: ApiRequest) -> Answer:
    """``status``, a ``message`` that says it all, since clients show that alone, and a ``detail`` for each field."""
    if error.status >= 500:
        return error.answer({"status": "error", "message": "Internal server error"})
    body: dict[str, Any] = {"status": "error", "message": error.message}
    if error.problems:
        body["detail"] = [{"field": problem.field, "message": problem.message} for problem in error.problems]
        if not isinstance(error, InvalidBody):
            body["message"] = f"{error.problems[0].field} {error.problems[0].message}"
    return error.answer(body)


api = Api(
    "device_usage",
    _envelope,
    title="Usage totals that clients on many machines push, seen together.",
    error="device_usage#/$defs/Error",
    collections=(REPORTS, DEVICES, USERS, IMPORTS),
)


def _rate(config: Config) -> str:
    return config.apis.device_usage.rate_limit


_LIMITS = (
    per_address("device_usage", _rate),
    per_document("device_usage", _rate, lambda request: _key(request).lower()),
)


def _key(request: ApiRequest) -> str:
    key: str = request.path["user_key"] if "user_key" in request.path else request.document["userKey"]
    return key


@guard()
async def _from_allowed_network(request: ApiRequest) -> None:
    allowed = request.config.apis.device_usage.allow_networks
    if allowed and not _is_in(request.client.address, allowed):
        raise Forbidden("This server does not take requests from your network")


@lru_cache(maxsize=4096)
def _is_in(address: str, networks: tuple[str, ...]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket's other end has none
        return False
    return any(ip in ipaddress.ip_network(network, strict=False) for network in networks)


_USER = {"user_key": "$request.body#/userKey"}
"""Where it stands in a sync."""


@api.get("/", returns={200: "device_usage#/$defs/Health"})
async def health(request: ApiRequest) -> dict[str, Any]:
    """That the server runs, and which version it is."""
    from .... import __version__

    return {
        "status": "healthy",
        "message": "Homeport sync server is running",
        "data": {"version": __version__, "timestamp": format_time(request.now)},
    }


@api.post(
    "/api/sync",
    body="device_usage#/$defs/SyncRequest",
    returns={200: "device_usage#/$defs/SyncResponse"},
    links={
        "/api/stats/{user_key}": _USER,
        "/api/devices/{user_key}": _USER,
        "/api/history/{user_key}": _USER,
        "/api/device/{user_key}/{hostname}": _USER | {"hostname": "$request.body#/hostname"},
    },
    auth=_from_allowed_network,
    limits=_LIMITS,
)
async def sync(request: ApiRequest) -> dict[str, Any]:
    """Keeps a report. The same device and instant again replaces; late ones are kept and never become the latest."""
    posted = request.document
    hostname, timestamp = posted["hostname"], posted["timestamp"]
    instant = parse_time(timestamp)
    if instant > request.now + DAY:
        raise InvalidBody(problems=[Problem(("timestamp",), "must not be more than 24 hours ahead")])
    settings = request.config.apis.device_usage
    admission = Admission(settings.registration == "closed", settings.max_users, settings.max_devices_per_user)
    report = Report(hostname, instant, _kept(posted))
    await Ledger(request.storage).record(user_id(posted["userKey"]), [report], admission)
    return {
        "status": "success",
        "message": f"Data synced successfully for {hostname}",
        "data": {"hostname": hostname, "tokens": posted["usage"]["totalTokens"], "timestamp": timestamp},
    }


def _kept(posted: Mapping[str, Any]) -> dict[str, Any]:
    """A report without its key and without fields that the contract does not know."""
    kept = {name: posted[name] for name in _KEPT}
    for group, names in _GROUPS.items():
        if not names.issuperset(posted[group]):
            kept[group] = {name: value for name, value in posted[group].items() if name in names}
    return kept


@api.get(
    "/api/stats/{user_key}",
    params="device_usage#/$defs/UserPath",
    returns={200: "device_usage#/$defs/StatsResponse"},
    errors=(404,),
    auth=_from_allowed_network,
    limits=_LIMITS,
)
async def stats(request: ApiRequest) -> dict[str, Any]:
    """All devices together, each by its newest report, most tokens first."""
    reports = await _newest(request)
    if not reports:
        raise NotFound("No data found for this user")
    rows = [
        {"hostname": r["hostname"], "lastSeen": r["timestamp"], "totalTokens": int(r["usage"]["totalTokens"])}
        for r in reports
    ]
    rows.sort(key=lambda row: (-row["totalTokens"], row["hostname"]))
    return {
        "devices": rows,
        "totalTokens": sum(row["totalTokens"] for row in rows),
        "totalCost": reduce(_EXACT.add, (_cost(report["costs"]) for report in reports), Decimal()),
    }


async def _newest(request: ApiRequest) -> list[dict[str, Any]]:
    """The newest report of each device of the request's user."""
    user, ledger = user_id(_key(request)), Ledger(request.storage)
    reports = await ledger.newest(user)
    request.guess = not reports and not await ledger.knows(user)
    return reports


def _cost(costs: Mapping[str, Any]) -> Decimal:
    """What a device's usage cost: ``actual`` or, where that is 0 or absent, ``opus``, as clients send them."""
    # A double's shortest decimal is what was sent; its binary value would make three times 0.1 more than 0.3.
    return Decimal(repr(costs.get("actual") or costs["opus"]))


@api.get(
    "/api/devices/{user_key}",
    params="device_usage#/$defs/UserPath",
    returns={200: "device_usage#/$defs/DevicesResponse"},
    auth=_from_allowed_network,
    limits=_LIMITS,
)
async def devices(request: ApiRequest) -> dict[str, Any]:
    """The user's devices, the one heard last first."""
    reports = await _newest(request)
    reports.sort(key=lambda report: (-parse_time(report["timestamp"]), report["hostname"]))
    rows = [{"hostname": report["hostname"], "last_seen": report["timestamp"]} for report in reports]
    return {"status": "success", "data": {"devices": rows}}


@api.delete(
    "/api/device/{user_key}/{hostname}",
    params="device_usage#/$defs/DevicePath",
    returns={200: "device_usage#/$defs/Removed"},
    errors=(404,),
    auth=_from_allowed_network,
    limits=_LIMITS,
)
async def remove_device(request: ApiRequest) -> dict[str, Any]:
    """Forgets a device and all of its reports."""
    hostname = request.path["hostname"]
    user, ledger = user_id(_key(request)), Ledger(request.storage)
    if not await ledger.remove_device(user, hostname):
        request.guess = not await ledger.knows(user)
        raise NotFound(f"No device {hostname} found for this user")
    return {"status": "success", "message": f"Device {hostname} removed"}


@api.get(
    "/api/history/{user_key}",
    params="device_usage#/$defs/UserPath",
    query="device_usage#/$defs/HistoryQuery",
    returns={200: "device_usage#/$defs/HistoryResponse"},
    links={"/api/history/{user_key}": {"cursor": "$response.body#/data/next"}},
    auth=_from_allowed_network,
    limits=_LIMITS,
)
async def history(request: ApiRequest) -> dict[str, Any]:
    """The kept reports, newest first."""
    query = request.query
    user, ledger = user_id(_key(request)), Ledger(request.storage)
    begin, end = (parse_time(query[name]) if name in query else None for name in ("from", "to"))
    try:
        reports, following = await ledger.history(
            user, query.get("hostname"), begin, end, query["limit"], query.get("cursor")
        )
    except ValueError as error:
        raise InvalidParameters(problems=[Problem(("cursor",), "must be a `next` of this history")]) from error
    request.guess = not reports and not await ledger.knows(user)
    return {"status": "success", "data": {"reports": [msgspec.Raw(report) for report in reports], "next": following}}


async def _forget_old(app: web.Application) -> None:
    days = app[CONFIG].apis.device_usage.retention_days
    removed = await Ledger(app[STORAGE]).forget_before(app[CLOCK].now() - days * DAY)
    if removed:
        log.info("removed %d device reports older than %d days", removed, days)


api.jobs.append(Job("device usage retention", "0 3 * * *", _forget_old))


async def _lifespan(app: web.Application) -> AsyncIterator[None]:
    await import_original(app[CONFIG].storage.url, app[STORAGE])
    yield


api.lifespan = _lifespan
