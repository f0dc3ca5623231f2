"""Keeping readers out for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets readers pass, save while somebody has it shut."""

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        while self.closed:
            async with self._changed:
                await self._changed.wait_for(lambda: not self.closed)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self.closed:
                async with self._changed:
                    self._changed.notify_all()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Holds readers back, from when the last of them has come out."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.closed)
            self.closed = True
            await self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            async with self._changed:
                self.closed = False
                self._changed.notify_all()
