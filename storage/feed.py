"""The newest changes of a store, in memory, for whoever watches it live."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .records import Change

MAX_CHANGES = 4096
MAX_BYTES = 16 << 20

_version = attrgetter("version")


class News(Protocol):
    """A change, or what becomes one when somebody watches: few of those that are remembered ever do."""

    @property
    def version(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes of its document."""
        ...

    @property
    def change(self) -> Change: ...


class Feed:
    """Remembers the changes after ``floor``: the last 4,096, or less where their documents exceed 16 MiB.

    A watcher asks for what is new since the version it has and waits for more; it holds no queue of its own, so a slow
    one costs nothing and finds, when it returns, that it must read the store.
    """

    def __init__(self) -> None:
        self.version = 0
        self.closed = True
        self._floor = 0
        self._news: list[News] = []
        self._bytes = 0
        self._moved: asyncio.Event | None = None  # there while somebody waits

    def open(self, version: int) -> None:
        """Begins anew at a store's version; who waits is woken to read the store."""
        self.closed = False
        self._news.clear()
        self._bytes = 0
        self._floor = self.version = version
        self._wake()

    def publish(self, news: Sequence[News], version: int) -> None:
        """Adds the changes that took the store to a version; wakes who waits."""
        self.version = version
        self._news += news
        self._bytes += sum([new.size for new in news])
        if len(self._news) > MAX_CHANGES or self._bytes > MAX_BYTES:
            self._forget()
        self._wake()

    def since(self, after: int) -> list[Change] | None:
        """The changes after a version, or None where some of them are forgotten or the version was never reached."""
        if not self._floor <= after <= self.version:
            return None
        return [new.change for new in self._news[bisect_right(self._news, after, key=_version) :]]

    async def beyond(self, after: int) -> None:
        """Returns when the store has gone beyond a version, or is closed."""
        while self.version <= after and not self.closed:
            if self._moved is None:
                self._moved = asyncio.Event()
            await self._moved.wait()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None

    def _forget(self) -> None:
        # Half at a time, so that forgetting costs little a change.
        count, size = 0, 0
        while len(self._news) - count > MAX_CHANGES // 2 or self._bytes - size > MAX_BYTES // 2:
            size += self._news[count].size
            count += 1
        self._floor = self._news[count - 1].version
        self._bytes -= size
        self._news = list(islice(self._news, count, None))
