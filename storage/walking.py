"""Every record that a query matches, however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from .base import Storage
from .queries import Query
from .records import Record

_PAGE = 500


async def walk(storage: Storage, query: Query) -> AsyncIterator[Record]:
    """The records of a query without a limit, in its order. They are read a page at a time: each page is of its own
    moment, and what others write in between may be among those that follow."""
    query = replace(query, limit=_PAGE)
    while True:
        page = await storage.find(query)
        for record in page.records:
            yield record
        if page.next is None:
            return
        query = replace(query, after=page.next)
