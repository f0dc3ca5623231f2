"""What the operations of metering share: the API they belong to, and its errors."""

from __future__ import annotations

from typing import Any

from ...errors import ApiError, InsufficientStorage, RateLimited, ServiceUnavailable
from ...operation import Api
from ...request import Answer, ApiRequest
from .oauth.errors import answers_like_oauth, oauth_answer


def _envelope(error: ApiError, request: ApiRequest) -> Answer:
    if answers_like_oauth(request.raw.path):
        return oauth_answer(error)
    message = error.message
    if isinstance(error, RateLimited):
        message = "Rate limit exceeded"
    elif error.problems:
        first = error.problems[0]
        message = f"{first.field} {first.message}"
    elif error.message in (ServiceUnavailable.message, InsufficientStorage.message):
        message = ApiError.message  # whatever it is that does not work: the desktop app knows no other
    body: dict[str, Any] = {"success": False, "error": message}
    return error.answer(body | error.extra)


api = Api(
    "metering",
    _envelope,
    title="Prepaid tokens that a desktop app spends with a license key.",
    error="metering#/$defs/Error",
)
