"""What the leaderboard's operations share: the API they belong to, its errors, its limits and who may read."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ...api_keys import bearer
from ...auth import guard
from ...errors import ApiError, InvalidBody, RateLimited
from ...operation import Api
from ...ratelimit import DEFAULT_LIMIT, per_caller
from ...request import Answer, ApiRequest
from .documents import MONTHS, TOTALS, USERS

if TYPE_CHECKING:
    from ...config import Config

_CODES = {
    400: "INVALID_REQUEST",
    413: "PAYLOAD_TOO_LARGE",
    429: "RATE_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    507: "STORAGE_FULL",
}
"""Where they differ from the name of the status."""


def _envelope(error: ApiError, request: ApiRequest) -> Answer:
    body: dict[str, Any] = {
        "success": False,
        "message": error.message,
        "code": error.code or _CODES.get(error.status, HTTPStatus(error.status).name),
    }
    if error.problems:
        body["errors"] = [{"field": problem.field, "message": problem.message} for problem in error.problems]
    if isinstance(error, RateLimited):
        body["retryAfter"] = error.retry_after
    if isinstance(error, InvalidBody) and _asks_whose_key_it_is(request):
        body["username"] = request.username
    return error.answer(body | error.extra)


def _asks_whose_key_it_is(request: ApiRequest) -> bool:
    """Clients send a sync without entries for that."""
    document = request.document
    return request.username is not None and isinstance(document, dict) and not document.get("entries")


api = Api(
    "leaderboard",
    _envelope,
    title="Daily usage that clients upload, and the ranking of their users.",
    error="leaderboard#/$defs/Error",
    collections=(MONTHS, TOTALS, USERS),
)

PER_KEY = per_caller("leaderboard", lambda config: config.apis.leaderboard.rate_limit, headers=True)
READING = (DEFAULT_LIMIT, PER_KEY)
"""Of what anybody may read, where it is public: the address counts, and a key where one was asked for."""

_with_read = bearer("read")


@guard("bearer", optional=True)
async def reader(request: ApiRequest) -> object:
    """Whoever may read the ranking: anybody where it is public, else the keys with the scope ``read``."""
    return None if is_public(request.config) else await _with_read.check(request)


def is_public(config: Config) -> bool:
    """Whether reading takes no key."""
    public = config.apis.leaderboard.public
    return not config.exposed if public == "auto" else public
