"""Conditional requests: ``If-Match`` and ``If-None-Match`` (RFC 9110 13), on versions."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import hdrs

from ...errors import ApiError

if TYPE_CHECKING:
    from aiohttp import web

_TAG = re.compile(r'(W/)?"([^"]*)"')


class PreconditionFailed(ApiError):
    """412, with the version that the record has; 0 where there is none."""

    status = HTTPStatus.PRECONDITION_FAILED

    def __init__(self, version: int, message: str | None = None) -> None:
        state = f"is at version {version}" if version else "does not exist"
        super().__init__(message or f"The record {state}", headers=etag(version), extra={"version": version})


class Preconditions(NamedTuple):
    """What a request says of the record that it is meant for; None: nothing."""

    match: str | None
    none_match: str | None

    @classmethod
    def of(cls, request: web.Request) -> Preconditions:
        """The headers; several of one name are one list."""
        headers = request.headers
        match, none_match = (", ".join(headers.getall(name, ())) for name in (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH))
        return cls(match or None, none_match or None)

    def check(self, version: int) -> None:
        """For a write to a record at a version, 0 if there is none. Raises `PreconditionFailed`."""
        if not self._matches(version) or self.has(version):
            raise PreconditionFailed(version)

    def check_read(self, version: int) -> None:
        """`check` for a read, where ``If-None-Match`` asks for 304 instead (`has`)."""
        if not self._matches(version):
            raise PreconditionFailed(version)

    def has(self, version: int) -> bool:
        """Whether ``If-None-Match`` names the version: weakly, as RFC 9110 13.1.2 has it."""
        return self.none_match is not None and _names(self.none_match, version, weak=True)

    def _matches(self, version: int) -> bool:
        return self.match is None or _names(self.match, version, weak=False)


def _names(tags: str, version: int, *, weak: bool) -> bool:
    if not version:
        return False
    if tags.strip() == "*":
        return True
    return any(tag == str(version) and (weak or not prefix) for prefix, tag in _TAG.findall(tags))


def etag(version: int) -> dict[str, str]:
    """The header of a record at a version; none where there is no record."""
    return {"ETag": f'"{version}"'} if version else {}
