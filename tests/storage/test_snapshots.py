"""A snapshot that is read in pages."""

from homeport.storage import Change, Changes, Collection, Floor
from homeport.storage.snapshots import in_pages

NOTES = Collection("notes")


async def limits(sizes: list[int]) -> list[int]:
    """How many records each page was to have, of a collection whose documents have these sizes."""
    changes = [Change("notes", f"{n}", n, b"x" * size) for n, size in enumerate(sizes, 1)]
    asked = []

    async def read(_: Collection, after: int, limit: int) -> Changes:
        asked.append(limit)
        page = changes[after : after + limit]
        more = after + limit < len(changes)
        return Changes(tuple(page), page[-1].version if more else len(changes), more, len(changes), 7)

    assert [change async for change in in_pages([NOTES], read)] == [*changes, Floor("notes", 7)]
    return asked


async def test_pages_grow() -> None:
    assert await limits([100] * 400) == [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]


async def test_pages_of_large_documents_are_small() -> None:
    assert await limits([1 << 20] * 10) == [1, 2, 3, 3, 3]
    assert await limits([8 << 20] * 3) == [1, 1, 1]
    assert await limits([1] * 7 + [2 << 20] * 8 + [1] * 7) == [1, 2, 4, 8, 1, 2, 4]
