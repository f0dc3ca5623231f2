"""All of a store at one version: what is copied, and what a backup holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from .records import Change, Changes, Collection, Floor

PAGE = 100
"""Records that are read at a time: few enough for large documents, and for whoever waits for the same thread."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store held at ``version``: everything up to it, and nothing after.

    ``changes``: its records, tombstones and floors, as `Storage.load` takes them, once; in order of version within a
    collection on most back ends.
    """

    version: int
    collections: tuple[Collection, ...]
    changes: AsyncIterator[Change | Floor]


async def in_pages(
    collections: Sequence[Collection], read: Callable[[Collection, int], Awaitable[Changes]]
) -> AsyncIterator[Change | Floor]:
    """The ``changes`` of a snapshot; ``read`` gives a page of a collection's, after a version."""
    for collection in collections:
        after, more = 0, True
        while more:
            page = await read(collection, after)
            for change in page.changes:
                yield change
            after, more = page.version, page.more
        yield Floor(collection.name, page.floor)
