"""What the operations of sessions share: the API they belong to, its errors, and who may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...auth import guard, presented_key, same_secret
from ...config import ConfigError
from ...errors import ApiError, Unauthorized
from ...keys import CONFIG
from ...operation import Api
from ...request import Answer, ApiRequest

if TYPE_CHECKING:
    from aiohttp import web

_TYPES = {400: "Validation error", 413: "Payload too large", 500: "Internal server error"}
"""Where they differ from the name of the status."""
_SMALL, _BIG = {"code": "too_small"}, {"code": "too_big"}
_ISSUES = {
    "enum": {"code": "invalid_enum_value"},
    "format": {"code": "invalid_string"},
    "maxItems": _BIG,
    "maxLength": _BIG,
    "maximum": _BIG,
    "minItems": _SMALL,
    "minLength": _SMALL,
    "minimum": _SMALL,
    "pattern": {"validation": "regex", "code": "invalid_string"},
    "required": {"code": "invalid_type"},
    "type": {"code": "invalid_type"},
}
"""What a schema's keyword is called in ``details``: clients know Zod's issues."""


def _envelope(error: ApiError, request: ApiRequest) -> Answer:
    kind = error.code or _TYPES.get(error.status) or error.status.phrase.capitalize()
    body: dict[str, Any] = {"error": kind, "message": error.message}
    if error.problems:
        body["message"] = sentence(error)
        body["details"] = [
            {
                **_ISSUES.get(problem.keyword, {"code": "custom"}),
                "message": problem.message,
                "path": list(problem.path),
            }
            for problem in error.problems
        ]
    return error.answer(body | error.extra)


def sentence(error: ApiError) -> str:
    """What is wrong, or the first of it; most messages of problems go on from the name of the field."""
    if not error.problems:
        return error.message
    problem = error.problems[0]
    return problem.message if problem.message[0].isupper() else f"{problem.field} {problem.message}"


api = Api(
    "sessions",
    _envelope,
    title="Coding sessions in tmux, seen and steered from elsewhere.",
    error="sessions#/$defs/Error",
)


def id_in_path(request: ApiRequest) -> str:
    """The id that a path names, which clients may write in capitals."""
    id: str = request.path["id"]
    return id.lower()


@guard("bearer", "api_key", optional=True)
async def caller(request: ApiRequest) -> None:
    """Who may steer: callers on this machine, save where ``key_on_loopback`` closes that, and whoever has the key."""
    admit(request, presented_key(request))


def admit(request: ApiRequest, presented: str | None) -> None:
    """`caller` with the key that was presented. Raises `Unauthorized`."""
    if presented is None and request.client.loopback and not request.config.apis.sessions.key_on_loopback:
        return
    _demand(request, presented)


@guard("bearer", "api_key", optional=True)
async def key_holder(request: ApiRequest) -> None:
    """Who may register devices: whoever has the key or, where none is set, whoever may steer."""
    if request.config.apis.sessions.api_key is None:
        await caller.check(request)
    else:
        _demand(request, presented_key(request))


def _demand(request: ApiRequest, presented: str | None) -> None:
    if not same_secret(presented, request.config.apis.sessions.api_key):
        raise Unauthorized("Missing or invalid API key")


def _set_up(app: web.Application) -> None:
    config = app[CONFIG]
    if config.exposed and config.apis.sessions.api_key is None:
        raise ConfigError(
            [
                "apis.sessions.api_key: is not set (API_KEY), and sessions start programs on this machine; the server"
                f" is exposed ({'; '.join(config.exposed_by)}): set it, or leave sessions out of apis.enabled"
            ]
        )


api.set_up = _set_up
