"""Who may read and write a collection (contracts/collections.md, "key")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ...api_keys import API_KEYS
from ...auth import guard, presented_key, same_secret
from ...errors import Forbidden, Unauthorized
from .registry import COLLECTIONS

if TYPE_CHECKING:
    from ...auth import Guard
    from ...request import ApiRequest
    from .user_collection import UserCollection

Action = Literal["read", "write"]


def may(action: Action) -> Guard:
    """Whoever may do this to the collection that the path names; ``request.caller`` is the `UserCollection`.

    Raises `NotFound` where there is none.
    """

    @guard("bearer", "api_key", optional=True)
    async def authenticate(request: ApiRequest) -> UserCollection:
        # The path's parameters are read after this: the first is the collection.
        collection = request.app[COLLECTIONS].get(next(iter(request.raw.match_info.values())))
        await check_access(request, collection, action)
        return collection

    return authenticate


async def check_access(
    request: ApiRequest, collection: UserCollection, action: Action, presented: str | None = None
) -> None:
    """Returns if the collection is public, or a key was presented that opens it: one with the scope, or ADMIN_KEY.

    ``presented``: a key that did not come as keys do. Raises `Unauthorized` or `Forbidden`.
    """
    if (collection.read if action == "read" else collection.write) == "public":
        return
    presented = presented or presented_key(request)
    if same_secret(presented, request.config.server.admin_key):
        request.username = request.caller_id = "admin"
        return
    key = await request.app[API_KEYS].verify(presented)
    if key is None:
        raise Unauthorized("Invalid or missing API key", headers={"WWW-Authenticate": "Bearer"})
    request.username, request.caller_id = key.username, key.id
    if (scope := f"collections:{action}") not in key.scopes:
        raise Forbidden(f"The API key lacks the scope {scope}")
