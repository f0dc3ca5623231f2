"""Errors as OAuth clients know them."""

from __future__ import annotations

from http import HTTPStatus

from ....errors import ApiError
from ....request import Answer

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""RFC 6749 5.1."""
_CODES = {
    HTTPStatus.TOO_MANY_REQUESTS: "temporarily_unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE: "temporarily_unavailable",
}
_FORBIDDEN = str.maketrans('"\\', "'/")
_PATHS = ("/oauth2/token", "/oauth2/revoke")


class OAuthError(ApiError):
    """400, with a code of RFC 6749 (4.1.2.1 and 5.2)."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, code: str, message: str, *, status: int | None = None, challenge: str | None = None) -> None:
        super().__init__(
            message, code=code, status=status, headers={"WWW-Authenticate": challenge} if challenge else None
        )


class InvalidRequest(OAuthError):
    """400: a parameter is missing, repeated or not what it should be."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_request", message)


class InvalidGrant(OAuthError):
    """400: a code or refresh token that is good for nothing, or not for this."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_grant", message)


def answers_like_oauth(path: str) -> bool:
    """Whether errors on a path have the shape of RFC 6749 5.2."""
    return path.endswith(_PATHS)


def oauth_answer(error: ApiError) -> Answer:
    """An error in that shape; those that the RFC has no code for have one of its 4.1.2.1."""
    code = error.code if isinstance(error, OAuthError) else _CODES.get(error.status)
    if code is None:
        code = "server_error" if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
    error.headers.update(NO_STORE)
    return error.answer({"error": code, "error_description": error.message.translate(_FORBIDDEN)})
