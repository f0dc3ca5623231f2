"""Taking in an audio file: multipart/form-data (RFC 7578), straight to the disk and never whole in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from multipart import (  # type: ignore[import-untyped]  # it has types, but does not say so (PEP 561)
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from ...bodies import stream_body
from ...errors import BadRequest, InsufficientStorage, Problem, TooLarge

if TYPE_CHECKING:
    from aiohttp import web

MAX_FILE = 25 << 20
MAX_BODY = MAX_FILE + (1 << 20)
"""With all that a form has besides the file."""
INVALID = "Invalid audio file"
_TOO_LARGE = "Audio file too large. Max size: 25 MB"
_MAX_PARTS = 20
_MAX_FIELD = 1024
"""Bytes."""
_A_WRITE = 256 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Upload(NamedTuple):
    """``file``: open, and on the disk. ``sha256``: of it. ``fields``: those of the form that were asked for."""

    file: BinaryIO
    sha256: str
    fields: Mapping[str, str]


@asynccontextmanager
async def received(request: web.Request, fields: tuple[str, ...]) -> AsyncIterator[Upload]:
    """The part ``file`` of a form and these fields; other parts are dropped. The file has no name that anybody could
    open, and is gone afterwards.

    Raises `BadRequest`, `InsufficientStorage` where the disk is full, and what `stream_body` does.
    """
    with _storing():
        # Here, where it takes no time: what a thread opens is lost where this is cancelled.
        file = TemporaryFile()  # noqa: SIM115  # it is closed on a thread
    try:
        yield await _receive(request, _Spool(file), fields)
    finally:
        with suppress(OSError):  # of what was not written before, which nobody wants any more
            await asyncio.to_thread(file.close)


async def _receive(request: web.Request, spool: _Spool, names: tuple[str, ...]) -> Upload:
    fields: dict[str, bytearray] = {}
    name = ""
    try:
        with PushMultipartParser(_boundary(request), max_segment_count=_MAX_PARTS) as parser:
            async for chunk in stream_body(request, MAX_BODY):
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        name = event.name
                        if name == "file":
                            spool.begin()
                        elif name in names:
                            fields[name] = bytearray()  # of several the last counts
                    elif event and name == "file":
                        await spool.write(event)
                    elif event and name in names:
                        fields[name] += event
                        if len(fields[name]) > _MAX_FIELD:
                            raise _invalid(name, f"must have at most {_MAX_FIELD} bytes")
    except MultipartError as error:
        raise BadRequest("The request body is not valid multipart/form-data") from error
    except TooLarge as error:
        raise BadRequest(_TOO_LARGE) from error
    await spool.finish()
    return Upload(spool.file, spool.sha256, {name: _text(name, bytes(value)) for name, value in fields.items()})


def _boundary(request: web.Request) -> str:
    boundary: str | None = parse_options_header(request.headers["Content-Type"])[1].get("boundary")
    if boundary is None:
        raise BadRequest("Content-Type has no boundary")
    return boundary


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(name, "must be UTF-8") from None


def _invalid(name: str, message: str) -> BadRequest:
    return BadRequest(problems=[Problem((name,), message)])


class _Spool:
    """A file on its way to the disk, written and hashed on threads, a good piece at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._hash = sha256()
        self._begun = False
        self._size = 0
        self._waiting = bytearray()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def begin(self) -> None:
        if self._begun:
            raise _invalid("file", "must come once")
        self._begun = True

    async def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_FILE:
            raise BadRequest(_TOO_LARGE)
        self._waiting += data
        if len(self._waiting) >= _A_WRITE:
            await self._flush()

    async def finish(self) -> None:
        """Raises `BadRequest` for an empty file, or none."""
        if not self._size:
            raise BadRequest(INVALID)
        await self._flush()

    async def _flush(self) -> None:
        data, self._waiting = self._waiting, bytearray()
        with _storing():
            await asyncio.to_thread(self._store, data)

    def _store(self, data: bytearray) -> None:
        self._hash.update(data)
        self.file.write(data)
        self.file.flush()


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorage from error
        raise
