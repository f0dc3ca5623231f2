"""Lists, whole or a page at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .....storage import Query, Record, walk
from .....storage.documents import encode
from ....request import Answer
from ..records.documents import identified

if TYPE_CHECKING:
    from ....request import ApiRequest

Show = Callable[[dict[str, Any]], dict[str, Any]]
"""How a document is shown; it has the ``id`` among its members."""
_LIMIT = 50


async def listed(request: ApiRequest, query: Query, show: Show) -> Answer:
    """What a query finds: an array or, where the request asks for a ``page`` or a ``limit``, that in an envelope."""
    storage, paging = request.storage, request.query
    if "page" not in paging and "limit" not in paging:
        records = [record async for record in walk(storage, query)]
        return Answer(await asyncio.to_thread(_encoded, records, show))
    page, limit = paging.get("page", 1), paging.get("limit", _LIMIT)
    found = await storage.find(replace(query, limit=limit, offset=(page - 1) * limit, total=True))
    total = found.total or 0
    pagination = {"page": page, "limit": limit, "total": total, "total_pages": -(-total // limit)}
    data = [show(identified(record)) for record in found.records]
    return Answer({"data": data, "pagination": pagination})


def _encoded(records: Iterable[Record], show: Show) -> bytes:
    """A list may be long: for a thread, which lets the loop go on between any two of its items."""
    return b"[%b]" % b",".join([encode(show(identified(record))) for record in records])
