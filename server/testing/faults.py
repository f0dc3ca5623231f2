"""What goes wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from ..errors import ApiError, RateLimited, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FAULTS = 1_000
"""How many may be set at once."""
_RETRY_AFTER = 1
"""Seconds; the least that clients can be told to wait."""
_ERRORS = frozenset(status.value for status in HTTPStatus if status >= 400)


@dataclass(slots=True)
class Fault:
    """Meets the next ``times`` requests for ``path`` or, where that ends in ``*``, for what begins so.

    ``method``: none is any but OPTIONS, which browsers send by themselves. One of the rest says what happens, before
    anything is done with the request: an error of this ``status`` as the path's API has it, a delay of ``delay_ms``
    milliseconds, or the connection breaks off. Raises ValueError where it is not exactly one, or makes no sense.
    """

    path: str
    method: str | None = None
    status: int | None = None
    delay_ms: int | None = None
    disconnect: bool = False
    times: int = 1

    def __post_init__(self) -> None:
        if (self.status is not None) + (self.delay_ms is not None) + self.disconnect != 1:
            raise ValueError("a fault has one of status, delay_ms and disconnect")
        if not self.path.startswith("/") or self.times < 1:
            raise ValueError("a fault has a path, /like/this or /like/*, and times of at least 1")
        if self.status is not None and self.status not in _ERRORS:
            raise ValueError("must be an error's status that HTTP has, such as 503")

    def meets(self, method: str, path: str) -> bool:
        """Whether it is meant for a request."""
        if method != (self.method or method) or (self.method is None and method == "OPTIONS"):
            return False
        return path.startswith(self.path[:-1]) if self.path.endswith("*") else path == self.path

    def error(self) -> ApiError:
        """The error of its ``status``."""
        match self.status:
            case None | HTTPStatus.INTERNAL_SERVER_ERROR:
                return ApiError()
            case HTTPStatus.TOO_MANY_REQUESTS:
                return RateLimited(_RETRY_AFTER)
            case HTTPStatus.SERVICE_UNAVAILABLE:
                return ServiceUnavailable(retry_after=_RETRY_AFTER)
        return ApiError(HTTPStatus(self.status).phrase, status=self.status)


class Faults:
    """The faults that are set, at most `MAX_FAULTS`."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        """In the order in which they were set; ``times`` is how often each acts still."""
        return iter(self._faults)

    def add(self, fault: Fault) -> None:
        """Raises ValueError where there are too many."""
        if len(self._faults) >= MAX_FAULTS:
            raise ValueError(f"at most {MAX_FAULTS:,} faults can be set at once")
        self._faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The first that is meant for a request, which uses it up by one."""
        for place, fault in enumerate(self._faults):
            if fault.meets(method, path):
                fault.times -= 1
                if not fault.times:
                    del self._faults[place]
                return fault
        return None

    def clear(self) -> None:
        """From now on nothing goes wrong."""
        self._faults.clear()
