"""Every record that a query matches, however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from .base import Storage
from .queries import Query
from .records import Record

_PAGE = 500


async def walk(storage: Storage, query: Query, page: int = _PAGE) -> AsyncIterator[Record]:
    """The records of a query without a limit, in its order. They are read ``page`` records at a time: each page is of
    its own moment, and what others write in between may be among those that follow."""
    query = replace(query, limit=page)
    while True:
        found = await storage.find(query)
        for record in found.records:
            yield record
        if found.next is None:
            return
        query = replace(query, after=found.next)
