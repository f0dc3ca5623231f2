"""Long work on the event loop, in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

_A_TURN = 256 * 1024
_A_WRITE = 16 * 1024
"""A write to a socket takes about as long as it takes to copy so many bytes."""


class Turns:
    """Lets others have their turn on the loop after every so many bytes, by default what takes a millisecond or so."""

    def __init__(self, every: int = _A_TURN) -> None:
        self._every = every
        self._spent = 0

    async def took(self, size: int) -> None:
        """To be called after each piece of work on so many bytes."""
        self._spent += size
        if self._spent >= self._every:
            self._spent = 0
            await asyncio.sleep(0)

    def wrote(self, size: int = 0) -> Awaitable[None]:
        """To be awaited after each write of so many bytes."""
        return self.took(_A_WRITE + size)
