"""The newest changes of a store, in memory, for whoever watches it live."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Change

MAX_CHANGES = 4096
MAX_BYTES = 16 << 20

_version = attrgetter("version")


class Feed:
    """Remembers the changes after ``floor``: the last 4,096, or less where their documents exceed 16 MiB.

    A watcher asks for what is new since the version it has and waits for more; it holds no queue of its own, so a slow
    one costs nothing and finds, when it returns, that it must read the store.
    """

    def __init__(self) -> None:
        self.version = 0
        self.closed = True
        self._floor = 0
        self._changes: list[Change] = []
        self._bytes = 0
        self._moved: asyncio.Event | None = None  # there while somebody waits

    def open(self, version: int) -> None:
        """Begins anew at a store's version; who waits is woken to read the store."""
        self.closed = False
        self._changes.clear()
        self._bytes = 0
        self._floor = self.version = version
        self._wake()

    def publish(self, changes: Sequence[Change], version: int) -> None:
        """Adds the changes that took the store to a version; wakes who waits."""
        self.version = version
        self._changes += changes
        self._bytes += sum([len(change.document or b"") for change in changes])
        if len(self._changes) > MAX_CHANGES or self._bytes > MAX_BYTES:
            self._forget()
        self._wake()

    def since(self, after: int) -> list[Change] | None:
        """The changes after a version, or None where some of them are forgotten or the version was never reached."""
        if not self._floor <= after <= self.version:
            return None
        return self._changes[bisect_right(self._changes, after, key=_version) :]

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
        while len(self._changes) - count > MAX_CHANGES // 2 or self._bytes - size > MAX_BYTES // 2:
            size += len(self._changes[count].document or b"")
            count += 1
        self._floor = self._changes[count - 1].version
        self._bytes -= size
        self._changes = list(islice(self._changes, count, None))
