"""The devices that push notifications go to, by their APNs tokens (contracts/sessions.md, "Devices")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .....storage import ABSENT, Collection, Conflict, Delete, Field, Put, Query, Record, retry
from .....storage.times import format_time, parse_time
from ....errors import BadRequest, NotFound
from ....request import ApiRequest
from ..api import api, key_holder

if TYPE_CHECKING:
    from .....storage import Storage

DEVICES = Collection("sessions_devices", (Field("updatedAt", "time", indexed=True),))
"""By token: the platform, and when it was registered last."""
MAX_DEVICES = 1_000
"""Of more, those that have not registered for longest go."""

_TOKEN = re.compile(r"[0-9A-Fa-f]{64}")


@api.post(
    "/api/devices/{name}",
    params="sessions#/$defs/RegisterPath",
    body="sessions#/$defs/Device",
    returns={200: "sessions#/$defs/Success"},
    links={"/api/devices/{token}": {"token": "$request.body#/token"}},
    errors=(404,),
    auth=key_holder,
)
async def register_device(request: ApiRequest) -> dict[str, Any]:
    """From now on the device gets push notifications. The ``name`` is ``register``: the path is shared with others."""
    storage = request.storage
    token = request.document["token"].lower()
    now = format_time(request.now)

    async def attempt() -> None:
        known = (await storage.get(DEVICES, [token])).get(token)
        platform = request.document.get("platform") or (known.decode()["platform"] if known else "ios")
        version = known.version if known else ABSENT
        writes: list[Put | Delete] = [Put(DEVICES, token, {"platform": platform, "updatedAt": now}, version)]
        if known is None:
            page = await storage.find(Query(DEVICES, sort=("updatedAt",), limit=1, total=True))
            if (page.total or 0) >= MAX_DEVICES:
                writes.append(Delete(DEVICES, page.records[0].id))
        await storage.commit(writes)

    await retry(storage, [DEVICES.name], attempt)
    return {"success": True}


@api.delete(
    "/api/devices/{token}",
    reads={"params": "sessions#/$defs/TokenPath"},
    returns={200: "sessions#/$defs/Success"},
    errors=(400, 404),
    auth=key_holder,
)
async def unregister_device(request: ApiRequest) -> dict[str, Any]:
    """From now on the device gets none."""
    token = request.path["token"]
    if not _TOKEN.fullmatch(token):
        raise BadRequest("Invalid APNs token format")
    commit = await request.storage.commit([Delete(DEVICES, token.lower())])
    if not commit.counts[0]:
        raise NotFound("Device token not found")
    return {"success": True}


async def forget(storage: Storage, device: Record, since: int | None) -> bool:
    """Removes a device that Apple says is gone, ``since`` a time (milliseconds since the epoch) if it says so; not one
    that has registered again after that, or while it was sent to. Whether it did."""
    if since is not None and parse_time(device.decode()["updatedAt"]) > since * 1000:
        return False
    try:
        await storage.commit([Delete(DEVICES, device.id, device.version)])
    except Conflict:
        return False
    return True


api.collections += (DEVICES,)
