"""Taking in what clients upload, and giving it back or up (contracts/leaderboard.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from ....storage.times import format_time, parse_time
from ...api_keys import API_KEYS, Key, bearer
from ...errors import Forbidden, InvalidBody, Problem
from ...request import Answer, ApiRequest
from .api import PER_KEY, api
from .board import dollars
from .documents import USERS, Row
from .ledger import Entry, Ledger
from .periods import latest_day
from .statistics import STATISTICS

_MAX_BODY = 10 << 20
_MICROS = 1_000_000
_STEP = 500
"""Entries that are read before others have their turn."""


_MAY_NOT_SYNC = "API key does not have permission to sync data"


@api.post(
    "/v1/sync",
    body="leaderboard#/$defs/SyncRequest",
    returns={200: "leaderboard#/$defs/SyncResponse"},
    links={f"{path}/{{username}}": {"username": "$request.body#/entries/0/username"} for path in ("/v1/user", "/user")},
    auth=bearer("sync", refusal=_MAY_NOT_SYNC),
    limits=(PER_KEY,),
    max_body=_MAX_BODY,
)
async def sync(request: ApiRequest) -> dict[str, Any]:
    """Keeps a user's days, all or none. The latest timestamp counts; older ones are processed and change nothing."""
    username = request.username
    posted: Sequence[Mapping[str, Any]] = request.document["entries"]
    request.entries_count = len(posted)
    if username is None or any(entry["username"] != username for entry in posted):
        raise Forbidden(_MAY_NOT_SYNC)
    last = latest_day(request.now)
    early = [number for number, entry in enumerate(posted) if entry["date"] > last]
    if early:
        raise InvalidBody(problems=[Problem(("entries", n, "date"), "must not be in the future") for n in early])
    entries: list[Entry] = []
    for start in range(0, len(posted), _STEP):
        await asyncio.sleep(0)
        entries += map(_entry, posted[start : start + _STEP])
    await Ledger(request.storage).record(username, entries, request.now)
    request.app[STATISTICS].count(len(posted))
    return {
        "success": True,
        "message": f"Successfully synced {len(posted)} {'entry' if len(posted) == 1 else 'entries'}",
        "entriesProcessed": len(posted),
        "leaderboardUrl": f"{request.base_url}/user/{username}",
    }


def _entry(posted: Mapping[str, Any]) -> Entry:
    """What is kept of an entry: costs in millionths of a dollar, and the instant of its timestamp."""
    get = posted.get
    cost, timestamp = posted["totalCost"], posted["timestamp"]
    row = Row(
        timestamp,
        parse_time(timestamp),
        int(posted["totalTokens"]),
        cost * _MICROS if isinstance(cost, int) else _micros(cost),
        int(get("inputTokens", 0)),
        int(get("outputTokens", 0)),
        int(get("cacheCreationTokens", 0)),
        int(get("cacheReadTokens", 0)),
        get("modelsUsed", []),
        get("device"),
    )
    return posted["date"], row


def _micros(cost: float) -> int:
    micros = round(cost * _MICROS)
    if micros / _MICROS == cost:
        return micros  # it has six decimals or less, as nearly all have
    # A double's shortest decimal is what was sent; its binary value would round some halves the wrong way.
    return int((Decimal(repr(cost)) * _MICROS).to_integral_value(ROUND_HALF_EVEN))


@api.get(
    "/v1/user/data",
    returns={200: "leaderboard#/$defs/UserData"},
    gives={200: "headers#/$defs/Attached"},
    auth=bearer(),
    limits=(PER_KEY,),
)
async def download_data(request: ApiRequest) -> Answer:
    """Everything that is kept about the key's user."""
    key: Key = request.caller
    record = (await request.storage.get(USERS, [key.username])).get(key.username)
    keys = await request.app[API_KEYS].list(key.username)
    data = {
        "username": key.username,
        "lastSyncAt": record.decode().get("lastSyncAt") if record else None,
        "keys": [{"id": k.id, "scopes": sorted(k.scopes), "createdAt": format_time(k.created_at)} for k in keys],
        "entries": [
            _as_sent(key.username, day, row)
            async for day, kept in Ledger(request.storage).days(key.username)
            for row in kept.rows
        ],
    }
    disposition = f'attachment; filename="homeport-{key.username}.json"'
    return Answer(data, headers={"Content-Disposition": disposition, "Cache-Control": "no-store"})


def _as_sent(username: str, day: str, row: Row) -> dict[str, Any]:
    entry = {
        "username": username,
        "date": day,
        "timestamp": row.timestamp,
        "totalTokens": row.tokens,
        "totalCost": dollars(row.cost_micros),
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
        "cacheCreationTokens": row.cache_creation_tokens,
        "cacheReadTokens": row.cache_read_tokens,
        "modelsUsed": row.models,
    }
    return entry if row.device is None else entry | {"device": row.device}


@api.delete(
    "/v1/user/data",
    returns={200: "leaderboard#/$defs/Deleted"},
    auth=bearer("sync", refusal=_MAY_NOT_SYNC),
    limits=(PER_KEY,),
)
async def delete_data(request: ApiRequest) -> dict[str, Any]:
    """Removes every entry and total of the key's user, and nothing else."""
    key: Key = request.caller
    deleted = await Ledger(request.storage).forget(key.username)
    return {"success": True, "message": "All data deleted successfully", "entriesDeleted": deleted}
