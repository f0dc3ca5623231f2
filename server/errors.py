"""What can go wrong with a request: the exceptions that handlers raise, and how each becomes an answer.

One place turns any exception into an `ApiError` (`as_api_error`); the API that owns the path renders that in its own
shape, its `Envelope` (contracts/README.md, "Whose path, whose envelope" and "Statuses").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from ..storage.documents import InvalidDocument
from ..storage.errors import StorageFull, StorageUnavailable
from .request import Answer

if TYPE_CHECKING:
    from .request import ApiRequest

log = logging.getLogger(__name__)

MAX_PROBLEMS = 100
"""How many problems of one request are listed."""
_RETRY_STORE = 5
"""Seconds until a store that was away is worth asking again."""

Envelope = Callable[["ApiError", "ApiRequest"], Answer]
"""The shape that an API gives its errors: makes the answer, with `ApiError.answer`. It tells nothing that the server
should keep to itself."""


class Problem(NamedTuple):
    """One thing that is wrong with a document, a query or a path.

    ``path``: the member names and array places that lead to it. ``message``: what must hold, such as "must be an
    integer of at least 0". ``keyword``: the schema's keyword that does not hold, or "" where it is no matter of the
    schema. ``schema_pointer``: where the keyword stands in the schema (RFC 6901).
    """

    path: tuple[str | int, ...]
    message: str
    keyword: str = ""
    schema_pointer: str = ""

    @property
    def field(self) -> str:
        """The place as people write it: ``entries[0].date``; ``body`` for the whole document."""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return text.removeprefix(".") or "body"

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer (RFC 6901): ``/entries/0/date``."""
        return json_pointer(self.path)


def json_pointer(path: Iterable[str | int]) -> str:
    """RFC 6901 3."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


class ApiError(Exception):
    """An answer that is no success.

    ``message`` is for people and tells what is wrong; it stands in the answer. ``code`` is for programs, where an API
    has a special one. ``headers`` go with the answer; ``extra`` are further members of its body, for the envelope to
    place. ``guess``: whether it counts as a failed authentication.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    message = "Internal server error"
    guess = False

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if status is not None:
            self.status = HTTPStatus(status)
        if message is not None:
            self.message = message
        super().__init__(self.message)
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})
        self.extra: dict[str, Any] = dict(extra or {})

    @property
    def problems(self) -> Sequence[Problem]:
        """What is wrong, place by place; at most `MAX_PROBLEMS`."""
        return ()

    def answer(self, body: Any, content_type: str = "application/json") -> Answer:
        """The answer with this body; for envelopes."""
        return Answer(body, self.status, self.headers, content_type)


class BadRequest(ApiError):
    """400, with what is wrong and where."""

    status = HTTPStatus.BAD_REQUEST
    message = "Invalid request"

    def __init__(
        self, message: str | None = None, problems: Iterable[Problem] = (), *, extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, extra=extra)
        self._problems = tuple(problems)[:MAX_PROBLEMS]

    @property
    def problems(self) -> Sequence[Problem]:
        return self._problems


class InvalidBody(BadRequest):
    """400: the body is not JSON, or not what the schema asks for."""

    message = "Invalid request body"


class InvalidParameters(BadRequest):
    """400: the path or the query is not what the schema asks for."""

    message = "Invalid request parameters"


class Unauthorized(ApiError):
    """401. Who fails to say who they are too often is refused for a while (`RateLimited`)."""

    status = HTTPStatus.UNAUTHORIZED
    message = "Missing or invalid credentials"
    guess = True


class Forbidden(ApiError):
    """403."""

    status = HTTPStatus.FORBIDDEN
    message = "Not allowed"


class NotFound(ApiError):
    """404."""

    status = HTTPStatus.NOT_FOUND
    message = "Not found"


class MethodNotAllowed(ApiError):
    """405, with the methods that are."""

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"Method {method} is not allowed; use one of {allow}", headers={"Allow": allow})


class TooLarge(ApiError):
    """413."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request body is larger than {limit:,} bytes")


class UnsupportedMediaType(ApiError):
    """415."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Misdirected(ApiError):
    """421: the Host is none of ours (RFC 9110 15.5.20)."""

    status = HTTPStatus.MISDIRECTED_REQUEST
    message = "This server does not serve the host that was asked for; allowed_hosts lists the ones it does"


class RateLimited(ApiError):
    """429. ``retry_after``: whole seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, retry_after: int, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            f"Rate limit exceeded. Try again in {retry_after} seconds",
            headers={"Retry-After": str(retry_after), **(headers or {})},
        )
        self.retry_after = retry_after


class ServiceUnavailable(ApiError):
    """503, with when to try again (seconds)."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    message = "Service unavailable"

    def __init__(self, message: str | None = None, *, retry_after: int = _RETRY_STORE) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class InsufficientStorage(ApiError):
    """507: there is no room to write."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    message = "Storage is full"


def as_api_error(error: Exception) -> ApiError:
    """The answer to an exception. One that is nobody's doing but ours is logged here, once, with its traceback."""
    match error:
        case ApiError():
            return error
        case StorageFull():
            log.error("the store is full: %s", error)
            return InsufficientStorage()
        case StorageUnavailable():
            log.error("the store is unavailable: %s", error)
            return ServiceUnavailable()
        case web.HTTPException():
            headers = {name: value for name, value in error.headers.items() if name.lower() != "content-type"}
            return ApiError(error.reason, status=error.status, headers=headers)
        case InvalidDocument():
            return InvalidBody(problems=[Problem((error.field,) if error.field else (), error.message)])
    log.error("a request failed", exc_info=error)
    return ApiError()


def problem_details(error: ApiError, request: ApiRequest) -> Answer:
    """A problem document (RFC 9457): what every path answers that no API with a shape of its own owns."""
    body: dict[str, Any] = {"title": error.status.phrase, "status": error.status.value, "detail": error.message}
    if error.problems:
        body["errors"] = [
            {
                "field": problem.field,
                "pointer": problem.pointer,
                "message": problem.message,
                "schema_pointer": problem.schema_pointer,
            }
            for problem in error.problems
        ]
    return error.answer(body | error.extra, "application/problem+json")
