"""storage/feed.py: the newest changes, bounded."""

import asyncio

import pytest

from homeport.storage import Change
from homeport.storage.feed import MAX_BYTES, MAX_CHANGES, Feed


def changes(first: int, last: int, size: int = 2) -> list[Change]:
    return [Change("notes", f"{version}", version, b"x" * size) for version in range(first, last + 1)]


def versions(found: list[Change] | None) -> list[int] | None:
    return None if found is None else [change.version for change in found]


@pytest.fixture
def feed() -> Feed:
    """At version 10."""
    feed = Feed()
    feed.open(10)
    return feed


def test_it_is_closed_until_it_is_opened() -> None:
    feed = Feed()
    assert feed.closed
    feed.open(3)
    assert (feed.closed, feed.version) == (False, 3)


def test_what_is_since_a_version(feed: Feed) -> None:
    feed.publish(changes(11, 12), 12)
    feed.publish([], 12)
    feed.publish(changes(13, 15), 15)
    assert [versions(feed.since(after)) for after in (10, 12, 14, 15)] == [[11, 12, 13, 14, 15], [13, 14, 15], [15], []]
    assert feed.since(9) is None
    assert feed.since(16) is None


def test_a_version_without_a_change(feed: Feed) -> None:
    feed.publish([], 12)
    feed.publish(changes(14, 14), 14)
    assert versions(feed.since(11)) == [14]
    assert versions(feed.since(13)) == [14]


def test_the_oldest_changes_are_forgotten(feed: Feed) -> None:
    feed.publish(changes(11, 10 + MAX_CHANGES), 10 + MAX_CHANGES)
    assert len(feed.since(10) or []) == MAX_CHANGES
    last = 11 + MAX_CHANGES
    feed.publish(changes(last, last), last)
    assert feed.since(10) is None
    kept = next(count for count in range(MAX_CHANGES, 0, -1) if feed.since(last - count) is not None)
    assert MAX_CHANGES // 4 < kept <= MAX_CHANGES
    assert versions(feed.since(last - kept)) == list(range(last - kept + 1, last + 1))
    assert feed.since(last - kept - 1) is None


def test_big_documents_are_forgotten_earlier(feed: Feed) -> None:
    size = MAX_BYTES // 8
    for version in range(11, 60):
        feed.publish(changes(version, version, size), version)
        held = [count for count in range(50) if feed.since(version - count) is not None]
        assert max(held) * size <= MAX_BYTES
    assert versions(feed.since(58)) == [59]


def test_one_change_beyond_the_bound_is_not_kept(feed: Feed) -> None:
    feed.publish(changes(11, 11, MAX_BYTES + 1), 11)
    assert feed.since(10) is None
    assert feed.since(11) == []
    feed.publish(changes(12, 12), 12)
    assert versions(feed.since(11)) == [12]


async def test_beyond_returns_at_once_or_when_the_store_has_moved(feed: Feed) -> None:
    await feed.beyond(9)
    waiting = [asyncio.create_task(feed.beyond(after)) for after in (10, 10, 11, 12)]
    await asyncio.sleep(0)
    for version, done in (11, 2), (12, 3), (13, 4):
        feed.publish(changes(version, version), version)
        for _ in range(3):
            await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True] * done + [False] * (4 - done)


async def test_closing_wakes_everybody(feed: Feed) -> None:
    waiting = [asyncio.create_task(feed.beyond(10)) for _ in range(3)]
    await asyncio.sleep(0)
    feed.close()
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    await feed.beyond(1_000_000)


async def test_opening_begins_anew_and_wakes_who_lags(feed: Feed) -> None:
    feed.publish(changes(11, 12), 12)
    waiting = asyncio.create_task(feed.beyond(12))
    await asyncio.sleep(0)
    feed.open(20)
    async with asyncio.timeout(60):
        await waiting
    assert feed.since(12) is None
    assert feed.since(20) == []


async def test_who_stops_waiting_harms_no_other(feed: Feed) -> None:
    one, other = (asyncio.create_task(feed.beyond(10)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    feed.publish(changes(11, 11), 11)
    async with asyncio.timeout(60):
        await other
