"""All of a store at one version: what is copied, and what a backup holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from .records import Change, Changes, Collection, Floor

_PAGE = 100
_PAGE_BYTES = 4 << 20
"""What is read at a time, about; a page of large documents takes several times its size while it is decoded."""


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
    collections: Sequence[Collection], read: Callable[[Collection, int, int], Awaitable[Changes]]
) -> AsyncIterator[Change | Floor]:
    """The ``changes`` of a snapshot; ``read`` gives a page of a collection's: after a version, at most so many."""
    limit = 1
    for collection in collections:
        after, more = 0, True
        while more:
            page = await read(collection, after, limit)
            for change in page.changes:
                yield change
            after, more = page.version, page.more
            largest = max([change.size for change in page.changes], default=0)
            limit = max(1, min(2 * limit, _PAGE, _PAGE_BYTES // (largest + 1)))
        yield Floor(collection.name, page.floor)
