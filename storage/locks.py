"""A lock per key."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType


class KeyedLocks:
    """Locks by key, handed on in the order in which they were asked for; one exists only while somebody holds it."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def hold(self, keys: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """Holds the locks of all keys, taken in sorted order, so that two holders never wait for each other."""
        return _Hold(self, sorted(set(keys)))

    async def take(self, key: str) -> None:
        """Returns when the caller has the lock, who is to `leave` it."""
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had been handed on to who is cancelled
                self.leave(key)
            raise

    def leave(self, key: str) -> None:
        """Hands a lock on."""
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]


class _Hold(AbstractAsyncContextManager[None]):
    # Rather than a generator, which costs more than an uncontended lock.
    __slots__ = ("_held", "_keys", "_locks")

    def __init__(self, locks: KeyedLocks, keys: list[str]) -> None:
        self._locks = locks
        self._keys = keys
        self._held: list[str] = []

    async def __aenter__(self) -> None:
        try:
            for key in self._keys:
                await self._locks.take(key)
                self._held.append(key)
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        for key in self._held:
            self._locks.leave(key)
