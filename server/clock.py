"""What time it is, for everything in the server that asks; tests and the test mode move it."""

from __future__ import annotations

import asyncio
import time

from ..storage.times import SECOND

_LONGEST_WAIT = 60.0
"""Seconds; the system's clock may be set, or the machine may sleep, while a job waits."""


class Clock:
    """The system's clock."""

    def now(self) -> int:
        """Microseconds since 1970-01-01T00:00:00Z."""
        return time.time_ns() // 1000

    async def wait_until(self, when: int) -> None:
        """Returns when `now` is ``when`` or later."""
        while (rest := when - self.now()) > 0:  # noqa: ASYNC110  # no event tells that it is late enough
            await asyncio.sleep(min(rest / SECOND, _LONGEST_WAIT))


class MovableClock(Clock):
    """A clock that stands still where it was moved to, and wakes who waits for a time that it has reached.

    It shows the system's time until it is moved, and again after `reset`. To be moved on the loop that waits.
    """

    def __init__(self, now: int | None = None) -> None:
        self._now = now
        self._moved = asyncio.Event()

    def now(self) -> int:
        return super().now() if self._now is None else self._now

    def move_to(self, now: int) -> None:
        """Stand at ``now``, microseconds since the epoch."""
        self._set(now)

    def advance(self, seconds: float) -> None:
        """Stand ``seconds`` after the present time."""
        self._set(self.now() + round(seconds * SECOND))

    def reset(self) -> None:
        """Show the system's time again."""
        self._set(None)

    def _set(self, now: int | None) -> None:
        self._now = now
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait_until(self, when: int) -> None:
        while (rest := when - self.now()) > 0:
            moved = self._moved.wait()
            if self._now is not None:
                await moved
                continue
            try:
                await asyncio.wait_for(moved, min(rest / SECOND, _LONGEST_WAIT))
            except TimeoutError:
                continue
