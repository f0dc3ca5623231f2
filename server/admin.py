"""What belongs to the server itself: health, metrics, and API keys for who administers it (contracts/README.md,
"Admin")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from ..storage.times import format_time
from .api_keys import API_KEYS, DEFAULT_SCOPES, KEYS, SCOPES, USERS, ApiKeys, Key, NoSuchKey
from .auth import holders_of, loopback_or
from .description import add_description
from .health import add_health, with_health
from .idempotency import ANSWERS, IDEMPOTENCY, Idempotency
from .jobs import Job
from .keys import CLOCK, STORAGE
from .operation import Api
from .request import Answer, ApiRequest

if TYPE_CHECKING:
    from aiohttp import web

    from .config import Config, Secret
    from .endpoint import Core


def _admin_key(config: Config) -> Secret | None:
    return config.server.admin_key


_ADMIN = holders_of(_admin_key)
_NO_STORE = {"Cache-Control": "no-store"}


def system_api(core: Core, apis: Sequence[Api], bcrypt_cost: int | None = None) -> Api:
    """The API of an application that has these others; it makes the application's `ApiKeys`, with this cost."""
    api = Api("system", title="The server itself, and its API keys.", collections=(KEYS, USERS, ANSWERS))

    async def with_what_all_use(app: web.Application) -> AsyncIterator[None]:
        keys = app[API_KEYS] = ApiKeys(app[STORAGE], app[CLOCK], bcrypt_cost)
        app[IDEMPOTENCY] = Idempotency(app[STORAGE], app[CLOCK])
        try:
            async with with_health(app):
                yield
        finally:
            await asyncio.to_thread(keys.close)

    api.lifespan = with_what_all_use
    api.jobs.append(Job("idempotency keys", "17 * * * *", _forget_old_answers))

    add_health(api)
    _add_metrics(api, core, apis)
    add_description(api)
    _add_keys(api)
    return api


def _add_metrics(api: Api, core: Core, apis: Sequence[Api]) -> None:
    @api.get("/metrics", returns={200: None}, produces=("text/plain",), auth=loopback_or(_admin_key))
    async def metrics(_: ApiRequest) -> Answer:
        """What the server counts, for Prometheus."""
        from .metrics import exposition  # with its library it takes a while to import

        return await exposition(core, apis)


def _add_keys(api: Api) -> None:
    @api.get("/admin/keys", returns={200: "admin#/$defs/Keys"}, auth=_ADMIN)
    async def list_keys(request: ApiRequest) -> Answer:
        """By username, then the oldest first."""
        keys = await request.app[API_KEYS].list()
        return Answer({"keys": [describe(key) for key in keys]}, headers=_NO_STORE)

    @api.post(
        "/admin/keys",
        body="admin#/$defs/NewKey",
        returns={201: "admin#/$defs/ShownKey"},
        gives={201: "headers#/$defs/Located"},
        links={"/admin/keys/{id}": {"id": "$response.body#/id"}},
        errors=(409,),
        auth=_ADMIN,
    )
    async def create_key(request: ApiRequest) -> Answer:
        """A further key of a user, who may be new."""
        wanted = request.document
        key, text = await request.app[API_KEYS].create(wanted["username"], wanted.get("scopes", DEFAULT_SCOPES))
        location = f"{request.config.server.base_path}/admin/keys/{key.id}"
        return Answer(describe(key, text), 201, {"Location": location, **_NO_STORE})

    @api.post("/admin/keys/{id}/rotate", returns={200: "admin#/$defs/ShownKey"}, errors=(404,), auth=_ADMIN)
    async def rotate_key(request: ApiRequest) -> Answer:
        """The old text stops working as the new one begins to."""
        key, text = await request.app[API_KEYS].rotate(request.path["id"])
        return Answer(describe(key, text), headers=_NO_STORE)

    @api.delete("/admin/keys/{id}", returns={204: None}, errors=(404,), auth=_ADMIN)
    async def revoke_key(request: ApiRequest) -> Answer:
        """The key stops working at once."""
        if not await request.app[API_KEYS].revoke(request.path["id"]):
            raise NoSuchKey
        return Answer(status=204, headers=_NO_STORE)


async def _forget_old_answers(app: web.Application) -> None:
    await app[IDEMPOTENCY].forget_old()


def describe(key: Key, text: str | None = None) -> dict[str, Any]:
    """A key as it is shown, with its text where it is new."""
    shown = {
        "id": key.id,
        "username": key.username,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created_at": format_time(key.created_at),
    }
    return shown if text is None else {"key": text, **shown}
