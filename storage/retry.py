"""The one way to read, compute and commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from .base import Storage
from .errors import Conflict

T = TypeVar("T")
MAX_ATTEMPTS = 16


async def retry(storage: Storage, keys: Iterable[str], attempt: Callable[[], Awaitable[T]]) -> T:
    """Runs an ``attempt`` that reads, computes and commits with the versions it read; again while that is a `Conflict`.

    Attempts on one key take turns in this process, so that a conflict can only come from another; the last of 16 is
    raised.
    """
    async with storage.locks.hold(keys):
        for pause in range(MAX_ATTEMPTS - 1):
            try:
                return await attempt()
            except Conflict:
                await asyncio.sleep(0.001 * pause)
        return await attempt()
