"""Bodies: what may come in, reading it within bounds, and how what goes out is compressed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import lru_cache

from aiohttp import hdrs, web

from .errors import ApiError, BadRequest, TooLarge, UnsupportedMediaType

COMPRESS_ABOVE = 1024
"""Bytes of an answer that are not worth compressing."""
_COMPRESSIBLE = re.compile(r"application/(.+\+)?json\b|text/")
_READ_SECONDS = 30
_READ_RATE = 5_000
"""A client may let us wait for its body for half a minute, and as long as it takes to send what came with so many bytes
a second."""


def check_head(request: web.Request, content_types: tuple[str, ...], max_bytes: int | None) -> None:
    """Raises `TooLarge` or `UnsupportedMediaType` for a body that is not worth reading. No types: any body will do;
    None: of any size."""
    if max_bytes is not None and (request.content_length or 0) > max_bytes:
        raise TooLarge(max_bytes)
    if not content_types:
        return
    headers = request.headers
    content_type = headers.get(hdrs.CONTENT_TYPE, "")
    if content_type not in content_types and content_type.partition(";")[0].strip().lower() not in content_types:
        raise UnsupportedMediaType(f"Content-Type must be {' or '.join(content_types)}")
    if headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted")


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The body. Raises what `stream_body` does."""
    content = request.content
    if content.is_eof() and content.exception() is None:  # it came together with the head, as small ones do
        body = content.read_nowait()
        if len(body) > max_bytes:
            raise TooLarge(max_bytes)
        return body
    return b"".join([part async for part in stream_body(request, max_bytes)])


async def stream_body(request: web.Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body, part by part as it comes.

    Raises `TooLarge`, `BadRequest` where it breaks off, and `ApiError` 408 where it takes too long.
    """
    if (request.content_length or 0) > max_bytes:
        raise TooLarge(max_bytes)
    clock = asyncio.get_running_loop().time
    patience, size = float(_READ_SECONDS), 0
    while True:
        begin = clock()
        try:
            async with asyncio.timeout(patience):
                part = await request.content.readany()
        except TimeoutError:
            raise ApiError("The request body took too long", status=408) from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise BadRequest("The request body is malformed or incomplete") from error
        if not part:
            return
        patience += len(part) / _READ_RATE - (clock() - begin)
        size += len(part)
        if size > max_bytes:
            raise TooLarge(max_bytes)
        yield part


def compress(response: web.Response, content_type: str, accept_encoding: str) -> None:
    """Compresses an answer of more than `COMPRESS_ABOVE` bytes, for a client that accepts it."""
    if not _COMPRESSIBLE.match(content_type):
        return
    response.headers[hdrs.VARY] = "Origin, Accept-Encoding"
    coding = _accepted_coding(accept_encoding)
    if coding is not None:
        response.enable_compression(coding)


@lru_cache(maxsize=256)
def _accepted_coding(accept_encoding: str) -> web.ContentCoding | None:
    """RFC 9110 12.5.3, of the codings that can be had."""
    weights = {}
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        weights[name.strip()] = parameters.replace(" ", "").partition("q=")[2]
    for coding in (web.ContentCoding.gzip, web.ContentCoding.deflate):
        weight = weights.get(coding.value, weights.get("*"))
        if weight is not None and (not weight or weight.strip("0.")):
            return coding
    return None
